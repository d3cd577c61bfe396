"""Notebooks 07 and 08, which share trials: they run, and what their tables must say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from notebook_runs import assert_complete, numbered, project, runs, stems

from nullpaper.workflow.runs import RunReport

__all__ = ["project", "runs"]  # fixtures

NOTEBOOKS = numbered("07", "08")


@pytest.mark.parametrize("name", stems(NOTEBOOKS))
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    assert_complete(runs[name])


@pytest.fixture
def tables(runs: dict[str, RunReport], project: Path) -> Path:
    return project / "results/smoke"


def test_the_plane_shows_the_runs_of_07(tables: Path, project: Path) -> None:
    plane, table = pd.read_csv(tables / "08_plane.csv"), pd.read_csv(tables / "07_table.csv")
    pd.testing.assert_frame_equal(plane, table.drop(columns="steps"))
    finetuned = {path.parent for path in (project / "build/store/finetuned").glob("*/provenance.json")}
    trials = 5 + 2 + 3 + 2  # 07; and of 08: eps, makers of noise, wrong scale
    assert len(finetuned) == trials, "nothing of 07 is trained twice"


def test_controls_are_in_place_and_differences_add_up(tables: Path) -> None:
    rounds = pd.read_csv(tables / "07_rounds.csv").query("step > 0").set_index(["method", "step"])
    assert (rounds.loc["zero", "noise_norm"] == 0).all() and rounds.loc["standard", "noise_norm"].isna().all()
    assert (rounds.loc["zero", "loss"] / rounds.loc["standard", "loss"]).sub(1).abs().max() < 1e-3
    assert (rounds.loc[["nullspace", "random"], "noise_norm"] > 1).all()
    table = pd.read_csv(tables / "07_table.csv").set_index(["method", "measure"])["value"]
    assert table.between(0, 1).all()
    for row in pd.read_csv(tables / "07_paired.csv").to_dict("records"):
        expected = table[row["method"], row["measure"]] - table[row["against"], row["measure"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    dynamics = pd.read_csv(tables / "07_dynamics.csv")
    assert set(dynamics["method"]) == {"nullspace", "zero"} and (dynamics[["norm", "norm_random"]] > 1).all(axis=None)
    attacked = pd.read_csv(tables / "07_autoattack.csv").pivot(index="method", columns="measure", values="value")
    assert (attacked["autoattack"] <= attacked["clean"]).all()


def test_eps_is_varied_for_learned_and_for_random_noise(tables: Path) -> None:
    table, of_07 = pd.read_csv(tables / "08_eps.csv"), pd.read_csv(tables / "07_table.csv")
    cases = table.pivot(index=["eps", "measure"], columns="method", values="value")
    assert set(cases.columns) == {"nullspace", "random"} and cases.notna().all(axis=None)
    assert {"average", "clean", "fgsm", "corruptions"} <= set(table["measure"])
    for method in ("nullspace", "random"):  # at eps 0.03 it is 07's run
        same = of_07[of_07["method"] == method].set_index("measure")["value"]
        assert cases.loc[0.03, method].to_dict() == same.to_dict()


def test_published_noise_runs_on_without_its_early_stop(tables: Path) -> None:
    table = pd.read_csv(tables / "08_noise.csv").set_index("noise")
    steps = table["steps"]
    assert steps["official, no early stop"] == 2 and steps["official"] <= 2  # noise_steps of smoke
    assert table.loc["zero", ["norm", "influence"]].tolist() == [0, 0] and table.loc["zero", "within"] == 1
    drawn = (36 * 96 / 3) ** 0.5  # norm of a start uniform in (-1, 1): nothing pushes it up
    assert table.loc[["official", "official, no early stop"], "norm"].between(0.9 * drawn, 1.05 * drawn).all()
    assert (table["norm"].drop("zero") > 1).all() and (table["influence"] >= 0).all()


def test_paired_differences_are_those_of_the_tables(tables: Path) -> None:
    paired = pd.read_csv(tables / "08_paired.csv").set_index(["method", "against", "measure"]).sort_index()
    assert not paired.index.duplicated().any()
    values = {
        ("nullspace", "start"): pd.read_csv(tables / "07_table.csv").set_index(["method", "measure"])["value"],
        ("official", "zero"): pd.read_csv(tables / "08_noise.csv")
        .set_index("noise")[["clean", "pgd", "average"]]
        .stack(),
    }
    for (method, against), known in values.items():
        rows = paired.loc[(method, against), "difference"]
        for measure in rows.index.intersection(known[method].index):
            assert rows[measure] == pytest.approx(known[method, measure] - known[against, measure])
    assert ("official, no early stop", "official", "fgsm") in paired.index  # what the claim on early stop reads
    assert not paired["resolved"].any() and (paired["n"] == 1).all()  # a single seed resolves nothing


def test_a_wrong_scale_harms_the_start_and_the_gain_is_taken_apart(tables: Path) -> None:
    table = pd.read_csv(tables / "08_normalisation.csv").set_index(["input_scale", "measure"])
    own, wrong = table.loc["own"], table.loc["mismatched"]
    assert wrong.loc["clean", "start"] < own.loc["clean", "start"]
    assert wrong.loc["corruptions", "start"] < own.loc["corruptions", "start"]
    for name, part in (("reported", "nullspace"), ("of zero", "zero")):
        assert (table[part] - table["start"] - table[name]).abs().max() < 1e-9
    assert (wrong["nullspace"] - own["start"] - wrong["honest"]).abs().max() < 1e-9
    assert (own["honest"] - own["reported"]).abs().max() < 1e-9
