"""Notebooks 03 to 06, what the nullspace does to others: they run, and what their tables must say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from notebook_runs import assert_complete, numbered, project, runs, stems

from nullpaper.workflow.runs import RunReport

__all__ = ["project", "runs"]  # fixtures

NOTEBOOKS = numbered("03", "05", "06")


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


def test_exact_noise_keeps_explanations_and_optimised_noise_moves_them(
    runs: dict[str, RunReport], project: Path
) -> None:
    names = ("exact_agreement", "moved_agreement", "moved_noises", "both")
    table, moved, noises, both = (pd.read_csv(project / f"results/smoke/05_{name}.csv") for name in names)
    exact, patch = table["noise"].str.startswith("exact"), table["level"] == "patch"
    assert (table.loc[exact & patch, "largest_change"] < 1e-4).all() and (both["largest_change"] < 1e-4).all()
    assert (table.loc[~exact & patch, "rank_correlation"] < 0.9).all()
    painted = table["map"].isin(["gradient × input", "integrated gradients"]) & ~patch
    assert (table.loc[exact & painted, "largest_change"] > 1e-2).all()
    moved = moved.set_index(["noise", "map"])["rank_correlation"]
    for name in ("attention rollout", "Grad-CAM", "saliency"):
        assert moved[f"for {name}", name] < min(moved["random signs", name], moved[f"for {name}, permuted", name])
    kept = noises.set_index("noise").filter(regex="^for [^,]*$", axis=0)
    assert len(kept) == 3 and (kept["class_kept"] == 1).all() and (kept["largest_softmax_change"] < 0.01001).all()


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
