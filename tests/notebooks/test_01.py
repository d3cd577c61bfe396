"""Notebook 01, the exact nullspace: what its tables must say, and verdicts that follow from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
from answers import (  # noqa: F401
    about,
    judge,
    reference,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

from nullpaper.models.vit import ViT
from nullpaper.nullspace.zoo import ZOO
from nullpaper.robustness.perturbation import TRANSPORTS

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


def test_a_png_keeps_what_8_bits_keep_and_every_way_is_measured(run: NotebookRun) -> None:
    table = run.table("01_stability").query("share == 1").set_index(["noise", "transport"])["logit_change"]
    assert (table.xs("PNG", level=1) == table.xs("8 bits", level=1)).all()
    assert set(table["exact nullspace"].index) == {*TRANSPORTS}
    assert (table.xs("float32", level=1)["exact nullspace"] < table["exact nullspace"].drop("float32")).all()


def test_trained_weights_have_full_rank(run: NotebookRun) -> None:
    table = run.table("01_trained").set_index("through")
    assert table["dim"].to_dict() == {"embedding": 96, "encoder": 97} == table["dim by shape"].to_dict()
    assert (table["rank"] + table["dim"] == table["patch_dim"]).all() and (table["condition"] < 1e3).all()


PUBLISHED = {  # the reference's arithmetic: joint, per channel; and through the encoder
    "vit_tiny_patch16_224": (576, 192, 577),
    "deit_tiny_patch16_224": (576, 192, 577),
    "vit_small_patch16_224": (384, 0, 385),
    "vit_small_patch32_224": (2688, 1920, 2689),
    "vit_base_patch16_224": (0, 0, 1),
    "vit_base_patch32_224": (2304, 768, 2305),
    "vit_large_patch16_224": (0, 0, 0),
    "vit_large_patch32_224": (2048, 0, 2049),
    "vit_base_patch8_224": (0, 0, 0),
    "vit_huge_patch14_224": (0, 0, 0),
}


def test_the_zoo_is_wide_and_has_the_published_dimensions(run: NotebookRun) -> None:
    table = run.table("01_nullity").set_index("model")
    assert len(table) >= 45 and list(table.index) == [name for name in ZOO if timm.is_model(name)]
    assert {8, 14, 16, 32} <= set(table["patch"]) and not table.isna().any(axis=None)
    columns = table.loc[list(PUBLISHED), ["dim_embedding", "dim_per_channel", "dim_encoder"]]
    assert list(columns.itertuples(index=False, name=None)) == list(PUBLISHED.values())


def test_the_encoder_adds_at_most_one_dimension_a_patch(run: NotebookRun) -> None:
    table = run.table("01_nullity").set_index("model")
    extra = table["dim_encoder"] - table["dim_embedding"]
    assert (extra == (table["invariant"] & (table["width"] <= table["patch_dim"]))).all()
    assert (table["dim_per_channel"] <= table["dim_embedding"]).all()
    assert (table["share_encoder"] * table["patch_dim"]).round(9).equals(table["dim_encoder"].astype(float))
    assert (table["image_encoder"] == table["dim_encoder"] * table["tokens"]).all()
    assert table.loc["vit_base_patch16_224", "image_encoder"] == 196


def test_the_fact_fails_exactly_for_post_norm_and_rms_norm(run: NotebookRun) -> None:
    table = run.table("01_nullity").set_index("model")
    assert (table["invariant"] == ~table["family"].isin(["Post-norm", "RMSNorm"])).all()


def test_the_table_describes_the_model_that_timm_builds(run: NotebookRun) -> None:
    row = run.table("01_nullity").set_index("model").loc["deit_small_patch16_224"]
    net = timm.create_model("deit_small_patch16_224", depth=1)
    weight = ViT(net, (0.5,) * 3, (0.5,) * 3).patch_matrix.double().numpy()
    assert weight.shape == (row["width"], row["patch_dim"])
    assert row["dim_embedding"] == weight.shape[1] - np.linalg.matrix_rank(weight)
    assert net.patch_embed.num_patches == row["tokens"]


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("01_verdicts").set_index("name")
    assert list(table.index) == [name for name, _, _ in ALTERED] and not (table["holds"] == "not measured").any()
    words = {"existence": "in part", "numerical_rank": "not testable here", "layer_norm": "holds"}
    assert table.loc[[*words], "holds"].to_dict() == words and "Question: Which ViTs" in run.printed
    assert "IN PART: most ViT configurations" in run.printed and "Limits: " in run.printed


TABLES = {"nullity": "01_nullity", "ranks": "01_ranks", "shifts": "01_token_shift", "curves": "01_stability"}
TABLES["trained"] = "01_trained"
CERTAIN = ["existence", "per_channel", "numerical_rank", "trained_spectrum"]  # counts
ALTERED = [
    ("existence", [("nullity", {}, {"dim_embedding": 1})], "holds"),
    ("per_channel", [("nullity", {}, {"dim_per_channel": 5_000})], "holds"),
    ("numerical_rank", [("trained", {}, {"model": "vit_base_patch16_224", "dim": 1})], "holds"),
    ("trained_spectrum", [("trained", {"through": "encoder"}, {"dim": 98})], "holds"),
    ("layer_norm", [("shifts", {"noise": "shift along 1"}, about("relative_change", 0.5))], "does not hold"),
    ("exact_noise", [("curves", {"noise": "exact nullspace"}, about("unchanged", 0.9))], "does not hold"),
    ("stored_noise", [("curves", {"transport": "JPEG 90"}, about("unchanged", 0.999))], "holds"),
]


def test_a_missing_row_is_not_measured(tmp_path: Path) -> None:
    tables = {variable: reference(table) for variable, table in TABLES.items()}
    tables["ranks"] = tables["ranks"].iloc[:0]
    words = judge(NOTEBOOK, tmp_path, **tables)["holds"]
    assert words["numerical_rank"] == "not measured" and words["existence"] == "in part"
