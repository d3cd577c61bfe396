"""APGD and targeted FAB in the L-infinity ball, the gradient's part of AutoAttack (Croce & Hein 2020a, 2020b).

All start from images that the model gets right and return, for each, the first point found within eps that it gets
wrong, or the image as it is. As published, but for what only costs: a fooled image takes no further step, and several
targets run side by side. What an image gets depends on neither, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nullpaper.models.gradients import at_once
from nullpaper.models.predict import answers
from nullpaper.models.vit import per_image
from nullpaper.robustness.pgd import REPACK, gradient

TARGETS = 9  # of APGD-T and FAB-T: the most likely wrong classes
FIRST_LOOK, LOOK_DECAY, LAST_LOOK = 0.22, 0.03, 0.06  # of all steps: until a look at the step size; less each time
MOMENTUM = 0.75  # alpha: of the new direction
RISING = 0.75  # rho: share of the steps that have to raise the loss, else the step is halved
OVERSHOOT, PULL_BACK, TO_CLEAN = 1.05, 0.9, 0.1  # FAB's eta, beta and largest alpha
NEWTON_STEPS, NO_STEP = 20, 1e-7  # 4 to 6 were taken on 64 images
TINY = 1e-12

Run = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(model, images, labels, targets, begin) -> points, all of as many rows."""


def apgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    """APGD on the cross-entropy."""
    begin = _start(images, eps, torch.Generator().manual_seed(seed))
    return _ascend(model, images, labels, labels, begin, eps=eps, steps=steps, loss=_surprise)


