"""Notebooks 00 to 02, the checkpoint and the nullspace itself: they run, and what their tables must say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from notebook_runs import assert_complete, numbered, project, runs, stems

from nullpaper.models.vit import SHIPPED, fingerprint, load_vit
from nullpaper.workflow.runs import RunReport, run_notebook

__all__ = ["project", "runs"]  # fixtures

NOTEBOOKS = numbered("01", "02")
(CHECKPOINT,) = numbered("00")


@pytest.mark.parametrize("name", stems(NOTEBOOKS))
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    assert_complete(runs[name])


def test_exact_noise_is_invisible_and_its_controls_are_not(runs: dict[str, RunReport], project: Path) -> None:
    table = pd.read_csv(project / "results/smoke/01_stability.csv")
    longest = table[(table["share"] == 1) & (table["transport"] == "float32")].set_index("noise")
    assert longest.loc["exact nullspace", "unchanged"] == 1
    assert longest.loc["exact nullspace", "largest_logit_change"] < 1e-3
    assert longest.loc["Gaussian", "unchanged"] < 0.9 and longest.loc["permuted", "unchanged"] < 0.9
    assert longest["norm"].max() - longest["norm"].min() < 1e-2 * longest["norm"].max()
    assert (
        longest.loc["exact nullspace", "accuracy_change"] == 0 and longest.loc["Gaussian", "accuracy_change_high"] < 0
    )
    assert (table["accuracy_low"] <= table["accuracy"]).all() and (table["n"] == table["n"].iloc[0]).all()


def test_the_zoo_is_large_and_b16_has_one_dimension(runs: dict[str, RunReport], project: Path) -> None:
    table = pd.read_csv(project / "results/smoke/01_nullity.csv").set_index("model")
    assert len(table) >= 40
    assert table.loc["vit_base_patch16_224", ["dim_embedding", "dim_encoder"]].tolist() == [0, 1]
    assert table.loc["vit_small_patch16_224", ["dim_embedding", "dim_per_channel"]].tolist() == [384, 0]


def test_noise_that_learned_nothing_passes_the_papers_control(runs: dict[str, RunReport], project: Path) -> None:
    table = pd.read_csv(project / "results/smoke/02_unlearned.csv").set_index("noise")
    assert table["norm"].round(2).eq(1_000).all()
    assert table.loc["random, one token", "match"] > 0.9 > 0.5 > table.loc["permuted", "match"]
    assert table.loc["permuted within", "match"] > 0.9
    spread = pd.read_csv(project / "results/smoke/02_eps_runs.csv").query("method == 'ours, spread'")
    assert (spread["largest token"] * 6 / spread["norm"]).round(3).eq(1).all()  # 36 tokens of one norm


def test_training_again_writes_weights_that_load(tmp_path, monkeypatch) -> None:
    """Notebook 00 with its training; without it, it runs in ``make paper PROFILE=smoke``."""
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    folder = tmp_path / "checkpoint"
    given = {"retrain": True, "train_images": 128, "images": 50, "save_to": str(folder)}
    report = run_notebook(CHECKPOINT, given, profile="smoke", progress=False)
    assert_complete(report)
    record = json.loads((folder / f"{SHIPPED}.json").read_text())
    trained = load_vit(SHIPPED, weights=folder / f"{SHIPPED}.safetensors")
    assert fingerprint(trained) == record["weights"] != fingerprint(load_vit(SHIPPED))
    assert record["test_accuracy"]["n"] == 50 and len(record["history"]) == record["recipe"]["epochs"] == 1
