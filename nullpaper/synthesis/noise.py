"""The approximate nullspace: universal noise that a frozen model ignores (paper A, equations 6 and 7; paper C).

The epsilon form asks for the largest noise whose influence stays within eps, the exploratory form minimises
E ||z' - z|| - lambda log ||v||. Both are solved in polar coordinates: Adam turns the direction towards less influence,
and the radius follows the constraint, or the stationarity condition of the logarithm. The epsilon form then puts the
result on the boundary by its scale, and verifies it on images that took no part in either.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nullpaper.errors import InputError, check_count
from nullpaper.models.vit import ViT
from nullpaper.synthesis.ascent import (
    FINE_RATE,
    STEPS,
    TURN_RATE,
    NonFiniteLoss,
    Record,
    Task,
    of_norm,
    polar,
    published,
)
from nullpaper.synthesis.influence import (
    Batches,
    EncoderNoise,
    InputNoise,
    Model,
    Noise,
    Pool,
    at_boundary,
    check_noise,
    noise_influence,
    read_pool,
)
from nullpaper.synthesis.linearised import Linearised

__all__ = [
    "CONTROLS",
    "EncoderNoise",
    "InputNoise",
    "NonFiniteLoss",
    "encoder_noise",
    "input_noise",
    "noise_influence",
    "rescaled",
]

SHARES = (0.5, 0.25)  # of the images: for the direction, and for the scale; the rest is held out


def encoder_noise(
    vit: ViT,
    batches: Batches | Pool,
    *,
    held_out: Batches | Pool | None = None,
    eps: float | None = None,
    lam: float | None = None,
    norm: float | None = None,
    lim: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
    official: bool = False,
    centre: bool | None = None,
    spread: bool = False,
    margin: bool = True,
    linear: Linearised | None = None,
    progress: bool = False,
) -> EncoderNoise:
    """Universal noise (1, N, d) on the patch tokens of a frozen ViT; exactly one of ``eps``, ``lam`` and ``norm``.

    Args:
        vit: in evaluation mode; its flags, gradients and mode stay as they are.
        batches: images, read once and kept on the model's device, or a pool from `influence.read_pool`.
        held_out: images for verification only. If None, a quarter of ``batches`` is set aside.
        eps: bound on the mean squared L2 distance between softmax vectors, in (0, 2): paper A, equation 7.
        lam: weight of log ||v|| in paper A's exploratory loss, equation 6; positive.
        norm: a fixed L2 norm, at which E ||z' - z|| is minimised: noises of different models can then be compared.
        lim: the start is uniform in (-lim, lim), in token units.
        steps: 200 by default; for ``official``, a bound below its 3 passes over the images.
        official: the published procedure: AdamW with its default decay, mean ||z' - z||^2, first batch below eps stops.
        centre: take the mean over the width out of every token; default True, and False for ``official``.
        spread: give every token the same norm. Without it "the largest noise" has no answer even after centring: a
            token whose norm grows saturates its LayerNorm, the network loses that token and nothing else, and the
            norm is free again (notebook 02).
        margin: put the upper end of the influence at eps, as verification asks; False puts the estimate there, as noise
            for training wants it on few images.
        linear: turn the start towards what the logits ignore to first order; a third of the steps then suffices.
        progress: show a bar.

    Returns:
        `EncoderNoise`, verified on ``held_out``; one that misses eps is returned all the same, with ``reached`` False.

    Raises:
        InputError: eps, lam, lim or steps out of range, bad images, a model in training mode.
        NonFiniteLoss: the loss left the finite numbers; the error keeps the last good noise.
    """
    centre = not official if centre is None else centre
    task = _task(vit, batches, held_out, eps, lam, norm, seed, "encoder", centre, official, spread, margin)
    return _solve(task, lim, steps, official, progress, linear)


def input_noise(
    model: Model,
    batches: Batches | Pool,
    *,
    held_out: Batches | Pool | None = None,
    eps: float | None = None,
    lam: float | None = None,
    norm: float | None = None,
    lim: float = 0.1,
    steps: int | None = None,
    seed: int = 0,
    official: bool = False,
    progress: bool = False,
) -> InputNoise:
    """Universal noise (1, C, H, W) at the pixels of any classifier that takes images in [0, 1]: paper C.

    ``model`` is any callable (B, C, H, W) -> logits (a ViT, a CNN, a function); ``lim`` is in pixel units. The rest
    is as in `encoder_noise`.
    """
    task = _task(model, batches, held_out, eps, lam, norm, seed, "input", False, official)
    return _solve(task, lim, steps, official, progress)


def rescaled(
    model: Model,
    noise: Noise | Tensor,
    batches: Batches | Pool,
    *,
    held_out: Batches | Pool | None = None,
    eps: float,
    seed: int = 0,
) -> Noise:
    """The largest multiple of a noise that stays within ``eps``, verified: how directions of any origin are compared.

    Pass the ``batches`` and ``seed`` that the noise was learned with, so that the scale is read off images that its
    direction has not seen (for ``official``, which learns from all of them, only ``held_out`` is fresh).

    Raises:
        InputError: as `encoder_noise`, or a noise of the wrong shape or of no length.
    """
    value = noise.value if isinstance(noise, Noise) else noise
    level = "encoder" if value.ndim == 3 else "input"
    task = _task(model, batches, held_out, eps, None, None, seed, level, level == "encoder", False)
    return _to_boundary(task, task.shaped(check_noise(value, task.fit)))


def _zero(model: Model, batches: Batches | Pool, **options) -> Noise:
    """No noise at all: the recipe without its ingredient."""
    task, _, _ = _control(model, batches, options, learned=False)
    return task.finished(torch.zeros_like(task.uniform(1.0)))


def _random(model: Model, batches: Batches | Pool, **options) -> Noise:
    """A Gaussian direction at the boundary of eps; in the lambda form, of the learned noise's own influence."""
    task, like, eps = _control(model, batches, options, learned=options.get("eps") is None)
    target = eps if eps is not None else max(like.influence.value, 1e-9)
    return task.finished(_scaled(task, _gaussian(task), target))


