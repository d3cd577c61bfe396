"""An attack on one patch of each image, in the manner of Patch-Fool (Fu et al., ICLR 2022).

Taken over: the patch is the one that gets most attention in block 4, Adam changes all its pixels, and the loss may add
the attention paid to it. Left out: the projection of conflicting gradients (PCGrad) between the two losses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nullpaper.errors import InputError, check_count, nearest
from nullpaper.models.attention import explicit_attention
from nullpaper.models.vit import ViT, patchify, unpatchify
from nullpaper.robustness.pgd import check_eps, frozen

LAYER = 4  # upstream's, counted from 0
RATE, DECAY, EVERY = 0.05, 0.95, 10  # upstream: 0.22 standard deviations, of about 0.25 each, for 250 steps
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam
CHOICES = ("attention", "saliency")


def patch_attack(
    vit: ViT,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 1.0,
    steps: int = 40,
    choice: str = "attention",
    attention_weight: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] of which one patch each was changed, by at most eps in every pixel.

    Adam with a rate that falls by 0.95 every 10 steps raises the cross-entropy from a uniform start. An image is kept
    from its first iterate that fools, and otherwise at its highest cross-entropy, the clean image included.

    Args:
        choice: of the patch, by "attention" (`chosen_patch`) or by "saliency", the largest |gradient| over its pixels.
        attention_weight: of the log-attention that the patch gets, averaged over blocks, heads and tokens; 0.002
            upstream. It needs attention without fused kernels, which is slower.
        generator: of the start, on the CPU; None: a fresh one, seed 0.

    Raises:
        InputError: eps or steps out of range, an unknown choice, or attention that cannot be read.
    """
    check_eps(eps)
    check_count("steps", steps)
    if choice not in CHOICES:
        raise InputError(f"choice {choice!r} is unknown.{nearest(str(choice), CHOICES)} Choose from {[*CHOICES]}.")
    images = images.detach()
    if eps == 0 or len(images) == 0:
        return images.clone()
    draws = torch.rand(images.shape, generator=generator or torch.Generator().manual_seed(0)).to(images)
    with torch.inference_mode(False), torch.enable_grad(), frozen(vit):
        images, labels = images.clone(), labels.clone()
        index = chosen_patch(vit, images, labels, choice)
        low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
        start = torch.where(_mask(vit, images, index), low + draws * (high - low), images)
        return _climb(vit, images, labels, index, start, eps, steps, attention_weight)


def chosen_patch(vit: ViT, images: Tensor, labels: Tensor, choice: str = "attention") -> Tensor:
    """Index (B,) of the patch to change: the most attended in block 4 (or the last), over heads and tokens.

    Raises:
        InputError: the blocks do not show their attention.
    """
    if choice == "attention":
        with torch.no_grad():
            weights = _with_attention(vit, images)[1]
        return weights[min(LAYER, len(weights) - 1)].mean((1, 2))[:, -_patches(vit) :].argmax(1)
    points = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(vit(points), labels, reduction="sum"), points)
    return patchify(gradient.abs(), vit.patch_size).sum(-1).argmax(1)


def _climb(
    vit: ViT,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    start: Tensor,
    eps: float,
    steps: int,
    attention_weight: float,
) -> Tensor:
    """Adam on the patch's pixels of the images that are not fooled yet, packed anew whenever some are."""
    with torch.no_grad():
        best, highest = images.clone(), cross_entropy(vit(images), labels, reduction="none")
    low, high, mask = (images - eps).clamp_min(0), (images + eps).clamp_max(1), _mask(vit, images, index)
    points, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    rows = torch.arange(len(images), device=images.device)
    for step in range(steps + 1):
        gradient, loss, logits = _gradient(vit, points, labels[rows], index[rows], attention_weight)
        right = logits.argmax(1) == labels[rows]
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


def _gradient(
    vit: ViT, points: Tensor, labels: Tensor, index: Tensor, attention_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective's gradient, and cross-entropy (B,) and logits at the points."""
    points = points.detach().requires_grad_()
    logits, weights = _with_attention(vit, points) if attention_weight else (vit(points), [])
    loss = cross_entropy(logits, labels, reduction="none")
    objective = loss.sum()
    for attention in weights:
        paid = attention.mean(1)[:, :, -_patches(vit) :]
        column = paid.gather(2, index.view(-1, 1, 1).expand(-1, paid.shape[1], 1))
        objective = objective + attention_weight * column.clamp_min(TINY).log().mean((1, 2)).sum() / len(weights)
    (gradient,) = torch.autograd.grad(objective, points)
    return gradient, loss.detach(), logits.detach()


def _with_attention(vit: ViT, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the attention (B, heads, T, T) of each block as it enters timm's dropout."""
    weights: list[Tensor] = []
    with explicit_attention(vit):
        drops = [block.attn.attn_drop for block in vit.net.blocks]
        handles = [drop.register_forward_hook(lambda _, inputs, output: weights.append(inputs[0])) for drop in drops]
        try:
            logits = vit(images)
        finally:
            for handle in handles:
                handle.remove()
    return logits, weights


def _patches(vit: ViT) -> int:
    return vit.grid_size[0] * vit.grid_size[1]


def _mask(vit: ViT, images: Tensor, index: Tensor) -> Tensor:
    """Which pixels of images (B, C, H, W) belong to the patches ``index`` (B,)."""
    patches = torch.zeros(len(images), _patches(vit), images[0].numel() // _patches(vit), device=images.device)
    patches[torch.arange(len(images), device=images.device), index] = 1
    return unpatchify(patches, vit.image_size, vit.patch_size).bool()
