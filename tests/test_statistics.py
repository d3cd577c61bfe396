"""Intervals cover what they promise to cover, and pairing helps."""

from __future__ import annotations

import numpy as np
import pytest

from nullpaper import statistics
from nullpaper.errors import InputError


def test_wilson_covers_the_true_share_about_95_percent_of_the_time() -> None:
    draws = np.random.default_rng(0).random((1_000, 200)) < 0.9
    intervals = [statistics.proportion(draw) for draw in draws]
    covered = np.mean([interval.low <= 0.9 <= interval.high for interval in intervals])
    assert 0.92 < covered < 0.98 and all(0 <= i.low <= i.value <= i.high <= 1 for i in intervals)


def test_wilson_has_width_at_the_ends() -> None:
    everything = statistics.proportion(np.ones(100, bool))
    assert everything.value == 1 and everything.high == 1 and 0.95 < everything.low < 1


def test_bootstrap_covers_the_true_mean() -> None:
    draws = np.random.default_rng(1).normal(3.0, 2.0, (150, 60))
    intervals = [statistics.mean(draw) for draw in draws]
    assert 0.88 < np.mean([interval.low <= 3.0 <= interval.high for interval in intervals]) <= 1
    assert statistics.mean(draws[0]) == statistics.mean(draws[0])


def test_pairing_is_sharper_than_two_separate_intervals() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.random(2_000)
    first, second = difficulty < 0.80, difficulty < 0.77
    paired = statistics.paired_difference(first, second)
    assert paired.low > 0 and paired.n == 2_000
    assert paired.value == pytest.approx(first.mean() - second.mean())
    assert paired.high - paired.low < statistics.proportion(first).high - statistics.proportion(first).low


def test_a_constant_has_no_width_and_columns_carry_n() -> None:
    constant = statistics.mean([2.0, 2.0, 2.0])
    assert (constant.low, constant.value, constant.high) == (2.0, 2.0, 2.0)
    assert constant.columns("norm") == {"norm": 2.0, "norm_low": 2.0, "norm_high": 2.0, "n": 3}
    assert f"{constant:.1f}" == "2.0 [2.0, 2.0] (n = 3)"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_nothing_and_nan_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="at least one observation and no NaN"):
        statistics.mean(values)


def test_unpaired_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        statistics.paired_difference(np.ones(3), np.ones(4))


def test_an_interval_over_seeds_is_students_and_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [statistics.over_seeds(generator.normal(1.0, 2.0, 3)) for _ in range(400)]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert 0.92 < covered < 0.98 and all(interval.n == 3 for interval in intervals)
    single = statistics.over_seeds([2.0])
    assert (single.low, single.value, single.high, single.n) == (2.0, 2.0, 2.0, 1)
