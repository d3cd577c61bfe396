"""What tables say together: closed forms of mCE and averages, intervals that cover the truth and use the pairing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nullpaper import statistics
from nullpaper.errors import InputError
from nullpaper.robustness.comparison import average, compare, mean_corruption_error, summary
from nullpaper.robustness.evaluation import Clean, Condition, Corrupted, Threat, from_masks

SHARES = {"clean": 0.9, "fgsm@0.1": 0.3, "fog@1": 0.8, "fog@2": 0.6, "snow@1": 0.5, "pixelate@3": 0.7}


def condition(text: str) -> Condition:
    """The condition of this name in `SHARES`."""
    name, _, value = text.partition("@")
    return Clean() if name == "clean" else Threat(name, float(value)) if name == "fgsm" else Corrupted(name, int(value))


def exact(shares: dict[str, float], count: int = 20) -> pd.DataFrame:
    """A table whose accuracies are exactly these."""
    return from_masks({condition(key): np.arange(count) < round(share * count) for key, share in shares.items()})


def drawn(seed: int, shift: float = 0.0, count: int = 400, difficulty: int = 0) -> pd.DataFrame:
    """A table of a model that is right where the image's difficulty, with some noise, is below the share."""
    hard, rng = np.random.default_rng([99, difficulty]).random(count), np.random.default_rng(seed)
    noisy = {key: hard + 0.1 * rng.normal(size=count) < share + shift for key, share in SHARES.items()}
    return from_masks({condition(key): mask for key, mask in noisy.items()})


def test_a_summary_is_the_mean_over_each_family() -> None:
    found = summary(exact(SHARES)).set_index("name")["accuracy"]
    wanted = {"clean": 0.9, "fgsm@0.1": 0.3, "weather": 1.9 / 3, "digital": 0.7, "corruptions": 2.6 / 4}
    assert list(found.index) == list(wanted) and np.allclose(found, list(wanted.values()))
    part = exact(SHARES)[lambda table: table["kind"] == "corruption"]
    assert np.allclose(summary(part)["accuracy"], list(wanted.values())[2:])
    assert summary(exact({"clean": 0.5}))["name"].tolist() == ["clean"]


def test_mce_is_the_mean_of_ratios_of_summed_errors() -> None:
    weaker = {**SHARES, "fog@1": 0.4, "fog@2": 0.4, "snow@1": 0.5, "pixelate@3": 0.4}
    wanted = 100 * np.mean([0.6 / 1.2, 0.5 / 0.5, 0.3 / 0.6])
    assert mean_corruption_error(exact(SHARES), exact(weaker)).value == pytest.approx(wanted)
    published = {"fog": 0.6, "snow": 0.5, "pixelate": 0.6, "frost": 0.1}
    assert mean_corruption_error(exact(SHARES), published).value == pytest.approx(wanted)
    itself = mean_corruption_error(exact(SHARES), exact(SHARES))
    assert itself.low == itself.value == itself.high == pytest.approx(100)


def test_the_average_takes_100_minus_mce_as_one_column() -> None:
    reference = exact({**SHARES, "fog@1": 0.0, "snow@1": 0.0, "pixelate@3": 0.0})
    mce = mean_corruption_error(exact(SHARES), reference).value
    assert average(exact(SHARES), reference).value == pytest.approx((90 + 30 + 100 - mce) / 3)
    assert average(exact({"clean": 0.8, "fgsm@0.1": 0.2})).value == pytest.approx(50)


def test_one_condition_has_the_interval_of_a_bootstrap_over_images() -> None:
    table = drawn(0)
    found = summary(table).iloc[0]
    theirs = statistics.mean(table["correct"][0])
    assert found["accuracy"] == pytest.approx(theirs.value) and found["n"] == 400
    assert found["accuracy_low"] == pytest.approx(theirs.low, abs=0.006)
    assert found["accuracy_high"] == pytest.approx(theirs.high, abs=0.006)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    reference = [drawn(1, -0.2, 20_000), drawn(2, 0.0, 20_000)]
    truth = mean_corruption_error(reference[1], reference[0]).value
    hits = []
    for trial in range(60):
        tables = (drawn(10 + trial, shift, 200, difficulty=trial + 1) for shift in (0.0, -0.2))
        interval = mean_corruption_error(*tables)
        hits.append(interval.low <= truth <= interval.high)
    assert 0.85 <= np.mean(hits) <= 1


