"""The two solvers behind `synthesis.py`: polar ascent, and the procedure that the official code publishes.

Both see one checked `Task` and return a noise with one record a step. No gradient of a weight is ever computed, and
the clean logits come from the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nullpaper.synthesis.influence import (
    EncoderNoise,
    InputNoise,
    Model,
    Noise,
    Pool,
    centred,
    logits_at,
    probability_gap,
    spread,
    verdict,
)

__all__ = ["FINE_RATE", "STEPS", "TURN_RATE", "NonFiniteLoss", "Record", "Task", "of_norm", "polar", "published"]

STEPS = 200
BATCH = 64
TURN_RATE, BETAS = 0.3, (0.9, 0.99)  # Adam on a direction of rms 1, cosine to zero
FINE_RATE = 0.1  # the same from a start that is good to first order
RADIUS_RATE = 0.05  # share of the log misfit by which the radius follows in a step
OFFICIAL_RATE, OFFICIAL_ROUNDS = 0.1, 3

Record = dict[str, float]


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite at ``step``; ``value`` is the last noise with a finite loss, or None."""

    def __init__(self, step: int, value: Tensor | None, history: list[Record]) -> None:
        super().__init__(f"the loss is not finite at step {step}; .value keeps the last good noise. Lower lim or lam.")
        self.step, self.value, self.history = step, value, history


@dataclass(frozen=True)
class Task:
    """One checked request: the model, its images in parts, and the form.

    ``held_out`` overlaps no other part; ``calibration`` overlaps ``fit`` only in the forms that scale nothing.
    """

    model: Model
    fit: Pool
    calibration: Pool
    held_out: Pool
    eps: float | None
    lam: float | None
    norm: float | None
    centre: bool
    generator: torch.Generator
    spread: bool = False
    margin: bool = True

    def shaped(self, noise: Tensor) -> Tensor:
        noise = centred(noise) if self.centre else noise
        return spread(noise) if self.spread else noise

    def uniform(self, lim: float) -> Tensor:
        """The papers' start, uniform in (-lim, lim); drawn on the CPU, so that every device starts alike."""
        noise = torch.rand(self.fit.noise_shape, generator=self.generator) * 2 - 1
        return self.shaped((lim * noise).to(self.fit.inputs))

    def finished(self, value: Tensor, history: list[Record] | None = None) -> Noise:
        influence = verdict(self.model, value, self.held_out)
        reached = None if self.eps is None else influence.high <= self.eps
        kind = EncoderNoise if self.fit.level == "encoder" else InputNoise
        return kind(value.detach(), influence, reached, self.eps, self.lam, history or [])


def polar(
    task: Task, start: Tensor, steps: int, progress: bool, rate: float = TURN_RATE
) -> tuple[Tensor, list[Record]]:
    """Adam on the direction, a multiplicative update on the radius; (noise, history).

    Chosen by measurement (shipped architecture, one seed, 200 steps of 64 images, norm at influence 0.03 on dev):
    with 2,000 images Lagrangian ascent on log ||v|| with a dual step reached 67 and this scheme 156; with 8,000 images
    this scheme reached 193 on the softmax distance itself, 375 on log E ||z' - z||^2 and 496 on log E ||z' - z||,
    whose gradient comes from every image, not only from those near a change of class.
    """
    radius = math.log(task.norm or start.norm().item())
    direction = (start / start.norm() * math.sqrt(start.numel())).requires_grad_()
    adam = torch.optim.Adam([direction], lr=rate, betas=BETAS)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    history: list[Record] = []
    good: Tensor | None = None
    for step, chosen in enumerate(tqdm(_minibatches(task, BATCH, steps), "noise", steps, disable=not progress)):
        with torch.enable_grad():  # a caller may sit inside torch.no_grad
            log_radius = torch.tensor(radius, device=start.device, requires_grad=True)
            noise = of_norm(task.shaped(direction), log_radius.exp())
            distance, influence = _distances(task, noise, chosen)
            loss = distance.clamp_min(1e-12).sqrt().mean()
            _record(history, step, noise, influence, loss, good)
            # asked for by name, so that autograd computes no gradient of any weight
            direction.grad, slope = torch.autograd.grad(loss, [direction, log_radius])
        good = noise.detach()
        if task.norm is not None:
            misfit = 0.0
        elif task.eps is not None:
            misfit = math.log(task.eps / max(influence, 1e-12))
        else:
            misfit = math.log(task.lam / max(slope.item(), 1e-2 * task.lam))  # d/dlog|v| of equation 6 is slope - lam
        adam.step()
        cosine.step()
        radius += RADIUS_RATE * min(max(misfit, -2.0), 2.0)
    return of_norm(task.shaped(direction.detach()), math.exp(radius)), history


def published(task: Task, start: Tensor, steps: int | None, progress: bool) -> tuple[Tensor, list[Record]]:
    """The official code's loop, with its weight decay and its stop on one batch; (noise, history)."""
    batch = min(task.fit.batch_size, len(task.fit))
    length = -(-len(task.fit) // batch) * OFFICIAL_ROUNDS
    noise = start.clone().requires_grad_()
    adam = torch.optim.AdamW([noise], lr=OFFICIAL_RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, length)
    history: list[Record] = []
    good: Tensor | None = None
    steps = min(steps or length, length)
    for step, chosen in enumerate(tqdm(_minibatches(task, batch, steps), "official", steps, disable=not progress)):
        with torch.enable_grad():
            used = task.shaped(noise)
            distance, influence = _distances(task, used, chosen)
            loss = distance.mean()
            _record(history, step, used, influence, loss, good)
            if influence < task.eps:
                break
            (noise.grad,) = torch.autograd.grad(loss, [noise])
        good = used.detach().clone()  # the optimiser writes into the noise itself
        adam.step()
        cosine.step()
    return task.shaped(noise.detach()), history


def _distances(task: Task, noise: Tensor, chosen: Tensor) -> tuple[Tensor, float]:
    """||z' - z||^2 of each chosen image (B,), and their mean squared distance between softmax vectors."""
    clean = task.fit.logits[chosen]
    noisy = logits_at(task.model, task.fit.level, task.fit.inputs[chosen] + noise)
    return (noisy - clean).square().sum(-1), probability_gap(noisy.detach(), clean).mean().item()


def _record(
    history: list[Record], step: int, noise: Tensor, influence: float, loss: Tensor, good: Tensor | None
) -> None:
    if not loss.isfinite():
        raise NonFiniteLoss(step, good, history)
    history.append({"step": step, "norm": noise.norm().item(), "influence": influence, "loss": loss.item()})


def _minibatches(task: Task, size: int, steps: int) -> Iterator[Tensor]:
    """Indices of ``steps`` mini-batches of the fit pool, shuffled anew in every pass."""
    done = 0
    while True:
        for chosen in torch.randperm(len(task.fit), generator=task.generator).split(size):
            if done == steps:
                return
            yield chosen.to(task.fit.inputs.device)
            done += 1


def of_norm(noise: Tensor, norm: float | Tensor) -> Tensor:
    """``noise`` scaled to the L2 norm ``norm``."""
    return noise / noise.norm() * norm
