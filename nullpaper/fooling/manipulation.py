"""Small noise that keeps a prediction and moves its explanation (Ghorbani et al. 2019, Dombrowski et al. 2019).

Projected sign descent on the correlation between the map of the noisy image and that of the clean one, inside an
L-infinity ball and the pixel box, with a penalty on the change of the softmax. Every image keeps the best of its
iterates that meet the constraint; where none does, it keeps no noise at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nullpaper.errors import check_count, check_number, check_seed
from nullpaper.fooling.explanations import Attribution, attribution, check_explained, in_batches, patch_values
from nullpaper.models.attention import explicit_attention
from nullpaper.models.predict import answers, check_influence, probability_gap
from nullpaper.models.vit import ViT, per_image

FIRST_STEP = 0.25  # of the radius
LAST_STEP = 0.1
PENALTY = 1.0  # on the excess over half of eps, in units of eps
MARGIN = 0.999  # of eps: the fused kernel, which has the last word, rounds otherwise


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation (B,) of maps (B, N), differentiable; 0 where one is constant."""
    first, second = (maps - maps.mean(1, keepdim=True) for maps in (first, second))
    tiny = torch.finfo(first.dtype).tiny
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1)).clamp_min(tiny)


def manipulate(
    vit: ViT,
    images: Tensor,
    name: str,
    *,
    radius: float = 8 / 255,
    eps: float = 0.01,
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    """Noise (B, C, H, W) that moves the map of method ``name``, summed over each patch, as far as it can.

    min_v corr(map(x + v), map(x)) subject to |v|_inf <= radius, x + v in [0, 1], |softmax(x + v) - softmax(x)|^2 <= eps
    and the same predicted class, which both maps explain.

    Args:
        vit: in evaluation mode; its flags, hooks and gradients are left as they were.
        images: (B, C, H, W) in [0, 1], each for itself, in batches as `in_batches` makes them.
        radius: in pixel units.
        eps: in (0, 2), bounds the squared L2 distance between softmax vectors, for each image.

    Raises:
        InputError: as `attribute`, or radius, eps, steps or seed out of range.
    """
    check_number("radius", radius, 0, 1, "(]", ", in pixel units")
    check_influence(eps)
    steps = check_count("steps", steps)
    seed = check_seed(seed)
    method = attribution(name)
    with torch.inference_mode(False):  # with gradients, whatever holds outside
        images, target = check_explained(vit, images)
        start = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images) * 2 - 1
        batches = in_batches(vit, images, target, start)
        with explicit_attention(vit):
            noises = [_descend(vit, *batch, method, radius, eps, steps) for batch in batches]
            return torch.cat(noises)


def _descend(
    vit: ViT,
    images: Tensor,
    target: Tensor,
    start: Tensor,
    method: Attribution,
    radius: float,
    eps: float,
    steps: int,
) -> Tensor:
    """The best iterate of each image that meets the constraint, or zero; ``start`` is in units of the first step."""
    low, high = (images - radius).clamp(0, 1) - images, (images + radius).clamp(0, 1) - images
    # not from zero, where the correlation is at its maximum and its gradient vanishes
    noise = (start * radius * FIRST_STEP).clamp(low, high)
    clean_logits = answers(vit, images)
    clean = patch_values(method.compute(vit, images.clone().requires_grad_(), target, False), vit).detach()
    best, least = torch.zeros_like(images), torch.ones_like(images[:, 0, 0, 0])
    for step in range(steps + 1):
        noise.requires_grad_()
        maps, logits = _map_and_logits(vit, images + noise, target, method)
        similarity = correlation(patch_values(maps, vit), clean)
        gap = probability_gap(logits, clean_logits)
        better = (similarity < least) & (gap <= MARGIN * eps) & (logits.argmax(1) == target)
        best = torch.where(per_image(better), noise.detach(), best)
        least = torch.where(better, similarity.detach(), least)
        loss = similarity + PENALTY * (gap / eps - 0.5).clamp_min(0)
        (gradient,) = torch.autograd.grad(loss.sum(), noise)
        length = radius * FIRST_STEP * LAST_STEP ** (step / steps)
        noise = (noise.detach() - length * gradient.sign()).clamp(low, high)
    return best


def _map_and_logits(vit: ViT, images: Tensor, target: Tensor, method: Attribution) -> tuple[Tensor, Tensor]:
    """The differentiable map, and the logits from the forward pass that it makes anyway (but for methods on a path)."""
    outputs: list[Tensor] = []
    handle = vit.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        maps = method.compute(vit, images, target, True)
    finally:
        handle.remove()
    return maps, outputs[0] if len(outputs) == 1 and len(outputs[0]) == len(images) else vit(images)
