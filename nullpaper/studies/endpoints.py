"""The one number that decides a claim, and how large a study would have to be to resolve it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from nullpaper.statistics import Interval, mean_squares, over_seeds


@dataclass(frozen=True)
class Endpoint:
    """The one number that decides a claim, larger where the claim is more right; NaN where there is no such thing.

    ``low`` to ``high`` is its 95 % interval, ``p`` the two-sided p value of the hypothesis that it is 0, or the bound
    that the criterion names, ``n_seeds`` how often training or a noise was drawn, ``least`` the smallest effect that
    matters.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n_seeds: float = math.nan
    n_images: float = math.nan
    least: float = math.nan

    @classmethod
    def over_images(cls, estimate: Interval, bound: float) -> Endpoint:
        """What was measured of one given model, against the bound of its criterion.

        The p value is the normal one that belongs to the end of the interval that faces the bound: below 0.05 where the
        interval excludes it, and 0 where the interval has no width.
        """
        away, half = (
            estimate.value - bound,
            estimate.value - (estimate.low if estimate.value > bound else estimate.high),
        )
        p = float(2 * stats.norm.sf(stats.norm.ppf(0.975) * away / half)) if half else float(away == 0)
        return cls(estimate.value, estimate.low, estimate.high, p, n_images=estimate.n)

    @classmethod
    def over_seeds(cls, values: ArrayLike, least: float, n_images: float = math.nan) -> Endpoint:
        """One number a run or a noise, (seeds,), with Student's t interval, and his test against 0."""
        mean = over_seeds(values)
        p = math.nan if math.isnan(mean.low) else float(stats.ttest_1samp(np.ravel(values), 0).pvalue)
        return cls(mean.value, mean.low, mean.high, p, mean.n, n_images, least)

    @property
    def is_small(self) -> bool:
        """Whether the effect was shown to be smaller than the least that matters."""
        return self.high < self.least

    @property
    def word(self) -> str:
        """``holds`` if above 0 and perhaps as large as matters, ``does not hold`` if shown smaller, else undecided."""
        if self.low > 0 and self.high >= self.least:
            return "holds"
        return "does not hold" if self.is_small or self.high < 0 else "not resolved"

    def in_points(self) -> str:
        """``+1.2 [+0.3, +2.1] points (5 seeds x 1,000 images)``."""
        ends = "no interval" if math.isnan(self.low) else f"{100 * self.low:+.1f}, {100 * self.high:+.1f}"
        seeds = f"{self.n_seeds:,.0f} seed{'s' * (self.n_seeds != 1)}"
        return f"{100 * self.value:+.1f} [{ends}] points ({seeds} x {self.n_images:,.0f} images)"


def power(pilot: np.ndarray, least: float) -> str:
    """How many seeds and images would resolve an effect of size ``least``, in words: 80 % power, two-sided 5 %.

    Args:
        pilot: paired differences (seeds, images), two or more of each; their variance components are what new runs are
            taken to have.
    """
    seeds, images = pilot.shape
    by_seed, by_image, rest = mean_squares(np.asarray(pilot, float))
    seed, image = max(0.0, by_seed - rest) / images, max(0.0, by_image - rest) / seeds
    for count in (5, 7, 10, 15, 20, 30, 50, 100):
        error = least / float(stats.t.ppf([0.975, 0.8], count - 1).sum())
        if (left := error**2 - seed / count) > 0 and (wanted := math.ceil((image + rest / count) / left)) <= 50_000:
            return f"{100 * least:g} points would be resolved by {count} seeds x {max(wanted, 2):,} images"
    return f"{100 * least:g} points would not be resolved by 100 seeds x 50,000 images"
