"""Costs of a step: bytes that add up to what is known in closed form, seconds in rounds, a model left as it came."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nullpaper.adapters.files import save_adapter
from nullpaper.adapters.inject import adapted_copy, trainable
from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.finetuning import costs
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit, save_vit
from nullpaper.studies.settings import ADAPTERS

RECIPE = FinetuneRecipe(attack_steps=2)


@cache
def base() -> ViT:
    return load_vit(SHIPPED)


@cache
def model(name: str) -> ViT:
    return base() if ADAPTERS[name] is None else adapted_copy(base(), ADAPTERS[name].options())


@cache
def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    split = load_data("cifar10").test.take(list(range(count)))
    return to_pixels(split.images, 48), torch.from_numpy(split.labels).long()


@cache
def measured(name: str, method: str = "pgd_at", count: int = 4) -> dict[str, int]:
    return costs.memory(model(name), method, RECIPE, *batch(count))


def state(vit: ViT) -> list:
    flags = [(parameter.requires_grad, parameter.grad) for parameter in vit.parameters()]
    return [fingerprint(vit), flags, [module.training for module in vit.modules()]]


@pytest.mark.parametrize("name", ADAPTERS)
def test_bytes_follow_from_the_number_of_trained_parameters(name: str) -> None:
    sizes, count = measured(name), trainable(model(name))[0]
    tensors = sum(parameter.requires_grad for parameter in model(name).parameters())
    assert sizes["gradients"] == 4 * count
    assert sizes["optimizer"] == 2 * 4 * count + 4 * tensors  # and a counter of steps each
    assert sizes["parameters"] == 4 * sum(parameter.numel() for parameter in model(name).parameters())
    assert sizes["total"] == sizes["parameters"] + sizes["optimizer"] + sizes["step_peak"]
    assert sizes["step_peak"] == sizes["saved"] + sizes["gradients"]


def test_what_is_kept_for_the_backward_pass_is_what_each_kind_of_layer_needs() -> None:
    saved = {name: measured(name)["saved"] for name in ADAPTERS}
    tokens, dims = 37 * len(batch()[0]), base().embed_dim
    branches = 6 * tokens * (3 * (dims + 2) + 4 * dims + 2) + 36 * len(batch()[0]) * (192 + 2)
    assert saved["lnlora"] - saved["lora"] == 4 * branches  # normalised inputs of all layers, mean and deviation
    assert saved["linear"] < saved["layernorm"] <= saved["bitfit"] < saved["full"] < saved["lora"]
    small = measured("full", "standard", 2)["saved"], measured("full", "standard", 4)["saved"]
    assert small[1] == pytest.approx(2 * small[0], rel=1e-3)
    assert measured("full", "standard")["saved"] == measured("full", "pgd_at")["saved"]  # none of the attack's


@pytest.mark.skipif(not torch.cuda.is_available(), reason="on a CPU nobody counts what is allocated")
def test_cuda_counts_at_least_what_is_kept() -> None:
    vit, (images, labels) = load_vit(SHIPPED, device="cuda"), (part.cuda() for part in batch())
    sizes = costs.memory(vit, "standard", replace(RECIPE, amp=False), images, labels)
    assert sizes["saved"] <= sizes["step_peak"]


def test_memory_is_the_same_twice_and_leaves_the_model_as_it_was() -> None:
    vit = adapted_copy(base(), "bitfit")
    vit.net.blocks[0].train()
    before, draws = state(vit), torch.get_rng_state()
    twice = [costs.memory(vit, "trades", RECIPE, *batch(2)) for _ in range(2)]
    costs.step_times({"full": vit}, "pgd_at", RECIPE, *batch(2), repeats=1, careless=True)
    costs.storage(vit)
    assert twice[0] == twice[1]
    assert state(vit) == before and torch.equal(torch.get_rng_state(), draws)


@pytest.mark.parametrize("method", ["pgd_at_nullspace", "trades"])
def test_two_branches_keep_twice_as_much(method: str) -> None:
    one, two = measured("lnlora", "standard", 2), measured("lnlora", method, 2)
    assert two["saved"] > 1.8 * one["saved"]
    assert two["gradients"] == one["gradients"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_measured(method: str) -> None:
    table = costs.step_times({"lnlora": model("lnlora")}, method, replace(RECIPE, attack_steps=1), *batch(2), repeats=1)
    assert table.seconds[0] > 0 and table.ratio[0] == 1


@pytest.mark.parametrize("name", ADAPTERS)
def test_stored_bytes_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    found = costs.storage(model(name))
    save_vit(base(), tmp_path / "plain.safetensors")
    whole = (tmp_path / "plain.safetensors").stat().st_size
    if ADAPTERS[name] is None:
        assert found["stored_bytes"] == whole and found["stored_share"] == 1
    else:
        save_adapter(model(name), tmp_path / name)
        assert found["stored_bytes"] == sum(file.stat().st_size for file in (tmp_path / name).iterdir())
        assert 4 * found["trainable"] < found["stored_bytes"] < 0.1 * whole
        assert found["stored_share"] == found["stored_bytes"] / whole
    assert (found["trainable"], found["share"]) == trainable(model(name))


def test_times_are_positive_and_refer_to_the_first_model() -> None:
    models = {name: model(name) for name in ("full", "linear")}
    table = costs.step_times(models, "pgd_at", RECIPE, *batch(4), repeats=5).set_index("name")
    assert [*table.index] == [*models] and (table.n == 5).all()
    assert np.isfinite(table[["seconds", "ratio"]]).all(axis=None) and (table.seconds > 0).all()
    assert (table.loc["full", ["ratio", "ratio_low", "ratio_high"]] == 1).all()
    assert table.ratio_low["linear"] <= table.ratio["linear"] <= table.ratio_high["linear"]


def test_the_careless_attack_finds_the_same_images_and_costs_more() -> None:
    images, labels = batch(4)

    def loss(make) -> Tensor:
        begin = METHODS["pgd_at"].begin(images, RECIPE, torch.Generator().manual_seed(3))
        return make(base(), Batch(images, labels, None, begin, RECIPE))

    try:
        assert torch.equal(loss(costs._careless), loss(METHODS["pgd_at"].loss))
        assert base().net.head.weight.grad.abs().sum() > 0
    finally:
        base().zero_grad()

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += "mm" in function.name()
            return function(*args, **(kwargs or {}))

    def products(make) -> int:
        with Products() as counted:
            loss(make).backward()
        base().zero_grad()
        return counted.count

    assert products(costs._careless) > 1.2 * products(METHODS["pgd_at"].loss)  # gradients of weights that nobody uses


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(InputError, match="Did you mean 'pgd_at'"):
        costs.memory(base(), "pgd-at", RECIPE, *batch(2))
