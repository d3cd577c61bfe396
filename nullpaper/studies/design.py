"""What notebooks share, so that a run of one is found by another: sizes by profile, recipe, protocol.

07 and 08 are on paper A, 09 and 10 on paper B, and 11 on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nullpaper.finetuning.finetune import FinetuneRecipe
from nullpaper.models.vit import SHIPPED
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies.trials import Boundary, Protocol, Through, Trial

__all__ = [
    *("ADAPTERS", "ADVERSARIAL_SIZES", "RANK", "RANK_WIDE", "RATES", "SIZES", "STARTS", "WATCHED"),
    *("adversarial", "adversarial_trial", "chosen", "shared", "trial"),
]

NOISES = ["standard", "zero", "nullspace", "random", "random_norm", "permuted"]

FULL = dict(images=1_000, steps=800, steps_per_noise=40, batch_size=128, noise_images=2_000, noise_steps=60) | dict(
    attack_steps=10, evaluation_steps=20, severities=[1, 2, 3, 4, 5], seeds=5, methods=[*NOISES, "pgd_at", "trades"]
)
SIZES: dict[str, dict[str, Any]] = {
    "smoke": dict(images=8, steps=2, steps_per_noise=1, batch_size=8, noise_images=32, noise_steps=2)
    | dict(attack_steps=1, evaluation_steps=2, severities=[3], seeds=1)
    | dict(methods=["standard", "zero", "nullspace", "random", "pgd_at"]),
    "cpu": dict(images=64, steps=24, steps_per_noise=12, batch_size=64, noise_images=400, noise_steps=12)
    | dict(attack_steps=2, evaluation_steps=20, severities=[1, 3, 5], seeds=3, methods=FULL["methods"]),
    "gpu": FULL,
    "imagenet": FULL,
}
"""Of 07 and 08 by profile; paper A's 20 noises of 40 steps at ``gpu``."""

WATCHED = ("nullspace", "zero")
"""Methods whose largest noise within eps is measured after every round."""

RANK = 3
"""Of LoRA branches in all layers of the shipped ViT: with LNLoRA, 5.5 % of its parameters."""
RANK_WIDE = 16
"""The same for ViT-S, where it is 5.8 %."""
ADAPTERS: dict[str, Through | None] = {
    "full": None,
    "lnlora": Through("lnlora", RANK),
    "lora": Through("lora", RANK),
    "bitfit": Through("bitfit"),
    "layernorm": Through("layernorm"),
    "linear": Through("linear"),
}
"""What trains, by name; ``full``: all weights."""
RATES = {"full": 2e-3, "lnlora": 1e-2, "lora": 1e-2, "bitfit": 1e-2, "layernorm": 1e-2, "linear": 1e-2}
"""Peak learning rates of adversarial training, by dev accuracy under its attack after 40 steps at 2/255 (see 10)."""
STARTS = {"standard": SHIPPED, "robust": "vit_robust"}
"""Checkpoints that adversarial finetuning starts from: the second was adversarially trained in all weights."""

FULL_ADVERSARIAL = dict(images=1_000, steps=2_000, batch_size=128, attack_steps=10, evaluation_steps=20, seeds=3)
FULL_ADVERSARIAL |= dict(attack_eps=8 / 255, other_eps=4 / 255, starts=[*STARTS])
SHORT_ADVERSARIAL = dict(attack_eps=2 / 255, other_eps=8 / 255, starts=[*STARTS])  # what few steps can learn
ADVERSARIAL_SIZES: dict[str, dict[str, Any]] = {
    "smoke": SHORT_ADVERSARIAL
    | dict(images=8, steps=1, batch_size=8, attack_steps=1, evaluation_steps=2, seeds=1)
    | dict(rounds=1, methods=["pgd_at"], adapters=["full", "lnlora", "linear"]),
    "cpu": SHORT_ADVERSARIAL
    | dict(images=48, steps=10, batch_size=64, attack_steps=2, evaluation_steps=20, seeds=2)
    | dict(rounds=1, methods=["pgd_at", "trades"], adapters=[*ADAPTERS]),
    "gpu": FULL_ADVERSARIAL | dict(rounds=10, methods=["pgd_at", "trades"], adapters=[*ADAPTERS]),
}
ADVERSARIAL_SIZES["imagenet"] = ADVERSARIAL_SIZES["gpu"]
"""Of 09 to 11 by profile."""


