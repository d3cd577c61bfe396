"""Notebook 08: what its tables must say."""

from __future__ import annotations

import pytest
from answers import (  # noqa: F401
    endpoint_of,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
    unresolved,
)
from notebook_runs import NotebookRun

from nullpaper.studies.verdicts import WORDS

NOTEBOOK = "08_ablations"
BY_EPS = ("nullspace, eps 0.1", "nullspace, eps 0.01")
BY_STOP = ("official, no early stop", "official")
REPAIRED, ADDED = ("zero, mismatched", "start, mismatched"), ("nullspace, mismatched", "zero, mismatched")
TABLES = {"paired": unresolved([BY_EPS, BY_STOP, REPAIRED, ADDED], ["clean", "fgsm", "corruptions", "average"])}


def changed(pair: tuple[str, str], measure: str, *numbers: float) -> tuple[str, dict[str, str], dict[str, float]]:
    where = {"method": pair[0], "against": pair[1], "measure": measure}
    return "paired", where, endpoint_of(*numbers)


ALTERED = [
    ("eps_matters", [changed(BY_EPS, "average", 0, 0.005)], "holds"),
    ("eps_matters", [changed(BY_EPS, "average", -0.05)], "does not hold"),
    ("early_stop", [changed(BY_STOP, "fgsm", 0.05)], "holds"),
    ("faked_gain", [changed(REPAIRED, "average", 0.07), changed(ADDED, "average", 0, 0.005)], "holds"),
    ("faked_gain", [changed(REPAIRED, "average", 0.07), changed(ADDED, "average", 0.05)], "in part"),
]


def test_eps_is_varied_for_learned_and_for_random_noise(run: NotebookRun) -> None:
    table, of_07 = run.table("08_eps"), run.table("08_table")
    cases = table.pivot(index=["eps", "measure"], columns="method", values="value")
    assert set(cases.columns) == {"nullspace", "random"} and cases.notna().all(axis=None)
    assert {"average", "clean", "fgsm", "corruptions"} <= set(table["measure"])
    for method in ("nullspace", "random"):  # at eps 0.03 it is 07's run
        same = of_07[of_07["method"] == method].set_index("measure")["value"]
        assert cases.loc[0.03, method].to_dict() == same.to_dict()


def test_published_noise_runs_on_without_its_early_stop(run: NotebookRun) -> None:
    table = run.table("08_noise").set_index("noise")
    assert table.loc["official, no early stop", "steps"] == 3  # official_steps of smoke
    assert table.loc["zero", ["norm", "influence"]].tolist() == [0, 0] and table.loc["zero", "within"] == 1
    drawn = 3 * (36 * 96 / 3) ** 0.5  # norm of a start uniform in (-3, 3): nothing pushes it up
    published = table.loc[["official", "official, no early stop"]]
    assert published["norm"].between(0.9 * drawn, 1.05 * drawn).all() and (published["noises"] == 1).all()
    assert (table["norm"].drop("zero") > 1).all() and (table["influence"] >= 0).all()


def test_paired_differences_are_those_of_the_tables(run: NotebookRun) -> None:
    paired = run.table("08_paired").set_index(["method", "against", "measure"]).sort_index()
    assert not paired.index.duplicated().any()
    values = {
        ("nullspace", "start"): run.table("08_table").set_index(["method", "measure"])["value"],
        ("official", "zero"): run.table("08_noise").set_index("noise")[["clean", "pgd", "average"]].stack(),
    }
    for (method, against), known in values.items():
        rows = paired.loc[(method, against), "difference"]
        for measure in rows.index.intersection(known[method].index):
            assert rows[measure] == pytest.approx(known[method, measure] - known[against, measure])
    assert ("official, no early stop", "official", "fgsm") in paired.index  # what the claim on early stop reads
    assert not paired["resolved"].any() and (paired["n"] == 1).all()  # a single seed resolves nothing


def test_a_wrong_scale_harms_the_start_and_the_gain_is_taken_apart(run: NotebookRun) -> None:
    table = run.table("08_normalisation").set_index(["input_scale", "measure"])
    own, wrong = table.loc["own"], table.loc["mismatched"]
    assert wrong.loc["clean", "start"] < own.loc["clean", "start"]
    assert wrong.loc["corruptions", "start"] < own.loc["corruptions", "start"]
    for name, part in (("reported", "nullspace"), ("of zero", "zero")):
        assert (table[part] - table["start"] - table[name]).abs().max() < 1e-9
    assert (wrong["nullspace"] - own["start"] - wrong["honest"]).abs().max() < 1e-9
    assert (own["honest"] - own["reported"]).abs().max() < 1e-9


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("08_verdicts").set_index("name")
    assert list(table.index) == ["eps_matters", "early_stop", "faked_gain"]
    assert set(table["holds"]) <= set(WORDS) and "Limits: " in run.printed
