"""How the models of papers A and B are trained and judged here: what notebooks share, so that one finds another's runs.

07 and 08 are on paper A, 09 and 10 on paper B, and 11 on both. Sizes are parameters of the notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from nullpaper.data.folders import Transform
from nullpaper.errors import InputError, check_choice, check_count
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.models.vit import SHIPPED
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import contrasts
from nullpaper.studies.boundary import Boundary
from nullpaper.studies.judging import load
from nullpaper.studies.trials import AdapterSpec, Protocol, Trial, run_trials

ATTACKED = ("fgsm", "pgd", "cw", "pgd_strong", "patch")
"""The attacks of a table on paper A; the fourth is PGD at the radius of adversarial training."""
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
"""Peak learning rates of adversarial training where a notebook tunes none: for runs of some ten steps at 2/255."""
UNJUDGED = Protocol(1)
"""One clean image, for runs that only choose: a trial has to be judged on something."""
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
    attacks: Sequence[str] = ATTACKED,
    corruptions: Sequence[str] = (),
    **training: Any,
) -> tuple[FinetuneRecipe, Protocol, Boundary]:
    """How runs on paper A are trained, judged and watched.

    Args:
        images: of test; dev has four times as many, and at most 1,000, unless ``training`` has ``dev_images``.
        eps: bound on the influence of the noise.
        attack_eps, strong_eps: radii in pixel units: of the table's attacks, and of adversarial training.
        evaluation_steps: of PGD and CW at the end; the patch attack takes twice as many.
        attacks: those of the table; "pgd_strong" is PGD at the second radius.
        corruptions: by name; none: all of them.
        training: further fields of `FinetuneRecipe`.

    Raises:
        InputError: a number out of range, an unknown attack.
    """
    check_count("images", images)
    for name in attacks:
        check_choice("attack", name, ATTACKED)
    training = {"dev_images": min(1_000, 4 * images)} | training
    recipe = FinetuneRecipe(noise_eps=eps, attack_eps=strong_eps, **training)
    threats = threats_by_name(attack_eps, strong_eps, evaluation_steps)
    chosen = tuple(threats[name] for name in ATTACKED if name in attacks)
    protocol = Protocol(images, chosen, tuple(corruptions) or tuple(CORRUPTIONS), tuple(severities), seed)
    return recipe, protocol, Boundary(eps, recipe.noise_images, recipe.noise_steps)


def threats_by_name(attack_eps: float, strong_eps: float, steps: int) -> dict[str, Threat]:
    """Those of `ATTACKED`; the patch attack takes twice the steps of PGD and CW."""
    names = {"fgsm": ("fgsm", attack_eps), "pgd": (f"pgd-{steps}", attack_eps), "cw": (f"cw-{steps}", attack_eps)}
    names |= {"pgd_strong": (f"pgd-{steps}", strong_eps), "patch": (f"patch-{2 * steps}", 1.0)}
    return {name: Threat(*threat) for name, threat in names.items()}


def nullspace_trial(
    method: str, seed: int, steps: int, recipe: FinetuneRecipe, boundary: Boundary | None, **options: Any
) -> Trial:
    """A run in all weights; the methods of `WATCHED` are watched, with draws of the run's seed.

    Args:
        options: further fields of `Trial`.
    """
    watched = replace(boundary, seed=seed) if boundary is not None and method in WATCHED else None
    return Trial(method, seed, steps, recipe, boundary=watched, **options)


def rate_trials(
    methods: Sequence[str],
    rates: Sequence[float],
    recipe: FinetuneRecipe,
    protocol: Protocol,
    *,
    seed: int,
    steps: int,
    images: int,
    eps: float,
    **options: Any,
) -> tuple[dict[str, list[Trial]], Protocol]:
    """Short runs of every method at every rate, and how dev judges them: one grid and one budget for all methods.

    Dev says what the table's average says of test: clean, FGSM and PGD at ``eps``, and corruptions, at severity 3.

    Args:
        protocol: of the table.
        images: of dev, or all where it has fewer.
        options: further fields of `Trial`.
    """
    grid = {
        method: [Trial(method, seed, steps, replace(recipe, learning_rate=rate), **options) for rate in sorted(rates)]
        for method in methods
    }
    threats = tuple(t for t in protocol.threats if t.eps == eps and t.name.startswith(("fgsm", "pgd")))
    return grid, replace(protocol, images=images, threats=threats, severities=(3,), split="dev", corrupted="")


def best_on_average(
    grid: Mapping[str, Sequence[Trial]], protocol: Protocol, eps: float, *, workers: int = 0
) -> pd.DataFrame:
    """What dev says of `rate_trials`.

    Returns:
        A row a method and rate: arm, rate, the measures of the average, ``average``, images, steps, and ``chosen``: the
        rate of the arm's highest average; of equal ones the smallest.
    """
    tries = [(arm, trial) for arm, trials in grid.items() for trial in trials]
    ended = run_trials([trial for _, trial in tries], protocol, workers=workers, progress="rates")
    rows = []
    for (arm, trial), run in zip(tries, ended, strict=True):
        worth = contrasts.measures(run.frame, eps)
        worth = worth[[name for name in (*contrasts.AVERAGED, "average") if name in worth]].mean()
        sizes = {"images": protocol.images, "steps": trial.steps}
        rows.append({"arm": arm, "rate": trial.recipe.learning_rate, **worth, **sizes})
    table = pd.DataFrame(rows)
    return table.assign(chosen=table.index.isin(table.groupby("arm")["average"].idxmax()))


def on_other_data(
    protocol: Protocol, others: Sequence[str], roots: Sequence[str], transform: Transform
) -> dict[str, Protocol]:
    """The protocol on further test sets, by name; each is looked at before anything is trained.

    Args:
        others: names of `load_data`, such as "imagenet-a".
        roots: the folder of each; none at all where all can be fetched.
        transform: how the model reads them, which changes no count.

    Raises:
        InputError: another number of folders than of names, fewer images than the protocol asks for, or as `load_data`.
    """
    if roots and len(roots) != len(others):
        raise InputError(f"{len(roots)} folders are given for {len(others)} further test sets: give one for each.")
    judged = {}
    for name, root in zip(others, roots or [""] * len(others), strict=True):
        load(name, root, transform).test.subset(protocol.images)
        judged[name] = replace(protocol, data=name, root=root)
    return judged


def adversarial_setting(
    *,
    images: int,
    steps: int,
    rounds: int,
    attack_eps: float,
    evaluation_steps: int,
    seed: int,
    other_eps: float = 0.0,
    attacks: Sequence[str] = ("pgd", "cw"),
    dev_images: int = 0,
    **training: Any,
) -> tuple[FinetuneRecipe, Protocol]:
    """How adversarial finetuning on paper B is done and judged.

    Args:
        images: of test.
        rounds: looks at dev; the last counts, so that all are compared at equal length.
        attack_eps: radius of the attacks in training and at the end, in pixel units.
        other_eps: a second radius of PGD at the end; 0, or the first: none.
        attacks: those at the end.
        dev_images: for these looks; 0: twice as many as of test, and at most 1,000.
        training: further fields of `FinetuneRecipe`.

    Raises:
        InputError: a number out of range, an unknown attack.
    """
    for name, value in (("images", images), ("steps", steps), ("rounds", rounds)):
        check_count(name, value)
    check_count("dev_images", dev_images, least=0)
    for name in attacks:
        check_choice("attack", name, ("pgd", "cw"))
    sizes = {"steps_per_noise": -(-steps // rounds), "dev_images": dev_images or min(1_000, 2 * images)}
    given = sizes | {"ema": 0.95, "last": True, "attack_eps": attack_eps}  # over 20 steps, since runs are short
    recipe = FinetuneRecipe(**given, **training)
    threats = [Threat(f"{name}-{evaluation_steps}", attack_eps) for name in attacks]
    if other_eps not in (0, attack_eps):
        threats.append(Threat(f"pgd-{evaluation_steps}", other_eps))
    return recipe, Protocol(images, tuple(threats), seed=seed)


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


def best_under_attack(grid: Mapping[str, Sequence[Trial]], *, workers: int = 0) -> pd.DataFrame:
    """What dev says of arms that train adversarially, at several rates: one grid and one budget for all arms.

    Args:
        grid: trials by arm, which differ in learning rate alone.

    Returns:
        A row an arm and rate: arm, rate, ``dev_robust`` and ``dev_accuracy`` of the round that counts, steps, and
        ``chosen``: the rate of the arm's highest dev_robust; of equal ones the smallest.
    """
    tries = [(arm, trial) for arm, trials in grid.items() for trial in trials]
    ended = run_trials([trial for _, trial in tries], UNJUDGED, workers=workers, progress="rates")
    rows = []
    for (arm, trial), run in zip(tries, ended, strict=True):
        kept = next(record for record in run.history if record["step"] == run.best_step)
        worth = {name: kept[name] for name in ("dev_robust", "dev_accuracy")}
        rows.append({"arm": arm, "rate": trial.recipe.learning_rate, **worth, "steps": trial.steps})
    table = pd.DataFrame(rows).sort_values("rate", kind="stable", ignore_index=True)
    table["chosen"] = table.index.isin(table.groupby("arm")["dev_robust"].idxmax())
    return table.sort_values("arm", kind="stable", ignore_index=True)


def rates_of(table: pd.DataFrame) -> dict[str, float]:
    """The rates that were chosen, by arm."""
    return table[table["chosen"]].set_index("arm")["rate"].to_dict()
