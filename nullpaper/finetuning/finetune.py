"""One finetuning loop for all methods: `methods.METHODS` differ in the batch they build and the loss they return.

A round is a fresh noise (if the method has one), some steps, and a look at dev; `trainer.Trainer` takes the steps and
keeps the state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import Data, Split, augmented, reader
from nullpaper.errors import InputError, check_count
from nullpaper.finetuning.methods import Batch, FinetuneRecipe, check_method, loss_of, make_noise
from nullpaper.finetuning.trainer import LARGEST_SEED, Inputs, Record, Trainer, schedule, seeded, state_file
from nullpaper.models.inputs import check_split
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import ViT, check_vit, fingerprint
from nullpaper.robustness.pgd import pgd
from nullpaper.synthesis.problem import LEAST_IMAGES

ORDER, AUGMENTATION, ATTACK = 1, 2, 0  # streams of random draws

Measure = Callable[[ViT], dict[str, float]]


@dataclass(frozen=True)
class FinetuneResult:
    """The finetuned model and how it came about.

    Attributes:
        vit: the averaged weights of the round that dev chose, or of the last if the recipe says so; evaluation mode.
        history: a record of the start and one a round: ``step``, ``loss``, ``dev_accuracy``, ``dev_robust`` (methods
            selected by it), ``noise_norm``, ``noise_influence`` with its interval, ``seconds``, and what ``measure``
            returned.
        best_step: after how many steps that round ended.
    """

    vit: ViT
    history: list[Record]
    best_step: int


@torch.inference_mode(False)
def finetune(
    vit: ViT,
    data: Data,
    *,
    method: str,
    adapter: str | Mapping[str, Any] | None = None,
    steps: int = 800,
    seed: int = 0,
    recipe: FinetuneRecipe | None = None,
    folder: str | Path | None = None,
    measure: Measure | None = None,
    progress: bool = True,
) -> FinetuneResult:
    """Finetune a copy of ``vit`` on ``data.train``, where its parameters live; frozen parameters stay as they are.

    Args:
        vit: the start; it is not changed.
        data: labels must be classes of the head.
        method: a name in `METHODS`.
        adapter: what trains instead of all of ``vit``: a kind of `adapters.inject`, or its arguments by name, such as
            ``{"kind": "lnlora", "r": 8}``; ``seed`` draws its start. None: what of ``vit`` requires gradients.
        steps: gradient steps in all; paper A took 20 noises x 40 steps.
        recipe: the rest, see `FinetuneRecipe`; None: its defaults, with fewer images at once where there are fewer.
        folder: where the state of this run is kept after every round; None: it starts anew when killed.
        measure: called with the averaged weights at the start, after the middle round and after the last; its numbers
            go into the history.
        progress: show a bar with loss, dev accuracy and the time that is left.

    Raises:
        InputError: unknown method, steps below 1, seed out of range, labels that are no classes of the head, no
            parameter that trains, a loss that is not finite (the last good round stays on disk), a state of another
            model in ``folder``, or nothing can be written there.
    """
    recipe = recipe or _fitting(data)
    chosen = check_method(method)
    steps = check_count("steps", steps)
    seed = check_count("seed", seed, 0, LARGEST_SEED)
    _check_data(vit, data, recipe)
    if chosen.noise and recipe.noise_images < LEAST_IMAGES:
        raise InputError(
            f"noise_images={recipe.noise_images} are too few to make a noise: take {LEAST_IMAGES} or more."
        )
    if adapter is not None:
        vit = adapted_copy(vit, adapter, seed)
    run = _Run(vit, data, method, steps, seed, recipe, folder, measure)
    if not run.history:
        begun = time.perf_counter()
        start = run.measured({"step": 0})
        run.history.append(start | {"seconds": time.perf_counter() - begun})
    options = {"name": method, "static": chosen.static, "progress": progress}
    run.trainer.run(steps, recipe.steps_per_noise, run.rate, run.begin, run.loss, run.judge, **options)
    rounds = run.history[-1:] if recipe.last else run.history[1:]  # the start is no candidate
    best = max(rounds, key=lambda record: record[run.criterion])
    return FinetuneResult(run.best, run.history, int(best["step"]))


def _fitting(data: Data) -> FinetuneRecipe:
    """The default recipe, whose batches and noise a small data set has images for."""
    default = FinetuneRecipe()
    batch, dev = min(default.batch_size, max(1, len(data.train))), len(data.dev)
    share = max(dev // 2, min(LEAST_IMAGES, dev - 1), 0)  # the rest of dev selects the best round
    return replace(default, batch_size=batch, noise_images=min(default.noise_images, share))


def _check_data(vit: ViT, data: Data, recipe: FinetuneRecipe) -> None:
    check_vit(vit)
    if not len(data.train) or not len(data.dev):
        raise InputError(f"{data.name} has no images to train on or to select by: load a folder that has train.")
    classes = len(data.classes)
    if classes > vit.num_classes:
        raise InputError(
            f"{data.name} has {classes} classes, but the head of {vit.name} has {vit.num_classes}: load the model with "
            f"num_classes={classes}."
        )
    for split in (data.train, data.dev):
        check_split(vit, split)
    if recipe.noise_images + 1 > len(data.dev):
        raise InputError(
            f"noise_images={recipe.noise_images} leaves none of {len(data.dev)} dev images for the selection: lower it."
        )
    if recipe.batch_size > len(data.train):
        raise InputError(f"batch_size={recipe.batch_size} exceeds the {len(data.train)} training images: lower it.")


class _Run:
    """What the methods share in a run: splits, batches, the noise of a round, and the choice of the best round."""

    def __init__(
        self,
        vit: ViT,
        data: Data,
        method: str,
        steps: int,
        seed: int,
        recipe: FinetuneRecipe,
        folder: str | Path | None = None,
        measure: Measure | None = None,
    ) -> None:
        self.count, self.method, self.measure = len(data.train), check_method(method), measure
        self.steps, self.seed, self.recipe = steps, seed, recipe
        self.criterion = "dev_robust" if self.method.attack else "dev_accuracy"
        shuffled = np.random.default_rng(seed).permutation(len(data.dev))
        self.noise_split = data.dev.take(np.sort(shuffled[: recipe.noise_images]))
        rest = data.dev.take(np.sort(shuffled[recipe.noise_images :]))
        self.dev = rest.subset(min(recipe.dev_images, len(rest)), seed)
        described = method, steps, seed, asdict(recipe), fingerprint(vit), data.identity
        path = None if folder is None else state_file(folder, f"finetune-{method}", *described)
        rounds = -(-steps // recipe.steps_per_noise)
        self.measured_at = 0, rounds // 2 * recipe.steps_per_noise, steps
        self.best = deepcopy(vit).eval()
        self.read = reader(data.train, vit.mean.device, vit.image_size)
        self.trainer = Trainer(deepcopy(vit), recipe, seed, path, best=self.best)
        self.history = self.trainer.history

    def begin(self, first: int) -> tuple[Inputs, Record]:
        """The round's noise, and the batches of its steps."""
        record: Record = {}
        noise = None
        if self.method.noise is not None:
            noise_seed = self.seed * 10_007 + first
            made = make_noise(self.trainer.model, self.noise_split, self.method.noise, self.recipe, noise_seed)
            record = {"noise_norm": made.norm} | made.influence.columns("noise_influence")
            record["noise_n"] = record.pop("n")
            noise = made.value
        return lambda step: self.batch(step, noise), record

    def loss(self, *tensors: Tensor | None) -> Tensor:
        """That of the tensors of a `Batch`."""
        return loss_of(self.method, self.trainer.model, Batch(*tensors, self.recipe))

    def judge(self, record: Record) -> Record:
        """The averaged weights on dev; they are kept if no round before was better, or the last round counts."""
        record = self.measured(record)
        if self.recipe.last or all(record[self.criterion] > earlier[self.criterion] for earlier in self.history[1:]):
            self.best.load_state_dict(self.trainer.averaged.state_dict())
        return record

    def measured(self, record: Record) -> Record:
        """With the accuracies on dev that choose a round, and what the caller measures."""
        averaged = self.trainer.averaged
        record["dev_accuracy"] = accuracy(averaged, self.dev)
        if self.method.attack:
            record["dev_robust"] = _robust_accuracy(averaged, self.dev, self.recipe)
        looks = self.measure is not None and record["step"] in self.measured_at
        return record | (self.measure(averaged) if looks else {})

    def rate(self, step: int) -> float:
        return self.recipe.learning_rate * schedule(step, self.steps, final=self.recipe.final_share)

    def batch(self, step: int, noise: Tensor | None) -> tuple[Tensor | None, ...]:
        """The tensors of the `Batch` of a step, the same for every method but for its noise."""
        size = self.recipe.batch_size
        epoch, place = divmod(step, self.count // size)
        raw, labels = self.read(_order(self.count, self.seed, epoch)[place * size : (place + 1) * size])
        images = augmented(raw, self.best.image_size, seeded(self.seed, step, AUGMENTATION))
        begin = self.method.begin(images, self.recipe, seeded(self.seed, step, ATTACK))
        return images, labels, noise, begin


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the training images in an epoch, the same for every method."""
    return torch.randperm(count, generator=seeded(seed, epoch, ORDER))


def _robust_accuracy(vit: ViT, split: Split, recipe: FinetuneRecipe) -> float:
    """Accuracy under the attack of training, from a fixed start."""
    hits, generator = torch.zeros((), device=vit.mean.device), torch.Generator().manual_seed(0)
    options = {"eps": recipe.attack_eps, "steps": recipe.attack_steps, "generator": generator}
    for images, labels in split.batches(250, image_size=vit.image_size, device=vit.mean.device):
        attacked = pgd(vit, images, labels, stop_when_fooled=True, **options)
        with torch.inference_mode():
            hits += (vit(attacked).argmax(1) == labels).sum()
    return hits.item() / len(split)