def _random_norm(model: Model, batches: Batches | Pool, **options) -> Noise:
    """A Gaussian direction of the learned noise's norm."""
    task, like, _ = _control(model, batches, options, learned=True)
    return task.finished(of_norm(_gaussian(task), like.norm))


def _permuted(model: Model, batches: Batches | Pool, **options) -> Noise:
    """The learned noise's entries in one random order, centred again and brought to the same norm."""
    task, like, _ = _control(model, batches, options, learned=True)
    value = task.shaped(check_noise(like.value, task.fit))
    order = torch.randperm(value.numel(), generator=task.generator).to(value.device)
    return task.finished(of_norm(task.shaped(value.flatten()[order].view_as(value)), like.norm))


def _permuted_within(model: Model, batches: Batches | Pool, **options) -> Noise:
    """The learned noise's entries in a random order within each token (channel): every token keeps its norm."""
    task, like, _ = _control(model, batches, options, learned=True)
    value = check_noise(like.value, task.fit)
    rows = value.flatten(2).flatten(0, 1)
    order = torch.rand(rows.shape, generator=task.generator).argsort(1).to(value.device)
    return task.finished(task.shaped(rows.gather(1, order).view_as(value)))


CONTROLS: dict[str, Callable[..., Noise]] = {
    "zero": _zero,
    "random": _random,
    "random_norm": _random_norm,
    "permuted": _permuted,
    "permuted_within": _permuted_within,
}
"""Controls by name, called as `encoder_noise` (or, with ``level="input"``, `input_noise`). ``like`` is the learned
noise to compare with, or None to learn it with the same options first."""


