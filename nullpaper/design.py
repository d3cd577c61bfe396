"""What notebooks 07 and 08 share, so that a run of one is found by the other: sizes by profile, recipe, protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullpaper.corruptions import CORRUPTIONS
from nullpaper.evaluation import Threat
from nullpaper.experiments import Boundary, Protocol, Trial
from nullpaper.finetuning import FinetuneRecipe

__all__ = ["SIZES", "WATCHED", "chosen", "shared", "trial"]

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
"""By profile; paper A's 20 noises of 40 steps at ``gpu``."""

WATCHED = ("nullspace", "zero")
"""Methods whose largest noise within eps is measured after every round."""


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
