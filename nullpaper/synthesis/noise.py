"""The approximate nullspace: universal noise that a frozen model ignores (paper A, equations 6 and 7; paper C).

The epsilon form asks for the largest noise whose influence stays within eps, the exploratory form minimises
E ||z' - z|| - lambda log ||v||. Both are solved in polar coordinates: Adam turns the direction towards less influence,
and the radius follows the constraint, or the stationarity condition of the logarithm. The epsilon form then puts the
result on the boundary by its scale (`problem.to_boundary`), and verifies it on images that took no part in either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nullpaper.errors import InputError, check_count, check_number
from nullpaper.models.gradients import fast_gradients
from nullpaper.models.graphs import Replay
from nullpaper.models.vit import ViT
from nullpaper.synthesis.controls import of_norm
from nullpaper.synthesis.influence import (
    MEASURES,
    Batches,
    EncoderNoise,
    InputNoise,
    Noise,
    Pool,
    check_noise,
    level_of,
    logits_at,
)
from nullpaper.synthesis.linearised import Linearised, linearise
from nullpaper.synthesis.problem import Problem, Record, pose, to_boundary

STEPS, FINE_STEPS = 200, 60  # from a random start, and from one that is good to first order
BATCH = 64
TURN_RATE, FINE_RATE, BETAS = 0.3, 0.1, (0.9, 0.99)  # Adam on a direction of rms 1, cosine to zero; from these starts
RADIUS_RATE = 0.05  # share of the log misfit by which the radius follows in a step
OFFICIAL_RATE, OFFICIAL_ROUNDS, OFFICIAL_PART = 0.1, 3, 0.1  # of the batches of the loader, a tenth in each round


@torch.inference_mode(False)
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
    early_stop: bool = True,
    spread: bool = False,
    margin: bool = True,
    linear: bool | Linearised = True,
    measure: str = "probabilities",
) -> EncoderNoise:
    """Universal noise (1, N, d) on the patch tokens of a frozen ViT; exactly one of ``eps``, ``lam`` and ``norm``.

    Args:
        vit: in evaluation mode; its flags, gradients and mode stay as they are.
        batches: images, read once and kept on the model's device, or a pool from `influence.read_pool`.
        held_out: images for verification only. If None, a quarter of ``batches`` is set aside.
        eps: bound on the mean squared L2 distance between softmax vectors, in (0, 2): paper A, equation 7. Or on what
            ``measure`` says.
        lam: weight of log ||v|| in paper A's exploratory loss, equation 6; positive.
        norm: a fixed L2 norm, at which E ||z' - z|| is minimised: noises of different models can then be compared.
        lim: the start is drawn uniformly from (-lim, lim), in token units.
        steps: 60 by default, 200 without ``linear``; for ``official`` 3 passes over the images, where published 3,000.
        official: the published procedure: AdamW's default decay, mean ||z' - z||^2, first batch (64) below eps stops.
        early_stop: False: the published procedure takes all its steps.
        spread: give every token the same norm. Without it "the largest noise" has no answer even after centring: a
            token whose norm grows saturates its LayerNorm, and the network loses it and nothing else (notebook 02).
        margin: put the upper end of the influence at eps, as verification asks; False puts the estimate there, as noise
            for training wants it on few images.
        linear: turn the draw to what the logits ignore to first order, on the images to learn from or as is given here.
        measure: "features" for models without a head: in place of the logits, and eps bounds their `feature_gap`.

    Returns:
        `EncoderNoise`, centred but for ``official``, and verified on ``held_out``; one that misses eps is returned all
        the same, with ``reached`` False.

    Raises:
        InputError: eps, lam, lim, steps or seed out of range, bad images, another model, one in training mode or
            without classes.
        FloatingPointError: the loss left the finite numbers.
    """
    _check_start(lim, steps)
    if official and eps is None:
        raise InputError("official=True is the published procedure for eps; pass eps and nothing else.")
    form = {"eps": eps, "lam": lam, "norm": norm, "official": official, "spread": spread, "margin": margin}
    problem = pose(vit, batches, level="encoder", held_out=held_out, seed=seed, measure=measure, **form)
    start = _start(problem, lim)
    if official:
        return problem.verified(*published(problem, start, steps, early_stop=early_stop))
    if linear is False:
        return _solved(problem, start, steps or STEPS, TURN_RATE)
    spectrum = linearise(vit, problem.fit, seed=seed, measure=measure) if linear is True else linear
    return _solved(problem, problem.shaped(spectrum.filtered(start)), steps or FINE_STEPS, FINE_RATE)


@torch.inference_mode(False)
def input_noise(
    model: nn.Module, batches: Batches | Pool, *, lim: float = 0.1, steps: int | None = None, **options: object
) -> InputNoise:
    """Universal noise (1, C, H, W) at the pixels of any classifier that takes images in [0, 1]: paper C.

    ``model`` is a ViT, a CNN or any other, in evaluation mode; ``lim`` is in pixel units. ``options`` are ``held_out``,
    ``seed``, ``measure`` and exactly one of ``eps``, ``lam`` and ``norm``: these, and what is raised, are as in
    `encoder_noise`.
    """
    _check_start(lim, steps)
    problem = pose(model, batches, level="input", **options)
    return _solved(problem, _start(problem, lim), steps or STEPS, TURN_RATE)


@torch.inference_mode(False)
def rescaled(
    model: nn.Module, noise: Noise | Tensor, batches: Batches | Pool, *, eps: float, **options: object
) -> Noise:
    """The largest multiple of a noise that stays within ``eps``, verified: how directions of any origin are compared.

    Pass the ``batches``, and as ``options`` the ``held_out``, ``seed``, ``measure`` and ``margin`` of `encoder_noise`,
    that the noise was learned with, so that the scale is read off images that its direction has not seen. A Gaussian
    draw makes the control "random noise within eps".

    Raises:
        InputError: as `encoder_noise`, or a noise of the wrong shape or of no length.
    """
    problem = pose(model, batches, level=level_of(noise), eps=eps, **options)
    return problem.verified(to_boundary(problem, problem.shaped(check_noise(noise, problem.fit))))


@torch.inference_mode(False)
def verified(
    model: nn.Module, noise: Noise | Tensor, batches: Batches | Pool, *, eps: float, **options: object
) -> Noise:
    """A noise as it is, with its influence on the images that verify `encoder_noise` for these arguments.

    Raises:
        InputError: as `rescaled`.
    """
    problem = pose(model, batches, level=level_of(noise), eps=eps, **options)
    return problem.verified(check_noise(noise, problem.fit))


@torch.enable_grad()  # a caller may sit inside torch.no_grad
def polar(problem: Problem, start: Tensor, steps: int, rate: float) -> tuple[Tensor, list[Record]]:
    """Adam on the direction, a multiplicative update on the radius; (noise, history).

    Chosen by measurement (shipped architecture, one seed, 200 steps of 64 images, norm at influence 0.03 on dev):
    with 2,000 images Lagrangian ascent on log ||v|| with a dual step reached 67 and this scheme 156; with 8,000 images
    this scheme reached 193 on the softmax distance itself, 375 on log E ||z' - z||^2 and 496 on log E ||z' - z||,
    whose gradient comes from every image, not only from those near a change of class.
    """
    radius = torch.as_tensor(problem.norm or start.norm(), dtype=torch.float64, device=start.device).log()
    direction = (start / start.norm() * math.sqrt(start.numel())).requires_grad_()
    adam = torch.optim.Adam([direction], lr=rate, betas=BETAS)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    records: list[Tensor] = []

    def look(direction: Tensor, log_radius: Tensor, inputs: Tensor, clean: Tensor) -> tuple[Tensor, ...]:
        """The loss's slopes by direction and radius, and a record of the step."""
        leaves = [leaf.detach().requires_grad_() for leaf in (direction, log_radius)]
        noise = of_norm(problem.shaped(leaves[0]), leaves[1].exp())
        distance, influence = _distances(problem, noise, inputs, clean)
        loss = distance.clamp_min(1e-12).sqrt().mean()
        # asked for by name, so that autograd computes no gradient of any weight
        return *torch.autograd.grad(loss, leaves), _record(noise, influence, loss)

    replay = Replay(look)
    with fast_gradients(problem.model):  # what is verified is outside
        for indices in _minibatches(problem, BATCH, steps):  # nothing in here waits for the device
            given = problem.fit.inputs[indices], problem.fit.logits[indices]
            direction.grad, slope, record = replay(direction.detach(), radius.float(), *given)
            records.append(record.clone())
            adam.step()
            cosine.step()
            radius = radius + RADIUS_RATE * _misfit(problem, record[1].double(), slope.double()).clamp(-2, 2)
    return of_norm(problem.shaped(direction.detach()), radius.exp()), _history(records)


