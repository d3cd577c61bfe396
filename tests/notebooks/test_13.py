"""Notebook 13 at smoke: a real sweep of notebook 12 inside it, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from notebook_runs import NOTEBOOKS, NotebookRun, run_at_smoke

from nullpaper.workflow.tables import collect


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> NotebookRun:
    """Its own project, which has notebook 12 to sweep over."""
    project = tmp_path_factory.mktemp("sweeps")
    (project / "notebooks").symlink_to(NOTEBOOKS)
    return run_at_smoke(project, "13_sweeps")


def test_means_are_over_the_seeds_of_a_real_sweep(run: NotebookRun) -> None:
    table = run.table("13_over_seeds").set_index("noise")
    assert set(table["n"]) == {2} and set(table["model"]) == {"nullpaper_vit_cifar10"}
    effect = collect(run.project / "build" / "sweeps" / "13_models", "12_effect")
    assert len(effect) == 2 * len(table) and effect["job"].nunique() == 2
    for noise, rows in effect.groupby("noise"):
        assert table.loc[noise, "change"] == pytest.approx(rows["change"].mean(), rel=1e-12)
    exact = table.index.str.startswith("exact")
    assert table[exact]["change"].max() < 1e-4 < 1e-2 < table[~exact]["change"].min()
    assert run.figures == {"13_changes"} and "over 2 seeds, exact noise changes the logits by at most" in run.printed


@pytest.mark.long
def test_a_finished_sweep_is_read_instead(run: NotebookRun) -> None:
    again = run_at_smoke(run.project, "13_sweeps", sweep="13_models")
    assert again.table("13_over_seeds").equals(run.table("13_over_seeds"))
    assert isinstance(again.project, Path) and len([*again.project.glob("build/sweeps/13_models/12_*")]) == 2
