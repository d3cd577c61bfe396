"""Notebook 07: what its tables must say."""

from __future__ import annotations

import pytest
from answers import (  # noqa: F401
    about,
    gain,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

from nullpaper.studies.verdicts import WORDS

NOTEBOOK = "07_nullspace_finetuning"
TABLES = {"paired": "07_paired", "found_paired": "07_paired", "dynamics": "07_dynamics", "robust_paired": "07_robust"}
CERTAIN = ["growth"]  # its start is one model, whose norm has no interval
ATTACKED = {"method": "nullspace", "measure": "pgd"}
BETTER, WORSE = gain(0.1), gain(-0.1)
ALTERED = [
    ("finetuning", [("paired", {"method": "nullspace", "against": "start"}, BETTER)], "holds"),
    (
        "noise_or_finetuning",
        [("paired", {"method": "nullspace", "against": "zero", "measure": "clean"}, BETTER)],
        "in part",
    ),
    ("random_noise", [("paired", {"method": "nullspace", "against": "random"}, WORSE)], "does not hold"),
    (
        "noise_corruptions",
        [("found_paired", {"method": "nullspace", "against": "permuted", "measure": "noise"}, BETTER)],
        "in part",
    ),
    ("adversarial_training", [("paired", ATTACKED | {"against": "pgd_at"}, WORSE)], "holds"),
    ("growth", [("dynamics", {"method": "nullspace", "step": 320}, about("norm", 80))], "holds"),
]


def test_controls_are_in_place_and_differences_add_up(run: NotebookRun) -> None:
    rounds = run.table("07_rounds").query("step > 0").set_index(["method", "step"])
    assert set(run.table("07_found")["against"]) == {"random", "random_norm", "permuted"}
    assert (rounds.loc["zero", "noise_norm"] == 0).all()
    assert rounds.loc["pgd_at", "noise_norm"].isna().all()
    assert (rounds.loc[["nullspace", "random"], "noise_norm"] > 1).all()
    table = run.table("07_table").set_index(["method", "measure"])["value"]
    assert table.between(0, 1).all()
    for row in run.table("07_paired").to_dict("records"):
        expected = table[row["method"], row["measure"]] - table[row["against"], row["measure"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    dynamics = run.table("07_dynamics")
    assert set(dynamics["method"]) == {"nullspace", "zero"} and (dynamics[["norm", "norm_random"]] > 1).all(axis=None)
    attacked = run.table("07_autoattack").pivot(index="method", columns="measure", values="value")
    assert (attacked["autoattack-1"] <= attacked["clean"]).all()


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("07_verdicts").set_index("name")
    names = "finetuning noise_or_finetuning random_noise noise_corruptions adversarial_training growth"
    assert list(table.index) == names.split()
    assert set(table["holds"]) <= set(WORDS) and "Limits: " in run.printed
