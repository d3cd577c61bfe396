"""One finetuning loop for all methods: `methods.METHODS` differ in the batch they build and the loss they return.

A round is a fresh noise (if the method has one), some steps, and a look at dev. Every random draw is a function of
(seed, step), and the state is saved at the end of each round, so that a run killed at any moment continues to the same
weights: on a CPU to the bit.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from torch import Tensor, nn
from tqdm import tqdm

from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import Data, Split, augmented
from nullpaper.errors import InputError, check_count
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, check_method, make_noise
from nullpaper.finetuning.state import parameter_groups, read_state, write_state
from nullpaper.finetuning.trainer import seeded
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import ViT, fingerprint
from nullpaper.robustness.pgd import pgd

__all__ = ["METHODS", "FinetuneRecipe", "FinetuneResult", "finetune"]

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
    method: str,
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
        method: a name in `METHODS`.
        adapter: what trains instead of all of ``vit``: a kind of `adapters.inject`, or its arguments by name, such as
            ``{"kind": "lnlora", "r": 8}``; ``seed`` draws its start. None: what of ``vit`` requires gradients.
        steps: gradient steps in all; paper A took 20 noises x 40 steps.
        recipe: the rest, see `FinetuneRecipe`.
        folder: where the state of this run is kept after every round; None: it starts anew when killed.
        measure: called with the averaged weights at the start and after every round; its numbers go into the history.
        fabric: a launched ``lightning.fabric.Fabric`` of several processes, which then share every batch; the first
            writes the state. None: one process, and lightning is not needed.
        progress: show a bar with loss, dev accuracy, noise norm and the time that is left.

    Raises:
        InputError: unknown method, steps below 1, labels that are no classes of the head, a loss that is not finite
            (the last good round stays on disk), or a state of another model in ``folder``.
    """
    recipe = recipe or FinetuneRecipe()
    check_method(method)
    check_count("steps", steps)
    _check_data(vit, data, recipe)
    if adapter is not None:
        vit = adapted_copy(vit, adapter, seed)
    run = _Run(vit, data, method, steps, seed, recipe, folder, measure, fabric)
    hidden = not progress or run.rank > 0
    with tqdm(total=steps, initial=run.step, desc=method, unit="step", disable=hidden) as bar:
        run.start()
        while run.step < steps:
            run.round(bar)
            run.save()
    for parameter, original in zip(run.best.parameters(), vit.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return FinetuneResult(run.best, run.history, run.best_step, sum(record["seconds"] for record in run.history))


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
    """The state of a run and the rounds that change it."""

    def __init__(
        self,
        vit: ViT,
        data: Data,
        method: str,
        steps: int,
        seed: int,
        recipe: FinetuneRecipe,
        folder: Path | None,
        measure: Callable[[ViT], dict[str, float]] | None,
        fabric: Any,
    ) -> None:
        self.method, self.steps, self.seed, self.recipe = METHODS[method], steps, seed, recipe
        self.measure, self.fabric = measure, fabric
        self.rank, self.world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
        self.data, self.device = data, next(vit.parameters()).device
        shuffled = np.random.default_rng(seed).permutation(len(data.dev))
        self.noise_split = data.dev.take(np.sort(shuffled[: recipe.noise_images]))
        self.dev = data.dev.take(np.sort(shuffled[recipe.noise_images :])).subset(recipe.dev_images, seed)
        self.vit = deepcopy(vit)
        self.averaged, self.best = (deepcopy(vit).eval().requires_grad_(False) for _ in range(2))
        groups = parameter_groups(self.vit, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas, fused=True)
        self.history: list[dict[str, float]] = []
        self.best_step = 0
        named = json.dumps([method, steps, seed, recipe.identity, fingerprint(vit), data.identity], sort_keys=True)
        name = f"finetune-{method}-{hashlib.sha256(named.encode()).hexdigest()[:12]}.safetensors"
        self.path = None if folder is None else folder / name
        if self.path is not None and self.path.exists():
            record = read_state(self.path, self._modules, self.vit, self.optimizer)
            self.history, self.best_step = record["history"], record["best_step"]

    @property
    def step(self) -> int:
        """Gradient steps taken."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"vit": self.vit, "averaged": self.averaged, "best": self.best}

    def start(self) -> None:
        """Record the model as it came, unless a state was found."""
        if not self.history:
            self.history.append(self._judged({"step": 0}, time.perf_counter()))

    def round(self, bar: tqdm) -> None:
        """A fresh noise, the steps of a round, and the averaged weights on dev."""
        begun, recipe, first = time.perf_counter(), self.recipe, self.step
        record: dict[str, float] = {}
        noise = None
        if self.method.noise is not None:
            made = make_noise(self.vit, self.noise_split, self.method.noise, recipe, self.seed * 10_007 + first)
            noise = self._shared(made.value)
            record = {"noise_norm": made.norm} | made.influence.columns("noise_influence")
            record["noise_n"] = record.pop("n")
        self.vit.train()
        last = min(first + recipe.steps_per_noise, self.steps)
        total = 0.0
        for step in range(first, last):
            total += self._step(step, noise)
            bar.set_postfix(self._shown(loss=total / (step - first + 1), **record))
            bar.update()
        self.vit.eval()
        rate = self.optimizer.param_groups[0]["lr"]
        record |= {"step": last, "loss": total / (last - first), "learning_rate": rate}
        self.history.append(self._judged(record, begun))
        self._choose()

    def _step(self, step: int, noise: Tensor | None) -> float:
        recipe, vit = self.recipe, self.vit
        for group in self.optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            group["lr"] = recipe.learning_rate * (recipe.final_share + (1 - recipe.final_share) * cosine)
        with torch.random.fork_rng(), self._autocast():  # dropout draws from the global generator
            torch.manual_seed(self.seed * 1_000_003 + step)
            loss = self.method.loss(vit, self._batch(step, noise))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [parameter for parameter in vit.parameters() if parameter.requires_grad]
        if self.fabric:
            for parameter in trained:
                parameter.grad = self.fabric.all_reduce(parameter.grad, reduce_op="mean")
        if not math.isfinite(loss.item()):
            kept = f"; the state of step {self.step} is kept" if self.path else ""
            raise InputError(f"the loss is {loss.item()} at step {step + 1}: lower the learning rate{kept}.")
        nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
        self.optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))  # short memory while the weights still move fast
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(vit.parameters()), 1 - decay)
        return loss.item()

    def _batch(self, step: int, noise: Tensor | None) -> Batch:
        """This process's share of the batch of a step, the same for every method."""
        recipe, split = self.recipe, self.data.train
        per_epoch = len(split) // recipe.batch_size
        start = step % per_epoch * recipe.batch_size
        chosen = _order(len(split), self.seed, step // per_epoch)[start : start + recipe.batch_size]
        chosen = chosen[self.rank :: self.world]
        raw = torch.from_numpy(np.ascontiguousarray(split.images[chosen])).permute(0, 3, 1, 2).to(self.device)
        images = augmented(raw, self.vit.image_size, seeded(self.seed, step * self.world + self.rank, AUGMENTATION))
        labels = torch.from_numpy(split.labels[chosen]).to(self.device)
        return Batch(images, labels, noise, recipe, seeded(self.seed, step * self.world + self.rank, ATTACK))

    def _judged(self, record: dict[str, float], begun: float) -> dict[str, float]:
        record["dev_accuracy"] = accuracy(self.averaged, self.dev)
        if self.method.robust:
            record["dev_robust"] = _robust_accuracy(self.averaged, self.dev, self.recipe)
        if self.measure is not None:
            record |= self.measure(self.averaged)
        return record | {"seconds": time.perf_counter() - begun}

    def _choose(self) -> None:
        """Keep the averaged weights if this round is the best so far; the start is no candidate."""
        criterion = "dev_robust" if self.method.robust else "dev_accuracy"
        best = max(self.history[1:], key=lambda record: record[criterion])
        if best is self.history[-1]:
            self.best.load_state_dict(self.averaged.state_dict())
            self.best_step = int(best["step"])

    def save(self) -> None:
        """Write the whole state in one file, in one step."""
        if self.path is not None and self.rank == 0:
            record = {"history": self.history, "best_step": self.best_step}
            write_state(self.path, self._modules, self.vit, self.optimizer, record)

    def _shown(self, loss: float, noise_norm: float | None = None, **_: float) -> dict[str, str]:
        shown = {"loss": f"{loss:.3f}", "dev": f"{self.history[-1]['dev_accuracy']:.1%}"}
        return shown | ({} if noise_norm is None else {"noise": f"{noise_norm:.1f}"})

    def _shared(self, noise: Tensor) -> Tensor:
        """The first process's noise, for all of them."""
        return self.fabric.broadcast(noise) if self.fabric else noise

    def _autocast(self) -> Any:
        on = self.recipe.amp and self.device.type == "cuda"
        return torch.autocast("cuda", dtype=torch.bfloat16) if on else nullcontext()


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
