"""The contract of `ViT` and `load_vit`, on real timm models."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from nullpaper.data.folders import Transform
from nullpaper.errors import InputError
from nullpaper.models.vit import (
    SHIPPED,
    ViT,
    fingerprint,
    load_vit,
    patchify,
    save_vit,
    shipped_weights,
    unpatchify,
)

PLAIN = [
    "vit_tiny_patch16_224",
    "vit_small_patch32_224",
    "deit_tiny_distilled_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_small_patch14_reg4_dinov2",
]
SIZES = {"vit_small_patch14_reg4_dinov2": 70, "beit_base_patch16_224": 32}


def images(vit: ViT, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, vit.channels, *vit.image_size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def shipped() -> ViT:
    return load_vit(SHIPPED)


@pytest.mark.parametrize("name", PLAIN)
@torch.inference_mode()
def test_forward_is_encode_after_embed_and_equals_timm(name: str) -> None:
    vit = load_vit(name, pretrained=False, img_size=SIZES.get(name))
    x = images(vit, 1)
    tokens = vit.embed(x)
    assert tokens.shape == (1, vit.grid_size[0] * vit.grid_size[1], vit.embed_dim)
    assert torch.equal(vit(x), vit.encode(tokens))
    reference = timm.create_model(name, pretrained=False, **({"img_size": SIZES[name]} if name in SIZES else {})).eval()
    reference.load_state_dict(vit.net.state_dict())
    assert torch.equal(vit(x), reference((x - vit.mean) / vit.std))
    assert vit.features(tokens).shape[0] == 1


@pytest.mark.parametrize("name", PLAIN[:2] + [SHIPPED])
@torch.inference_mode()
def test_patch_matrix_is_the_embedding_in_pixel_units(name: str) -> None:
    vit = load_vit(name, pretrained=False).double()
    x, y = images(vit, 1).double(), images(vit, 1, seed=1).double()
    change = patchify(y - x, vit.patch_size) @ vit.patch_matrix.T
    assert torch.allclose(vit.embed(y) - vit.embed(x), change, atol=1e-10)
    assert vit.patch_matrix.shape == (vit.embed_dim, vit.channels * vit.patch_size[0] * vit.patch_size[1])


def test_patchify_and_back_is_the_identity(shipped: ViT) -> None:
    x = images(shipped)
    assert torch.equal(unpatchify(patchify(x, shipped.patch_size), shipped.image_size, shipped.patch_size), x)


def test_checkpoints_keep_their_own_statistics() -> None:
    assert load_vit("vit_tiny_patch16_224", pretrained=False).mean.flatten().tolist() == [0.5] * 3
    deit = load_vit("deit_tiny_patch16_224", pretrained=False)
    assert torch.allclose(deit.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_the_shipped_model_has_the_promised_shape(shipped: ViT) -> None:
    assert (shipped.image_size, shipped.patch_size, shipped.embed_dim) == ((48, 48), (8, 8), 96)
    assert (shipped.channels, shipped.num_classes, shipped.training) == (3, 10, False)
    assert shipped_weights().stat().st_size < 4_000_000


def test_saved_weights_come_back_bit_for_bit(shipped: ViT, tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_vit(shipped, path)
    again = load_vit(SHIPPED, weights=path)
    assert fingerprint(again) == fingerprint(shipped)
    assert torch.equal(again(images(again)), shipped(images(shipped)))
    with torch.no_grad():
        again.net.patch_embed.proj.weight[0] += 1e-6
    assert fingerprint(again) != fingerprint(shipped)
    assert fingerprint(again, ["patch_embed"]) == fingerprint(shipped, ["patch_embed"])


def test_other_head_and_size_are_served(tmp_path) -> None:
    vit = load_vit(SHIPPED, num_classes=100, img_size=64)
    assert vit(images(vit)).shape == (2, 100) and vit.image_size == (64, 64)
    path = tmp_path / "small.safetensors"
    save_vit(load_vit("vit_tiny_patch16_224", pretrained=False, img_size=64), path)
    assert load_vit("vit_tiny_patch16_224", weights=path, img_size=96).grid_size == (6, 6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_smal_patch32_224", "Did you mean 'vit_small_patch32_224'"),
        ("resnet18", "no plain patch embedding"),
        ("convnext_atto", "no plain patch embedding"),
        ("swin_tiny_patch4_window7_224", "normalises inside its patch embedding"),
        ("vit_tiny_r_s16_p8_224", "no plain patch embedding"),
        ("mixer_s32_224", "no plain patch embedding"),
    ],
)
def test_other_models_are_refused_by_name_and_reason(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        load_vit(name)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_without_a_hub_the_error_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="could not be had from timm or its hub .*; give .* weights=..., or pretrained"
    ):
        load_vit("vit_tiny_patch16_224")


def test_weights_that_do_not_fit_are_refused(shipped: ViT, tmp_path) -> None:
    with pytest.raises(InputError, match="does not fit"):
        load_vit("vit_tiny_patch16_224", weights=shipped_weights())
    with pytest.raises(InputError, match="not an existing"):
        load_vit(SHIPPED, weights=tmp_path / "nothing.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(shipped_weights().read_bytes()[:10_000])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_vit(SHIPPED, weights=cut)
    state = load_file(shipped_weights())
    state["head.bias"][0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match="NaN or infinity in 'head.bias'"):
        load_vit(SHIPPED, weights=tmp_path / "nan.safetensors")


def test_photographs_are_wanted_as_timm_says_and_a_saved_file_remembers(tmp_path) -> None:
    asked = {
        "vit_tiny_patch16_224": Transform(0.9, "bicubic"),
        "vit_small_patch14_dinov2": Transform(1.0, "bicubic"),
        "vit_tiny_patch16_384": Transform(1.0, "bicubic"),
    }
    for name, transform in asked.items():
        made = load_vit(name, pretrained=False, img_size=SIZES.get(name))
        assert made.transform == replace(transform, size=made.image_size)
    vit = load_vit("vit_tiny_patch16_224", pretrained=False)
    vit.transform = Transform(0.95, "bilinear", "squash")
    save_vit(vit, tmp_path / "own.safetensors")
    assert load_vit("vit_tiny_patch16_224", weights=tmp_path / "own.safetensors").transform == vit.transform
    save_file(vit.net.state_dict(), tmp_path / "bare.safetensors")
    with pytest.warns(UserWarning, match="does not say its mean and std"):
        assert load_vit("vit_tiny_patch16_224", weights=tmp_path / "bare.safetensors").transform == Transform()
    assert load_vit(timm.create_model("vit_tiny_patch16_384"), mean=(0.5,) * 3, std=(0.5,) * 3).transform.crop_pct == 1
    save_file(
        vit.net.state_dict(),
        tmp_path / "odd.safetensors",
        {"transform": '{"crop_pct": 7}', "mean": "[0]", "std": "[1]"},
    )
    with pytest.raises(InputError, match="odd.safetensors has damaged statistics .crop_pct=7 must be a number"):
        load_vit("vit_tiny_patch16_224", weights=tmp_path / "odd.safetensors")


def test_a_restricted_model_answers_with_some_of_the_logits_of_the_same_weights(shipped: ViT, tmp_path) -> None:
    vit, x = deepcopy(shipped), images(shipped)
    few = vit.restricted((7, 0, 3))
    assert few.num_classes == 3 and vit.num_classes == 10 and isinstance(few, ViT)
    assert torch.equal(few(x), vit(x)[:, [7, 0, 3]]) and torch.equal(few.encode_both(vit.embed(x))[0], few(x))
    assert torch.equal(few.restricted([2, 0])(x), vit(x)[:, [3, 7]])
    assert fingerprint(few) != fingerprint(vit) != fingerprint(few.restricted([0, 1]))
    assert fingerprint(few, ["head"]) == fingerprint(vit, ["head"])
    assert all(a is b for a, b in zip(few.parameters(), vit.parameters(), strict=True))
    few(x).square().sum().backward()
    assert vit.net.head.weight.grad[[7, 0, 3]].abs().sum() > 0 == vit.net.head.weight.grad[[1, 2]].abs().sum()
    assert deepcopy(few).num_classes == 3
    save_vit(few, tmp_path / "few.safetensors")
    assert torch.equal(load_vit(SHIPPED, weights=tmp_path / "few.safetensors")(x), vit(x))


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (None, "classes=None are no class indices: pass `Data.imagenet` or a list"),
        ([3], "must be at least two different ones"),
        ([3, 3], "must be at least two different ones"),
        ([3, 10], "class=10 must be a whole number from 0 to 9"),
        ([3, -1], "class=-1 must be a whole number from 0 to 9"),
        ([3, 0.5], "class=0.5 must be a whole number from 0 to 9"),
    ],
)
def test_classes_that_a_model_lacks_are_refused(shipped: ViT, classes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shipped.restricted(classes)
