"""What tables say together: families, the closed form of mCE, intervals that cover the truth and use the pairing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nullpaper import statistics
from nullpaper.errors import InputError
from nullpaper.robustness.comparison import (
    ALEXNET,
    bootstrap,
    by_family,
    compare,
    corruption_errors,
    mean_corruption_error,
)
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES
from nullpaper.robustness.evaluation import Clean, Condition, Corrupted, Threat, from_masks

SHARES = {"clean": 0.9, "fgsm@0.1": 0.3, "fog@1": 0.8, "fog@2": 0.6, "snow@1": 0.5, "pixelate@3": 0.7}


def condition(text: str) -> Condition:
    """The condition of this name in `SHARES`."""
    name, _, value = text.partition("@")
    return Clean() if name == "clean" else Threat(name, float(value)) if name == "fgsm" else Corrupted(name, int(value))


def exact(shares: dict[str, float], count: int = 20) -> pd.DataFrame:
    """A table whose accuracies are exactly these."""
    return from_masks({condition(key): np.arange(count) < round(share * count) for key, share in shares.items()})


def drawn(seed: int, shift: float = 0.0, count: int = 400) -> pd.DataFrame:
    """A table of a model that is right where the image's difficulty, with some noise, is below the share."""
    hard, rng = np.random.default_rng(99).random(count), np.random.default_rng(seed)
    noisy = {key: hard + 0.1 * rng.normal(size=count) < share + shift for key, share in SHARES.items()}
    return from_masks({condition(key): mask for key, mask in noisy.items()})


def test_a_family_is_the_mean_of_its_conditions() -> None:
    names, right = by_family(exact(SHARES))
    wanted = {"clean": 0.9, "fgsm@0.1": 0.3, "weather": 1.9 / 3, "digital": 0.7, "corruptions": 2.6 / 4}
    assert names == list(wanted) and np.allclose(right.mean(0), list(wanted.values()))
    assert by_family(exact({"clean": 0.5}))[0] == ["clean"]


def test_mce_is_the_mean_of_ratios_of_summed_errors() -> None:
    weaker = {**SHARES, "fog@1": 0.4, "fog@2": 0.4, "snow@1": 0.5, "pixelate@3": 0.4}
    wanted = 100 * np.mean([0.6 / 1.2, 0.5 / 0.5, 0.3 / 0.6])
    assert mean_corruption_error(exact(SHARES), exact(weaker)) == pytest.approx(wanted)
    assert mean_corruption_error(exact(SHARES), exact(SHARES)) == pytest.approx(100)


def test_mce_by_the_errors_of_alexnet_is_100_for_alexnet_itself() -> None:
    """Whatever the severities are, as long as they are all there: their mean is what the published errors are."""
    count, shifts = 10_000, (0.05, 0.02, 0.0, -0.02, -0.05)
    assert list(ALEXNET) == list(CORRUPTIONS)
    errors = {(name, s): error + shifts[s - 1] for name, error in ALEXNET.items() for s in SEVERITIES}
    masks = {Corrupted(*key): np.arange(count) >= round(error * count) for key, error in errors.items()}
    table = from_masks({Clean(): np.ones(count, bool)} | masks)
    assert mean_corruption_error(table, ALEXNET) == pytest.approx(100, abs=0.01)
    assert 100 * corruption_errors(table, ALEXNET).mean() == pytest.approx(mean_corruption_error(table, ALEXNET))
    for part in (table.iloc[:-1], table[table["severity"] != 3], table.iloc[:1]):
        with pytest.raises(InputError, match="needs the 15 corruptions at severities 1 to 5"):
            mean_corruption_error(part, ALEXNET)


def test_a_mean_has_the_interval_of_a_bootstrap_over_images() -> None:
    values = np.random.default_rng(0).random((400, 2)) < (0.9, 0.4)
    for column, interval in enumerate(bootstrap(values.astype(float))):
        theirs = statistics.mean(values[:, column])
        assert interval.value == pytest.approx(theirs.value) and interval.n == 400
        assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).random((100, 200, 3)) < 0.8
    hits = [interval.low <= 0.8 <= interval.high for values in draws for interval in bootstrap(values)]
    assert 0.91 <= np.mean(hits) <= 0.98


def test_the_same_draws_make_a_pairing_sharper() -> None:
    better, worse = drawn(0, 0.08), drawn(1)
    row = compare(better, worse).set_index("name").loc["fgsm@0.1"]
    single = [table.set_index("condition").loc["fgsm@0.1"] for table in (better, worse)]
    assert row["difference"] == pytest.approx(single[0]["accuracy"] - single[1]["accuracy"])
    assert row["difference_low"] > 0 and row["n"] == 400
    widths = [one["accuracy_high"] - one["accuracy_low"] for one in single]
    assert row["difference_high"] - row["difference_low"] < 0.8 * np.hypot(*widths)
    paired = statistics.paired_difference(*(one["correct"] for one in single))
    assert row["difference_low"] == pytest.approx(paired.low, abs=0.008)


def test_a_comparison_with_itself_is_zero_and_turns_its_sign_with_the_order() -> None:
    nothing = compare(drawn(0), drawn(0))
    assert (nothing[["difference", "difference_low", "difference_high"]] == 0).all().all()
    forth, back = compare(drawn(0), drawn(1)), compare(drawn(1), drawn(0))
    assert np.allclose(forth["difference_low"], -back["difference_high"])


def test_what_nothing_pairs_is_refused() -> None:
    table, more = exact(SHARES), {**SHARES, "fog@3": 0.1}
    for other in (exact(SHARES, 30), exact({key: share for key, share in SHARES.items() if key != "pixelate@3"})):
        with pytest.raises(InputError, match="nothing pairs them"):
            compare(table, other)
    for other in (exact(more), exact(SHARES, 30), exact({"clean": 0.5})):
        with pytest.raises(InputError, match="same corruptions, severities and images"):
            mean_corruption_error(table, other)
    with pytest.raises(InputError, match="same corruptions"):
        mean_corruption_error(exact({"clean": 0.5}), exact({"clean": 0.5}))
    with pytest.raises(InputError, match="no error under a corruption"):
        mean_corruption_error(table, exact({**SHARES, "snow@1": 1.0}))
