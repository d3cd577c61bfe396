"""Counts, seeds, radii and names out of range, over the whole science: one sentence, before the model answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from attacked import batch, vit
from quick import QUICK, few, start

from nullpaper import statistics
from nullpaper.adapters.files import load_adapter, save_adapter
from nullpaper.adapters.inject import adapted_copy, expected_parameters, inject
from nullpaper.data.datasets import Split, load_data
from nullpaper.errors import InputError
from nullpaper.finetuning import costs, scratch
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.fooling.explanations import attribute
from nullpaper.fooling.faithfulness import Curves, top_overlap
from nullpaper.fooling.lookalike import adversarial, farthest_along, library_attack, lookalike, other_class
from nullpaper.fooling.manipulation import manipulate
from nullpaper.fooling.watermark import (
    decode_message,
    draw_logo,
    encode_message,
    message_keys,
    official_noise,
    watermark,
)
from nullpaper.models.predict import predictions
from nullpaper.models.vit import SHIPPED, load_vit, save_vit
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.comparison import bootstrap
from nullpaper.robustness.corruptions import corrupt
from nullpaper.robustness.evaluation import Threat, corrupted_splits, evaluate
from nullpaper.robustness.gradient_masking import diagnose
from nullpaper.robustness.perturbation import crop_and_resize, degraded, jpeg, noisy, transported_logits, undo_crop
from nullpaper.robustness.pgd import pgd
from nullpaper.studies.settings import adversarial_setting, adversarial_trial, nullspace_setting
from nullpaper.studies.shipped import train_shipped
from nullpaper.studies.trials import Protocol, Trial, run_trials
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.linearised import Linearised, linearise
from nullpaper.synthesis.noise import encoder_noise, input_noise, rescaled, verified

COUNTS = (0, -1, 2.5, math.nan, True, None, "3")
SEEDS = (-1, 0.5, math.nan, None, "3", 2**70)
RADII = (-0.1, math.nan, math.inf, None, "0.1", True)
POSITIVE = (0.0, *RADII)
NAMES = ("nonsense", 3, None, ["pgd"])


@cache
def space() -> PatchNullspace:
    return patch_nullspace(vit())


SETTING = dict(images=4, attack_eps=0.1, evaluation_steps=2, seed=0)


def split() -> Split:
    return few().dev.take(np.arange(8))


def pixels() -> torch.Tensor:
    return batch()[0]


def noise() -> torch.Tensor:
    return torch.randn(1, 36, 96, generator=torch.Generator().manual_seed(0))


def finetuned(**options) -> None:
    finetune(start(), few(), **{"method": "zero", "steps": 2, "recipe": QUICK, "progress": False} | options)


def learned(**options) -> None:
    encoder_noise(vit(), [pixels()], **{"eps": 0.1, "steps": 2} | options)


def attacked(name: str = "fgsm", eps: float = 0.1, **options) -> None:
    attack(vit(), *batch(), name, eps=eps, **options)


def message(**options) -> None:
    encode_message(space(), pixels(), torch.ones(8, 3, dtype=torch.bool), **{"key": 1} | options)


CALLS: dict[str, tuple[Callable, dict[str, tuple]]] = {
    "inject": (
        lambda **o: inject(load_vit(SHIPPED), **{"kind": "lora"} | o),
        {
            "r": (*COUNTS, 10**9),
            "alpha": POSITIVE,
            "seed": SEEDS,
            "kind": NAMES,
            "targets": ("nonsense", 3, [["qkv"]], []),
            "norm": NAMES,
        },
    ),
    "adapted_copy": (lambda **o: adapted_copy(start(), {"kind": "lora"} | o), {"r": COUNTS}),
    "expected_parameters": (lambda **o: expected_parameters(start(), "lora", **o), {"r": COUNTS}),
    "attack": (attacked, {"eps": RADII, "seed": SEEDS, "batch_size": COUNTS, "name": (*NAMES, "pgd-0", "pgd--3")}),
    "pgd": (lambda **o: pgd(vit(), *batch(), **{"eps": 0.1} | o), {"eps": RADII, "steps": COUNTS, "loss": NAMES}),
    "diagnose": (
        lambda **o: diagnose(vit(), *batch(), **{"eps": 0.1, "steps": 2, "queries": 2} | o),
        {"eps": POSITIVE, "steps": COUNTS, "queries": COUNTS, "seed": SEEDS},
    ),
    "evaluate": (
        lambda **o: evaluate(vit(), split(), **o),
        {
            "batch_size": COUNTS,
            "seed": SEEDS,
            "severities": ([0], [6], 0, [1.5], [True], None, "3"),
            "attacks": (
                *NAMES[:3],
                {"fgsm": math.nan},
                {"fgsm": [0.1]},
                ("fgsm", -1.0),
                [("fgsm",)],
                [0.1],
                [("fgsm", 0.1, 3)],
                {3: 0.1},
            ),
            "corruptions": (*NAMES[:3], {"fog": 3}, [3], [["fog"]]),
        },
    ),
    "corrupted_splits": (
        lambda **o: corrupted_splits(split(), **{"corruptions": ["fog"]} | o),
        {"seed": SEEDS, "severities": ([0], 6, [math.nan])},
    ),
    "corrupt": (
        lambda **o: corrupt(split().images, **{"name": "fog", "severity": 1} | o),
        {"name": NAMES, "severity": (0, 6, 1.0, True, None, "3"), "seed": SEEDS},
    ),
    "degraded": (lambda **o: degraded(pixels(), **{"name": "JPEG 50"} | o), {"name": NAMES, "seed": SEEDS}),
    "jpeg": (lambda **o: jpeg(pixels(), **o), {"quality": (*COUNTS, 101)}),
    "transported_logits": (
        lambda **o: transported_logits(vit(), pixels(), **{"transport": "8 bits"} | o),
        {"transport": NAMES, "batch_size": COUNTS},
    ),
    "finetune": (
        finetuned,
        {"steps": COUNTS, "seed": SEEDS, "method": NAMES, "adapter": (*NAMES[:2], {"r": 0}, {"kind": "lora", "r": 0})},
    ),
    "FinetuneRecipe": (
        FinetuneRecipe,
        {
            **dict.fromkeys(("batch_size", "steps_per_noise", "dev_images", "noise_steps", "attack_steps"), COUNTS),
            **dict.fromkeys(("learning_rate", "noise_eps", "noise_lim", "clip_norm"), POSITIVE[:3]),
            **dict.fromkeys(("attack_eps", "final_share", "weight_decay", "label_smoothing", "ema", "beta"), RADII[:2]),
            "noise_images": COUNTS[1:],
            "betas": ((0.9, 1.0), (-0.1, 0.9), 0.9, (0.9,)),
        },
    ),
    "Recipe": (
        scratch.Recipe,
        {
            **dict.fromkeys(("epochs", "batch_size"), COUNTS),
            "seed": SEEDS,
            **dict.fromkeys(("learning_rate", "clip_norm"), POSITIVE[:3]),
            **dict.fromkeys(
                ("weight_decay", "warmup_epochs", "mixup", "cutmix", "ema", "patch_drop", "label_smoothing"), RADII[:2]
            ),
            "betas": ((0.9, 1.0),),
        },
    ),
    "step_times": (
        lambda **o: costs.step_times(
            {"a": start()},
            **{"method": "standard", "recipe": QUICK, "images": pixels(), "labels": batch()[1], "repeats": 1} | o,
        ),
        {"repeats": COUNTS, "seed": SEEDS, "method": NAMES},
    ),
    "encoder_noise": (
        learned,
        {"steps": COUNTS[:5], "seed": SEEDS, "eps": (*POSITIVE[:4], "0.1", 2.0), "lim": POSITIVE},
    ),
    "encoder_noise, lam": (
        lambda **o: encoder_noise(vit(), [pixels()], **o),
        {"lam": POSITIVE[:4], "norm": POSITIVE[:4]},
    ),
    "input_noise": (
        lambda **o: input_noise(vit(), [pixels()], **{"eps": 0.1, "steps": 2} | o),
        {"steps": COUNTS[:5], "seed": SEEDS, "lim": POSITIVE},
    ),
    "rescaled": (
        lambda **o: rescaled(vit(), noise(), [pixels()], **{"eps": 0.1} | o),
        {"seed": SEEDS, "eps": POSITIVE[:4]},
    ),
    "verified": (
        lambda **o: verified(vit(), noise(), [pixels()], **{"eps": 0.1} | o),
        {"seed": SEEDS, "eps": POSITIVE[:4]},
    ),
    "linearise": (lambda **o: linearise(vit(), [pixels()], **o), {"seed": SEEDS}),
    "patch_nullspace": (lambda **o: patch_nullspace(vit(), **o), {"through": NAMES, "rtol": (*RADII[:3], "0.1", 1.0)}),
    "largest": (lambda **o: space().largest(pixels(), **o), {"steps": COUNTS[1:]}),
    "sample": (lambda **o: space().sample((2, 3, 48, 48), **o), {"norm": (*RADII[:5], [1.0])}),
    "lookalike": (
        lambda **o: lookalike(vit(), pixels(), pixels().flip(0), **{"eps": 0.1} | o),
        {"eps": POSITIVE, "steps": COUNTS},
    ),
    "farthest_along": (lambda **o: farthest_along(vit(), pixels(), pixels(), pixels(), **o), {"eps": POSITIVE}),
    "adversarial": (lambda **o: adversarial(vit(), *batch(), **o), {"steps": COUNTS}),
    "other_class": (lambda **o: other_class(batch()[1], **o), {"seed": SEEDS}),
    "manipulate": (
        lambda **o: manipulate(vit(), pixels(), **{"name": "saliency", "steps": 2} | o),
        {"name": NAMES, "radius": POSITIVE, "eps": POSITIVE, "steps": COUNTS, "seed": SEEDS},
    ),
    "attribute": (lambda **o: attribute(vit(), pixels(), **o), {"name": NAMES}),
    "top_overlap": (lambda **o: top_overlap(pixels(), pixels(), **o), {"share": (*POSITIVE, 1.0)}),
    "watermark": (lambda **o: watermark(space(), pixels(), pixels()[0], **o), {"norm": NAMES}),
    "encode_message": (message, {"key": SEEDS, "margin": POSITIVE, "share": POSITIVE}),
    "decode_message": (
        lambda **o: decode_message(space(), pixels(), **{"key": 1, "length": 3} | o),
        {"key": SEEDS, "length": COUNTS, "share": POSITIVE},
    ),
    "message_keys": (
        lambda **o: message_keys(space(), **{"key": 1, "length": 3} | o),
        {"key": SEEDS, "length": COUNTS, "share": POSITIVE},
    ),
    "library_attack": (
        lambda **o: library_attack(vit(), *batch(), "PGD", **o),
        {"steps": COUNTS, "eps": RADII},
    ),
    "official_noise": (
        lambda **o: official_noise(space(), torch.ones(192), torch.ones(192), gradient=True, **o),
        {"norm": NAMES},
    ),
    "draw_logo": (draw_logo, {"size": ((0, 3), (3, -1), (2.5, 3))}),
    "area": (lambda **o: Curves(torch.ones(2), torch.ones(1, 2), torch.ones(1, 2)).area(**o), {"curve": NAMES}),
    "without": (
        lambda **o: Linearised(torch.ones(2), torch.eye(3456, 2), 3420).without(noise(), **o),
        {"count": (*COUNTS[1:], 3)},
    ),
    "powered": (
        lambda **o: Linearised(torch.ones(2), torch.eye(3456, 2), 3420).powered(noise(), **o),
        {"gamma": (9, -9.0, math.nan, None, "1")},
    ),
    "read_pool": (lambda **o: read_pool(vit(), [pixels()], **o), {"level": NAMES}),
    "crop_and_resize": (lambda **o: crop_and_resize(pixels(), **o), {"kept": (*COUNTS, 49)}),
    "undo_crop": (lambda **o: undo_crop(pixels(), **o), {"kept": (*COUNTS, 49)}),
    "noisy": (lambda **o: noisy(pixels(), generator=torch.Generator(), **o), {"sd": RADII}),
    "run_trials": (
        lambda **o: run_trials([Trial("zero", steps=1)], Protocol(4), progress=None, **o),
        {"workers": COUNTS[1:]},
    ),
    "Trial": (
        lambda **o: run_trials([Trial(**{"method": "zero", "steps": 1} | o)], Protocol(4), progress=None),
        {"steps": COUNTS, "seed": SEEDS, "method": NAMES[:3]},
    ),
    "Protocol": (
        lambda **o: run_trials([Trial("zero", steps=1)], Protocol(**{"images": 4} | o), progress=None),
        {
            "images": COUNTS,
            "seed": SEEDS,
            "severities": ((0,), (1, 6)),
            "threats": ((Threat("pgd-0"),), (Threat("pgd", math.nan),), (Threat("pgdd"),)),
            "corruptions": (("fogg",), (3,)),
        },
    ),
    "adversarial_setting": (
        lambda **o: adversarial_setting(**SETTING | {"steps": 2, "rounds": 1, "other_eps": 0.1} | o),
        {"images": COUNTS, "steps": COUNTS, "rounds": COUNTS, "attack_eps": RADII},
    ),
    "nullspace_setting": (
        lambda **o: nullspace_setting(**SETTING | {"eps": 0.1, "strong_eps": 0.1, "severities": (1,)} | o),
        {"images": COUNTS, "eps": POSITIVE, "strong_eps": RADII},
    ),
    "adversarial_trial": (
        lambda **o: adversarial_trial("pgd_at", 0, 1, QUICK, adapter="lora", **o),
        {"rate": (0.0, -1.0, math.nan)},
    ),
    "train_shipped": (
        lambda **o: train_shipped(SHIPPED, Path(), **o),
        {"epochs": COUNTS[:5], "augmentations": (["x"],)},
    ),
    "predictions": (lambda **o: predictions(vit(), split(), **o), {"batch_size": COUNTS}),
    "statistics.mean": (lambda **o: statistics.mean([1.0, 2.0], **o), {"seed": SEEDS[:5]}),
    "bootstrap": (lambda **o: bootstrap(np.eye(3), **o), {"seed": SEEDS[:5]}),
}
CASES = [
    (name, argument, value) for name, (_, bad) in CALLS.items() for argument, values in bad.items() for value in values
]


@pytest.mark.parametrize(("name", "argument", "value"), CASES, ids=lambda part: " ".join(str(part).split()))
def test_values_out_of_range_are_one_sentence_before_any_work(name: str, argument: str, value: object) -> None:
    calls = []
    handle = vit().register_forward_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(InputError) as caught:
            CALLS[name][0](**{argument: value})
    finally:
        handle.remove()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and not calls


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    images, labels = (part[:2] for part in batch())
    attacked = [
        attack(vit(), images, labels, "fgsm", eps=eps, seed=seed, batch_size=size)
        for eps, seed, size in [
            (0.125, 0, 1),
            (np.float32(0.125), np.int64(0), np.int8(1)),
            (torch.tensor(0.125), np.uint64(0), np.int32(1)),
        ]
    ]
    assert torch.equal(attacked[0], attacked[1]) and torch.equal(attacked[0], attacked[2])


WHOLE = [
    (name, argument)
    for name, (_, bad) in CALLS.items()
    for argument, values in bad.items()
    if values[:4] == SEEDS[:4] and name not in ("run_trials", "Protocol", "Trial")
]


@pytest.mark.parametrize(("name", "argument"), WHOLE)
def test_seeds_of_numpy_are_seeds(name: str, argument: str) -> None:
    CALLS[name][0](**{argument: np.int64(2)})


PATHS: dict[str, Callable[[object], object]] = {
    "root": lambda path: load_data("imagenet", path),
    "weights": lambda path: load_vit(SHIPPED, weights=path),
    "path": lambda path: save_vit(vit(), path),
    "folder, saved": lambda path: save_adapter(adapted_copy(vit(), "lora"), path),
    "folder, loaded": lambda path: load_adapter(load_vit(SHIPPED), path),
    "folder, finetuned": lambda path: finetune(vit(), few(), method="standard", steps=1, recipe=QUICK, folder=path),
    "folder, trained": lambda path: scratch.train(vit(), few(), scratch.Recipe(1, 100), folder=path),
}


@pytest.mark.parametrize("name", PATHS)
def test_what_is_no_path_is_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name.partition(',')[0]}=5 must be a path: give it as text\.$"):
        PATHS[name](5)
