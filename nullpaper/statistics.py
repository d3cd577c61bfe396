"""Intervals for all that is reported: Wilson for shares, bootstrap for means, t over seeds, both for seeds x images.

What was repeated with fewer than `FEWEST_SEEDS` seeds, or with seeds that all gave the same, has no interval: its ends
are NaN, which every comparison leaves undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy  # which loads scipy.stats when it is used
from numpy.typing import ArrayLike

from nullpaper.errors import InputError, check_seed

RESAMPLES = 2_000
FEWEST_SEEDS = 3
"""Runs below which nothing is said of what another seed would give."""
TWO_WAY = ("value", "difference")
"""Columns of tables whose interval for new seeds and new images is in ``low`` and ``high``."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def columns(self, name: str) -> dict[str, float | int]:
        """The interval as columns of a table: ``name``, ``name_low``, ``name_high`` and ``n``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high, "n": self.n}

    def __format__(self, spec: str) -> str:
        ends = "no interval" if math.isnan(self.low) else f"{self.low:{spec}}, {self.high:{spec}}"
        return f"{self.value:{spec}} [{ends}] (n = {self.n:,})"


def proportion(mask: ArrayLike) -> Interval:
    """Share of true entries of a boolean array, with Wilson's (1927) 95 % interval, which stays in [0, 1]."""
    mask = _observations(mask).astype(bool)
    result = scipy.stats.binomtest(int(mask.sum()), mask.size).proportion_ci(method="wilson")
    return Interval(float(mask.mean()), float(result.low), float(result.high), mask.size)


def mean(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean with a 95 % percentile bootstrap interval; a single or constant value has an interval of no width."""
    seed = check_seed(seed)
    values = _observations(values).astype(float)
    estimate = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, values.size)
    result = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=100, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(estimate, float(result.low), float(result.high), values.size)


def over_seeds(values: ArrayLike) -> Interval:
    """Mean over a few runs with Student's t interval at 95 %; fewer than `FEWEST_SEEDS`, or all equal: no interval."""
    values = _observations(values).astype(float)
    estimate = float(values.mean())
    if values.size < FEWEST_SEEDS or _tied(values):
        return Interval(estimate, math.nan, math.nan, values.size)
    low, high = scipy.stats.t.interval(0.95, values.size - 1, estimate, scipy.stats.sem(values))
    return Interval(estimate, float(low), float(high), values.size)


def relative_change(ratios: ArrayLike) -> Interval:
    """Geometric mean of positive ratios over seeds less 1, with Student's 95 % interval of their logarithms."""
    logs = over_seeds(np.log(ratios))
    return Interval(*np.expm1([logs.value, logs.low, logs.high]).tolist(), logs.n)


@dataclass(frozen=True)
class Crossed:
    """The mean over seeds x images, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    df: float
    seeds: int

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % interval; n is the number of seeds."""
        half = self.error * float(scipy.stats.t.ppf(0.975, self.df))
        return Interval(self.value, self.value - half, self.value + half, self.seeds)

    def p(self, null: float = 0.0) -> float:
        """The two-sided p value of the hypothesis that the mean is ``null``; NaN if there is no interval."""
        return float(2 * scipy.stats.t.sf(abs(self.value - null) / self.error, self.df))


def crossed(values: ArrayLike) -> Crossed:
    """The mean of values (seeds, images) in a crossed random-effects model, both seeds and images being draws.

    A value is mean + seed + image + rest, each drawn anew by a rerun. Its variance components follow from the mean
    squares of the two-way layout (Searle, Casella & McCulloch 1992, section 4.6), negative ones taken as 0, the degrees
    of freedom from Satterthwaite (1946). With three to five seeds this covers what it promises (see the tests), which a
    percentile bootstrap of both does not: it counts the rest three times (Owen 2007) and knows no Student's t.
    """
    values = np.asarray(values, float)
    seeds, images = values.shape
    value = float(_observations(values).mean())
    by_seed, by_image, rest = mean_squares(values)
    if seeds < FEWEST_SEEDS or images < 2 or _tied(values.mean(1)):
        return Crossed(value, math.nan, math.nan, seeds)
    parts = [(by_seed, seeds - 1), (by_image, images - 1), (-rest, (seeds - 1) * (images - 1))]
    if min(by_seed, by_image) < rest:  # one component is 0: what is left is the larger of the two
        parts = [max(parts[:2])]
    total = sum(square for square, _ in parts)
    df = total**2 / sum(square**2 / free for square, free in parts)
    return Crossed(value, math.sqrt(total / values.size), df, seeds)


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares between seeds, between images, and of the rest, of values (seeds, images); NaN for a single one."""
    seeds, images = values.shape
    by_seed, by_image = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - by_seed - by_image + values.mean()
    squares = images * (by_seed - values.mean()) ** 2, seeds * (by_image - values.mean()) ** 2, rest**2
    free = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    sums = [float(square.sum()) for square in squares]
    return tuple(total / count if count else math.nan for total, count in zip(sums, free, strict=True))


def two_way(values: ArrayLike) -> Interval:
    """Mean of values (seeds, images) with a 95 % interval for new seeds and new images at once, see `crossed`.

    With fewer than `FEWEST_SEEDS` seeds, or with seeds whose means are all equal, its ends are NaN: no interval.
    """
    return crossed(values).interval


def holm(p: Mapping[str, float], families: Mapping[str, str] | None = None) -> dict[str, float]:
    """P values by name adjusted by Holm's (1979) method for having looked at all of them; NaN is no test and stays.

    Args:
        families: by name, the families of tests that each belongs to, such as "A, C", of which the largest value
            counts; None: all are one family.
    """
    families = families or dict.fromkeys(p, "")
    adjusted = dict.fromkeys(p, math.nan)
    for family in {one for names in families.values() for one in names.split(", ")}:
        tested = [(p[name], name) for name in p if family in families[name].split(", ") and not math.isnan(p[name])]
        largest = 0.0
        for rank, (value, name) in enumerate(sorted(tested)):
            largest = max(largest, min(1.0, (len(tested) - rank) * value))
            adjusted[name] = max(largest, 0.0 if math.isnan(adjusted[name]) else adjusted[name])
    return adjusted


def carried(word: str, *, p: float, n_seeds: float, high: float, least: float) -> str:
    """A verdict as far as its primary endpoint carries it, else "not resolved"; NaN where there is no such number.

    Fewer than `FEWEST_SEEDS` seeds carry none; an adjusted p value of 0.05 or more neither "holds" nor "does not hold",
    unless the effect was shown (``high``) to be smaller than the ``least`` that matters.
    """
    few = n_seeds < FEWEST_SEEDS and word in ("holds", "in part", "does not hold")
    by_chance = p >= 0.05 and not high < least and word in ("holds", "does not hold")
    return "not resolved" if few or by_chance else word


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Interval:
    """Mean of ``first - second`` over the same images, with a 95 % bootstrap interval over those images.

    Raises:
        InputError: the two arrays are not of one shape, so that nothing pairs them.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise InputError(f"paired values need one shape, but have {first.shape} and {second.shape}.")
    return mean(first.astype(float) - second.astype(float), seed)


def _tied(values: np.ndarray) -> bool:
    """Whether all are equal, up to rounding."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _observations(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values).ravel()
    if values.size == 0 or (values.dtype.kind == "f" and np.isnan(values).any()):
        raise InputError("an interval needs at least one observation and no NaN; check what was measured.")
    return values
