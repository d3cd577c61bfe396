"""Attacks on one patch of each image: Patch-Fool (Fu et al., ICLR 2022), and the same without its attention term.

The patch is the one that gets most attention in block 4, and Adam changes all its pixels. Patch-Fool raises, beside the
cross-entropy, the attention that all tokens pay to the patch in the first half of the blocks but the first (in its
authors' code the mean of the logarithm), after what conflicts with the cross-entropy is projected out of its gradient.
That code has the term switched off by default, so that a published "Patch-Fool" may be either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nullpaper.models.attention import attention_weights, logits_and_attention
from nullpaper.models.gradients import chunks
from nullpaper.models.vit import ViT, per_image, unpatchify
from nullpaper.robustness.pgd import LOSSES, gradient

LAYER = 4  # upstream's, counted from 0
RATE, DECAY, EVERY = 0.05, 0.95, 10  # upstream: 0.22 standard deviations, of about 0.25 each, for 250 steps
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam
ATTENTION = 0.002  # upstream's weight of each block's attention


def patch_attack(
    vit: ViT, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int, attention: float = 0.0
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] of which one patch each was changed, by at most eps in every pixel.

    Adam with a rate that falls by 0.95 every 10 steps raises the cross-entropy from a uniform start, drawn from the
    seed. An image is kept from its first iterate that fools, and otherwise at its highest cross-entropy, the clean
    image included; no more work is spent on images that are fooled. The model must be in evaluation mode.

    Args:
        attention: weight of the attention to the patch; `ATTENTION` makes it Patch-Fool, 0 leaves the term out.

    Raises:
        InputError: attention that cannot be read.
    """
    draws = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    low, high, patches = (images - eps).clamp_min(0), (images + eps).clamp_max(1), chosen_patch(vit, images)
    mask = _mask(vit, images, patches)
    with torch.no_grad():
        best, highest = images.clone(), cross_entropy(vit(images), labels, reduction="none")
    points = torch.where(mask, low + draws * (high - low), images)
    first, second = torch.zeros_like(points), torch.zeros_like(points)  # Adam's moments
    rows = torch.arange(len(images), device=images.device)  # the images that are not fooled yet
    for step in range(steps + 1):
        slope, logits = _slope(vit, points, labels[rows], patches[rows], mask[rows], attention)
        loss, right = cross_entropy(logits, labels[rows], reduction="none"), logits.argmax(1) == labels[rows]
        better = (loss > highest[rows]) | ~right
        best[rows[better]], highest[rows[better]] = points[better], loss[better]
        if step == steps or not right.any():
            break
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
        rate = RATE * DECAY ** (step // EVERY) / (1 - BETAS[0] ** (step + 1))
        moved = points + rate * first / ((second / (1 - BETAS[1] ** (step + 1))).sqrt() + TINY)
        points = torch.where(mask[rows], torch.clamp(moved, low[rows], high[rows]), points)
        points, first, second, rows = (part[right] for part in (points, first, second, rows))
    return best


def _slope(
    vit: ViT, points: Tensor, labels: Tensor, patches: Tensor, mask: Tensor, attention: float
) -> tuple[Tensor, Tensor]:
    """Where the patches should go, (B, C, H, W), and the logits of the points."""
    if not attention:
        return gradient(vit, points, labels, LOSSES["ce"])
    parts = (_attended(vit, *part, attention) for part in chunks(points, labels, patches, mask))
    slopes, logits = zip(*parts, strict=True)
    return torch.cat(slopes), torch.cat(logits)


def _attended(
    vit: ViT, points: Tensor, labels: Tensor, patches: Tensor, mask: Tensor, attention: float
) -> tuple[Tensor, Tensor]:
    """`_slope` with the gradient of each block's attention to the patch beside that of the cross-entropy."""
    points = points.detach().requires_grad_()
    logits, weights = logits_and_attention(vit, points)

    def by_points(values: Tensor) -> Tensor:
        return torch.autograd.grad(values.sum(), points, retain_graph=True)[0] * mask

    surprise = by_points(cross_entropy(logits, labels, reduction="none"))
    total, rows = surprise, torch.arange(len(points), device=points.device)
    for block in weights[1 : len(weights) // 2] or weights[-1:]:
        paid = block.mean(1)[..., -_count(vit) :][rows, :, patches]  # by every token, (B, T)
        pull = by_points(paid.clamp_min(torch.finfo(paid.dtype).tiny).log().mean(1))
        total = total + attention * without_conflict(pull, surprise)
    return total, logits.detach()


def without_conflict(slope: Tensor, first: Tensor) -> Tensor:
    """A gradient (B, ...) without its part against another one, image by image (PCGrad: Yu et al. 2020).

    Where <slope, first> < 0, what is left is orthogonal to ``first``. (The authors' code divides by the norm of
    ``first`` where the projection, and the paper, have its square.)
    """
    along, length = ((slope * first).flatten(1).sum(1), first.flatten(1).square().sum(1))
    share = along.clamp_max(0) / length.clamp_min(torch.finfo(length.dtype).tiny)
    return slope - per_image(share) * first


def chosen_patch(vit: ViT, images: Tensor) -> Tensor:
    """Index (B,) of the patch to change: the most attended in block 4 (or the last), over heads and tokens."""
    with torch.no_grad():
        weights = attention_weights(vit, images)
    return weights[min(LAYER, len(weights) - 1)].mean((1, 2))[:, -_count(vit) :].argmax(1)


def _count(vit: ViT) -> int:
    return vit.grid_size[0] * vit.grid_size[1]


def _mask(vit: ViT, images: Tensor, chosen: Tensor) -> Tensor:
    """Which pixels of images (B, C, H, W) belong to the patches ``chosen`` (B,)."""
    patches = torch.zeros(len(images), _count(vit), images[0].numel() // _count(vit), device=images.device)
    patches[torch.arange(len(images), device=images.device), chosen] = 1
    return unpatchify(patches, vit.image_size, vit.patch_size).bool()
