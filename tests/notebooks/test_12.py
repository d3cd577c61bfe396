"""Notebook 12, any model: what its tables must say of the shipped model and of one at random weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from notebook_runs import NotebookRun, run_at_smoke

from nullpaper.models.vit import SHIPPED

NOTEBOOK = "12_any_model"


def test_the_shipped_model_ignores_half_of_every_patch_and_one_dimension_more(run: NotebookRun) -> None:
    table = run.table("12_dimensions").set_index("through")
    assert table["ignored"].to_dict() == {"embedding": 96, "encoder": 97} and set(table["model"]) == {SHIPPED}
    assert "its embedding 96 of 192 (50.0%), its encoder 97 of 192" in " ".join(run.printed.split())


def test_exact_noise_changes_rounding_and_noise_of_its_norm_the_answer(run: NotebookRun) -> None:
    table = run.table("12_effect").set_index("noise")
    exact = table.filter(like="exact", axis=0)
    assert len(exact) == 2 and (exact["change_high"] < 1e-4).all() and (exact["unchanged"] == 1).all()
    assert (table.loc[["Gaussian", "permuted"], "change_low"] > 0.1).all()
    assert table["norm"].max() < 1.05 * table["norm"].min()


def test_what_is_left_is_rounding(run: NotebookRun) -> None:
    table = run.table("12_precision").set_index(["noise", "dtype"])["largest_change"].unstack()
    assert len(table) == 2 and (table["float64"] < 1e-12).all() and (table["float32"] < 1e-3).all()


@pytest.mark.long
def test_a_model_of_timm_at_random_weights(project: Path) -> None:
    model = "vit_tiny_patch16_224"
    result = run_at_smoke(project, NOTEBOOK, label=model, model=model, images=2)
    table = result.table("12_dimensions").set_index("through")
    assert table["ignored"].to_dict() == {"embedding": 576, "encoder": 577} and set(table["weights"]) == {"random"}
    exact = result.table("12_effect").set_index("noise").filter(like="exact", axis=0)
    assert len(exact) == 2 and (exact["unchanged"] == 1).all()


@pytest.mark.long
def test_a_trained_model_on_photographs_of_ones_own(project: Path) -> None:
    """The bars of real size: 1e-9 in float64, 1e-3 in float32, every prediction kept; no path in what is written."""
    if not (shared := os.environ.get("NULLPAPER_SHARED")):
        pytest.skip("set NULLPAPER_SHARED to a folder with weights/ and data/ to try a ViT-Ti/16 on photographs")
    (weights,) = Path(shared, "weights").glob("vit_tiny_patch16_224*.safetensors")
    given = {"model": "vit_tiny_patch16_224", "weights": str(weights), "data": "imagenet"}
    result = run_at_smoke(project, NOTEBOOK, label="photographs", root=f"{shared}/data/nips2017", **given)
    change = result.table("12_precision").groupby("dtype")["largest_change"].max()
    assert change["float64"] < 1e-9 and change["float32"] < 1e-3
    table = result.table("12_effect").set_index("noise")
    assert (table.filter(like="exact", axis=0)["unchanged"] == 1).all() and table.loc["Gaussian", "unchanged"] < 0.5
    assert shared not in (result.report.out / "manifest.json").read_text()
    assert not any(shared.encode() in path.read_bytes() for path in (*result.report.figures, *result.report.tables))
