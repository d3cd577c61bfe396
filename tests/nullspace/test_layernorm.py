"""The structural answer of `shift_invariance` against timm's own forward pass in float64, over the whole zoo."""

from __future__ import annotations

import re
from functools import partial

import pytest
import timm
import torch
from timm.layers import RmsNorm, SimpleNorm
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from nullpaper.models.vit import ViT
from nullpaper.nullspace.layernorm import shift_invariance
from nullpaper.nullspace.zoo import ZOO

EXACT, CLEAR = 1e-11, 1e-6
SMALL = dict(depth=2, embed_dim=64, num_heads=4, mlp_ratio=4.0, num_classes=5)
TINY = dict(img_size=16, patch_size=4, **SMALL)
KNOWN = [name for name in ZOO if timm.is_model(name)]
MEAN_POOL = dict(global_pool="avg", class_token=False)
CUSTOM = {
    "registers": (True, VisionTransformer, dict(reg_tokens=4, no_embed_class=True, init_values=1e-5)),
    "no affine, large eps": (True, VisionTransformer, dict(norm_layer=partial(nn.LayerNorm, eps=1.0, bias=False))),
    "class token without final norm": (True, VisionTransformer, dict(final_norm=False)),
    "average, then norm": (True, VisionTransformer, MEAN_POOL),
    "norm, then average": (True, VisionTransformer, dict(fc_norm=False, **MEAN_POOL)),
    "average without norm": (False, VisionTransformer, dict(final_norm=False, **MEAN_POOL)),
    "norm, then maximum": (True, VisionTransformer, dict(global_pool="max", fc_norm=False)),
    "maximum, then norm": (False, VisionTransformer, dict(global_pool="max")),
    "average and maximum, then norm": (False, VisionTransformer, dict(global_pool="avgmax")),
    "no pooling": (True, VisionTransformer, dict(global_pool="")),
    "no pooling, no norm": (False, VisionTransformer, dict(global_pool="", final_norm=False)),
    "attention pooling": (True, VisionTransformer, dict(global_pool="map")),
    "attention pooling without norm": (False, VisionTransformer, dict(global_pool="map", final_norm=False)),
    "RMSNorm": (False, VisionTransformer, dict(norm_layer=RmsNorm)),
    "SimpleNorm": (False, VisionTransformer, dict(norm_layer=SimpleNorm)),
    "RMSNorm first": (False, VisionTransformer, dict(norm_layer=RmsNorm, pre_norm=True)),
    "parallel": (True, VisionTransformer, dict(block_fn=ParallelScalingBlock)),
    "post-norm": (False, VisionTransformer, dict(block_fn=ResPostBlock)),
    "post-norm after a first norm": (True, VisionTransformer, dict(block_fn=ResPostBlock, pre_norm=True)),
    "EVA post-norm, rotary": (False, Eva, dict(use_post_norm=True, use_rot_pos_emb=True, use_abs_pos_emb=False)),
    "EVA with inner norms": (True, Eva, dict(swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True)),
    "class attention": (True, Cait, {}),
}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random and of unit gain: timm starts class tokens, heads and biases at or near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.double().named_parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 4
            gain = float(value.ndim == 1 and name.endswith("weight"))
            value.copy_(gain + torch.randn(value.shape, generator=generator, dtype=value.dtype) / fan_in**0.5)
    return net.eval()


def small(name: str) -> nn.Module:
    """The named model at depth 2, width 64 and 4 x 4 patches, otherwise as timm builds it."""
    found = re.search(r"patch(\d+)", name)
    patch = int(found[1]) if found else 16
    heads = {"num_kv_heads": 2} if "sapiens2" in name else {}
    return timm.create_model(name, img_size=4 * patch, **SMALL, **heads)


