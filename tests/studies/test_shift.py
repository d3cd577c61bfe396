"""How far parameters moved: known changes are found, each under its kind and depth."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from nullpaper.errors import InputError
from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.studies.shift import KINDS, parameter_shift


def test_a_known_change_is_found_where_it_was_made() -> None:
    before = load_vit(SHIPPED)
    after = deepcopy(before)
    with torch.no_grad():
        after.net.blocks[2].norm1.weight *= 1.5
        after.net.patch_embed.proj.weight *= -1
        after.net.head.weight.zero_()
    table = parameter_shift(before, after).set_index("name")
    scaled, flipped = table.loc["blocks.2.norm1.weight"], table.loc["patch_embed.proj.weight"]
    assert (scaled["kind"], scaled["depth"]) == ("LayerNorm scale", 2)
    assert scaled["relative"] == pytest.approx(0.5) and scaled["cosine"] == pytest.approx(1)
    assert (flipped["kind"], flipped["depth"]) == ("weight", -1)
    assert flipped["relative"] == pytest.approx(2) and flipped["cosine"] == pytest.approx(-1)
    rest = table.drop(["blocks.2.norm1.weight", "patch_embed.proj.weight"])
    assert (rest["relative"] == 0).all() and not any(name.startswith("head") for name in table.index)
    assert set(table["kind"]) == set(KINDS) and table.loc["norm.bias", "depth"] == len(before.net.blocks)
    assert (table["kind"].str.startswith("LayerNorm")).sum() == 2 * (2 * len(before.net.blocks) + 1)


def test_models_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="have other parameters"):
        parameter_shift(load_vit(SHIPPED), load_vit("vit_tiny_patch16_224", pretrained=False))
