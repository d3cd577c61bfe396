"""Certified noise: "norm r within eps" as a statement about the distribution of the images, not about a sample of them.

Of a noise that is fixed beforehand, the influence of an image lies in [0, 2] whatever the model and the data, so that n
independent images that made nothing bound its mean without any assumption on its tail. The bound is a bet (Waudby-Smith
and Ramdas 2024, "Estimating means of bounded random variables by betting", theorem 3, its upper half): whoever bets
against "the mean is m or more" multiplies a stake by 1 + b (m - x) at each value x, which if m is true is a
supermartingale, so that the stake ever reaches 1 / (1 - confidence) with probability 1 - confidence at most (Ville).
Few images of large influence widen it less than they do the empirical Bernstein bound (Maurer and Pontil 2009).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from torch import Tensor, nn

from nullpaper.errors import InputError, check_number, check_seed
from nullpaper.models.predict import check_influence
from nullpaper.synthesis.controls import centred
from nullpaper.synthesis.influence import Batches, Noise, Pool, check_noise, influence_of, level_of, read_pool

LARGEST = 2.0  # squared distance of two probability vectors
BOLDEST = 0.75  # share of the largest bet that no single value can ruin
SCALES = tuple(1.04**k for k in range(-20, 7))  # 0.46 to 1.27


@dataclass(frozen=True)
class Certificate:
    """The largest multiple of a noise that is shown to be within eps.

    Attributes:
        noise: that multiple; zero where none was shown to be.
        scale: what the noise was multiplied by.
        bound: upper confidence bound on E sum_k (softmax(z)_k - softmax(z')_k)^2, over the distribution of the images.
        n: the images that it rests on.
        tested: scale and bound of every multiple that was looked at; the last one failed, unless all passed.
    """

    noise: Tensor = field(repr=False)
    scale: float
    bound: float
    n: int
    confidence: float
    tested: list[tuple[float, float]] = field(default_factory=list, repr=False)

    @property
    def norm(self) -> float:
        """L2 norm, of the token-centred part at encoder level."""
        return centred(self.noise).norm().item()


@torch.inference_mode(False)
def certified(
    model: nn.Module,
    noise: Noise | Tensor,
    batches: Batches | Pool,
    eps: float,
    *,
    confidence: float = 0.99,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
) -> Certificate:
    """The largest multiple of a noise whose influence on the images' distribution is at most ``eps``, with confidence.

    The multiples are tested smallest first, and the first that fails ends it. Such a fixed sequence needs no correction
    for the number of tests: the first multiple that is beyond eps passes with probability 1 - confidence at most, and
    without it none after it is reached. The confidence is that of one noise; of k noises together it is
    1 - k (1 - confidence).

    Args:
        noise: as in `noise_influence`, made without any of the images.
        batches: independent draws from the distribution that the statement is about; they are shuffled by ``seed``, as
            folders are sorted by class.
        scales: increasing multiples, chosen without the images.

    Raises:
        InputError: as `noise_influence`, an eps, confidence or scale out of range, a pool of another measure than
            probabilities, or fewer images than would certify eps if none of them changed at all.
    """
    check_influence(eps)
    check_number("confidence", confidence, 0, 1)
    for scale in scales:
        check_number("scales", scale, 0, math.inf)
    if not scales or any(later <= earlier for earlier, later in zip(scales, scales[1:], strict=False)):
        raise InputError("scales must be increasing, and one at least: they are tested smallest first.")
    pool = read_pool(model, batches, level=level_of(noise))
    value = check_noise(noise, pool)
    check_images_for(eps, len(pool), confidence)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(check_seed(seed)))
    shuffled = pool.take(order.to(pool.inputs.device))
    influences = (influence_of(model, scale * value, shuffled).cpu().numpy() for scale in scales)
    place, tested = largest_within(influences, eps, confidence=confidence)
    scale, bound = (scales[place], tested[place]) if place >= 0 else (0.0, 0.0)
    looked_at = list(zip(scales, tested, strict=False))
    return Certificate(scale * value, scale, bound, len(pool), confidence, looked_at)


def largest_within(
    samples: Iterable[ArrayLike], eps: float, *, confidence: float = 0.99, largest: float = LARGEST
) -> tuple[int, list[float]]:
    """How far a fixed sequence of tests of "the mean is above eps" gets: the last place that passes, and the bounds.

    Args:
        samples: values (n,) in [0, ``largest``] of each test in turn, in random order; what follows the first failure
            is not asked for. The place is -1 if the first one fails.
    """
    bounds: list[float] = []
    for values in samples:
        bounds.append(upper_bound(values, confidence=confidence, largest=largest))
        if bounds[-1] > eps:
            return len(bounds) - 2, bounds
    return len(bounds) - 1, bounds


def upper_bound(values: ArrayLike, *, confidence: float = 0.99, largest: float = LARGEST) -> float:
    """Upper confidence bound on the mean of a distribution on [0, ``largest``], valid for every n and every tail.

    Args:
        values: independent draws (n,), in an order that does not depend on them.

    Raises:
        InputError: no values, one outside of the range or NaN, or a confidence outside of (0, 1).
    """
    check_number("confidence", confidence, 0, 1)
    check_number("largest", largest, 0, math.inf)
    shares = np.asarray(values, dtype=float).ravel() / largest
    if not shares.size or not ((shares >= -1e-6) & (shares <= 1 + 1e-6)).all():
        raise InputError(f"a bound needs values in [0, {largest:g}], and one at least; check what was measured.")
    shares = shares.clip(0, 1)
    goal = -math.log1p(-confidence)
    bets = _bets(shares, goal)

    def stake(mean: float) -> float:
        """The largest that the logarithm of the stake ever was, less its goal; it increases with the mean."""
        bold = np.minimum(bets, BOLDEST / (1 - mean))
        return np.log1p(bold * (mean - shares)).cumsum().max() - goal

    end = 1 - 1e-9
    return largest * (brentq(stake, 0, end, xtol=1e-9) if stake(end) > 0 else 1.0)


def check_images_for(eps: float, count: int, confidence: float = 0.99) -> None:
    """Refuse fewer images than would certify ``eps`` if the noise changed none of them.

    Raises:
        InputError: so few, with the number that is needed.
    """
    needed = images_for(eps, confidence)
    if count < needed:
        raise InputError(
            f"{count:,} images cannot certify eps = {eps:g} with confidence {confidence:g}, even for a noise of no "
            f"influence; pass {needed:,} or more."
        )


def images_for(eps: float, confidence: float = 0.99) -> int:
    """How many images certify ``eps`` if the noise changes none of them."""
    mean = eps / LARGEST
    return math.ceil(-math.log1p(-confidence) / math.log1p(BOLDEST / (1 - mean) * mean))


def _bets(shares: np.ndarray, goal: float) -> np.ndarray:
    """Bets (n,), each from the values before it: by the variance so far, as the cited work's equation 26."""
    count = np.arange(1, len(shares) + 1)
    means = (0.5 + shares.cumsum()) / (count + 1)
    variances = (0.25 + ((shares - means) ** 2).cumsum()) / (count + 1)
    return np.sqrt(2 * goal / (len(shares) * np.concatenate([[0.25], variances[:-1]])))
