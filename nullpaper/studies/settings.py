"""How the models of papers A and B are trained and judged here: what notebooks share, so that one finds another's runs.

07 and 08 are on paper A, 09 and 10 on paper B, and 11 on both. Sizes are parameters of the notebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nullpaper.errors import check_count
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.models.vit import SHIPPED
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies.trials import AdapterSpec, Boundary, Protocol, Trial

WATCHED = ("nullspace", "zero")
"""Methods whose largest noise within eps is measured along the way."""

RANK = 3
"""Of LoRA branches in all layers of the shipped ViT: with LNLoRA, 5.5 % of its parameters."""
ADAPTERS: dict[str, AdapterSpec | None] = {
    "full": None,
    "lnlora": AdapterSpec("lnlora", RANK),
    "lora": AdapterSpec("lora", RANK),
    "bitfit": AdapterSpec("bitfit"),
    "layernorm": AdapterSpec("layernorm"),
    "linear": AdapterSpec("linear"),
}
"""What trains, by name; ``full``: all weights."""
RATES = {"full": 2e-3, "lnlora": 1e-2, "lora": 1e-2, "bitfit": 1e-2, "layernorm": 1e-2, "linear": 1e-2}
"""Peak learning rates of adversarial training, by dev accuracy under its attack after 40 steps at 2/255 (see 10)."""
STARTS = {"standard": SHIPPED, "robust": "vit_robust"}
"""Checkpoints that adversarial finetuning starts from: the second was adversarially trained in all weights."""


def nullspace_setting(
    *,
    images: int,
    eps: float,
    attack_eps: float,
    strong_eps: float,
    evaluation_steps: int,
    severities: Sequence[int],
    seed: int,
    **training: Any,
) -> tuple[FinetuneRecipe, Protocol, Boundary]:
    """How runs on paper A are trained, judged and watched.

    Args:
        images: of test; dev has four times as many, and at most 1,000.
        eps: bound on the influence of the noise.
        attack_eps, strong_eps: radii in pixel units: of the table's attacks, and of adversarial training.
        evaluation_steps: of PGD and CW at the end; the patch attack takes twice as many.
        training: further fields of `FinetuneRecipe`.

    Raises:
        InputError: a number out of range.
    """
    check_count("images", images)
    dev_images = min(1_000, 4 * images)
    recipe = FinetuneRecipe(dev_images=dev_images, noise_eps=eps, attack_eps=strong_eps, **training)
    n = evaluation_steps
    threats = (Threat("fgsm", attack_eps), Threat(f"pgd-{n}", attack_eps), Threat(f"cw-{n}", attack_eps))
    threats += (Threat(f"pgd-{n}", strong_eps), Threat(f"patch-{2 * n}", 1.0))
    protocol = Protocol(images, threats, tuple(CORRUPTIONS), tuple(severities), seed)
    return recipe, protocol, Boundary(eps, recipe.noise_images, recipe.noise_steps)


def nullspace_trial(method: str, seed: int, steps: int, recipe: FinetuneRecipe, boundary: Boundary) -> Trial:
    """A run in all weights; the methods of `WATCHED` are watched."""
    return Trial(method, seed, steps, recipe, boundary=boundary if method in WATCHED else None)


def adversarial_setting(
    *,
    images: int,
    steps: int,
    rounds: int,
    attack_eps: float,
    other_eps: float,
    evaluation_steps: int,
    seed: int,
    **training: Any,
) -> tuple[FinetuneRecipe, Protocol]:
    """How adversarial finetuning on paper B is done and judged.

    Args:
        images: of test; dev has twice as many, and at most 1,000.
        rounds: looks at dev, of which the best is kept.
        attack_eps: radius of the attacks in training and at the end, in pixel units.
        other_eps: a second radius at the end.
        training: further fields of `FinetuneRecipe`.

    Raises:
        InputError: a number out of range.
    """
    for name, value in (("images", images), ("steps", steps), ("rounds", rounds)):
        check_count(name, value)
    sizes = {"steps_per_noise": -(-steps // rounds), "dev_images": min(1_000, 2 * images)}
    recipe = FinetuneRecipe(**sizes, ema=0.95, attack_eps=attack_eps, **training)  # over 20 steps, since runs are short
    n = evaluation_steps
    threats = (Threat(f"pgd-{n}", attack_eps), Threat(f"cw-{n}", attack_eps), Threat(f"pgd-{n}", other_eps))
    return recipe, Protocol(images, threats, seed=seed)


def adversarial_trial(
    method: str,
    seed: int,
    steps: int,
    recipe: FinetuneRecipe,
    *,
    adapter: str | AdapterSpec | None,
    rate: float | None = None,
    **options: Any,
) -> Trial:
    """A run through an adapter, by a name in `ADAPTERS` or as it is, at the rate of its kind unless one is given.

    Args:
        options: further fields of `Trial`.
    """
    spec = ADAPTERS[adapter] if isinstance(adapter, str) else adapter
    rate = RATES["full" if spec is None else spec.kind] if rate is None else rate
    return Trial(method, seed, steps, replace(recipe, learning_rate=rate), adapter=spec, **options)
