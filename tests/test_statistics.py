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
    assert np.isnan(statistics.over_seeds([1.0, 2.0]).low), "two runs say little of a third"


@pytest.mark.parametrize("values", [[2.0], [1.0, 2.0], [0.3, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3]])
def test_few_seeds_or_seeds_that_tie_have_no_interval(values: list[float]) -> None:
    for estimate in (statistics.over_seeds(values), statistics.two_way(np.array(values)[:, None] + [-0.1, 0.1])):
        assert np.isnan([estimate.low, estimate.high]).all() and estimate.n == len(values)
        assert estimate.value == pytest.approx(np.mean(values)) and "[no interval]" in f"{estimate:.1f}"


def answers(rng: np.random.Generator, seeds: int, by_seed: float, by_image: float, images: int = 100) -> np.ndarray:
    """Differences (seeds, images) whose true mean is 0."""
    parts = rng.normal(0, by_seed, (seeds, 1)), rng.normal(0, by_image, (1, images)), rng.normal(0, 1, (seeds, images))
    return sum(parts)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("by_seed", "by_image"), [(0, 0), (0.5, 0), (0, 1.0), (0.1, 1.0)])
def test_an_interval_over_seeds_and_images_covers_both(seeds: int, by_seed: float, by_image: float) -> None:
    rng = np.random.default_rng(3)
    found = [statistics.crossed(answers(rng, seeds, by_seed, by_image)) for _ in range(400)]
    covered = np.mean([each.interval.low <= 0 <= each.interval.high for each in found])
    assert 0.92 < covered <= 1
    assert covered == np.mean([each.p() >= 0.05 for each in found]), "the test and the interval are one"


def test_variance_components_agree_with_their_definition_on_a_table_known_in_closed_form() -> None:
    values = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 7.0]])
    seeds, images, rest = statistics.mean_squares(values)
    assert (seeds, images, rest) == pytest.approx((7, 7, 1))
    assert statistics.crossed(values).error == pytest.approx(np.sqrt((7 + 7 - 1) / 9))


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls() -> None:
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": float("nan")}, nan_ok=True
    )
    families = {"a": "A, C", "b": "A", "c": "C", "d": "C"}
    by_paper = statistics.holm({"a": 0.02, "b": 0.03, "c": 0.5, "d": 0.001}, families)
    assert by_paper == pytest.approx({"a": 0.04, "b": 0.04, "c": 0.5, "d": 0.003})


@pytest.mark.parametrize(
    ("word", "numbers", "expected"),
    [
        ("holds", {"p": 0.01, "n_seeds": 5}, "holds"),
        ("holds", {"p": 0.2, "n_seeds": 5}, "not resolved"),
        ("does not hold", {"p": 0.2, "n_seeds": 5, "high": 0.01, "least": 0.02}, "does not hold"),  # shown to be small
        ("in part", {"p": 0.2, "n_seeds": 5}, "in part"),
        ("in part", {"p": 0.01, "n_seeds": 2}, "not resolved"),
        ("holds", {}, "holds"),  # a count or a theorem
        ("ill-posed", {"p": 0.9, "n_seeds": 1}, "ill-posed"),
    ],
)
def test_a_word_stands_as_far_as_its_endpoint_carries_it(word: str, numbers: dict, expected: str) -> None:
    nothing = dict.fromkeys(("p", "n_seeds", "high", "least"), float("nan"))
    assert statistics.carried(word, **nothing | numbers) == expected


def test_a_relative_change_and_its_reverse_say_the_same() -> None:
    ratios = np.array([0.5, 1.0, 3.0, 0.2])
    forth, back = statistics.relative_change(ratios), statistics.relative_change(1 / ratios)
    assert -1 < forth.low < forth.value < forth.high
    assert (1 + forth.value) * (1 + back.value) == pytest.approx(1) == pytest.approx((1 + forth.low) * (1 + back.high))
    assert np.isnan(statistics.relative_change([2.0, 3.0]).low)