def chosen(sizes: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``sizes`` with those values instead that ``given``, a notebook's parameters, has and that are not None."""
    return {name: value if given.get(name) is None else given[name] for name, value in sizes.items()}


def shared(
    size: Mapping[str, Any], *, eps: float, attack_eps: float, strong_eps: float, learning_rate: float, seed: int
) -> tuple[FinetuneRecipe, Protocol, Boundary]:
    """How runs of this size are trained, judged and watched.

    Args:
        eps: bound on the influence of the noise.
        attack_eps, strong_eps: radii in pixel units: of the table's attacks, and of adversarial training.
    """
    recipe = FinetuneRecipe(
        batch_size=size["batch_size"],
        learning_rate=learning_rate,
        steps_per_noise=size["steps_per_noise"],
        dev_images=min(1_000, 4 * size["images"]),
        noise_eps=eps,
        noise_images=size["noise_images"],
        noise_steps=size["noise_steps"],
        attack_eps=strong_eps,
        attack_steps=size["attack_steps"],
    )
    n = size["evaluation_steps"]
    threats = (Threat("fgsm", attack_eps), Threat(f"fast_pgd-{n}", attack_eps), Threat(f"cw-{n}", attack_eps))
    threats += (Threat(f"fast_pgd-{n}", strong_eps), Threat(f"patch-{2 * n}", 1.0))
    protocol = Protocol(size["images"], threats, tuple(CORRUPTIONS), tuple(size["severities"]), seed)
    return recipe, protocol, Boundary(eps, size["noise_images"], size["noise_images"], size["noise_steps"])


def trial(method: str, seed: int, steps: int, recipe: FinetuneRecipe, boundary: Boundary) -> Trial:
    """A run of the shared recipe; the methods of `WATCHED` are watched."""
    return Trial(method, seed, steps, recipe, boundary=boundary if method in WATCHED else None)


def adversarial(
    size: Mapping[str, Any], *, attack_eps: float, other_eps: float, seed: int
) -> tuple[FinetuneRecipe, Protocol]:
    """How adversarial finetuning of this size is done and judged.

    Args:
        attack_eps: radius of the attacks in training and at the end, in pixel units.
        other_eps: a second radius at the end.
    """
    recipe = FinetuneRecipe(
        batch_size=size["batch_size"],
        steps_per_noise=-(-size["steps"] // size["rounds"]),
        dev_images=min(1_000, 2 * size["images"]),
        ema=0.95,  # an average over 20 steps, since runs are short
        attack_eps=attack_eps,
        attack_steps=size["attack_steps"],
    )
    n = size["evaluation_steps"]
    threats = (Threat(f"fast_pgd-{n}", attack_eps), Threat(f"cw-{n}", attack_eps), Threat(f"fast_pgd-{n}", other_eps))
    return recipe, Protocol(size["images"], threats, seed=seed)


def adversarial_trial(
    method: str,
    seed: int,
    steps: int,
    recipe: FinetuneRecipe,
    *,
    adapter: str | Through | None,
    start: str | Trial = SHIPPED,
    rate: float | None = None,
    head: str = "kept",
    data: str = "cifar10",
    weights: str | None = None,
) -> Trial:
    """A run through an adapter, by a name in `ADAPTERS` or as it is, at the rate of its kind unless one is given."""
    through = ADAPTERS[adapter] if isinstance(adapter, str) else adapter
    rate = rate or RATES["full" if through is None else through.kind]
    recipe = replace(recipe, learning_rate=rate)
    return Trial(method, seed, steps, recipe, start=start, weights=weights, adapter=through, head=head, data=data)
