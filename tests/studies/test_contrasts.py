"""Methods are compared image by image, over seeds and images, and only where they were judged alike."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from nullpaper.errors import InputError
from nullpaper.robustness.evaluation import Clean, Corrupted, Threat, from_masks
from nullpaper.studies import contrasts
from nullpaper.studies.trials import Trial, TrialResult

EPS = 1 / 255


@cache
def made(*rates: float, images: int = 40) -> tuple[TrialResult, ...]:
    """Trials with answers drawn at these rates of accuracy."""
    runs = []
    for seed, rate in enumerate(rates):
        drawn = np.random.default_rng(seed).random((3, images)) < rate
        frame = from_masks(dict(zip((Clean(), Threat("fgsm", EPS), Corrupted("fog", 2)), drawn, strict=True)))
        runs.append(TrialResult(Trial("zero", seed), [], 0, frame, None))
    return tuple(runs)


def test_differences_are_paired_and_add_up() -> None:
    groups = {"start": made(0.5), "zero": made(0.6, 0.7)}
    values = contrasts.tabulate(groups, EPS).set_index(["method", "measure"])["value"]
    assert set(values["zero"].index) >= {"clean", "fgsm", "weather", "corruptions", "average"}
    rows = contrasts.contrast(groups, [("zero", "start"), ("zero", "zero")], EPS)
    own = rows[rows["against"] == "start"].set_index("measure")
    expected = values["zero"] - values["start"]
    assert np.allclose(own["difference"], expected[own.index], atol=1e-12) and own["n"].eq(2).all()
    same = rows[rows["against"] == "zero"]
    assert same[["difference", "images_high"]].eq(0).all(axis=None) and not same["resolved"].any()
    assert same[["difference_low", "low", "high", "p"]].isna().all(axis=None), "what never varies has no interval"


def test_a_difference_is_resolved_over_seeds_and_images_and_never_with_fewer_than_three_seeds() -> None:
    groups = {"good": made(0.9, 0.91, 0.97), "bad": made(0.2, 0.21, 0.26), "mixed": made(0.2, 0.95, 0.9)}
    rows = contrasts.contrast(groups, [("good", "bad"), ("mixed", "bad"), ("bad", "good")], EPS)
    rows = rows.set_index(["method", "measure"])
    assert (rows["resolved"] == (rows["p"] < 0.05)).all(), "the interval and the test are one"
    assert rows["resolved"]["good"].all() and rows["resolved"]["bad"].all() and not rows["resolved"]["mixed"].any()
    values = contrasts.differences(groups, "good", "bad", "clean", EPS)
    assert values.shape == (3, 40) and values.mean() == pytest.approx(rows["difference"]["good", "clean"])
    for few in ({"good": made(0.9), "bad": made(0.2)}, {"good": made(0.9, 0.92), "bad": made(0.2, 0.3)}):
        assert not contrasts.contrast(few, [("good", "bad")], EPS)["resolved"].any()


def test_a_figure_gets_the_interval_of_both_over_images_for_one_model_and_none_for_two() -> None:
    rows = contrasts.tabulate({str(n): made(*(0.5, 0.6, 0.7)[:n]) for n in (1, 2, 3)}, EPS).query("measure == 'clean'")
    one, two, three = (row for _, row in rows.iterrows())
    assert contrasts.ends(one) == (one["images_low"], one["images_high"])
    assert np.isnan(contrasts.ends(two)).all() and contrasts.in_percent(two).endswith(" [no interval]")
    assert contrasts.ends(three) == (three["low"], three["high"]) and three["low"] < three["value"] < three["high"]


def test_the_average_is_over_its_columns() -> None:
    frame = made(0.5)[0].frame
    assert "fgsm 1/255" in contrasts.measures(frame, 8 / 255), "another radius than the table's is named"
    table = contrasts.measures(frame, EPS)
    assert list(table.columns) == ["clean", "fgsm", "weather", "corruptions", "average"] and len(table) == 40
    assert np.allclose(table["average"], table[["clean", "fgsm", "corruptions"]].mean(axis=1))


def test_a_measure_names_its_radius_and_its_budget_where_they_are_others() -> None:
    threats = [Threat("pgd-5", EPS), Threat("pgd-5", 8 / 255), Threat("patch", 1.0)]
    threats += [Threat("autoattack-100", EPS), Threat("autoattack-5", 8 / 255), Threat("cw-3", EPS), Threat("cw", EPS)]
    frame = from_masks({one: np.ones(3, bool) for one in (Clean(), *threats)})
    names = [*contrasts.measures(frame, EPS)]
    assert names == ["clean", "pgd", "pgd 8/255", "patch", "autoattack", "autoattack-5 8/255", "cw-3", "cw", "average"]


def test_what_was_judged_otherwise_is_not_compared() -> None:
    groups = {"few": made(0.5, images=30), "many": made(0.5), "two": made(0.5, 0.6), "three": made(0.5, 0.6, 0.7)}
    for pair in (("few", "many"), ("two", "three")):
        with pytest.raises(InputError, match="were not judged alike"):
            contrasts.contrast(groups, [pair], EPS)


def test_a_contrast_of_contrasts_is_the_difference_of_the_two() -> None:
    groups = {"a": made(0.9, 0.8), "b": made(0.5, 0.6), "c": made(0.4, 0.3), "d": made(0.2, 0.1)}
    both = contrasts.contrast(groups, [("a", "b"), ("c", "d")], EPS).set_index(["method", "measure"])["difference"]
    rows = contrasts.contrast_of(groups, ("a", "b"), ("c", "d"), EPS).set_index("measure")
    assert np.allclose(rows["difference"], (both["a"] - both["c"])[rows.index]) and rows["n"].eq(2).all()
    same = contrasts.contrast_of(groups, ("a", "b"), ("a", "b"), EPS)
    assert same[["difference", "images_low", "images_high"]].eq(0).all(axis=None) and not same["resolved"].any()
    groups["e"] = made(0.5)
    with pytest.raises(InputError, match="were not judged alike"):
        contrasts.contrast_of(groups, ("a", "b"), ("e", "e"), EPS)
