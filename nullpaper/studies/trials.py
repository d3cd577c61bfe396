"""Finetuning trials: a start, a method, a recipe and a seed, finetuned and judged once, and shared between notebooks.

Each trial is two stored results, the finetuned weights and what every test image was answered under every attack and
corruption, so that any two trials can be compared image by image. What a user registers (a method, an attack, a
corruption) is part of the identity of what it computes, and reaches the process that computes it.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nullpaper.adapters.files import ADAPTED, load_adapted
from nullpaper.adapters.inject import AdaptedViT, adapted_copy, remove
from nullpaper.data.datasets import Data, Split, load_data
from nullpaper.errors import InputError
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import METHODS, FinetuneRecipe, check_method
from nullpaper.models import checkpoints
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit
from nullpaper.robustness.attacks import ATTACKS, split_name
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES
from nullpaper.robustness.evaluation import Corrupted, Threat, corrupted_splits, evaluate, packed, unpacked
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.linearised import linearise
from nullpaper.synthesis.noise import encoder_noise, rescaled
from nullpaper.workflow.canonical import identity
from nullpaper.workflow.code_identity import code_identity
from nullpaper.workflow.parallel import each
from nullpaper.workflow.store import Result, store_root, stored

HEAD_STD = 0.02  # of a new head's weights, as timm draws those of a ViT
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Boundary:
    """How the largest noise within eps is measured over a run: one protocol and one noise seed for all weights."""

    eps: float = 0.03
    images: int = 1_000  # of dev: directions and scale
    held_out: int = 1_000  # of test: verification
    steps: int = 40
    seed: int = 0


@dataclass(frozen=True)
class AdapterSpec:
    """What a trial trains instead of all weights: the arguments of `adapters.inject`."""

    kind: str
    r: int = 16
    alpha: float | None = None  # None: r, so that branches are not scaled
    targets: tuple[str, ...] | None = None
    norm: str = "affine"

    def options(self) -> dict[str, Any]:
        """For `adapters.adapted_copy` and `finetune`."""
        return asdict(self) | {"alpha": self.r if self.alpha is None else self.alpha}


@dataclass(frozen=True)
class Trial:
    """One finetuning run; ``method`` "start" stands for the model as it comes."""

    method: str
    seed: int = 0
    steps: int = 0
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    start: str | Trial = SHIPPED  # a ViT of the package or of timm, or what another trial ended with
    weights: str | None = None  # a safetensors file for a start by name; None: what comes with it
    input_scale: str = "own"  # "mismatched": paper A's wrong mean and standard deviation, see `start_of`
    boundary: Boundary | None = None  # measured after every round
    adapter: AdapterSpec | None = None  # None: all weights
    head: str = "kept"  # "new": drawn from the seed, as it must be where the classes are others
    data: str = "cifar10"


@dataclass(frozen=True)
class Protocol:
    """What a trial is judged on: a number of test images, and the attacks and corruptions of all of them."""

    images: int
    threats: tuple[Threat, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0


@dataclass(frozen=True)
class TrialResult:
    """A finished trial: the history of its run (empty for the start) and its answers as a table of `evaluate`."""

    trial: Trial
    history: list[dict[str, float]]
    best_step: int
    frame: pd.DataFrame
    run: Result | None = None  # what the store holds of the finetuning; None: a start
    judged: Result | None = None  # what it holds of the answers


Entries = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""Registered methods, attacks and corruptions by name, those that a trial rests on."""


def run_trials(
    trials: Sequence[Trial], protocol: Protocol, *, workers: int = 0, progress: str | None = "trials"
) -> list[TrialResult]:
    """Run what is not stored yet, side by side; a killed call continues within the trials that it was at.

    Trials with a method, attack or corruption that a notebook defines, which no other process can import, run in this
    process, one after the other.

    Args:
        workers: processes side by side; 0: one a thread on a CPU, one on a GPU.

    Raises:
        InputError: as `finetune` and `evaluate`.
    """
    entries = {trial: _entries(trial, protocol) for trial in trials}
    local = [trial for trial, used in entries.items() if not _importable(used)]
    others = [trial for trial in entries if trial not in local]
    outcomes: dict[Trial, tuple[Result | None, Result]] = {}
    for group, processes in ((others, workers or None), (local, 1)):
        jobs = [(trial, protocol, entries[trial]) for trial in group]
        done = each(_run, jobs, workers=processes, progress=progress if jobs else None)
        outcomes.update(zip(group, done, strict=True))
    return [_result(trial, *outcomes[trial]) for trial in trials]