def apgd_t(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    """APGD on the targeted DLR loss, once for each target, from a start of its own."""
    generator = torch.Generator().manual_seed(seed)
    run = partial(_ascend, eps=eps, steps=steps, loss=dlr)
    return _targeted(model, images, labels, lambda: _start(images, eps, generator), run)


def fab_t(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    """FAB towards each target from the clean image; it draws nothing."""
    return _targeted(model, images, labels, lambda: images, partial(_to_the_boundary, eps=eps, steps=steps))


def _surprise(logits: Tensor, at: Tensor) -> Tensor:
    """The cross-entropy of logits (B, K), ``at`` (B, 2) with y first: (B,)."""
    return cross_entropy(logits, at[:, 0], reduction="none")


def dlr(logits: Tensor, at: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) of logits (B, K), ``at`` (B, 2) with y and t: (B,)."""
    first, _, third, fourth = logits.topk(4).values.unbind(1)
    right, wrong = logits.gather(1, at).unbind(1)
    return (wrong - right) / (first - (third + fourth) / 2 + TINY)


def _start(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Uniform draws, scaled until the largest change of an image is eps, and cut to the box."""
    noise = (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
    return (images + eps * noise / per_image(noise.flatten(1).abs().amax(1))).clamp(0, 1)


def _targeted(model: nn.Module, images: Tensor, labels: Tensor, begin: Callable[[], Tensor], run: Run) -> Tensor:
    """A run for each of the most likely wrong classes, on the images that no target before it fooled."""
    ranked = answers(model, images).scatter(1, labels.unsqueeze(1), -torch.inf)
    targets = ranked.topk(min(TARGETS, ranked.shape[1] - 1)).indices.T
    result, rows = images.clone(), torch.arange(len(images), device=images.device)
    together = at_once(model, images)
    while len(targets) and len(rows):
        side_by_side = max(1, together // len(rows))
        group, targets = targets[:side_by_side, rows], targets[side_by_side:]
        starts = torch.cat([begin()[rows] for _ in group])
        clean, right = images[rows].repeat(len(group), 1, 1, 1), labels[rows].repeat(len(group))
        points = run(model, clean, right, group.flatten(), starts)
        fooled = (points != clean).flatten(1).any(1).view(group.shape)
        first = fooled.int().argmax(0), torch.arange(len(rows), device=rows.device)  # image itself where none fools
        result[rows] = points.unflatten(0, group.shape)[first]
        rows = rows[~fooled.any(0)]
    return result


def _ascend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    begin: Tensor,
    *,
    eps: float,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """APGD (Algorithm 1): sign steps with momentum, halved at a look, from the best point, where the loss stalls."""
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    at = torch.stack([labels, targets], 1)
    slope, logits = gradient(model, begin, at, loss)
    now = loss(logits, at)
    state = {"x": begin, "slope": slope, "old": begin, "low": low, "high": high, "at": at}
    state |= {"best": now, "best_x": begin, "best_slope": slope, "looked": now, "before": torch.zeros_like(now)}
    state |= {"step": torch.full_like(now, 2 * eps), "risen": torch.zeros_like(now)}
    state |= {"halved": torch.ones_like(labels, dtype=torch.bool), "stands": logits.argmax(1) == labels}
    state["rows"] = torch.arange(len(images), device=images.device)
    result, length, since = images.clone(), max(int(FIRST_LOOK * steps), 1), 0
    for number in range(steps):
        if number % REPACK[images.device.type == "cuda"] == 0:
            state = _repacked(state, result)
            if len(state["rows"]) == 0:
                return result
        _climb(model, state, loss, MOMENTUM if number else 1.0)
        since += 1
        if since == length:
            _look(state, length)
            since, length = 0, max(length - max(int(LOOK_DECAY * steps), 1), int(LAST_LOOK * steps), 1)
    _repacked(state, result)
    return result


def _repacked(state: dict[str, Tensor], result: Tensor) -> dict[str, Tensor]:
    """The rows that still stand, after the others were written down."""
    fooled = ~state["stands"]
    result[state["rows"][fooled]] = state["x"][fooled]
    return {name: value[state["stands"]] for name, value in state.items()}


def _climb(model: nn.Module, state: dict[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor], share: float) -> None:
    """One step of those that stand."""
    x, low, high = state["x"], state["low"], state["high"]
    ahead = (x + per_image(state["step"]) * state["slope"].sign()).clamp(low, high)
    ahead = (x + share * (ahead - x) + (1 - share) * (x - state["old"])).clamp(low, high)
    state["old"], state["x"] = x, torch.where(per_image(state["stands"]), ahead, x)
    state["slope"], logits = gradient(model, state["x"], state["at"], loss)
    now = loss(logits, state["at"])
    state["stands"] = state["stands"] & (logits.argmax(1) == state["at"][:, 0])
    state["risen"], state["before"] = state["risen"] + (now > state["before"]), now
    better = now > state["best"]
    state["best"] = torch.where(better, now, state["best"])
    for name in ("x", "slope"):
        state[f"best_{name}"] = torch.where(per_image(better), state[name], state[f"best_{name}"])


def _look(state: dict[str, Tensor], length: int) -> None:
    """Halve the steps, and go back to the best point, where few steps raised the loss or the best is what it was."""
    stalls = (state["risen"] <= RISING * length) | (~state["halved"] & (state["looked"] >= state["best"]))
    state["step"] = torch.where(stalls, state["step"] / 2, state["step"])
    back = per_image(stalls & state["stands"])
    for name in ("x", "slope"):
        state[name] = torch.where(back, state[f"best_{name}"], state[name])
    state["halved"], state["looked"], state["risen"] = stalls, state["best"], torch.zeros_like(state["risen"])


def _to_the_boundary(
    model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, begin: Tensor, *, eps: float, steps: int
) -> Tensor:
    """FAB (Algorithm 1): steps to where a linear model has the boundary, drawn towards the clean image's nearest."""
    at, x, result = torch.stack([labels, targets], 1), begin, images.clone()
    rows = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        slope, logits = gradient(model, x, at, _difference)
        value = _difference(logits, at)
        distance = value - (slope * x).flatten(1).sum(1)  # the linear model is slope . p + distance, 0 at the boundary
        here, there = (_to_plane(points, slope, distance) for points in (x, images))
        reach, clean_reach = (_size(step).clamp_min(1e-8) for step in (here, there))
        alpha = per_image((reach / (reach + clean_reach)).clamp_max(TO_CLEAN))
        x = ((x + OVERSHOOT * here) * (1 - alpha) + (images + OVERSHOOT * there) * alpha).clamp(0, 1)
        wrong = answers(model, x).argmax(1) != at[:, 0]
        near = wrong & (_size(x - images) <= eps)
        result[rows[near]] = x[near]
        x = torch.where(per_image(wrong), images + (x - images) * PULL_BACK, x)
        rows, images, x, at = (part[~near] for part in (rows, images, x, at))
        if len(rows) == 0:
            break
    return result


def _difference(logits: Tensor, at: Tensor) -> Tensor:
    """z_t - z_y, (B,)."""
    right, wrong = logits.gather(1, at).unbind(1)
    return wrong - right


def _size(noise: Tensor) -> Tensor:
    return noise.flatten(1).abs().amax(1)


def _to_plane(points: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """The smallest change d in L-infinity with slope . (points + d) + offset = 0 and points + d in [0, 1].

    Each value moves by min(c, its room), and the least c that is enough is the root of a concave function, which
    Newton's steps from below reach exactly; where the room is not enough, d is all of it.
    """
    missing = (slope * points).flatten(1).sum(1) + offset
    ways = -slope.sign() * per_image(missing.sign())
    room = torch.where(ways > 0, 1 - points, points) * (ways != 0)
    weight, room = slope.flatten(1).abs(), room.flatten(1)
    common = torch.zeros_like(missing)
    for _ in range(NEWTON_STEPS):
        short = missing.abs() - (weight * torch.minimum(room, common[:, None])).sum(1)
        more = (short / (weight * (room > common[:, None])).sum(1)).nan_to_num(0, torch.inf, 0)
        common = common + more
        if (more <= NO_STEP).all():
            break
    return ways * torch.minimum(room, common[:, None]).view_as(ways)
