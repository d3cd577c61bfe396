"""Notebook 05, fooled explanations: what its tables must say, and verdicts that follow."""

from __future__ import annotations

from answers import (  # noqa: F401
    about,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

NOTEBOOK = "05_interpretation_fooling"
TABLES = {
    "agreement": "05_exact_agreement",
    "moved_noises": "05_moved_noises",
    "transfer": "05_moved_agreement",
    "areas": "05_faithfulness",
}
ALTERED = [
    ("explanations", [("agreement", {"level": "patch"}, about("rank_correlation", 0.1))], "holds"),
    ("moved_explanations", [("transfer", {"map": "saliency"}, about("rank_correlation", 0.9))], "in part"),
    ("faithfulness", [("areas", {"image": "noisy"}, about("deletion_change", -0.5))], "does not hold"),
]
MAPS = ("attention rollout", "Grad-CAM", "saliency")


def test_exact_noise_keeps_maps_of_patches_and_repaints_pixels(run: NotebookRun) -> None:
    table, both = run.table("05_exact_agreement"), run.table("05_both")
    exact, patch = table["noise"].str.startswith("exact"), table["level"] == "patch"
    assert (table.loc[exact & patch, "largest_change"] < 1e-4).all() and (both["largest_change"] < 1e-4).all()
    assert (table.loc[~exact & patch, "rank_correlation"] < 0.9).all()
    painted = table["map"].isin(["gradient × input", "integrated gradients"]) & ~patch
    assert (table.loc[exact & painted, "largest_change"] > 1e-2).all()


def test_optimised_noise_moves_a_map_more_than_its_controls_and_keeps_the_prediction(run: NotebookRun) -> None:
    moved = run.table("05_moved_agreement").set_index(["noise", "map"])["rank_correlation"]
    for name in MAPS:
        assert moved[f"for {name}", name] < min(moved["random signs", name], moved[f"for {name}, permuted", name])
    noises = run.table("05_moved_noises").set_index("noise").loc[[f"for {name}" for name in MAPS]]
    assert (noises["class_kept"] == 1).all() and (noises["largest_softmax_change"] < 0.01001).all()


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("05_verdicts").set_index("name")
    assert list(table.index) == ["explanations", "moved_explanations", "faithfulness"]
    assert not (table["holds"] == "not measured").any()
    assert "nullspace noise fools explanations" in run.printed and "Limits: " in run.printed