def inputs(net: nn.Module, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Two images and a shift of every patch token, (2, N, 1), of standard deviation 100."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, *net.patch_embed.img_size, generator=generator, dtype=torch.float64)
    return images, 100 * torch.randn(2, net.patch_embed.num_patches, 1, generator=generator, dtype=torch.float64)


@torch.no_grad()
def shifted(net: nn.Module, images: Tensor, shift: Tensor) -> Tensor:
    """timm's forward pass with ``shift`` added to what the patch embedding hands on."""

    def add(module: nn.Module, given: tuple[Tensor], tokens: Tensor) -> Tensor:
        return tokens + shift.reshape(*tokens.shape[:-1], 1)

    with net.patch_embed.register_forward_hook(add):
        return net(images)


def change(after: Tensor, before: Tensor) -> float:
    return ((after - before).norm() / before.norm()).item()


def agrees(net: nn.Module, holds: bool) -> bool:
    images, shift = inputs(net)
    moved = change(shifted(net, images, shift), shifted(net, images, torch.zeros_like(shift)))
    return moved < EXACT if holds else moved > CLEAR


@pytest.mark.parametrize("name", KNOWN)
def test_structure_and_forward_pass_agree_on_every_model_of_the_zoo(name: str) -> None:
    net = randomised(small(name))
    verdict = shift_invariance(net)
    assert agrees(net, verdict.holds), verdict.reason


@pytest.mark.parametrize("case", CUSTOM)
def test_norms_pools_and_blocks(case: str) -> None:
    holds, kind, options = CUSTOM[case]
    net = randomised(kind(**TINY, **options))
    verdict = shift_invariance(net)
    assert verdict.holds == holds and agrees(net, holds), verdict.reason


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "beit_base_patch16_224", "vit_intern300m_patch14_448"])
def test_the_door_behind_the_patch_embedding_sees_the_same_function(name: str) -> None:
    net = randomised(small(name))
    images, shift = inputs(net)
    expected = shifted(net, images, shift)
    vit = ViT(net, (0.0,) * 3, (1.0,) * 3, name).double()
    assert shift_invariance(vit) == shift_invariance(net)
    with torch.no_grad():
        torch.testing.assert_close(vit.encode(vit.embed(images) + shift), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("patch", [4, 5, 3])
def test_the_pixel_nullspace_is_that_of_the_centred_embedding(patch: int) -> None:
    """Width 48 against C*p*p = 48, 75 and 27: 0 -> 1, 27 -> 28 and 0 -> 0 dimensions a patch."""
    net = randomised(VisionTransformer(img_size=4 * patch, patch_size=patch, depth=2, embed_dim=48, num_heads=3))
    weight = net.patch_embed.proj.weight.detach().flatten(1)
    centred = weight - weight.mean(0)
    _, singular, right = torch.linalg.svd(centred)
    dim = 3 * patch**2 - int((singular > 1e-10 * singular[0]).sum())
    plain = 3 * patch**2 - int(torch.linalg.matrix_rank(weight))
    assert (plain, dim) == {4: (0, 1), 5: (27, 28), 3: (0, 0)}[patch]
    images, _ = inputs(net)
    generator = torch.Generator().manual_seed(2)
    noise = 100 * torch.randn(2, 16, dim, generator=generator, dtype=torch.float64) @ right[len(right) - dim :]
    with torch.no_grad():
        clean = net(images)
        moved = net(images + nn.functional.fold(noise.mT, images.shape[-2:], patch, stride=patch))
    assert change(moved, clean) < EXACT


def test_rounding_grows_with_the_shift() -> None:
    net = randomised(VisionTransformer(**TINY)).float()
    images, shift = (value.float() for value in inputs(net))
    clean = shifted(net, images, 0 * shift)
    errors = [change(shifted(net, images, scale * shift), clean) for scale in (0.01, 1.0, 100.0)]
    assert errors[0] < errors[1] < errors[2] < 0.1
    assert errors[0] < 1e-5


def test_an_unknown_class_is_not_trusted() -> None:
    class Custom(VisionTransformer):
        pass

    class CustomBlock(nn.Identity):
        pass

    net = VisionTransformer(**TINY)
    net.blocks[1] = CustomBlock()
    for model, word in ((Custom(**TINY), "Custom"), (net, "CustomBlock"), (nn.Linear(2, 2), "Linear")):
        verdict = shift_invariance(model)
        assert not verdict.holds and word in verdict.reason
