"""Projected gradient ascent in the L-infinity ball, for training and evaluation: gradients of the pixels and no others.

Madry et al. 2018 (cross-entropy), Carlini & Wagner 2017 (the margin f_6, which makes PGD the "CW-infinity" of the
literature), the inner problem of TRADES (Zhang et al. 2019, a divergence from the clean answer), and momentum (Dong et
al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from nullpaper.errors import InputError, check_choice, check_count, check_number
from nullpaper.models.gradients import chunks, fast_gradients, frozen
from nullpaper.models.graphs import by_rows
from nullpaper.models.inputs import check_labelled
from nullpaper.models.predict import answers
from nullpaper.models.vit import per_image

REACH = 2.5  # Madry et al. 2018: steps that could cross the ball this many radii in all
REPACK = {False: 1, True: 5}  # steps after which fooled images are taken out: on a GPU it means waiting for the card
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
    generator = generator or torch.Generator().manual_seed(0)
    begin = start(images, eps, loss, generator) if random_start else images
    rows = torch.arange(len(images), device=images.device)
    if stop_when_fooled and eps > 0:
        rows = rows[answers(model, images).argmax(1) == labels]
    if eps == 0 or len(rows) == 0:
        return images.clone()
    with frozen(model), fast_gradients(model, exact=stop_when_fooled):
        parts = (part[rows] for part in (images, labels, begin))
        found = ascent(model, *parts, eps=eps, steps=steps, loss=loss, stop_when_fooled=stop_when_fooled)
    return images.index_copy(0, rows, found)


def start(images: Tensor, eps: float, loss: str, generator: torch.Generator) -> Tensor:
    """A draw around images, for "kl" Gaussian (0.001), else uniform in the ball, from a generator on the CPU."""
    if loss == "kl":
        return images + TRADES_START * torch.randn(images.shape, generator=generator).to(images)
    return images + eps * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)


def ascent(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    begin: Tensor,
    *,
    eps: float,
    steps: int,
    loss: str = "ce",
    stop_when_fooled: bool = False,
    reach: float = REACH,
    momentum: float = 0.0,
) -> Tensor:
    """`pgd` without its checks, to be called inside `frozen` and `fast_gradients`; nothing of it waits for a GPU.

    Args:
        images, labels: as `check_labelled` returns them.
        begin: the first iterate, as `start` draws it.
        eps: above 0.
        stop_when_fooled: of images that the model gets right; it waits for a GPU every few steps.
        reach: the length of all steps together, in radii.
        momentum: mu of Dong et al. 2018; 0: each step has the sign of its own gradient.
    """
    step, function = partial(_ascend, step_size=reach * eps / steps, momentum=momentum), LOSSES[loss]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        images, labels, begin = images.clone(), labels.clone(), begin.clone()  # inference mode might have made them
        low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
        target = answers(model, images).float() if loss == "kl" else labels
        state = (torch.clamp(begin, low, high), torch.zeros_like(images), low, high, labels, target)
        if stop_when_fooled:
            return _ascend_until_fooled(model, state, step, steps, function)
        for _ in range(steps):
            state = step(model, state, function)[0]
    return state[0]


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


def _ascend_until_fooled(
    model: Callable[[Tensor], Tensor], state: tuple[Tensor, ...], step: Callable, steps: int, loss: Callable
) -> Tensor:
    """The first iterates that fool, or the last ones; the images that still stand are packed anew now and then."""
    result, rows = state[0].clone(), torch.arange(len(state[0]), device=state[0].device)
    standing = torch.ones_like(rows, dtype=torch.bool)
    for number in range(1, steps + 1):
        moved, logits = step(model, state, loss)
        standing = standing & (logits.argmax(1) == state[4])
        state = (torch.where(per_image(standing), moved[0], state[0]), *moved[1:])
        if number % REPACK[rows.device.type == "cuda"] == 0 or number == steps:
            result[rows] = state[0]
            rows, standing, *state = (part[standing] for part in (rows, standing, *state))
            if len(rows) == 0:
                break
    return result


def _ascend(
    model: Callable[[Tensor], Tensor], state: tuple[Tensor, ...], loss: Callable, *, step_size: float, momentum: float
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The state after a step, and the logits of where it began."""
    points, pull, low, high, _, target = state
    slope, logits = gradient(model, points, target, loss)
    if momentum:
        lengths = slope.flatten(1).abs().sum(1).clamp_min(torch.finfo(slope.dtype).tiny)
        slope = momentum * pull + slope / per_image(lengths)
    return (torch.clamp(points + step_size * slope.sign(), low, high), slope, *state[2:]), logits


def gradient(
    model: Callable[[Tensor], Tensor], points: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """That of a loss of logits (B, K) and ``target`` (B, ...) by the points (B, C, H, W), and the logits."""
    of_part = partial(_gradient, loss)
    slopes, logits = zip(*(by_rows(of_part, model, *part) for part in chunks(points, target)), strict=True)
    return torch.cat(slopes), torch.cat(logits)


def _gradient(
    loss: Callable, model: Callable[[Tensor], Tensor], points: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    points = points.detach().requires_grad_()
    logits = model(points).float()
    return torch.autograd.grad(loss(logits, target).sum(), points)[0], logits.detach()
