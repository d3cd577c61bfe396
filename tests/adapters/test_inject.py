"""Adapters: invisible at injection, alone in what they train, counted in closed form, merged or refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from adapted import SEPARATE, VARIANTS, adapted, base, images, named
from quick import QUICK, few

from nullpaper.adapters.files import load_adapter, save_adapter
from nullpaper.adapters.inject import (
    AdaptedViT,
    adapted_copy,
    base_fingerprint,
    expected_parameters,
    inject,
    merge,
    trainable,
)
from nullpaper.adapters.layers import NORMS, Branch
from nullpaper.errors import InputError
from nullpaper.finetuning.finetune import finetune
from nullpaper.models.attention import explicit_attention
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit, patchify
from nullpaper.models.weights import skeleton
from nullpaper.nullspace.patch import patch_nullspace
from nullpaper.robustness.pgd import pgd


@pytest.mark.parametrize("options", VARIANTS, ids=named)
def test_nothing_changes_at_injection_and_the_count_is_the_closed_formula(options: dict) -> None:
    plain, vit = base(), base()
    state = torch.get_rng_state()
    assert inject(vit, **options) is vit and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(vit(images()), plain(images()))
    assert torch.equal(vit(images()), vit.encode(vit.embed(images())))
    for name, value in plain.net.state_dict().items():  # timm's names stay
        assert torch.equal(vit.net.state_dict()[name], value)
    counted = {key: value for key, value in options.items() if key != "alpha"}
    count, share = trainable(vit)
    assert count == expected_parameters(plain, **counted)
    assert share == count / sum(parameter.numel() for parameter in plain.parameters())
    twin = deepcopy(vit)
    assert type(twin) is AdaptedViT and fingerprint(twin) == fingerprint(vit) and trainable(twin) == trainable(vit)


def test_what_is_injected_in_inference_mode_trains_outside_of_it(tmp_path) -> None:
    save_adapter(adapted(0.1, kind="lora"), tmp_path)
    models = base(), base(), base()
    with torch.inference_mode():
        inject(models[0], "lora")
        load_adapter(models[1], tmp_path)
        merge(load_adapter(models[2], tmp_path))
        with pytest.raises(InputError, match="was made inside torch.inference_mode .*: load it outside"):
            inject(base(), "lora")
    for vit in models:
        vit(images()).sum().backward()
        assert all((p.grad is not None) is p.requires_grad for p in vit.parameters())


def test_every_branch_computes_its_equation() -> None:
    vit = adapted(0.1, kind="lnlora", targets=SEPARATE, r=4, alpha=2)
    attention, seen = vit.net.blocks[1].attn.qkv, {}
    handles = [
        layer.register_forward_hook(lambda layer, x, y: seen.update({layer: (x[0], y)}))
        for layer in (attention, vit.net.patch_embed.proj)
    ]
    tokens = vit.embed(images())
    assert torch.equal(vit.encode(tokens), vit(images())) and not torch.equal(tokens, base().embed(images()))
    for handle in handles:
        handle.remove()
    x, y = seen[attention]

    def branch(part, x: torch.Tensor) -> torch.Tensor:
        z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        z = z * part.lora_norm.weight + part.lora_norm.bias
        return 2 / 4 * z @ part.lora_A.weight.T @ part.lora_B.weight.T

    parts = [branch(part, x) for part in (attention.adapter.q, attention.adapter.k, attention.adapter.v)]
    expected = x @ attention.weight.T + attention.bias + torch.cat(parts, -1)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    stem = vit.net.patch_embed.proj
    x, y = seen[stem]
    patches = patchify(x, (8, 8))
    expected = patches @ stem.weight.flatten(1).T + stem.bias + branch(stem.adapter, patches)
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [8, 20])
def test_added_weights_equal_added_outputs_with_their_gradients(count: int, monkeypatch) -> None:
    vit = adapted(0.1, kind="lora")

    def results(merges: bool) -> list[torch.Tensor]:
        if not merges:
            monkeypatch.setattr(Branch, "merges", lambda branch: False)
        pixels = images(count).clone().requires_grad_()
        with explicit_attention(vit):
            logits = vit(pixels)
            (slope,) = torch.autograd.grad(logits[:, 0].sum(), pixels, create_graph=True)
            trained = [parameter for parameter in vit.parameters() if parameter.requires_grad]
            once = torch.autograd.grad(logits.logsumexp(1).sum(), trained, retain_graph=True)
            twice = torch.autograd.grad(slope.square().sum(), vit.net.blocks[0].attn.qkv.adapter.parameters())
        return [logits, slope, *once, *twice]

    for merged, branched in zip(results(True), results(False), strict=True):
        assert (merged - branched).norm() <= 1e-5 * branched.norm()


def test_weights_are_not_added_where_that_would_lose_something() -> None:
    """Small updates in half precision, and the gradient of a base that was set free."""
    vit = adapted(0.1, kind="lora")
    layer = vit.net.blocks[0].mlp.fc1
    layer.weight.requires_grad_(True)
    vit(images()).sum().backward()
    assert layer.weight.grad.norm() > 0 and layer.adapter.lora_A.weight.grad.norm() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layer.adapter.merges()
    assert layer.adapter.merges() and not layer.adapter.bfloat16().merges()


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_takes_the_size_of_the_input_away(norm: str) -> None:
    """Paper B's reason for the norm: the branch sees tokens of unit scale, however large they come in."""
    layer = adapted(0.1, kind="lnlora", norm=norm).net.blocks[0].mlp.fc2
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    once, doubled = layer.adapter(x), layer.adapter(2 * x)
    assert torch.allclose(once, doubled, rtol=1e-3, atol=1e-3) is (norm != "none")


