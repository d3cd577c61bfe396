"""What is said to come, against what is known in closed form and against a run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.robustness.attacks import attacked
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import estimates
from nullpaper.studies.estimates import attack_passes, counted, estimate
from nullpaper.studies.judging import Protocol
from nullpaper.studies.trials import AdapterSpec, Boundary, Trial, run_trials

EPS = 1 / 255
RECIPE = FinetuneRecipe(batch_size=32, steps_per_noise=2, dev_images=50, noise_images=64, noise_steps=4, attack_steps=2)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))


def test_operations_are_those_of_the_matrix_products() -> None:
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    assert counted(lambda: left @ right) == 2 * 3 * 5 * 7
    vit = load_vit(SHIPPED)
    tokens, d = vit.grid_size[0] * vit.grid_size[1], vit.embed_dim
    classes, inner = vit.num_classes, vit.patch_matrix.shape[1]
    n = len(vit.net.blocks) * (tokens + 1)
    products = 12 * d * d + 2 * (tokens + 1) * d  # qkv, projection and the two layers of 4 d; scores and their use
    expected = 2 * (tokens * inner * d + n * products + d * classes)
    assert estimates._flops(vit) == pytest.approx(expected, rel=0.02)


def test_passes_are_those_of_the_real_thing_on_any_model() -> None:
    """Counted on the tiny ViT from one and three steps; here the shipped one takes all its steps."""
    vit, images = load_vit(SHIPPED), torch.rand(2, 3, 48, 48)
    forward = counted(lambda: vit(images))
    labels = vit(images).argmax(1)
    for name in ("pgd-20", "cw-7", "mim-5", "patch-5", "patch_fool-5", "square-40"):
        whole = counted(lambda: attacked(vit, images, labels, name, eps=1e-6, seed=0, batch_size=2))  # noqa: B023
        assert attack_passes(name) == pytest.approx(whole / forward, rel=0.03)
    key = estimates._key(RECIPE)
    assert estimates._step_passes("standard", key, None) == pytest.approx(3, rel=0.03)  # forward, and twice that back
    assert estimates._step_passes("zero", key, None) == pytest.approx(6, rel=0.05)  # two branches
    adversarial = [estimates._step_passes("pgd_at", replace(key, attack_steps=steps), None) for steps in (2, 6)]
    assert np.diff(adversarial) == pytest.approx(8, rel=0.05)  # without gradients of weights a step is two passes
    lora = estimates._step_passes("standard", key, AdapterSpec("lora", 2))
    assert 2 < lora < 3


@pytest.mark.long
def test_work_is_proportional_to_what_is_asked_for_and_shared_trials_train_once() -> None:
    trials = [Trial("start"), Trial("zero", 0, 4, RECIPE), Trial("zero", 1, 4, RECIPE)]
    few, many = (Protocol(images, (Threat("fgsm", EPS),)) for images in (20, 40))
    table = estimate({"few": (trials, few), "many": (trials, many), "again": (trials[:1], many)}, workers=1).parts
    table = table.set_index("part")
    assert table["runs"].to_dict() == {"finetuning": 2, "few": 3, "many": 3, "again": 1}
    assert table.loc["many", "tflop"] == pytest.approx(2 * table.loc["few", "tflop"])
    assert table.loc["many", "images"] == 3 * 40 and table.loc["again", "tflop"] == table.loc["many", "tflop"] / 3
    watched = [replace(trial, boundary=Boundary(0.03, 64, 4)) for trial in trials]
    assert estimate({"few": (watched, few)}, workers=1).parts["forward"][0] > 1.2 * table.loc["finetuning", "forward"]


@pytest.mark.long
def test_the_hours_are_of_the_order_of_a_run() -> None:
    trials = [Trial("start"), Trial("zero", 0, 8, RECIPE), Trial("nullspace", 0, 8, RECIPE)]
    protocol = Protocol(60, (Threat("pgd-20", EPS), Threat("autoattack-1", EPS)), ("fog", "contrast"), (1, 5))
    expected = 3600 * estimate({"all": (trials, protocol)}, workers=1).parts["hours"].sum()
    begun = time.process_time()
    run_trials(trials, protocol, workers=1, progress=None)
    taken = time.process_time() - begun
    print(f"expected {expected:.1f} s, took {taken:.1f} s")
    assert 0.4 < expected / taken < 4
