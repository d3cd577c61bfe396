"""The images nearest to given ones that a network answers in a given way: one descent for lookalikes and attacks.

The alternation follows the minimum-norm attacks that keep a point next to the decision boundary (DDN, Rony et al. 2019;
FMN, Pintor et al. 2021), with Polyak's step length for the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nullpaper.models.predict import answers
from nullpaper.models.vit import norms, per_image

Feasible = Callable[[Tensor], Tensor]
"""Which logits (B, K) will do, (B,) bool."""

SHRINK = (0.3, 0.02)  # share of the distance to the anchor given up at a feasible point: at the first and last step
STRIDE, MOMENTUM = 0.5, 0.75  # longest step at an infeasible point, L2 in pixel units, and its memory
BISECTIONS = 10  # the segment's crossing to a thousandth of its length


def descend(
    model: nn.Module,
    anchors: Tensor,
    start: Tensor,
    wanted: Tensor,
    feasible: Feasible,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The feasible images nearest to ``anchors`` that a descent from ``start`` meets, and where there were any.

    A feasible point gives up a share of its distance to the anchor. Another one takes a Polyak step on the divergence
    KL(wanted || softmax f), whose minimum is known to be 0: divergence / gradient norm long, at most `STRIDE`, so that
    steps shorten towards the boundary. Where the two cancel, anchor and gradient are in line, as at an optimum.
    """
    entropy = -torch.special.xlogy(wanted, wanted).sum(1)
    tiny = torch.finfo(anchors.dtype).tiny
    y, best, memory = start.clone(), start.clone(), torch.zeros_like(start)
    length = torch.full_like(entropy, torch.inf)
    for step in range(steps):
        divergence, gradient, logits = _divergence(model, y, wanted)
        distance, reached = norms(y - anchors), feasible(logits)
        nearer = reached & (distance < length)
        length, best = torch.where(nearer, distance, length), torch.where(per_image(nearer), y, best)
        slope = norms(gradient).clamp_min(tiny)
        stride = ((divergence - entropy).clamp_min(0) / slope).clamp_max(STRIDE)
        memory = MOMENTUM * memory + gradient / per_image(slope)
        downhill = y - memory * per_image(stride / norms(memory).clamp_min(tiny))
        share = SHRINK[1] + (SHRINK[0] - SHRINK[1]) * (1 + math.cos(math.pi * step / steps)) / 2
        y = torch.where(per_image(reached), torch.lerp(y, anchors, share), downhill).clamp(0, 1)
    success = length.isfinite()
    return torch.where(per_image(success), bisect_segment(model, feasible, best, anchors), best), success


def _divergence(model: nn.Module, images: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy (B,) of the model's answer against ``wanted``, its gradient at the pixels, and the logits."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        loss = -(wanted * logits.log_softmax(1)).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), images)
    return loss.detach(), gradient, logits.detach()


def bisect_segment(model: nn.Module, feasible: Feasible, inside: Tensor, outside: Tensor) -> Tensor:
    """A feasible point on the segment from ``inside``, which is feasible, towards ``outside``, near a crossing."""
    low, high = inside.new_zeros(len(inside)), inside.new_ones(len(inside))
    low = torch.where(feasible(answers(model, outside)), high, low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        good = feasible(answers(model, torch.lerp(inside, outside, per_image(middle))))
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.lerp(inside, outside, per_image(low))
