"""Intervals for all that is reported: Wilson for shares, bootstrap for means and paired differences, t over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from nullpaper.errors import InputError, check_seed

RESAMPLES = 2_000


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
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}] (n = {self.n:,})"


def proportion(mask: ArrayLike) -> Interval:
    """Share of true entries of a boolean array, with Wilson's (1927) 95 % interval, which stays in [0, 1]."""
    mask = _observations(mask).astype(bool)
    result = stats.binomtest(int(mask.sum()), mask.size).proportion_ci(method="wilson")
    return Interval(float(mask.mean()), float(result.low), float(result.high), mask.size)


def mean(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean with a 95 % percentile bootstrap interval; a single or constant value has an interval of no width."""
    seed = check_seed(seed)
    values = _observations(values).astype(float)
    estimate = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, values.size)
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=100, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(estimate, float(result.low), float(result.high), values.size)


def over_seeds(values: ArrayLike) -> Interval:
    """Mean over a few runs with Student's t interval at 95 %; a single run has an interval of no width."""
    values = _observations(values).astype(float)
    estimate = float(values.mean())
    spread = float(stats.sem(values)) if values.size > 1 else 0.0
    if spread == 0:
        return Interval(estimate, estimate, estimate, values.size)
    low, high = stats.t.interval(0.95, values.size - 1, estimate, spread)
    return Interval(estimate, float(low), float(high), values.size)


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Interval:
    """Mean of ``first - second`` over the same images, with a 95 % bootstrap interval over those images.

    Raises:
        InputError: the two arrays are not of one shape, so that nothing pairs them.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise InputError(f"paired values need one shape, but have {first.shape} and {second.shape}.")
    return mean(first.astype(float) - second.astype(float), seed)


def _observations(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values).ravel()
    if values.size == 0 or (values.dtype.kind == "f" and np.isnan(values).any()):
        raise InputError("an interval needs at least one observation and no NaN; check what was measured.")
    return values
