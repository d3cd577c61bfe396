"""Notebook 14: what its tables must say."""

from __future__ import annotations

from pathlib import Path

import pytest
from answers import judge
from notebook_runs import NotebookRun

from nullpaper.studies.verdicts import WORDS

NOTEBOOK = "14_spectrum"
NAMES = ["ignored_noise", "sensitive_noise", "attack_over_noise"]


def test_equal_influence_allows_less_of_what_the_network_is_sensitive_to(run: NotebookRun) -> None:
    family = run.table("14_family").set_index("gamma")
    assert family.loc[1.0, "norm"] < 0.8 * family.loc[0.0, "norm"] and (family["influence"] > 0).all()
    assert family.loc[1.0, "energy"] > 3 * family.loc[0.0, "energy"]


def test_effects_are_those_of_the_accuracies(run: NotebookRun) -> None:
    table = run.table("14_arms").set_index(["name", "measure"])
    of = table["value"].unstack()
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["start", "gamma 0", "gamma 1", "zero", "pgd_at"]
    assert ((of["pgd"] + of["noise"]) / 2 - of["robustness"]).abs().max() < 1e-9 and (of["pgd"] <= of["clean"]).all()
    effects = run.table("14_effects").set_index(["name", "measure"])
    assert not effects.index.duplicated().any()
    for (name, measure), row in effects.iterrows():
        first, second = ("gamma 1", "gamma 0") if name == "slope" else name.split(" - ")
        assert row["value"] == pytest.approx(of.loc[first, measure] - of.loc[second, measure], abs=1e-9)
    assert table.loc[["gamma 1", "pgd_at"], "passes"].eq(2).all()  # the same price


def test_each_method_takes_the_rate_that_dev_prefers(run: NotebookRun) -> None:
    best = run.table("14_rates").sort_values(["robustness", "rate"], ascending=[False, True]).groupby("arm").first()
    taken = run.table("14_arms").query("measure == 'clean' and name != 'start'").set_index("name")["rate"]
    assert taken.to_dict() == best["rate"].to_dict()


def test_a_verdict_turns_with_its_numbers(run: NotebookRun, tmp_path: Path) -> None:
    effects, words = run.table("14_effects"), {}
    for value in (-0.05, 0.0, 0.05):
        sure = dict(value=value, low=value - 0.002, high=value + 0.002, p=1.0 if value == 0 else 1e-4, n=5, images=500)
        words[value] = judge(NOTEBOOK, tmp_path, effects=effects.assign(**sure), steps=240)["holds"].tolist()
    assert words == {
        -0.05: ["holds", "does not hold", "does not hold"],
        0.0: ["does not hold"] * 3,  # shown smaller than what matters
        0.05: ["does not hold", "holds", "holds"],
    }
    wide = effects.assign(value=0.05, low=-1.0, high=1.0, p=0.9, n=5, images=500)
    short = effects.assign(value=0.05, low=0.04, high=0.06, p=1e-4, n=5, images=500)
    for undecided in (dict(effects=wide, steps=240), dict(effects=short, steps=20)):
        assert set(judge(NOTEBOOK, tmp_path, **undecided)["holds"]) == {"not resolved"}


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("14_verdicts").set_index("name")
    assert list(table.index) == NAMES and set(table["holds"]) <= set(WORDS)
    assert (table["holds"] == "not resolved").all()  # one seed
    assert "Limits: " in run.printed and run.figures == {"14_family", "14_robustness"}
