"""A function leaves its arguments and the random states as they were, when it ends and when it fails in the middle."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attacked import batch
from quick import QUICK, few

from nullpaper.adapters.inject import adapted_copy, inject, merge
from nullpaper.finetuning import costs
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.scratch import Recipe, train
from nullpaper.fooling.explanations import ATTRIBUTIONS, attribute
from nullpaper.fooling.faithfulness import deletion_insertion
from nullpaper.fooling.lookalike import adversarial, library_attack, lookalike
from nullpaper.fooling.manipulation import manipulate
from nullpaper.models.attention import attention_weights
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit
from nullpaper.robustness.attacks import ATTACKS, attack
from nullpaper.robustness.corruptions import CORRUPTIONS, corrupt
from nullpaper.robustness.evaluation import evaluate
from nullpaper.robustness.gradient_masking import diagnose
from nullpaper.synthesis.influence import noise_influence
from nullpaper.synthesis.linearised import linearise
from nullpaper.synthesis.noise import encoder_noise, input_noise

Call = Callable[[ViT, torch.Tensor, torch.Tensor], object]
FEW = {name: f"{name}-2" for name in ATTACKS}
ANY_MODE: dict[str, Call] = {
    **{name: lambda v, x, y, name=name: attack(v, x, y, FEW[name], eps=0.01) for name in ATTACKS},
    "evaluate": lambda v, x, y: evaluate(v, few().dev.take(np.arange(4)), attacks="pgd-2", corruptions="fog"),
    "accuracy": lambda v, x, y: accuracy(v, few().dev.take(np.arange(4))),
    "diagnose": lambda v, x, y: diagnose(v, x, y, eps=0.01, steps=2, queries=2),
    "finetune": lambda v, x, y: finetune(v, few(), method="pgd_at_nullspace", steps=2, recipe=QUICK, progress=False),
    "train": lambda v, x, y: train(v, few(), Recipe(1, 100, warmup_epochs=0.0), folder=few.folder),
    "memory": lambda v, x, y: costs.memory(v, "nullspace", QUICK, x, y),
    "storage": lambda v, x, y: costs.storage(v),
    "adapted_copy": lambda v, x, y: adapted_copy(v, "lnlora"),
}
EVALUATING: dict[str, Call] = {
    "encoder_noise": lambda v, x, y: encoder_noise(v, [x], eps=0.1, steps=2),
    "published": lambda v, x, y: encoder_noise(v, [x], eps=0.1, steps=2, official=True),
    "input_noise": lambda v, x, y: input_noise(v, [x], eps=0.1, steps=2),
    "noise_influence": lambda v, x, y: noise_influence(v, torch.ones(1, 36, 96), [x]),
    "linearise": lambda v, x, y: linearise(v, [x]),
    **{name: lambda v, x, y, name=name: attribute(v, x, name) for name in ATTRIBUTIONS},
    "attention_weights": lambda v, x, y: attention_weights(v, x),
    "manipulate": lambda v, x, y: manipulate(v, x, "grad_cam", steps=2),
    "deletion_insertion": lambda v, x, y: deletion_insertion(v, x, torch.arange(36.0).expand(8, 36), target=y),
    "lookalike": lambda v, x, y: lookalike(v, x, x.flip(0), eps=0.1, steps=2),
    "adversarial": lambda v, x, y: adversarial(v, x, y.flip(0), steps=2),
    "library_attack": lambda v, x, y: library_attack(v, x, y.flip(0), "CW", steps=2),
}


def state_of(vit: ViT, *tensors: torch.Tensor) -> tuple[Any, ...]:
    """All that a caller can see of a model and of tensors, and the random states of this process."""
    modules, parameters = list(vit.modules()), list(vit.parameters())
    return (
        fingerprint(vit),
        [(type(module), module.training, getattr(module, "fused_attn", None)) for module in modules],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules],
        [(parameter.requires_grad, parameter.grad is None, parameter.dtype) for parameter in parameters],
        [tensor.sum(dtype=torch.float64).item() for tensor in tensors],
        [tensor.requires_grad for tensor in tensors],
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),
        random.getstate(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("cut", [None, pytest.param(2, marks=pytest.mark.long)], ids=["whole", "cut"])
@pytest.mark.parametrize("name", [*ANY_MODE, *EVALUATING])
def test_arguments_and_random_states_are_as_before(name: str, cut: int | None, tmp_path, monkeypatch) -> None:
    vit, (images, labels), calls = load_vit(SHIPPED), (part.clone() for part in batch()), []
    monkeypatch.setattr(few, "folder", tmp_path, raising=False)
    vit.net.blocks[1].requires_grad_(False)
    if name in ANY_MODE:
        vit.train().net.blocks[4].eval()

    def power(*_: object) -> None:
        calls.append(1)
        if len(calls) == cut:
            raise RuntimeError("power cut")

    vit.net.blocks[2].register_forward_hook(power)
    before = state_of(vit, images, labels)
    try:
        (ANY_MODE | EVALUATING)[name](vit, images, labels)
    except RuntimeError as error:
        assert str(error) == "power cut" and cut is not None
    else:
        assert cut is None or len(calls) < cut
    assert state_of(vit, images, labels) == before


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_leave_images_and_random_states(name: str) -> None:
    images = few().dev.images[:2].copy()
    before = images.copy(), torch.get_rng_state(), str(np.random.get_state())
    corrupt(images, name, 3)
    assert np.array_equal(images, before[0]) and torch.equal(torch.get_rng_state(), before[1])
    assert str(np.random.get_state()) == before[2]


def test_injecting_and_merging_change_all_layers_or_none() -> None:
    vit = load_vit(SHIPPED)
    vit.net.blocks[1].requires_grad_(False)
    weight = vit.net.blocks[5].mlp.fc2.weight
    vit.net.blocks[5].mlp.fc2.weight = torch.nn.Parameter(weight.detach().char(), requires_grad=False)
    before = state_of(vit)
    with pytest.raises(TypeError, match="floating point"):  # no branch can be made in whole numbers
        inject(vit, "lora")
    assert state_of(vit) == before
    vit.net.blocks[5].mlp.fc2.weight = weight
    inject(vit, "lora")
    with torch.no_grad():
        vit.net.blocks[0].attn.qkv.adapter.lora_B.weight.fill_(0.1)
    del vit.net.blocks[5].mlp.fc2.adapter
    before = state_of(vit)
    with pytest.raises(AttributeError, match="adapter"):
        merge(vit)
    assert state_of(vit) == before