@pytest.mark.parametrize(
    ("kind", "method"),
    [("lnlora", "nullspace"), ("lora", "pgd_at"), *((kind, "standard") for kind in ("bitfit", "layernorm", "linear"))],
)
def test_training_moves_the_adapter_and_not_one_bit_of_the_rest(kind: str, method: str) -> None:
    vit = inject(base(), kind, r=2)
    recipe = replace(QUICK, batch_size=8, dev_images=8, noise_images=24)
    done = finetune(vit, few(), method=method, steps=2, recipe=recipe, progress=False).vit
    assert fingerprint(done) != fingerprint(vit) and trainable(done) == trainable(vit)
    assert base_fingerprint(done) == base_fingerprint(base())
    for (name, before), (_, after) in zip(vit.named_parameters(), done.named_parameters(), strict=True):
        assert torch.equal(before, after) is not before.requires_grad, name


def test_the_attack_sees_the_branches() -> None:
    vit, labels = adapted(0.2, kind="lnlora", r=2), torch.zeros(8, dtype=torch.long)
    found = [pgd(model, images(), labels, eps=8 / 255, steps=2, generator=torch.Generator()) for model in (vit, base())]
    assert not torch.equal(*found)


def test_the_seed_decides_a_and_nothing_else_does() -> None:
    torch.manual_seed(5)
    first, again, other = (inject(base(), "lora", seed=seed) for seed in (0, 0, 1))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    matrix = first.net.blocks[0].mlp.fc1.adapter.lora_A.weight
    assert 0.95 / 96**0.5 < matrix.abs().max() <= 1 / 96**0.5  # Kaiming-uniform(a = sqrt 5): 1 / sqrt(d_in)


@pytest.mark.parametrize("targets", [None, SEPARATE, ("k",)])
def test_merging_lora_gives_a_plain_vit_with_the_same_answers(targets) -> None:
    vit = adapted(0.05, kind="lora", targets=targets)
    logits, matrix = vit(images()), vit.patch_matrix
    assert not torch.allclose(logits, base()(images()), atol=0.1)
    assert merge(vit) is vit and type(vit) is ViT
    assert list(vit.state_dict()) == list(base().state_dict()) and trainable(vit) == trainable(base())
    assert {type(module) for module in vit.modules()} == {type(module) for module in base().modules()}
    torch.testing.assert_close(vit(images()), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vit.patch_matrix, matrix, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="carries no adapter, so there is nothing to merge"):
        merge(vit)


def test_lnlora_is_not_merged_and_says_why() -> None:
    vit = adapted(0.05, kind="lnlora")
    logits = vit(images())
    with pytest.raises(InputError, match="its norm depends on the token, so B A norm.x. is no fixed matrix"):
        merge(vit)
    assert torch.equal(vit(images()), logits)
    assert type(merge(inject(base(), "lnlora", norm="none"))) is ViT


def test_the_nullspace_of_an_adapted_embedding_is_its_own_or_refused() -> None:
    vit = adapted(0.2, kind="lora", r=2)
    noise = patch_nullspace(vit).sample(images().shape, norm=1.0, generator=torch.Generator().manual_seed(0))
    moved = (vit.embed(images() + noise) - vit.embed(images())).norm() / vit.embed(images()).norm()
    stale = patch_nullspace(base()).sample(images().shape, norm=1.0, generator=torch.Generator().manual_seed(0))
    blind = (vit.embed(images() + stale) - vit.embed(images())).norm() / vit.embed(images()).norm()
    assert moved < 1e-5 < blind
    with pytest.raises(InputError, match="is not linear with LNLoRA on it, .* leave 'patch_embed' out"):
        patch_nullspace(inject(base(), "lnlora"))
    assert patch_nullspace(inject(base(), "lnlora", targets="qkv")).dim == patch_nullspace(base()).dim