def test_the_same_draws_make_a_pairing_sharper() -> None:
    better, worse = drawn(0, 0.08), drawn(1)
    row = compare(better, worse).set_index("name").loc["fog@1"]
    single = [table.set_index("name").loc["fog"].iloc[0] for table in (better, worse)]
    assert row["difference"] == pytest.approx(single[0]["accuracy"] - single[1]["accuracy"])
    assert row["difference_low"] > 0
    widths = [one["accuracy_high"] - one["accuracy_low"] for one in single]
    assert row["difference_high"] - row["difference_low"] < 0.8 * np.hypot(*widths)
    paired = statistics.paired_difference(*(one["correct"] for one in single))
    assert row["difference_low"] == pytest.approx(paired.low, abs=0.008)


def test_a_comparison_with_itself_is_zero_and_turns_its_sign_with_the_order() -> None:
    nothing = compare(drawn(0), drawn(0))
    assert (nothing[["difference", "difference_low", "difference_high"]] == 0).all().all()
    forth, back = compare(drawn(0), drawn(1), families=True), compare(drawn(1), drawn(0), families=True)
    assert np.allclose(forth["difference_low"], -back["difference_high"])
    assert forth["name"].tolist() == summary(drawn(0))["name"].tolist()


def test_over_seeds_both_intervals_are_of_the_mean_over_seeds() -> None:
    first, second = ([drawn(10 * m + seed, 0.1 * m) for seed in range(3)] for m in (1, 0))
    row = compare(first, second).set_index("name").loc["snow@1"]
    means = [[table["accuracy"][table["name"] == "snow"].item() for table in tables] for tables in (first, second)]
    students = statistics.over_seeds(np.subtract(*means))
    assert row["difference"] == pytest.approx(students.value) and row["seeds"] == 3 and row["n"] == 400
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((students.low, students.high))
    one = compare(first[0], second[0]).set_index("name").loc["snow@1"]
    assert row["difference_high"] - row["difference_low"] < one["difference_high"] - one["difference_low"]
    assert one["seeds"] == 1 and one["seeds_low"] == one["seeds_high"] == one["difference"]


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert summary(drawn(0)).equals(summary(drawn(0)))
    assert not summary(drawn(0)).equals(summary(drawn(0), seed=1))


def test_what_nothing_pairs_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[20, 30\] images"):
        compare(exact(SHARES), exact(SHARES, 30))
    with pytest.raises(InputError, match="other conditions"):
        compare(exact(SHARES), exact({**SHARES, "fog@3": 0.1}))
    with pytest.raises(InputError, match="2 and 1 tables"):
        compare([exact(SHARES)] * 2, exact(SHARES))
    with pytest.raises(InputError, match="0 and 0 tables"):
        compare([], [])


def test_a_reference_that_does_not_fit_is_refused() -> None:
    table = exact(SHARES)
    with pytest.raises(InputError, match="no corruptions"):
        mean_corruption_error(exact({"clean": 0.5}), table)
    for reference in (exact({**SHARES, "fog@3": 0.1}), exact(SHARES, 30), exact({"clean": 0.5})):
        with pytest.raises(InputError, match="other corruptions, severities or images"):
            mean_corruption_error(table, reference)
    with pytest.raises(InputError, match="no error under snow"):
        mean_corruption_error(table, exact({**SHARES, "snow@1": 1.0}))
    for reference in ({"fog": 0.6, "snow": 0.5}, {"fog": 0.6, "snow": 0.5, "pixelate": 60}):
        with pytest.raises(InputError, match="no error between 0 and 1 under pixelate"):
            mean_corruption_error(table, reference)
    with pytest.raises(InputError, match="needs a reference"):
        average(table)
