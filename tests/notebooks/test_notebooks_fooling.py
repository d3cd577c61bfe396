"""Notebooks 03 to 06, what the nullspace does to others: they run, and what their tables must say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from notebook_runs import assert_complete, numbered, project, runs, stems

from nullpaper.workflow.runs import RunReport

__all__ = ["project", "runs"]  # fixtures

NOTEBOOKS = numbered("03", "06")


@pytest.mark.parametrize("name", stems(NOTEBOOKS))
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    assert_complete(runs[name])


def test_every_model_reads_every_noise(runs: dict[str, RunReport], project: Path) -> None:
    table = pd.read_csv(project / "results/smoke/03_transfer.csv")
    makers, readers = table["noise of"].unique(), table["read by"].unique()
    assert len(makers) >= 4 and set(makers) == set(readers) and len(table) == len(makers) ** 2
    assert (table["match_low"] <= table["match"]).all() and (table["match"] <= table["match_high"]).all()
    paired = table["match"] - table["match permuted"] - table["over permuted"]
    assert paired.abs().max() < 1e-9


def test_marks_leave_predictions_alone_and_come_back(runs: dict[str, RunReport], project: Path) -> None:
    folder = project / "results/smoke"
    logos = pd.read_csv(folder / "06_logo.csv").query("mark == 'nullspace' and transport == 'float32'")
    assert (logos["unchanged"] == 1).all() and (logos["largest_logit_change"] < 1e-3).all()
    assert (logos["largest_gap"] < 1e-4).all()
    message = pd.read_csv(folder / "06_message.csv").set_index("arrival")
    assert (message["unchanged"] == 1).all() and (message.loc[["float32", "8 bits"], "bits"] > 0.95).all()
    assert message.loc[["wrong keys", "erased"], "bits"].between(0.35, 0.65).all()
    assert (pd.read_csv(folder / "06_solver.csv")["excess"] > -1e-4).all()  # SLSQP never does better
    placed = pd.read_csv(folder / "06_prediction.csv").query("transport == 'float32'").set_index("place")
    assert placed.loc["nullspace", "largest_logit_change"] < 1e-3 < placed.loc["row space", "largest_logit_change"]
