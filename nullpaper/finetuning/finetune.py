"""One finetuning loop for all methods: `methods.METHODS` differ in the batch they build and the loss they return.

A round is a fresh noise (if the method has one), some steps, and a look at dev; `trainer.Trainer` takes the steps and
keeps the state.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import Data, Split, augmented
from nullpaper.errors import InputError, check_count
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, Method, check_method, make_noise
from nullpaper.finetuning.trainer import Loss, Record, Trainer, schedule, seeded
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import ViT, fingerprint
from nullpaper.robustness.pgd import pgd

ORDER, AUGMENTATION, ATTACK = 1, 2, 0  # streams of random draws


@dataclass(frozen=True)
class FinetuneResult:
    """The finetuned model and how it came about.

    Attributes:
        vit: the averaged weights of the round that dev chose, in evaluation mode.
        history: a record of the start and one a round: ``step``, ``loss``, ``dev_accuracy``, ``dev_robust`` (methods
            selected by it), ``noise_norm``, ``noise_influence`` with its interval, ``seconds``, and what ``measure``
            returned.
        best_step: after how many steps that round ended.
        seconds: of work, over all interruptions.
    """

    vit: ViT
    history: list[dict[str, float]]
    best_step: int
    seconds: float


def finetune(
    vit: ViT,
    data: Data,
    *,
    method: str | Method,
    adapter: str | Mapping[str, Any] | None = None,
    steps: int = 800,
    seed: int = 0,
    recipe: FinetuneRecipe | None = None,
    folder: Path | None = None,
    measure: Callable[[ViT], dict[str, float]] | None = None,
    fabric: Any = None,
    progress: bool = True,
) -> FinetuneResult:
    """Finetune a copy of ``vit`` on ``data.train``, where its parameters live; frozen parameters stay as they are.

    Args:
        vit: the start; it is not changed.
        data: labels must be classes of the head.
        method: a name in `METHODS`, or a `Method`.
        adapter: what trains instead of all of ``vit``: a kind of `adapters.inject`, or its arguments by name, such as
            ``{"kind": "lnlora", "r": 8}``; ``seed`` draws its start. None: what of ``vit`` requires gradients.
        steps: gradient steps in all; paper A took 20 noises x 40 steps.
        recipe: the rest, see `FinetuneRecipe`.
        folder: where the state of this run is kept after every round; None: it starts anew when killed.
        measure: called with the averaged weights at the start and after every round; its numbers go into the history.
        fabric: a launched ``lightning.fabric.Fabric`` of several processes, which then share every batch; the first
            writes the state. None: one process, and lightning is not needed.
        progress: show a bar with loss, dev accuracy and the time that is left.

    Raises:
        InputError: unknown method, steps below 1, labels that are no classes of the head, a loss that is not finite
            (the last good round stays on disk), or a state of another model in ``folder``.
    """
    recipe = recipe or FinetuneRecipe()
    chosen = check_method(method)
    check_count("steps", steps)
    _check_data(vit, data, recipe)
    if adapter is not None:
        vit = adapted_copy(vit, adapter, seed)
    name = method if isinstance(method, str) else "own"
    path = None if folder is None else folder / _file_name(name, chosen, steps, seed, recipe, vit, data)
    run = _Run(vit, data, chosen, steps, seed, recipe, path=path, measure=measure, fabric=fabric)
    run.start()
    run.trainer.run(steps, recipe.steps_per_noise, run.rate, run.begin, run.judge, name=name, progress=progress)
    for parameter, original in zip(run.best.parameters(), vit.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return FinetuneResult(run.best, run.trainer.history, int(run.best_record["step"]), run.trainer.seconds)


def _file_name(name: str, method: Method, steps: int, seed: int, recipe: FinetuneRecipe, vit: ViT, data: Data) -> str:
    """Of the state of exactly this run."""
    own = None if METHODS.get(name) is method else [method.loss.__qualname__, method.noise, method.robust]
    described = [name, own, steps, seed, recipe.identity, fingerprint(vit), data.identity]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    return f"finetune-{name}-{digest}.safetensors"


def _check_data(vit: ViT, data: Data, recipe: FinetuneRecipe) -> None:
    largest = max(int(split.labels.max()) for split in (data.train, data.dev))
    if largest >= vit.num_classes or len(data.classes) > vit.num_classes:
        raise InputError(
            f"{data.name} has {max(largest + 1, len(data.classes))} classes, but the head of {vit.name} has "
            f"{vit.num_classes}: load the model with num_classes={len(data.classes)}."
        )
    if recipe.noise_images + 1 > len(data.dev):
        raise InputError(
            f"noise_images={recipe.noise_images} leaves none of {len(data.dev)} dev images for the selection: lower it."
        )
    if recipe.batch_size > len(data.train):
        raise InputError(f"batch_size={recipe.batch_size} exceeds the {len(data.train)} training images: lower it.")


class _Run:
    """What the methods share in a run: splits, batches, the noise of a round, and the choice of the best round."""

    def __init__(
        self, vit: ViT, data: Data, method: Method, steps: int, seed: int, recipe: FinetuneRecipe, **options: Any
    ) -> None:
        self.vit, self.data, self.method, self.steps, self.seed, self.recipe = vit, data, method, steps, seed, recipe
        self.measure, self.fabric = options.get("measure"), options.get("fabric")
        self.rank, self.world = (self.fabric.global_rank, self.fabric.world_size) if self.fabric else (0, 1)
        self.device = next(vit.parameters()).device
        shuffled = np.random.default_rng(seed).permutation(len(data.dev))
        self.noise_split = data.dev.take(np.sort(shuffled[: recipe.noise_images]))
        self.dev = data.dev.take(np.sort(shuffled[recipe.noise_images :])).subset(recipe.dev_images, seed)
        self.best = deepcopy(vit).eval().requires_grad_(False)
        others, path = {"best": self.best}, options.get("path")
        self.trainer = Trainer(deepcopy(vit), recipe, seed, path, others, self.fabric)

    @property
    def best_record(self) -> Record:
        """Of the best round so far; the start is no candidate."""
        criterion = "dev_robust" if self.method.robust else "dev_accuracy"
        return max(self.trainer.history[1:], key=lambda record: record[criterion])

    def start(self) -> None:
        """Record the model as it came, unless a state was found."""
        if not self.trainer.history:
            begun = time.perf_counter()
            record = self._measured({"step": 0})
            self.trainer.history.append(record | {"seconds": time.perf_counter() - begun})

    def begin(self, first: int) -> tuple[Loss, Record]:
        """The round's noise, and the loss of its steps."""
        record: Record = {}
        noise = None
        if self.method.noise is not None:
            made = make_noise(
                self.trainer.model, self.noise_split, self.method.noise, self.recipe, self.seed * 10_007 + first
            )
            noise = self.fabric.broadcast(made.value) if self.fabric else made.value
            record = {"noise_norm": made.norm} | made.influence.columns("noise_influence")
            record["noise_n"] = record.pop("n")

        def loss(step: int) -> Tensor:
            half = self.recipe.amp and self.device.type == "cuda"
            with torch.autocast("cuda", dtype=torch.bfloat16) if half else nullcontext():
                return self.method.loss(self.trainer.model, self.batch(step, noise))

        return loss, record

    def judge(self, record: Record) -> Record:
        """The averaged weights on dev; they are kept if no round before was better."""
        record = self._measured(record)
        criterion = "dev_robust" if self.method.robust else "dev_accuracy"
        if all(record[criterion] > earlier[criterion] for earlier in self.trainer.history[1:]):
            self.best.load_state_dict(self.trainer.averaged.state_dict())
        return record

    def rate(self, step: int) -> float:
        return self.recipe.learning_rate * schedule(step, self.steps, final=self.recipe.final_share)

    def batch(self, step: int, noise: Tensor | None) -> Batch:
        """This process's share of the batch of a step, the same for every method."""
        recipe, split = self.recipe, self.data.train
        per_epoch = len(split) // recipe.batch_size
        start = step % per_epoch * recipe.batch_size
        indices = _order(len(split), self.seed, step // per_epoch)[start : start + recipe.batch_size]
        indices = indices[self.rank :: self.world]
        raw = torch.from_numpy(np.ascontiguousarray(split.images[indices])).permute(0, 3, 1, 2).to(self.device)
        images = augmented(raw, self.vit.image_size, seeded(self.seed, step * self.world + self.rank, AUGMENTATION))
        labels = torch.from_numpy(split.labels[indices]).to(self.device)
        return Batch(images, labels, noise, recipe, seeded(self.seed, step * self.world + self.rank, ATTACK))

    def _measured(self, record: Record) -> Record:
        averaged = self.trainer.averaged
        record["dev_accuracy"] = accuracy(averaged, self.dev)
        if self.method.robust:
            record["dev_robust"] = _robust_accuracy(averaged, self.dev, self.recipe)
        return record | (self.measure(averaged) if self.measure is not None else {})


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch, the same for every method."""
    return torch.randperm(count, generator=seeded(seed, epoch, ORDER)).numpy()


def _robust_accuracy(vit: ViT, split: Split, recipe: FinetuneRecipe) -> float:
    """Accuracy under the attack of training, from a fixed start."""
    hits, generator = 0, torch.Generator().manual_seed(0)
    device = next(vit.parameters()).device
    for images, labels in split.batches(250, image_size=vit.image_size, device=device):
        options = {"eps": recipe.attack_eps, "steps": recipe.attack_steps, "generator": generator}
        attacked = pgd(vit, images, labels, stop_when_fooled=True, **options)
        with torch.inference_mode():
            hits += (vit(attacked).argmax(1) == labels).sum().item()
    return hits / len(split)
