"""Adapters on disk: back to the bit, through the PEFT package and back, whole or refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from adapted import VARIANTS, adapted, base, images, named
from safetensors.torch import load_file, save_file

from nullpaper.adapters.files import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from nullpaper.adapters.inject import AdaptedViT, inject, merge, trainable
from nullpaper.errors import InputError
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit, shipped_weights


@pytest.mark.parametrize("options", VARIANTS, ids=named)
def test_what_is_saved_comes_back_to_the_bit(options: dict, tmp_path) -> None:
    vit = adapted(0.05, **options)
    save_adapter(vit.requires_grad_(False), tmp_path / "adapter")
    again = load_adapter(base(), tmp_path / "adapter")
    assert again.adapter == vit.adapter and fingerprint(again) == fingerprint(vit)
    assert torch.equal(again(images()), vit(images()))
    assert trainable(again)[0] == trainable(inject(base(), **options))[0]


def test_an_adapter_of_five_percent_is_a_small_file(tmp_path) -> None:
    vit = adapted(0.1, kind="lnlora", r=3)
    save_adapter(vit, tmp_path)
    assert 0.045 < trainable(vit)[1] < 0.055
    stored = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert stored < 0.1 * shipped_weights().stat().st_size


@pytest.mark.long
def test_the_peft_package_loads_plain_lora_and_keeps_it(tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="peft is no dependency; the test needs the real package")
    vit = adapted(0.05, kind="lora", r=3, alpha=6)
    save_adapter(vit, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the record that it does not know
        theirs = peft.PeftModel.from_pretrained(base().net, tmp_path / "ours").eval()
    pixels = (images() - vit.mean) / vit.std
    torch.testing.assert_close(theirs(pixels), vit(images()), rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    first, second = (load_file(tmp_path / who / WEIGHTS_FILE) for who in ("ours", "theirs"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    refuses(tmp_path / "theirs", "does not say which weights it was trained on: pass any_base=True")
    again = load_adapter(base(), tmp_path / "theirs", any_base=True)
    assert torch.equal(again(images()), vit(images())) and trainable(again) == trainable(vit)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(merged(pixels), merge(vit)(images()), rtol=1e-4, atol=1e-4)
    save_adapter(inject(base(), "lnlora"), tmp_path / "other")  # which it would misread
    with pytest.raises((KeyError, ValueError), match="NULLPAPER_LNLORA"):
        peft.PeftModel.from_pretrained(base().net, tmp_path / "other")


def by_peft(folder: Path, **options) -> torch.Tensor:
    """Save an adapter that PEFT made for the shipped ViT and moved, and return the logits that it gives there."""
    peft = pytest.importorskip("peft", reason="peft is no dependency; the test needs the real package")
    torch.manual_seed(0)
    vit = base()
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["qkv", "fc1"]} | options)
    model = peft.get_peft_model(vit.net, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        return model((images() - vit.mean) / vit.std)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["patch_embed.proj", "attn.proj", "fc2"], "modules_to_save": ["head"]},
        {"target_modules": ["proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False, "layers_to_transform": list(range(6)), "layers_pattern": "blocks"},
    ],
    ids=named,
)
def test_a_plain_lora_of_peft_gives_the_logits_that_it_gives_there(options: dict, tmp_path) -> None:
    logits = by_peft(tmp_path, **options)
    torch.testing.assert_close(load_adapter(base(), tmp_path, any_base=True)(images()), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"init_lora_weights": "pissa", "target_modules": ["qkv"]}, "init_lora_weights=pissa, which is not known"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora, which is not known to be a plain LoRA"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"bias": "all"}, "bias=all"),
        ({"rank_pattern": {"fc1": 2}}, "rank_pattern={'fc1': 2}"),
        ({"alpha_pattern": {"fc1": 2}}, "alpha_pattern={'fc1': 2}"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"target_modules": ["qkv", "head"]}, "on layers 'head', not on patch_embed.proj or attn.qkv or"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT's own, about the biases of its branches
def test_another_adapter_of_peft_is_refused_and_the_remedy_works(options: dict, match: str, tmp_path) -> None:
    logits = by_peft(tmp_path, **options)
    for any_base in (False, True):
        refuses(tmp_path, match, any_base=any_base)
    peft = pytest.importorskip("peft")
    merged = peft.PeftModel.from_pretrained(base().net, tmp_path).merge_and_unload()
    save_file({key: value.contiguous() for key, value in merged.state_dict().items()}, tmp_path / "merged.safetensors")
    again = load_vit(SHIPPED, weights=tmp_path / "merged.safetensors")
    torch.testing.assert_close(again(images()), logits, rtol=1e-3, atol=1e-3)


def test_other_files_of_peft_are_refused(tmp_path) -> None:
    by_peft(tmp_path)
    text = (tmp_path / CONFIG_FILE).read_text()
    for change, match in [
        ({"r": 3}, "does not fit"),
        ({"r": 10**9}, "r=1000000000 is above 96, the full rank"),
        ({"r": None}, "is damaged"),
        ({"lora_alpha": 0}, "is damaged .* .alpha=0 must be a number in"),
        ({"peft_type": "VERA"}, "peft_type=VERA"),
        ({"peft_type": None}, "peft_type=None"),
        ({"use_what_comes_next": 1}, "use_what_comes_next=1"),
    ]:
        (tmp_path / CONFIG_FILE).write_text(json.dumps(json.loads(text) | change))
        refuses(tmp_path, match, any_base=True)
    (tmp_path / CONFIG_FILE).write_text(text)
    refuses(tmp_path, "no head to train", load_vit(SHIPPED, num_classes=0), any_base=True)
    seven = load_adapter(load_vit(SHIPPED, num_classes=7), tmp_path, any_base=True)  # the head is the base's own
    assert seven(images()).shape == (8, 7)


@pytest.fixture
def saved(tmp_path) -> Path:
    save_adapter(adapted(0.05, kind="lnlora", r=2), tmp_path / "saved")
    return tmp_path / "saved"


def refuses(folder: Path, match: str, vit: ViT | None = None, **options) -> None:
    """Loading fails with that one sentence and leaves weights, type and flags of the model as they were."""
    vit = vit or base()
    vit.net.norm.requires_grad_(False)
    before, kind, counted = fingerprint(vit), type(vit), trainable(vit)
    with pytest.raises(InputError, match=match) as caught:
        load_adapter(vit, folder, **options)
    assert "\n" not in str(caught.value)
    assert (fingerprint(vit), type(vit), trainable(vit)) == (before, kind, counted)


def test_an_adapter_for_another_base_is_refused(saved) -> None:
    other = base()
    with torch.no_grad():
        other.net.blocks[3].mlp.fc1.bias[0] += 1e-6
    refuses(saved, "was trained on other weights .* load the checkpoint that it started from", other)
    twelve = load_vit(SHIPPED, num_classes=12)
    refuses(saved, "does not fit .* 2 tensors differ, first 'base_model.model.head.weight'", twelve)
    refuses(saved, "was trained on other weights .* of test_vit", load_vit("test_vit", pretrained=False))
    refuses(saved, "carries a 'lora' adapter already", inject(base(), "lora"))
    fresh_head = base()
    fresh_head.net.reset_classifier(10)  # the head is part of the adapter, not of the base
    assert torch.equal(load_adapter(fresh_head, saved)(images()), load_adapter(base(), saved)(images()))


def test_damaged_files_are_refused(saved) -> None:
    weights, config = saved / WEIGHTS_FILE, saved / CONFIG_FILE
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-40])
    refuses(saved, "is truncated or damaged")
    weights.write_bytes(whole[:-4] + bytes(4))
    refuses(saved, "do not belong together")
    weights.write_bytes(whole)
    for broken in (text[:-30], "[]", '"nullpaper"'):
        config.write_text(broken)
        refuses(saved, "adapter_config.json is damaged")
    record = json.loads(text)
    for name, value in [
        ("r", 10**9),
        ("r", "2"),
        ("alpha", float("nan")),
        ("targets", 3),
        ("kind", "lora?"),
        ("norm", 1),
    ]:
        config.write_text(json.dumps(record | {"nullpaper": record["nullpaper"] | {name: value}}))
        refuses(saved, "r=1000000000 is above 96" if value == 10**9 else "is damaged or not of save_adapter")
    del record["nullpaper"]["targets"]
    config.write_text(json.dumps(record))
    refuses(saved, "adapter_config.json is damaged or not of save_adapter .'targets'.")
    config.unlink()
    refuses(saved, "holds no adapter: adapter_config.json is missing")
    config.write_text(text)
    weights.unlink()
    refuses(saved, "is not an existing .safetensors")
    weights.write_bytes(whole)
    assert type(load_adapter(base(), saved)) is AdaptedViT


def test_saving_is_whole_or_refused(saved, tmp_path) -> None:
    with pytest.raises(InputError, match="carries no adapter to save"):
        save_adapter(base(), tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        save_adapter(inject(base(), "linear"), tmp_path / "file")
    save_adapter(inject(base(), "linear"), saved)  # over an older one
    assert load_adapter(base(), saved).adapter.kind == "linear"
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
