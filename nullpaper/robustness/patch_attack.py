"""An attack on one patch of each image, in the manner of Patch-Fool (Fu et al., ICLR 2022).

Taken over: the patch is the one that gets most attention in block 4, and Adam changes all its pixels. Left out: the
attention paid to the patch, as a second loss, and the projection of conflicting gradients (PCGrad) between the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nullpaper.models.attention import attention_weights
from nullpaper.models.vit import ViT, unpatchify

LAYER = 4  # upstream's, counted from 0
RATE, DECAY, EVERY = 0.05, 0.95, 10  # upstream: 0.22 standard deviations, of about 0.25 each, for 250 steps
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam


def patch_attack(vit: ViT, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    """Images (B, C, H, W) in [0, 1] of which one patch each was changed, by at most eps in every pixel.

    Adam with a rate that falls by 0.95 every 10 steps raises the cross-entropy from a uniform start, drawn from the
    seed. An image is kept from its first iterate that fools, and otherwise at its highest cross-entropy, the clean
    image included; no more work is spent on images that are fooled. The model must be in evaluation mode.

    Raises:
        InputError: attention that cannot be read.
    """
    draws = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    low, high, mask = (images - eps).clamp_min(0), (images + eps).clamp_max(1), _mask(vit, images)
    with torch.no_grad():
        best, highest = images.clone(), cross_entropy(vit(images), labels, reduction="none")
    points = torch.where(mask, low + draws * (high - low), images)
    first, second = torch.zeros_like(points), torch.zeros_like(points)  # Adam's moments
    rows = torch.arange(len(images), device=images.device)  # the images that are not fooled yet
    for step in range(steps + 1):
        points = points.detach().requires_grad_()
        logits = vit(points)
        loss = cross_entropy(logits, labels[rows], reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        points, loss, right = points.detach(), loss.detach(), logits.argmax(1) == labels[rows]
        better = (loss > highest[rows]) | ~right
        best[rows[better]], highest[rows[better]] = points[better], loss[better]
        if step == steps or not right.any():
            break
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        rate = RATE * DECAY ** (step // EVERY) / (1 - BETAS[0] ** (step + 1))
        moved = points + rate * first / ((second / (1 - BETAS[1] ** (step + 1))).sqrt() + TINY)
        points = torch.where(mask[rows], torch.clamp(moved, low[rows], high[rows]), points)
        points, first, second, rows = (part[right] for part in (points, first, second, rows))
    return best


def chosen_patch(vit: ViT, images: Tensor) -> Tensor:
    """Index (B,) of the patch to change: the most attended in block 4 (or the last), over heads and tokens."""
    with torch.no_grad():
        weights = attention_weights(vit, images)
    count = vit.grid_size[0] * vit.grid_size[1]
    return weights[min(LAYER, len(weights) - 1)].mean((1, 2))[:, -count:].argmax(1)


def _mask(vit: ViT, images: Tensor) -> Tensor:
    """Which pixels of images (B, C, H, W) belong to the patches of `chosen_patch`."""
    count = vit.grid_size[0] * vit.grid_size[1]
    patches = torch.zeros(len(images), count, images[0].numel() // count, device=images.device)
    patches[torch.arange(len(images), device=images.device), chosen_patch(vit, images)] = 1
    return unpatchify(patches, vit.image_size, vit.patch_size).bool()
