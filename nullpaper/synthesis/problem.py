"""One problem of synthesis: a frozen model, its images in parts that do not overlap, and what is asked of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import norm as normal
from torch import Tensor, nn

from nullpaper.errors import InputError, check_number, check_seed
from nullpaper.models.predict import check_influence
from nullpaper.statistics import mean
from nullpaper.synthesis.controls import centred, spread
from nullpaper.synthesis.influence import Batches, EncoderNoise, InputNoise, Noise, Pool, influence_of, read_pool

SHARES = (0.5, 0.25)  # of the images: for the direction, and for the scale; the rest is held out
LEAST_IMAGES = 8  # that give every part its share
# of the search for the boundary, in logarithms of scale and influence
TOLERANCE = 0.01
SLOPES, SLOPE = (0.5, 5.0), 2.0  # between two looks, and of small noise
LARGEST_STEP = math.log(5)
LARGEST_SCALE = 20 * math.log(2)  # where it gives up: the model ignores this direction

Record = dict[str, float]


@dataclass(frozen=True)
class Problem:
    """Find a noise that ``model`` ignores, from the images of ``fit``; exactly one of ``eps``, ``lam`` and ``norm``.

    The three parts of the images do not overlap; those for ``calibration`` are none where nothing is scaled. Noise is
    token-centred but in the ``official`` procedure. ``spread`` gives every token the same norm, ``margin`` puts the
    upper end of the influence at eps rather than the estimate.
    """

    model: nn.Module
    fit: Pool
    calibration: Pool
    held_out: Pool
    generator: torch.Generator
    eps: float | None = None
    lam: float | None = None
    norm: float | None = None
    official: bool = False
    spread: bool = False
    margin: bool = True

    def shaped(self, noise: Tensor) -> Tensor:
        """The nearest noise of the form that is asked for."""
        noise = noise if self.official else centred(noise)
        return spread(noise) if self.spread else noise

    def verified(self, value: Tensor, history: list[Record] | None = None) -> Noise:
        """``value`` with its influence on images that took no part in making it."""
        influence = mean(influence_of(self.model, value, self.held_out).cpu().numpy())
        reached = None if self.eps is None else influence.high <= self.eps
        kind = EncoderNoise if self.fit.level == "encoder" else InputNoise
        return kind(value.detach(), influence, reached, history or [])


def pose(
    model: nn.Module,
    batches: Batches | Pool,
    *,
    level: str,
    held_out: Batches | Pool | None = None,
    seed: int = 0,
    measure: str = "probabilities",
    **form: float | bool | None,
) -> Problem:
    """Check the request, read the images, and split them; ``form`` are the fields of `Problem` from ``eps`` on.

    Raises:
        InputError: no or several of eps, lam and norm, one out of range, too few images, or as `read_pool`.
    """
    eps, lam, norm = (form.get(name) for name in ("eps", "lam", "norm"))
    if sum(value is not None for value in (eps, lam, norm)) != 1:
        raise InputError("pass exactly one of eps (largest noise within eps), lam (exploratory loss) and norm.")
    if eps is not None and measure == "probabilities":
        check_influence(eps)
    for name, value in (("eps", eps), ("lam", lam), ("norm", norm)):
        if value is not None:
            check_number(name, value, 0, math.inf)
    seed = check_seed(seed)
    if level == "input" and (form.get("official") or form.get("spread")):
        raise InputError("official and spread are forms of noise on tokens; leave them out for noise at the pixels.")
    pool = read_pool(model, batches, level=level, measure=measure)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    if held_out is None:
        first, second = (int(share * len(pool)) for share in (SHARES[0], sum(SHARES)))
        verification = pool.take(order[second:])
    else:
        first, second = int((1 - SHARES[1]) * len(pool)), len(pool)
        verification = read_pool(model, held_out, level=level, measure=measure)
    if first < 1 or second - first < 2:
        raise InputError(
            f"{len(pool)} images are too few to learn, scale and verify a noise; pass {LEAST_IMAGES} or more."
        )
    if eps is None:
        first = second  # nothing is scaled
    parts = pool.take(order[:first]), pool.take(order[first:second]), verification
    return Problem(model, *parts, torch.Generator().manual_seed(seed), **form)


def to_boundary(problem: Problem, direction: Tensor) -> Tensor:
    """The multiple of ``direction`` that is expected to pass verification at eps by the smallest margin.

    A secant search on the logarithm of the scale, on images that took no part in finding the direction; it ends at a
    scale that it has looked at and found within eps, at most 1 % below the largest. The margin is the interval's own
    half width on the held-out images, plus a one-sided 99 % allowance for the difference of the two samples: the
    influence has a heavy tail (few images change class), so less fails more often than it should. Without ``margin``
    the estimate itself is put at eps.

    Raises:
        InputError: a direction of length 0.
    """
    if direction.norm() == 0:
        raise InputError("a noise of length 0 has no direction to scale; pass another.")
    half_width, allowance = (normal.ppf(0.975), normal.ppf(0.99)) if problem.margin else (0.0, 0.0)
    looked_at, verified_on = len(problem.calibration), len(problem.held_out)
    widths = half_width / math.sqrt(verified_on) + allowance * math.sqrt(1 / verified_on + 1 / looked_at)
    within, beyond = -math.inf, math.inf
    place, before, slope = 0.0, None, SLOPE
    while beyond - within > TOLERANCE and within < LARGEST_SCALE:
        gaps = influence_of(problem.model, math.exp(place) * direction, problem.calibration).double()
        excess = math.log(max((gaps.mean() + widths * gaps.std()).item(), 1e-12) / problem.eps)
        within, beyond = (place, beyond) if excess <= 0 else (within, place)
        if before is not None:  # near linear; the order of min and max makes NaN a small slope and a step down
            slope = min(SLOPES[1], max(SLOPES[0], (excess - before[1]) / (place - before[0])))
        if -TOLERANCE * slope <= excess <= 0:
            break
        before = place, excess
        place += min(LARGEST_STEP, max(-LARGEST_STEP, -excess / slope - TOLERANCE / 2))
        if not within < place < beyond:
            place = (within + beyond) / 2
    return math.exp(within) * direction