@pytest.mark.parametrize(
    ("name", "r", "fused", "separate"),
    [
        ("vit_tiny_patch16_224", 8, 6.1, 6.9),
        ("vit_small_patch16_224", 16, 5.8, 6.6),
        ("vit_base_patch16_224", 16, 2.9, 3.3),
    ],
)
def test_shares_of_timm_models_are_those_of_the_reference(name: str, r: int, fused: float, separate: float) -> None:
    """The budget table that fixed the rank: LNLoRA everywhere, without the head, as a share of the body."""
    vit = ViT(skeleton(name), (0.5,) * 3, (0.5,) * 3, name)
    head = expected_parameters(vit, "linear")
    body = sum(parameter.numel() for parameter in vit.parameters()) - head
    shares = [(expected_parameters(vit, "lnlora", r=r, targets=targets) - head) / body for targets in (None, SEPARATE)]
    assert [round(100 * share, 1) for share in shares] == [fused, separate]


def test_bad_arguments_are_refused_and_change_nothing() -> None:
    vit = base()
    before = fingerprint(vit)

    def refused(match: str, *kind: str, **options) -> None:
        with pytest.raises(InputError, match=match):
            inject(vit, *kind or ("lora",), **options)
        assert fingerprint(vit) == before and type(vit) is ViT and trainable(vit)[1] == 1

    refused("adapter 'lnlor' is unknown. Did you mean 'lnlora'.* Choose from lora, lnlora, bitfit", "lnlor")
    refused("target 'qvk' is unknown. Did you mean 'qkv'.* patch_embed, qkv, proj, fc1, fc2, q, k, v", targets=["qvk"])
    refused("targets name 'qkv' beside q, k or v", targets=["qkv", "q"])
    refused("targets are empty", targets=[])
    refused("targets are of lora and lnlora, not of 'bitfit'", "bitfit", targets=["qkv"])
    refused("norm 'rsm' is unknown. Did you mean 'rms'", "lnlora", norm="rsm")
    refused("norm='rms' stands in front of 'lnlora' only, not of 'lora'", norm="rms")
    refused("r=0 must be a whole number of at least 1", r=0)
    refused("r=1.5 must be a whole number of at least 1", r=1.5)
    refused("alpha=-1 must be a number in .0, inf.", alpha=-1)


def test_an_adapter_by_name_or_options_is_injected_into_a_copy() -> None:
    vit = base()
    options = {"kind": "lnlora", "r": 2, "targets": ["qkv"], "norm": "rms", "alpha": 4}
    copy = adapted_copy(vit, options, seed=3)
    assert type(vit) is ViT and trainable(vit)[1] == 1
    assert fingerprint(copy) == fingerprint(inject(base(), **options, seed=3))
    assert adapted_copy(vit, "bitfit").adapter == inject(base(), "bitfit").adapter
    with pytest.raises(InputError, match="adapter option 'target' is unknown. Did you mean 'targets'"):
        adapted_copy(vit, {"kind": "lora", "target": ["qkv"]})
    with pytest.raises(InputError, match="adapter 'None' is unknown. Choose from lora, lnlora"):
        adapted_copy(vit, {"r": 2})


def test_models_that_cannot_carry_an_adapter_are_refused() -> None:
    vit = inject(base(), "lnlora", r=2)
    with pytest.raises(InputError, match="carries a 'lnlora' adapter already: merge it or load the base anew"):
        inject(vit, "lora")
    with pytest.raises(InputError, match="is a Beit, whose layers take no adapter"):
        inject(ViT(skeleton("beit_base_patch16_224"), (0.5,) * 3, (0.5,) * 3, "beit"), "lora")
    with pytest.raises(InputError, match="has no head to train: load it with num_classes"):
        inject(load_vit(SHIPPED, pretrained=False, num_classes=0), "linear")
    parallel = ViT(skeleton("vit_small_patch16_18x2_224"), (0.5,) * 3, (0.5,) * 3, "parallel")
    with pytest.raises(InputError, match="parallel has no plain layer 'blocks.0.attn.qkv' for an adapter"):
        inject(parallel, "lora")
