"""The table over the zoo: published dimensions, generic ranks measured on random matrices, what timm builds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import timm

from nullpaper.models.vit import ViT
from nullpaper.models.weights import skeleton
from nullpaper.nullspace.zoo import ZOO, embedding_nullity, encoder_nullity, nullity_table

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


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return nullity_table().set_index("model")


def test_the_zoo_is_wide_and_has_the_published_dimensions(table: pd.DataFrame) -> None:
    assert len(table) >= 45 and list(table.index) == [name for name in ZOO if timm.is_model(name)]
    assert {8, 14, 16, 32} <= set(table["patch"]) and not table.isna().any(axis=None)
    columns = table.loc[list(PUBLISHED), ["dim_embedding", "dim_per_channel", "dim_encoder"]]
    assert list(columns.itertuples(index=False, name=None)) == list(PUBLISHED.values())


def test_the_encoder_adds_at_most_one_dimension_a_patch(table: pd.DataFrame) -> None:
    extra = table["dim_encoder"] - table["dim_embedding"]
    assert (extra == (table["invariant"] & (table["width"] <= table["patch_dim"]))).all()
    assert (table["dim_per_channel"] <= table["dim_embedding"]).all()
    assert (table["share_encoder"] * table["patch_dim"]).round(9).equals(table["dim_encoder"].astype(float))
    assert (table["image_encoder"] == table["dim_encoder"] * table["tokens"]).all()
    assert table.loc["vit_base_patch16_224", "image_encoder"] == 196


def test_the_fact_fails_exactly_for_post_norm_and_rms_norm(table: pd.DataFrame) -> None:
    word = {"Post-norm": "post-norm", "RMSNorm": "RmsNorm"}
    assert (table["invariant"] == ~table["family"].isin(list(word))).all()
    failing = table[~table["invariant"]]
    assert all(word[family] in reason for family, reason in zip(failing["family"], failing["reason"], strict=True))


@pytest.mark.parametrize(("width", "patch_dim"), [(1, 5), (12, 27), (27, 27), (28, 27), (40, 27), (192, 768)])
def test_dimensions_are_the_ranks_of_random_matrices(width: int, patch_dim: int) -> None:
    weight = np.random.default_rng(0).normal(size=(width, patch_dim))
    assert embedding_nullity(width, patch_dim) == patch_dim - np.linalg.matrix_rank(weight)
    assert encoder_nullity(width, patch_dim) == patch_dim - np.linalg.matrix_rank(weight - weight.mean(0), tol=1e-9)


def test_the_table_describes_the_model_that_timm_builds(table: pd.DataFrame) -> None:
    row = table.loc["deit_small_patch16_224"]
    net = timm.create_model("deit_small_patch16_224", depth=1)
    weight = ViT(net, (0.5,) * 3, (0.5,) * 3).patch_matrix.double().numpy()
    assert weight.shape == (row["width"], row["patch_dim"])
    assert row["dim_embedding"] == weight.shape[1] - np.linalg.matrix_rank(weight)
    assert net.patch_embed.num_patches == row["tokens"]


def test_a_skeleton_has_the_parameters_of_the_model_and_no_memory() -> None:
    bare, real = skeleton("deit_tiny_patch16_224"), timm.create_model("deit_tiny_patch16_224")
    assert all(value.is_meta for value in bare.parameters())
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
