"""Every notebook, executed by papermill at the smoke profile in a project of its own, and what its tables must say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nullpaper.errors import InputError
from nullpaper.runner import RunReport, run_notebook
from nullpaper.vit import SHIPPED, fingerprint, load_vit

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def runs(project: Path) -> dict[str, RunReport]:
    """All notebooks, run once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(project))
        reports = [run_notebook(notebook, profile="smoke", progress=False) for notebook in NOTEBOOKS]
    return {report.notebook.stem: report for report in reports}


@pytest.mark.parametrize("name", [notebook.stem for notebook in NOTEBOOKS])
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    report = runs[name]
    assert report.error is None
    assert report.html.stat().st_size > 10_000 and report.figures and report.tables
    assert {path.suffix for path in report.figures} == {".pdf", ".png"}
    assert {path.suffix for path in report.tables} == {".csv", ".tex"}


@pytest.mark.parametrize("name", [notebook.stem for notebook in NOTEBOOKS])
def test_it_takes_a_profile_and_refuses_a_misspelt_parameter(name: str) -> None:
    notebook = next(path for path in NOTEBOOKS if path.stem == name)
    with pytest.raises(InputError, match="no parameter 'profil'. Did you mean 'profile'?"):
        run_notebook(notebook, {"profil": "smoke"}, profile="smoke")


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


def test_every_model_reads_every_noise(runs: dict[str, RunReport], project: Path) -> None:
    table = pd.read_csv(project / "results/smoke/03_transfer.csv")
    makers, readers = table["noise of"].unique(), table["read by"].unique()
    assert len(makers) >= 4 and set(makers) == set(readers) and len(table) == len(makers) ** 2
    assert (table["match_low"] <= table["match"]).all() and (table["match"] <= table["match_high"]).all()
    paired = table["match"] - table["match permuted"] - table["over permuted"]
    assert paired.abs().max() < 1e-9


def test_fooling_keeps_its_bounds(runs: dict[str, RunReport], project: Path) -> None:
    folder = project / "results/smoke"
    exact = pd.read_csv(folder / "04_exact.csv")
    assert (exact["unchanged, float32"] == 1).all() and (exact["largest logit change"] < 1e-3).all()
    assert (exact["relative distance"] < 1).all() and (exact["largest gap"] < 1e-3).all()
    near = pd.read_csv(folder / "04_approximate.csv")
    assert (near["largest influence"] <= near["eps"].clip(lower=1e-9)).all()
    mean = near[near["eps"] > 0].pivot(index="eps", columns="method", values="relative distance")
    assert (mean["descent from t"] <= mean["line from exact to t"] + 1e-3).all()
    attacks = pd.read_csv(folder / "04_adversarial.csv").dropna()
    assert (attacks["ratio"] <= 1 + 1e-6).all() and (attacks["found without it"] == 1).all()
    seen = pd.read_csv(folder / "04_second_models.csv").set_index(["network", "noise"])
    assert seen.loc[("shipped ViT", "exact, largest"), "class of x"] == 1


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


def test_training_again_writes_weights_that_load(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    folder = tmp_path / "checkpoint"
    given = {"retrain": True, "train_images": 256, "images": 100, "save_to": str(folder)}
    report = run_notebook(NOTEBOOKS[0], given, profile="smoke", progress=False)
    assert report.error is None
    record = json.loads((folder / f"{SHIPPED}.json").read_text())
    trained = load_vit(SHIPPED, weights=folder / f"{SHIPPED}.safetensors")
    assert fingerprint(trained) == record["weights"] != fingerprint(load_vit(SHIPPED))
    assert record["test_accuracy"]["n"] == 100 and len(record["history"]) == record["recipe"]["epochs"] == 1
