"""Dimensions by shape against ranks of random matrices; models without memory. The table's tests are notebook 01's."""

from __future__ import annotations

import numpy as np
import pytest
import timm

from nullpaper.models.weights import skeleton
from nullpaper.nullspace.zoo import embedding_nullity, encoder_nullity


@pytest.mark.parametrize(("width", "patch_dim"), [(1, 5), (12, 27), (27, 27), (28, 27), (40, 27), (192, 768)])
def test_dimensions_are_the_ranks_of_random_matrices(width: int, patch_dim: int) -> None:
    weight = np.random.default_rng(0).normal(size=(width, patch_dim))
    assert embedding_nullity(width, patch_dim) == patch_dim - np.linalg.matrix_rank(weight)
    assert encoder_nullity(width, patch_dim) == patch_dim - np.linalg.matrix_rank(weight - weight.mean(0), tol=1e-9)


def test_a_skeleton_has_the_parameters_of_the_model_and_no_memory() -> None:
    bare, real = skeleton("deit_tiny_patch16_224"), timm.create_model("deit_tiny_patch16_224")
    assert all(value.is_meta for value in bare.parameters())
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
