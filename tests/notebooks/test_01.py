"""Notebook 01, the exact nullspace: what its tables must say, and verdicts that follow from them."""

from __future__ import annotations

from pathlib import Path

from answers import (  # noqa: F401
    about,
    judge,
    reference,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

NOTEBOOK = "01_existence"


def test_exact_noise_is_invisible_and_its_controls_are_not(run: NotebookRun) -> None:
    table = run.table("01_stability")
    longest = table[(table["share"] == 1) & (table["transport"] == "float32")].set_index("noise")
    assert longest.loc["exact nullspace", "unchanged"] == 1
    assert longest.loc["exact nullspace", "largest_logit_change"] < 1e-3
    assert longest.loc["Gaussian", "unchanged"] < 0.9 and longest.loc["permuted", "unchanged"] < 0.9
    assert longest["norm"].max() - longest["norm"].min() < 1e-2 * longest["norm"].max()
    assert longest.loc["exact nullspace", "accuracy_change"] == 0 > longest.loc["Gaussian", "accuracy_change_high"]
    assert (table["accuracy_low"] <= table["accuracy"]).all() and (table["n"] == table["n"].iloc[0]).all()


def test_the_zoo_is_large_and_b16_has_one_dimension(run: NotebookRun) -> None:
    table = run.table("01_nullity").set_index("model")
    assert len(table) >= 40
    assert table.loc["vit_base_patch16_224", ["dim_embedding", "dim_encoder"]].tolist() == [0, 1]
    assert table.loc["vit_small_patch16_224", ["dim_embedding", "dim_per_channel"]].tolist() == [384, 0]


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("01_verdicts").set_index("name")
    assert list(table.index) == [name for name, _, _ in ALTERED] and not (table["holds"] == "not measured").any()
    assert table.loc[["existence", "layer_norm"], "holds"].tolist() == ["in part", "holds"]
    assert "IN PART: most ViT configurations" in run.printed and "Limits: " in run.printed


TABLES = {"nullity": "01_nullity", "ranks": "01_ranks", "shifts": "01_token_shift", "curves": "01_stability"}
CERTAIN = ["existence", "per_channel", "numerical_rank"]  # counts
ALTERED = [
    ("existence", [("nullity", {}, {"dim_embedding": 1})], "holds"),
    ("per_channel", [("nullity", {}, {"dim_per_channel": 5_000})], "holds"),
    ("numerical_rank", [("nullity", {}, {"dim_embedding": 1}), ("ranks", {}, {"dim, SciPy float64": 1})], "holds"),
    ("layer_norm", [("shifts", {"noise": "shift along 1"}, about("relative_change", 0.5))], "does not hold"),
    ("exact_noise", [("curves", {"noise": "exact nullspace"}, about("unchanged", 0.9))], "does not hold"),
    ("stored_noise", [("curves", {"transport": "JPEG 90"}, about("unchanged", 0.999))], "holds"),
]


def test_a_missing_row_is_not_measured(tmp_path: Path) -> None:
    tables = {variable: reference(table) for variable, table in TABLES.items()}
    tables["ranks"] = tables["ranks"].iloc[:0]
    words = judge(NOTEBOOK, tmp_path, **tables)["holds"]
    assert words["numerical_rank"] == "not measured" and words["existence"] == "in part"