@torch.enable_grad()
def published(
    problem: Problem, start: Tensor, steps: int | None = None, *, early_stop: bool = True
) -> tuple[Tensor, list[Record]]:
    """The official code's loop, with its weight decay and its stop on one batch; (noise, history).

    Its rate hardly falls: the cosine spans all batches of the loader, of which each pass sees a tenth.
    """
    batch = min(problem.fit.batch_size, len(problem.fit), BATCH)
    length = steps or -(-len(problem.fit) // batch) * OFFICIAL_ROUNDS
    noise = start.clone().requires_grad_()
    adam = torch.optim.AdamW([noise], lr=OFFICIAL_RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, round(length / OFFICIAL_PART))
    records: list[Tensor] = []

    def look(noise: Tensor, inputs: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        leaf = noise.detach().requires_grad_()
        used = problem.shaped(leaf)
        distance, influence = _distances(problem, used, inputs, clean)
        loss = distance.mean()
        return *torch.autograd.grad(loss, [leaf]), _record(used, influence, loss)

    replay = Replay(look)
    with fast_gradients(problem.model):
        for indices in _minibatches(problem, batch, length):
            slope, record = replay(noise.detach(), problem.fit.inputs[indices], problem.fit.logits[indices])
            records.append(record.clone())
            if early_stop and records[-1][1] < problem.eps:
                break
            noise.grad = slope
            adam.step()
            cosine.step()
    return problem.shaped(noise.detach()), _history(records)


def _check_start(lim: float, steps: int | None) -> None:
    check_number("lim", lim, 0, math.inf)
    if steps is not None:
        check_count("steps", steps)


def _start(problem: Problem, lim: float) -> Tensor:
    """The papers' start, uniform in (-lim, lim); drawn on the CPU, so that every device starts alike."""
    noise = torch.rand(problem.fit.noise_shape, generator=problem.generator) * 2 - 1
    return problem.shaped((lim * noise).to(problem.fit.inputs))


def _solved(problem: Problem, start: Tensor, steps: int, rate: float) -> Noise:
    value, history = polar(problem, start, steps, rate)
    return problem.verified(value if problem.eps is None else to_boundary(problem, value), history)


def _misfit(problem: Problem, influence: Tensor, slope: Tensor) -> Tensor:
    """How far, as a logarithm, the radius is from where the form wants it."""
    if problem.norm is not None:
        return torch.zeros_like(influence)
    if problem.eps is not None:
        return (problem.eps / influence.clamp_min(1e-12)).log()
    return (problem.lam / slope.clamp_min(1e-2 * problem.lam)).log()  # d/dlog|v| of equation 6 is slope - lam


def _distances(problem: Problem, noise: Tensor, inputs: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """||z' - z||^2 of images (B, ...) with their clean logits, and their mean influence."""
    noisy = logits_at(problem.model, problem.fit, inputs + noise)
    return (noisy - clean).square().sum(-1), MEASURES[problem.fit.measure](noisy.detach(), clean).mean()


def _record(noise: Tensor, influence: Tensor, loss: Tensor) -> Tensor:
    """Norm, influence and loss of a step, (3,)."""
    return torch.stack([noise.norm(), influence, loss]).detach()


def _history(records: list[Tensor]) -> list[Record]:
    """What the steps were like, read from the device at once."""
    history = []
    for step, (norm, influence, loss) in enumerate(torch.stack(records).tolist()):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite at step {step}; lower lim or lam.")
        history.append({"step": step, "norm": norm, "influence": influence, "loss": loss})
    return history


def _minibatches(problem: Problem, size: int, steps: int) -> Iterator[Tensor]:
    """Indices of ``steps`` mini-batches of the images to learn from, shuffled anew in every pass."""
    while steps > 0:
        order = torch.randperm(len(problem.fit), generator=problem.generator).to(problem.fit.inputs.device)
        batches = order.split(size)
        yield from batches[:steps]
        steps -= len(batches)
