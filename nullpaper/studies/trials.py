"""Finetuning trials: a start, a method, a recipe and a seed, finetuned and judged once, and shared between notebooks.

Each trial is two stored results, the finetuned weights and what every test image was answered under every attack and
corruption, so that any two trials can be compared image by image. What a user registers (a method, an attack, a
corruption) is part of the identity of what it computes, and reaches the process that computes it.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import pandas as pd
import torch

from nullpaper.adapters.files import ADAPTED, load_adapted
from nullpaper.adapters.inject import AdaptedViT, adapted_copy, remove
from nullpaper.data.folders import Transform
from nullpaper.errors import InputError, check_count, check_seed
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import METHODS, FinetuneRecipe, check_method
from nullpaper.models import checkpoints
from nullpaper.models.gradients import rounds
from nullpaper.models.predict import restricted
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit
from nullpaper.robustness.attacks import ATTACKS
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.studies.boundary import Boundary, boundary_norm
from nullpaper.studies.judging import Protocol, Weights, described, judge, load
from nullpaper.workflow.code_identity import code_identity, identity
from nullpaper.workflow.parallel import each
from nullpaper.workflow.store import Result, store_root, stored

REGISTRIES = (METHODS, ATTACKS, CORRUPTIONS)
HEAD_STD = 0.02  # of a new head's weights, as timm draws those of a ViT
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AdapterSpec:
    """What a trial trains instead of all weights: the arguments of `adapters.inject`; branches are not scaled."""

    kind: str
    r: int = 16
    targets: tuple[str, ...] | None = None
    norm: str = "affine"

    def options(self) -> dict[str, Any]:
        """For `adapters.adapted_copy` and `finetune`."""
        return asdict(self) | {"alpha": self.r}


@dataclass(frozen=True)
class Trial:
    """One finetuning run; ``method`` "start" stands for the model as it comes."""

    method: str
    seed: int = 0
    steps: int = 0
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    start: str | Trial = SHIPPED  # a ViT of the package or of timm, or what another trial ended with
    weights: str | None = None  # a safetensors file for a start by name; None: what comes with it
    mismatched_scale: bool = False  # paper A's wrong mean and standard deviation, see `start_of`
    boundary: Boundary | None = None  # measured at the start, halfway and at the end
    adapter: AdapterSpec | None = None  # None: all weights
    new_head: bool = False  # drawn from the seed, as it must be where the classes are others than the head's
    data: str = "cifar10"
    root: str = ""  # the folder of its photographs; empty: that of `load_data`

    def __post_init__(self) -> None:
        """Raise an `InputError` for a negative seed or negative steps."""
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "steps", check_count("steps", self.steps, least=0))


@dataclass(frozen=True)
class TrialResult:
    """A finished trial: the history of its run (empty for the start) and its answers as a table of `evaluate`."""

    trial: Trial
    history: list[dict[str, float]]
    best_step: int
    frame: pd.DataFrame
    weights: Weights
    run: Result | None = None  # what the store holds of the finetuning; None: a start


def run_trials(
    trials: Sequence[Trial], protocol: Protocol, *, workers: int = 0, progress: str | None = "trials"
) -> list[TrialResult]:
    """Run what is not stored yet, side by side; a killed call continues within the trials that it was at.

    Where a notebook registered a method, attack or corruption of its own, which no other process can import, all run in
    this process, one after the other.

    Args:
        workers: processes side by side; 0: one a thread on a CPU, four on a GPU.

    Raises:
        InputError: as `finetune` and `evaluate`.
    """
    for trial in trials:
        if trial.method != "start":
            check_method(trial.method)
            check_count("steps", trial.steps)
    check_count("workers", workers, least=0)
    jobs = [(trial, protocol, REGISTRIES) for trial in dict.fromkeys(trials)]
    results = each(_run, jobs, workers=(workers or None) if _importable() else 1, progress=progress if jobs else None)
    by_trial = {result.trial: result for result in results}
    return [by_trial[trial] for trial in trials]


def boundary_norms(measured: Sequence[tuple[TrialResult, Boundary]], *, workers: int = 0) -> pd.DataFrame:
    """`boundary_norm` of what trials ended with, a row a pair, side by side.

    Args:
        workers: as in `run_trials`.
    """
    return pd.DataFrame(each(_boundary_norm, measured, workers=workers or None, progress="norms"))


def _boundary_norm(job: tuple[TrialResult, Boundary]) -> dict[str, float]:
    result, boundary = job
    data = load(result.trial.data, result.trial.root, result.weights.transform)
    return boundary_norm(result.weights, data, boundary)


def _importable() -> bool:
    """Whether another process can import all that is registered; what a notebook defines is in its own alone."""
    try:
        return b"__main__" not in pickle.dumps(REGISTRIES)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False  # a lambda or a nested function


def _run(job: tuple[Trial, Protocol, tuple[dict[str, Any], ...]]) -> TrialResult:
    trial, protocol, registries = job
    for own, given in zip(REGISTRIES, registries, strict=True):
        own.update(given)
    run = None if trial.method == "start" else _finetuned(trial)
    found = {"history": [], "best_step": 0, "weights": fingerprint(_begun(trial))} if run is None else run.metrics
    weights = Weights(found["weights"], _transform(trial), partial(_model, trial, run))
    frame = judge(weights, trial.data, trial.root, protocol)
    return TrialResult(trial, found["history"], found["best_step"], frame, weights, run)


def _described(trial: Trial) -> dict[str, Any]:
    start = {"start": _described(trial.start)} if isinstance(trial.start, Trial) else {}
    return described(trial) | start


def _finetuned(trial: Trial) -> Result:
    start = start_of(trial)
    data = load(trial.data, trial.root, start.transform)
    given = _described(trial) | {"registered": code_identity(vars(METHODS[trial.method]))}
    exact = data.identity | {"start": fingerprint(start)}
    rounded = exact | {"products": "rounded"}
    origin, other = (rounded, exact) if rounds(_device()) else (exact, rounded)
    state = store_root().parent / "finetuning" / identity(given, origin)[:20]  # decides nothing, as any folder

    def compute() -> tuple[dict[str, Any], dict[str, Any]]:
        def measure(vit: ViT) -> dict[str, float]:
            return boundary_norm(_whole(vit), data, trial.boundary)

        options = {"steps": trial.steps, "seed": trial.seed, "recipe": trial.recipe, "folder": state}
        options |= {"adapter": trial.adapter and trial.adapter.options(), "progress": False}
        options |= {"measure": measure} if trial.boundary else {}
        result = finetune(start, data, method=trial.method, **options)
        weights = _whole(result.vit).fingerprint
        found = {"history": result.history, "best_step": result.best_step, "weights": weights}
        return found, result.vit.net.state_dict()

    run = stored("finetuned", given, compute, data=origin, other_data=other)
    shutil.rmtree(state, ignore_errors=True)  # the result holds what is wanted of it
    return run


def _whole(vit: ViT) -> Weights:
    """A model with all classes of its head."""
    whole = vit.unrestricted()
    return Weights(fingerprint(whole), vit.transform, lambda: whole)


def model_of(result: TrialResult) -> ViT:
    """The model that a trial ended with, with its adapter, for the classes of the trial's data."""
    return _of(result.trial, _model(result.trial, result.run))