def _control(
    model: Model, batches: Batches | Pool, options: dict, *, learned: bool
) -> tuple[Task, Noise | None, float | None]:
    options = dict(options)
    like, level = options.pop("like", None), options.pop("level", "encoder")
    synthesise = input_noise if level == "input" else encoder_noise
    parts = {name: options.get(name) for name in ("held_out", "eps", "lam", "norm")}
    seed = options.get("seed", 0)
    centre, margin = level == "encoder", options.get("margin", True)
    task = _task(model, batches, **parts, seed=seed, level=level, centre=centre, official=False, margin=margin)
    if like is None and learned:
        like = synthesise(model, batches, **options)
    task.generator.manual_seed(seed + 1)  # or the control would start from the learned noise's own draws
    return task, like, parts["eps"]


def _task(
    model: Model,
    batches: Batches | Pool,
    held_out: Batches | Pool | None,
    eps: float | None,
    lam: float | None,
    norm: float | None,
    seed: int,
    level: str,
    centre: bool,
    official: bool,
    spread: bool = False,
    margin: bool = True,
) -> Task:
    """Check the request, read the images, and split them into parts that do not overlap."""
    _check_form(eps, lam, norm, official)
    pool = read_pool(model, batches, level=level)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    verification = None if held_out is None else read_pool(model, held_out, level=level)
    first, second = (int(share * len(pool)) for share in (SHARES[0], sum(SHARES)))
    if verification is None:
        verification = pool.take(order[second:])
    else:
        first, second = int((1 - SHARES[1]) * len(pool)), len(pool)
    if first < 1 or second - first < 2:
        raise InputError(f"{len(pool)} images are too few to learn, scale and verify a noise; pass at least 8.")
    if eps is None or official:
        first = second  # these forms do not scale their noise, so that no image is set aside for it
    calibration = pool.take(order[first:second] if first < second else order[:second])
    generator = torch.Generator().manual_seed(seed)
    parts = pool.take(order[:first]), calibration, verification
    return Task(model, *parts, eps, lam, norm, centre, generator, spread, margin)


def _check_form(eps: float | None, lam: float | None, norm: float | None, official: bool) -> None:
    if sum(value is not None for value in (eps, lam, norm)) != 1:
        raise InputError("pass exactly one of eps (largest noise within eps), lam (exploratory loss) and norm.")
    if eps is not None and not 0 < eps < 2:
        raise InputError(f"eps={eps} must lie in (0, 2): it bounds a squared distance between softmax vectors.")
    for name, value in (("lam", lam), ("norm", norm)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name}={value} must be positive and finite.")
    if official and eps is None:
        raise InputError("official=True is the published procedure for eps; pass eps and nothing else.")


def _solve(
    task: Task, lim: float, steps: int | None, official: bool, progress: bool, linear: Linearised | None = None
) -> Noise:
    if not (lim > 0 and math.isfinite(lim)):
        raise InputError(f"lim={lim} must be positive and finite.")
    if steps is not None:
        check_count("steps", steps)
    start = task.uniform(lim)
    if official:
        return task.finished(*published(task, start, steps, progress))
    if linear is not None:
        start = task.shaped(linear.filtered(start))
    value, history = polar(task, start, steps or STEPS, progress, TURN_RATE if linear is None else FINE_RATE)
    return task.finished(value, history) if task.eps is None else _to_boundary(task, value, history)


def _to_boundary(task: Task, value: Tensor, history: list[Record] | None = None) -> Noise:
    if value.norm() == 0:
        raise InputError("a noise of length 0 has no direction to scale; pass another.")
    return task.finished(_scaled(task, value, task.eps), history)


def _scaled(task: Task, value: Tensor, eps: float) -> Tensor:
    return at_boundary(task.model, value, task.calibration, eps, len(task.held_out), margin=task.margin)


def _gaussian(task: Task) -> Tensor:
    noise = torch.randn(task.fit.noise_shape, generator=task.generator)
    return task.shaped(noise.to(task.fit.inputs))