def _entries(trial: Trial, protocol: Protocol) -> Entries:
    names = [trial.method]
    while isinstance(trial.start, Trial):
        trial = trial.start
        names.append(trial.method)
    methods = {name: check_method(name) for name in names if name != "start"}
    attacks = {stem: ATTACKS[stem] for stem, _ in (split_name(threat.name) for threat in protocol.threats)}
    return methods, attacks, dict(CORRUPTIONS) if protocol.corruptions else {}  # whole: draws depend on their order


def _importable(entries: Entries) -> bool:
    """Whether another process can import all of it; what a notebook defines is in its own process alone."""
    try:
        return b"__main__" not in pickle.dumps(entries)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False  # a lambda or a nested function


def _run(item: tuple[Trial, Protocol, Entries]) -> tuple[Result | None, Result]:
    trial, protocol, entries = item
    for registry, used in zip((METHODS, ATTACKS, CORRUPTIONS), entries, strict=True):
        registry.update(used)
    run = None if trial.method == "start" else _finetuned(trial)
    model = start_of(trial) if run is None else _loaded(trial, run)

    def judge() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        split = _data(trial.data).test.subset(protocol.images, protocol.seed)
        prepared = _corrupted(protocol, trial.data)
        options = {"attacks": protocol.threats, "corruptions": prepared, "seed": protocol.seed}
        return packed(evaluate(model, split, **options))

    given = asdict(protocol) | {"weights": fingerprint(model), "registered": _identity(protocol, entries)}
    return run, stored("judged", given, judge, data=_data(trial.data).identity)


def _identity(protocol: Protocol, entries: Entries) -> list[Any]:
    """Of the attacks and corruptions that judge; a corruption's place in its registry decides its draws."""
    _, attacks, corruptions = entries
    places = [list(corruptions).index(name) for name in protocol.corruptions if name in corruptions]
    used = [corruptions[name] for name in protocol.corruptions if name in corruptions]
    return [code_identity(*map(vars, attacks.values())), places, code_identity(*used)]


@lru_cache(maxsize=1)
def _corrupted(protocol: Protocol, data: str) -> dict[Corrupted, Split]:
    """The corrupted images, made once a process and shared by its trials."""
    split = _data(data).test.subset(protocol.images, protocol.seed)
    return corrupted_splits(split, protocol.corruptions, protocol.severities, protocol.seed)


def _finetuned(trial: Trial) -> Result:
    data, start = _data(trial.data), start_of(trial)
    described = asdict(trial) | {"registered": code_identity(vars(METHODS[trial.method]))}
    origin = data.identity | {"start": fingerprint(start)}
    state = _state_folder(described, origin)

    def compute() -> tuple[dict[str, Any], dict[str, Any]]:
        measure = None if trial.boundary is None else lambda vit: boundary_norm(vit, data, trial.boundary)
        adapter = trial.adapter and trial.adapter.options()
        options = {"steps": trial.steps, "seed": trial.seed, "recipe": trial.recipe, "adapter": adapter}
        options |= {"measure": measure, "folder": _state_folder(described, origin), "progress": False}
        result = finetune(start, data, method=trial.method, **options)
        return {"history": result.history, "best_step": result.best_step}, result.vit.net.state_dict()

    run = stored("finetuned", described, compute, data=origin)
    shutil.rmtree(state, ignore_errors=True)  # the result holds what is wanted of it
    return run


def _state_folder(*described: Mapping[str, Any]) -> Path:
    """Where a run's state is kept until it has finished. It is no part of what identifies the result."""
    return store_root().parent / "finetuning" / identity(*described)[:20]


def _result(trial: Trial, run: Result | None, judged: Result) -> TrialResult:
    history = run.metrics if run else {"history": [], "best_step": 0}
    return TrialResult(trial, **history, frame=unpacked(judged.metrics, judged.arrays()), run=run, judged=judged)


