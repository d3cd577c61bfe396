"""Finetuning trials: a start, a method, a recipe and a seed, finetuned and judged once, and shared between notebooks.

Each trial is two stored results, the finetuned weights and what every test image was answered under every attack and
corruption, so that any two trials can be compared image by image. What a user registers (a method, an attack, a
corruption) is part of the identity of what it computes, and reaches the process that computes it.
"""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache, partial
from typing import Any

import pandas as pd
import torch

from nullpaper.adapters.files import ADAPTED, load_adapted
from nullpaper.adapters.inject import AdaptedViT, adapted_copy, remove
from nullpaper.data.datasets import Data, Split, load_data
from nullpaper.errors import InputError, check_count, check_seed
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import METHODS, FinetuneRecipe, check_method
from nullpaper.models import checkpoints
from nullpaper.models.gradients import rounds
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit
from nullpaper.robustness.attacks import ATTACKS, split_name
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES, check_corruptions
from nullpaper.robustness.evaluation import Corrupted, Threat, corrupted_splits, evaluate, packed, unpacked
from nullpaper.robustness.pgd import check_eps
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.noise import encoder_noise, rescaled
from nullpaper.workflow.code_identity import code_identity, identity
from nullpaper.workflow.parallel import each
from nullpaper.workflow.store import Result, store_root, stored

REGISTRIES = (METHODS, ATTACKS, CORRUPTIONS)
HEAD_STD = 0.02  # of a new head's weights, as timm draws those of a ViT
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Boundary:
    """How the largest noise within eps is measured over a run: one protocol and one noise seed for all weights."""

    eps: float
    images: int  # of dev, for directions and scale, and as many of test, for the verification
    steps: int


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
    new_head: bool = False  # drawn from the seed, as it must be where the classes are others
    data: str = "cifar10"

    def __post_init__(self) -> None:
        """Raise an `InputError` for a negative seed or negative steps."""
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "steps", check_count("steps", self.steps, least=0))


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


def run_trials(
    trials: Sequence[Trial], protocol: Protocol, *, workers: int = 0, progress: str | None = "trials"
) -> list[TrialResult]:
    """Run what is not stored yet, side by side; a killed call continues within the trials that it was at.

    Where a notebook registered a method, attack or corruption of its own, which no other process can import, all run in
    this process, one after the other.

    Args:
        workers: processes side by side; 0: one a thread on a CPU, one on a GPU.

    Raises:
        InputError: as `finetune` and `evaluate`.
    """
    check_count("images", protocol.images)
    check_seed(protocol.seed)
    for threat in protocol.threats:
        split_name(threat.name)
        check_eps(threat.eps, math.inf)  # how large depends on the norm and the model
    check_corruptions(protocol.corruptions, protocol.severities)
    for trial in trials:
        if trial.method != "start":
            check_method(trial.method)
            check_count("steps", trial.steps)
    check_count("workers", workers, least=0)
    jobs = [(trial, protocol, REGISTRIES) for trial in dict.fromkeys(trials)]
    results = each(_run, jobs, workers=(workers or None) if _importable() else 1, progress=progress if jobs else None)
    by_trial = {result.trial: result for result in results}
    return [by_trial[trial] for trial in trials]


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
    model, data = _model(trial, run), _data(trial.data)

    def judge() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        corrupted = _corrupted(protocol, trial.data)
        split = data.test.subset(protocol.images, protocol.seed)
        return packed(evaluate(model, split, attacks=protocol.threats, corruptions=corrupted, seed=protocol.seed))

    given = asdict(protocol) | {"weights": fingerprint(model), "registered": _identity(protocol)}
    judged = stored("judged", given, judge, data=data.identity)
    history = {"history": [], "best_step": 0} if run is None else run.metrics
    return TrialResult(trial, **history, frame=unpacked(judged.metrics, judged.arrays()), run=run)


def _identity(protocol: Protocol) -> list[Any]:
    """Of the attacks and corruptions that judge; a corruption's place in its registry decides its draws."""
    attacks = dict.fromkeys(split_name(threat.name)[0] for threat in protocol.threats)
    places = [list(CORRUPTIONS).index(name) for name in protocol.corruptions]
    corruptions = code_identity(*(CORRUPTIONS[name] for name in protocol.corruptions))
    return [code_identity(*(vars(ATTACKS[name]) for name in attacks)), places, corruptions]


@lru_cache(maxsize=1)
def _corrupted(protocol: Protocol, data: str) -> dict[Corrupted, Split]:
    """The corrupted images, made once a process and shared by its trials."""
    split = _data(data).test.subset(protocol.images, protocol.seed)
    return corrupted_splits(split, protocol.corruptions, protocol.severities, protocol.seed)


def _finetuned(trial: Trial) -> Result:
    data, start = _data(trial.data), start_of(trial)
    described = asdict(trial) | {"registered": code_identity(vars(METHODS[trial.method]))}
    origin = data.identity | {"start": fingerprint(start)} | ({"products": "rounded"} if rounds(_device()) else {})
    state = store_root().parent / "finetuning" / identity(described, origin)[:20]  # decides nothing, as any folder

    def compute() -> tuple[dict[str, Any], dict[str, Any]]:
        measure = trial.boundary and partial(boundary_norm, data=data, boundary=trial.boundary)
        options = {"steps": trial.steps, "seed": trial.seed, "recipe": trial.recipe, "folder": state}
        options |= {"adapter": trial.adapter and trial.adapter.options(), "measure": measure, "progress": False}
        result = finetune(start, data, method=trial.method, **options)
        return {"history": result.history, "best_step": result.best_step}, result.vit.net.state_dict()

    run = stored("finetuned", described, compute, data=origin)
    shutil.rmtree(state, ignore_errors=True)  # the result holds what is wanted of it
    return run


def model_of(result: TrialResult) -> ViT:
    """The model that a trial ended with, with its adapter."""
    return _model(result.trial, result.run)


def _model(trial: Trial, run: Result | None) -> ViT:
    model = start_of(trial)
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
    model = _named(trial.start, trial.weights) if isinstance(trial.start, str) else _ended(trial.start)
    classes = len(_data(trial.data).classes)
    if trial.new_head or model.num_classes != classes:
        _renew_head(model, classes, trial.seed)
    if trial.mismatched_scale:
        _mismatch(model)
    return model


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


def boundary_norm(vit: ViT, data: Data, boundary: Boundary) -> dict[str, float]:
    """Norms of the learned and of random noise that are verified to stay within eps, every token of one norm.

    Found in the store where these weights were measured before, as those that all runs start from.
    """
    given = asdict(boundary) | {"weights": fingerprint(vit)}
    return stored("boundary_norm", given, partial(_boundary_norm, vit, data, boundary), data=data.identity).metrics


def _boundary_norm(vit: ViT, data: Data, boundary: Boundary) -> dict[str, float]:
    pool, held_out = (
        read_pool(vit, split.batches(250, image_size=vit.image_size, device=vit.mean.device))
        for split in (data.dev.subset(boundary.images, 1), data.test.subset(boundary.images, 1))
    )
    given = {"held_out": held_out, "eps": boundary.eps, "seed": 0}
    learned = encoder_noise(vit, pool, steps=boundary.steps, spread=True, **given)
    draw = torch.randn(pool.noise_shape, generator=torch.Generator().manual_seed(1))
    random = rescaled(vit, draw, pool, **given)
    norms = {"norm": learned.norm, "norm_reached": float(learned.reached)}
    return norms | {"norm_random": random.norm, "norm_random_reached": float(random.reached)}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def _data(name: str) -> Data:
    return load_data(name)
