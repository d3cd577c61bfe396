"""Notebook 05, what the nullspace does to others: they run, and what their tables must say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from notebook_runs import assert_complete, numbered, project, runs, stems

from nullpaper.workflow.runs import RunReport

__all__ = ["project", "runs"]  # fixtures

NOTEBOOKS = numbered("05")


@pytest.mark.parametrize("name", stems(NOTEBOOKS))
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    assert_complete(runs[name])


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