def model_of(result: TrialResult) -> ViT:
    """The model that a trial ended with, with its adapter."""
    return start_of(result.trial) if result.run is None else _loaded(result.trial, result.run)


def _loaded(trial: Trial, run: Result) -> ViT:
    model = start_of(trial)
    if trial.adapter is not None:
        model = adapted_copy(model, trial.adapter.options(), trial.seed)
    model.net.load_state_dict(run.tensors(_device()))
    return model


def start_of(trial: Trial) -> ViT:
    """The model that a trial starts from.

    ``input_scale`` "mismatched" repeats the published pipeline's fault: weights that expect mean = std = 0.5 were given
    ImageNet's statistics, so that what the embedding sees is stretched by 0.5 / 0.226 and shifted. Here the same affine
    map acts on what the checkpoint was trained with.

    Raises:
        InputError: an unknown input scale, head or start, or a start that is no ViT.
    """
    for name, allowed in (("input_scale", ("own", "mismatched")), ("head", ("kept", "new"))):
        if getattr(trial, name) not in allowed:
            raise InputError(f"{name} '{getattr(trial, name)}' is unknown: '{allowed[0]}' or '{allowed[1]}'.")
    model = _named(trial.start, trial.weights) if isinstance(trial.start, str) else _ended(trial.start)
    classes = len(_data(trial.data).classes)
    if trial.head == "new" or model.num_classes != classes:
        _renew_head(model, classes, trial.seed)
    return model if trial.input_scale == "own" else _mismatched(model)


def _named(name: str, weights: str | None) -> ViT:
    """A model of this package or of timm, in evaluation mode."""
    if name in ADAPTED and weights is None:
        return load_adapted(name, device=_device())
    if name not in (*checkpoints.ARCHITECTURES, *checkpoints.FINETUNED):
        return load_vit(name, weights=weights, device=_device())
    model = checkpoints.load_classifier(name, weights=weights, device=_device())
    if not isinstance(model, ViT):
        raise InputError(f"start '{name}' is no ViT; choose one of the ViTs in checkpoints.ARCHITECTURES.")
    return model


def _ended(trial: Trial) -> ViT:
    """What a trial ended with, as a plain ViT where its adapter left no branches, so that another can be put on."""
    model = _loaded(trial, _finetuned(trial))
    return remove(model) if isinstance(model, AdaptedViT) and not model.adapter.targets else model


def _renew_head(model: ViT, classes: int, seed: int) -> None:
    with torch.random.fork_rng():
        model.net.reset_classifier(classes)
    drawn = torch.randn(model.net.head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.net.head.weight.copy_(HEAD_STD * drawn)
        model.net.head.bias.zero_()
    model.to(_device())


def _mismatched(model: ViT) -> ViT:
    stretch = torch.tensor([0.5 / std for std in IMAGENET_STD]).view_as(model.std).to(model.std)
    shift = torch.tensor([(0.5 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    model.mean -= shift.view_as(model.mean).to(model.mean) * model.std / stretch
    model.std /= stretch
    return model


def boundary_norm(vit: ViT, data: Data, boundary: Boundary) -> dict[str, float]:
    """Norms of the learned and of random noise that are verified to stay within eps, every token of one norm."""
    pools = [
        read_pool(vit, split.batches(250, image_size=vit.image_size, device=next(vit.parameters()).device))
        for split in (data.dev.subset(boundary.images, 1), data.test.subset(boundary.held_out, 1))
    ]
    given = {"held_out": pools[1], "eps": boundary.eps, "seed": boundary.seed}
    learned = encoder_noise(
        vit, pools[0], steps=boundary.steps, spread=True, linear=linearise(vit, pools[0], seed=boundary.seed), **given
    )
    draw = torch.randn(pools[0].noise_shape, generator=torch.Generator().manual_seed(boundary.seed + 1))
    random = rescaled(vit, draw, pools[0], **given)
    return {
        "norm": learned.norm,
        "norm_reached": float(learned.reached),
        "norm_random": random.norm,
        "norm_random_reached": float(random.reached),
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def _data(name: str) -> Data:
    return load_data(name, progress=False)