def _model(trial: Trial, run: Result | None) -> ViT:
    """The same, with all classes of its head."""
    model = _begun(trial)
    if run is not None:
        if trial.adapter is not None:
            model = adapted_copy(model, trial.adapter.options(), trial.seed)
        model.net.load_state_dict(run.tensors(_device()))
    return model


def start_of(trial: Trial) -> ViT:
    """The model that a trial starts from.

    ``mismatched_scale`` repeats the published pipeline's fault: weights that expect mean = std = 0.5 were given
    ImageNet's statistics, so that what the embedding sees is stretched by 0.5 / 0.226 and shifted. Here the same affine
    map acts on what the checkpoint was trained with.

    Raises:
        InputError: a start that is no ViT, or as `load_vit`.
    """
    return _of(trial, _begun(trial))


def _begun(trial: Trial) -> ViT:
    """The same, with all classes of its head: a new one where the data has other classes."""
    model = _named(trial.start, trial.weights) if isinstance(trial.start, str) else _ended(trial.start)
    data = load(trial.data, trial.root, model.transform)
    if trial.new_head or restricted(model, data).num_classes != len(data.classes):
        _renew_head(model, len(data.classes), trial.seed)
    if trial.mismatched_scale:
        _mismatch(model)
    return model


def _transform(trial: Trial) -> Transform:
    """How the model that a trial goes back to wants photographs."""
    return _transform(trial.start) if isinstance(trial.start, Trial) else _transform_of(trial.start, trial.weights)


@cache
def _transform_of(name: str, weights: str | None) -> Transform:
    return _named(name, weights).transform


def _of(trial: Trial, model: ViT) -> ViT:
    return restricted(model, load(trial.data, trial.root, model.transform))


def _named(name: str, weights: str | None) -> ViT:
    """A model of this package or of timm, in evaluation mode."""
    if name in ADAPTED and weights is None:
        return load_adapted(name, device=_device())
    if name not in checkpoints.ARCHITECTURES:
        return load_vit(name, weights=weights, device=_device())
    model = checkpoints.load_classifier(name, weights=weights, device=_device())
    if not isinstance(model, ViT):
        raise InputError(f"start '{name}' is no ViT; choose one of the ViTs in checkpoints.ARCHITECTURES.")
    return model


def _ended(trial: Trial) -> ViT:
    """What a trial ended with, as a plain ViT where its adapter left no branches, so that another can be put on."""
    model = _model(trial, _finetuned(trial))
    return remove(model) if isinstance(model, AdaptedViT) and not model.adapter.targets else model


def _renew_head(model: ViT, classes: int, seed: int) -> None:
    with torch.random.fork_rng():
        model.net.reset_classifier(classes)
    drawn = torch.randn(model.net.head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.net.head.weight.copy_(HEAD_STD * drawn)
        model.net.head.bias.zero_()
    model.to(_device())


def _mismatch(model: ViT) -> None:
    stretch = torch.tensor([0.5 / std for std in IMAGENET_STD]).view_as(model.std).to(model.std)
    shift = torch.tensor([(0.5 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    model.mean -= shift.view_as(model.mean).to(model.mean) * model.std / stretch
    model.std /= stretch


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
