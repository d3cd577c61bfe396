"""Notebook 05, fooled explanations: what its tables must say, and verdicts that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from answers import (  # noqa: F401
    about,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun, run_at_smoke
from PIL import Image

from nullpaper import load_vit
from nullpaper.models.vit import save_vit

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


@pytest.mark.long
def test_it_runs_on_a_model_and_a_folder_of_ones_own(project: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        folder = tmp_path / "mine" / "val" / name
        folder.mkdir(parents=True)
        for i in range(3):
            blobs = draws.integers(0, 255, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(blobs).resize((200, 150), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    torch.manual_seed(0)
    save_vit(load_vit("test_vit", pretrained=False, num_classes=3), tmp_path / "mine.safetensors")
    given = {"model": "test_vit", "weights": str(tmp_path / "mine.safetensors"), "data": str(tmp_path / "mine")}
    result = run_at_smoke(project, NOTEBOOK, label="mine", steps=2, **given)
    table = result.table("05_exact_agreement")
    assert (
        table.loc[table["noise"].str.startswith("exact") & (table["level"] == "patch"), "largest_change"] < 1e-3
    ).all()
    assert "mine: 3 classes, ant, bee, cat" in result.printed
