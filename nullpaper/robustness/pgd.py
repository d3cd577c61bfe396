"""Projected gradient ascent in the L-infinity ball, for training and evaluation: gradients of the pixels and no others.

Madry et al. 2018 (cross-entropy), Carlini & Wagner 2017 (the margin f_6, which makes PGD the "CW-infinity" of the
literature), and the inner problem of TRADES (Zhang et al. 2019, a divergence from the clean answer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from nullpaper.errors import InputError, check_count, nearest

REACH = 2.5  # Madry et al. 2018: steps that could cross the ball this many radii in all
TRADES_START = 1e-3  # standard deviation of the start, Zhang et al. 2019


def margin(logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> Tensor:
    """max_{k != y} z_k - z_y of logits (B, K), (B,): positive where the answer is wrong (Carlini & Wagner's -f_6)."""
    chosen = labels.unsqueeze(1)
    return logits.scatter(1, chosen, -torch.inf).amax(1) - logits.gather(1, chosen).squeeze(1)


def _cross_entropy(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


def _divergence(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
    """KL(softmax of the reference || softmax of the logits), (B,)."""
    clean = reference.log_softmax(1)
    return kl_div(logits.log_softmax(1), clean, reduction="none", log_target=True).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "ce": _cross_entropy,
    "margin": margin,
    "kl": _divergence,
}
"""What `pgd` makes large: functions of logits (B, K), labels (B,) and reference logits (B, K), one value an image."""

STARTS = ("uniform", "gaussian", "zero")


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "ce",
    start: str | None = None,
    generator: torch.Generator | None = None,
    stop_when_fooled: bool = False,
    reference: Tensor | None = None,
) -> Tensor:
    """Images (B, C, H, W) within eps of ``images`` in every pixel and in [0, 1], after sign steps that raise a loss.

    The last iterate is returned. The model keeps its mode, which is the caller's choice, and its flags; no parameter
    gets a gradient. Under DistributedDataParallel pass the bare module.

    Args:
        model: images in [0, 1] -> logits (B, K).
        labels: (B,) int64, on the images' device.
        eps: radius in pixel units; 0 gives the images back.
        step_size: in pixel units; None: 2.5 eps / steps.
        loss: one of `LOSSES`.
        start: one of `STARTS`: uniform in the ball, Gaussian (0.001, as TRADES), or none; None: Gaussian for "kl", else
            uniform.
        generator: of the start, on the CPU, so that every device begins at the same point; None: a fresh one, seed 0.
        stop_when_fooled: keep an image from the first iterate that the model gets wrong, the clean one included, and
            spend no more work on it. For evaluation: much faster, and an image once fooled stays so.
        reference: logits (B, K) that "kl" moves away from; None: the model's on the clean images.

    Raises:
        InputError: unknown loss or start, eps or step size out of range, steps below 1, a generator of another device.
    """
    step_size, start = _checked(eps, steps, step_size, loss, start, generator)
    if eps == 0 or len(images) == 0:
        return images.detach().clone()
    with torch.inference_mode(False), torch.enable_grad(), frozen(model):
        images, labels = images.detach().clone(), labels.clone()  # what comes out of inference mode has no gradients
        low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
        points = torch.clamp(images + _start(images, eps, start, generator), low, high)
        clean = _plain(model, images) if stop_when_fooled or (loss == "kl" and reference is None) else labels
        reference = clean if reference is None else reference.detach().clone()
        if stop_when_fooled:
            state = (points, low, high, labels, reference)
            return _until_fooled(model, images, state, clean.argmax(1) == labels, steps, step_size, loss)
        for _ in range(steps):
            points, _ = _ascend(model, points, low, high, labels, reference, step_size, loss)
    return points


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
    if isinstance(eps, bool) or not isinstance(eps, Real) or not math.isfinite(eps) or eps < 0:
        raise InputError(f"eps={eps} must be a finite number of at least 0, in pixel units.")
    if eps > largest:
        raise InputError(
            f"eps={eps} is above {largest:.4g}, the whole box [0, 1], so probably in 0-255 units; divide by 255."
        )


def _checked(
    eps: float,
    steps: int,
    step_size: float | None,
    loss: str,
    start: str | None,
    generator: torch.Generator | None,
) -> tuple[float, str]:
    """The step size and the start, or an `InputError`."""
    check_eps(eps)
    check_count("steps", steps)
    if loss not in LOSSES:
        raise InputError(f"loss {loss!r} is unknown.{nearest(str(loss), LOSSES)} Choose from {[*LOSSES]}.")
    start = start or ("gaussian" if loss == "kl" else "uniform")
    if start not in STARTS:
        raise InputError(f"start {start!r} is unknown.{nearest(str(start), STARTS)} Choose from {[*STARTS]}.")
    if loss == "kl" and start == "zero":
        raise InputError("a divergence has no slope at the clean image; start 'kl' from 'gaussian' or 'uniform'.")
    if generator is not None and generator.device.type != "cpu":
        raise InputError("the generator must be on the CPU, so that every device draws the same start.")
    step_size = REACH * eps / steps if step_size is None else step_size
    if not math.isfinite(step_size) or step_size < 0:
        raise InputError(f"step_size={step_size} must be a finite number of at least 0, in pixel units.")
    return step_size, start


def _start(images: Tensor, eps: float, start: str, generator: torch.Generator | None) -> Tensor:
    if start == "zero":
        return torch.zeros_like(images)
    generator = generator or torch.Generator().manual_seed(0)
    if start == "gaussian":
        return TRADES_START * torch.randn(images.shape, generator=generator).to(images)
    return eps * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)


def _plain(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).float()


def _ascend(
    model: Callable[[Tensor], Tensor],
    points: Tensor,
    low: Tensor,
    high: Tensor,
    labels: Tensor,
    reference: Tensor,
    step_size: float,
    loss: str,
) -> tuple[Tensor, Tensor]:
    """One step, and the logits of where it began."""
    points = points.detach().requires_grad_()
    logits = model(points).float()
    (gradient,) = torch.autograd.grad(LOSSES[loss](logits, labels, reference).sum(), points)
    points = points.detach()
    return torch.clamp(points + step_size * gradient.sign(), low, high), logits.detach()


def _until_fooled(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    state: tuple[Tensor, ...],
    right: Tensor,
    steps: int,
    step_size: float,
    loss: str,
) -> Tensor:
    """The ascent on the images that are still ``right`` (B,) bool, packed anew whenever some are not."""
    result, index = images.clone(), right.nonzero().squeeze(1)
    state = tuple(part[right] for part in state)
    for _ in range(steps):
        if len(index) == 0:
            break
        points, *rest = state
        result[index] = points
        moved, logits = _ascend(model, points, *rest, step_size, loss)
        right = logits.argmax(1) == rest[2]
        if right.all():
            state = (moved, *rest)
        else:
            index, state = index[right], tuple(part[right] for part in (moved, *rest))
    if len(index):
        result[index] = state[0]
    return result
