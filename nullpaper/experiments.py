"""Finetuning trials: a start, a method, a recipe and a seed, finetuned and judged once, and shared between notebooks.

Each trial is two stored results, the finetuned weights and what every test image was answered under every attack and
corruption, so that any two trials can be compared image by image.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from typing import Any

import pandas as pd
import torch

from nullpaper import classifiers, evaluation, finetuning
from nullpaper.corruptions import SEVERITIES
from nullpaper.data import Data, Split, load_data
from nullpaper.errors import InputError
from nullpaper.evaluation import Threat, corrupted_splits, evaluate, from_masks, masks
from nullpaper.finetuning import FinetuneRecipe, finetune
from nullpaper.identity import identity
from nullpaper.influence import read_pool
from nullpaper.linearised import linearise
from nullpaper.parallel import each
from nullpaper.store import Result, store_root, stored
from nullpaper.synthesis import CONTROLS, encoder_noise
from nullpaper.vit import SHIPPED, ViT, fingerprint

__all__ = ["Boundary", "Protocol", "Trial", "Trialled", "boundary_norm", "model_of", "run_trials", "start_of"]

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
class Trial:
    """One finetuning run; ``method`` "start" stands for the model as it comes."""

    method: str
    seed: int = 0
    steps: int = 0
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    start: str = SHIPPED  # a name in `classifiers.ARCHITECTURES`, of a ViT
    input_scale: str = "own"  # "mismatched": paper A's wrong mean and standard deviation, see `start_of`
    boundary: Boundary | None = None  # measured after every round


@dataclass(frozen=True)
class Protocol:
    """What a trial is judged on: a number of test images, and the attacks and corruptions of all of them."""

    images: int
    threats: tuple[Threat, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0


@dataclass(frozen=True)
class Trialled:
    """A finished trial: the history of its run (empty for the start) and its answers as `evaluation` keeps them."""

    trial: Trial
    history: list[dict[str, float]]
    best_step: int
    frame: pd.DataFrame
    sources: tuple[Result, ...]


def run_trials(
    trials: Sequence[Trial], protocol: Protocol, *, workers: int | None = None, progress: str | None = "trials"
) -> list[Trialled]:
    """Run what is not stored yet, side by side; a killed call continues within the trials that it was at.

    Raises:
        InputError: as `finetune` and `evaluate`.
    """
    done = each(_run, [(trial, protocol) for trial in trials], workers=workers, progress=progress)
    finished = []
    for trial, (run, judged) in zip(trials, done, strict=True):
        found = run.metrics if run else {"history": [], "best_step": 0}
        frame = from_masks(judged.arrays())
        finished.append(Trialled(trial, **found, frame=frame, sources=(judged,) if run is None else (run, judged)))
    return finished


def _run(item: tuple[Trial, Protocol]) -> tuple[Result | None, Result]:
    trial, protocol = item
    run = None if trial.method == "start" else _finetuned(trial)
    model = start_of(trial) if run is None else _loaded(trial, run)

    def judge() -> tuple[dict[str, Any], dict[str, Any]]:
        split = _data().test.subset(protocol.images, protocol.seed)
        options = {"attacks": protocol.threats, "corruptions": _corrupted(protocol), "seed": protocol.seed}
        return {"images": len(split)}, masks(evaluate(model, split, **options))

    given = asdict(protocol) | {"weights": fingerprint(model)}
    return run, stored("judged", given, judge, code=[evaluation], data=_data().identity)


@lru_cache(maxsize=1)
def _corrupted(protocol: Protocol) -> dict[str, Split]:
    """The corrupted images, made once a process and shared by its trials."""
    split = _data().test.subset(protocol.images, protocol.seed)
    return corrupted_splits(split, protocol.corruptions, protocol.severities, protocol.seed)


def _finetuned(trial: Trial) -> Result:
    start, described = start_of(trial), asdict(trial)

    def run() -> tuple[dict[str, Any], dict[str, Any]]:
        recipe, data = trial.recipe, _data()
        measure = None if trial.boundary is None else lambda vit: boundary_norm(vit, data, trial.boundary)
        options = {"steps": trial.steps, "seed": trial.seed, "recipe": recipe, "measure": measure}
        done = finetune(start, data, method=trial.method, folder=states, progress=False, **options)
        return {"history": done.history, "best_step": done.best_step}, done.vit.net.state_dict()

    origin = _data().identity | {"start": fingerprint(start)}
    states = store_root().parent / "finetuning" / identity(described, origin)[:20]
    done = stored("finetuned", described, run, code=[finetuning], data=origin)
    shutil.rmtree(states, ignore_errors=True)  # the result holds what is wanted of it
    return done


def model_of(trialled: Trialled) -> ViT:
    """The model that a trial ended with."""
    run = trialled.sources[0] if len(trialled.sources) > 1 else None
    return start_of(trialled.trial) if run is None else _loaded(trialled.trial, run)


def _loaded(trial: Trial, run: Result) -> ViT:
    model = start_of(trial)
    model.net.load_state_dict(run.tensors(_device()))
    return model


def start_of(trial: Trial) -> ViT:
    """The model that a trial starts from.

    ``input_scale`` "mismatched" repeats the published pipeline's fault: weights that expect mean = std = 0.5 were given
    ImageNet's statistics, so that what the embedding sees is stretched by 0.5 / 0.226 and shifted. Here the same affine
    map acts on what the checkpoint was trained with.

    Raises:
        InputError: an unknown input scale, or a start that is no ViT.
    """
    model = classifiers.load_classifier(trial.start, device=_device())
    if not isinstance(model, ViT):
        raise InputError(f"start '{trial.start}' is no ViT; choose one of the ViTs in classifiers.ARCHITECTURES.")
    if trial.input_scale == "own":
        return model
    if trial.input_scale != "mismatched":
        raise InputError(f"input_scale '{trial.input_scale}' is unknown: 'own' or 'mismatched'.")
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
    random = CONTROLS["random"](vit, pools[0], **given)
    return {
        "norm": learned.norm,
        "norm_reached": float(learned.reached),
        "norm_random": random.norm,
        "norm_random_reached": float(random.reached),
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def _data() -> Data:
    return load_data("cifar10", progress=False)
