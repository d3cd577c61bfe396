"""Projected gradient ascent in the L-infinity ball, for training and evaluation: gradients of the pixels and no others.

Madry et al. 2018 (cross-entropy), Carlini & Wagner 2017 (the margin f_6, which makes PGD the "CW-infinity" of the
literature), and the inner problem of TRADES (Zhang et al. 2019, a divergence from the clean answer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from nullpaper.errors import InputError, check_choice, check_count, check_number
from nullpaper.models.inputs import check_labelled

REACH = 2.5  # Madry et al. 2018: steps that could cross the ball this many radii in all
TRADES_START = 1e-3  # standard deviation of the start, Zhang et al. 2019


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y of logits (B, K), (B,): positive where the answer is wrong (Carlini & Wagner's -f_6)."""
    chosen = labels.unsqueeze(1)
    return logits.scatter(1, chosen, -torch.inf).amax(1) - logits.gather(1, chosen).squeeze(1)


def _divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(softmax of the clean logits || softmax of the logits), both (B, K), (B,)."""
    return kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": partial(cross_entropy, reduction="none"),
    "margin": margin,
    "kl": _divergence,
}
"""What `pgd` makes large, one value an image: functions of logits (B, K) and labels (B,), for "kl" of clean logits."""


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 10,
    loss: str = "ce",
    random_start: bool = True,
    generator: torch.Generator | None = None,
    stop_when_fooled: bool = False,
) -> Tensor:
    """Images (B, C, H, W) within eps of ``images`` in every pixel and in [0, 1], after sign steps that raise a loss.

    A step is 2.5 eps / steps long, and the last iterate is returned. The model keeps its mode, which is the caller's
    choice, and its flags; no parameter gets a gradient. Under DistributedDataParallel pass the bare module.

    Args:
        model: images in [0, 1] -> logits (B, K).
        labels: (B,) whole numbers.
        eps: radius in pixel units; 0 gives the images back.
        loss: one of `LOSSES`.
        random_start: begin at a uniform draw from the ball, for "kl" at Gaussian noise (0.001, as TRADES), which it
            needs, since a divergence has no slope at the clean image.
        generator: of the start, on the CPU, so that every device begins at the same point; None: a fresh one, seed 0.
        stop_when_fooled: keep an image from the first iterate that the model gets wrong, the clean one included, and
            spend no more work on it. For evaluation: much faster, and an image once fooled stays so.

    Raises:
        InputError: unknown loss, eps out of range, steps below 1, and as `check_labelled`.
    """
    check_eps(eps)
    steps = check_count("steps", steps)
    check_choice("loss", loss, LOSSES)
    images, labels = check_labelled(model, images, labels)
    if eps == 0:
        return images.clone()
    generator = generator or torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad(), frozen(model):
        result = images.clone()
        low, high = (result - eps).clamp_min(0), (result + eps).clamp_max(1)
        points = torch.clamp(result + _start(result, eps, loss, generator), low, high) if random_start else result
        with torch.no_grad():
            clean = model(result).float() if stop_when_fooled or loss == "kl" else labels
        state = (points, low, high, labels, clean if loss == "kl" else labels)
        index = torch.arange(len(images), device=images.device)
        if stop_when_fooled:
            index, state = _where(clean.argmax(1) == labels, index, state)
        for _ in range(steps):
            if len(index) == 0:
                break
            moved, logits = _ascend(model, state, REACH * eps / steps, LOSSES[loss])
            points, state = state[0], (moved, *state[1:])
            if stop_when_fooled:
                result[index] = points
                index, state = _where(logits.argmax(1) == state[3], index, state)
        result[index] = state[0]
    return result


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, no parameter asks for gradients, so that nothing is kept for them; each flag is put back after."""
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def check_eps(eps: float, largest: float = 1.0) -> None:
    """Refuse a radius that is no number of pixel units; ``largest`` is where its norm has the whole box in the ball.

    Raises:
        InputError: eps is not finite, negative, or above ``largest``.
    """
    check_number("eps", eps, 0, math.inf, "[)", ", in pixel units")
    if eps > largest:
        raise InputError(
            f"eps={eps} is above {largest:.4g}, the whole box [0, 1], so probably in 0-255 units; divide by 255."
        )


def _start(images: Tensor, eps: float, loss: str, generator: torch.Generator) -> Tensor:
    if loss == "kl":
        return TRADES_START * torch.randn(images.shape, generator=generator).to(images)
    return eps * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)


def _where(right: Tensor, index: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The images on which the model is still ``right`` (B,) bool, packed anew."""
    return index[right], tuple(part[right] for part in state)


def _ascend(
    model: Callable[[Tensor], Tensor], state: tuple[Tensor, ...], step_size: float, loss: Callable
) -> tuple[Tensor, Tensor]:
    """One step, and the logits of where it began."""
    points, low, high, _, target = state
    points = points.detach().requires_grad_()
    logits = model(points).float()
    (gradient,) = torch.autograd.grad(loss(logits, target).sum(), points)
    return torch.clamp(points.detach() + step_size * gradient.sign(), low, high), logits.detach()
