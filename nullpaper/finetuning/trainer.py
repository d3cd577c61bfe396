"""Training a classifier from scratch: AdamW, warm-up, cosine, light augmentation, patch dropout, EMA, dev selection.

Every random draw is a function of (seed, step), so that a killed run continues to the same weights. Its state is
the weights, their average, the optimiser's moments and the history.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torchvision.transforms import v2
from tqdm import tqdm

from nullpaper.data.datasets import Data, augmented
from nullpaper.errors import InputError
from nullpaper.finetuning.state import parameter_groups, read_state, write_state
from nullpaper.models.checkpoints import Classifier
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import ViT

SEEN = 2_000  # unaugmented training images that show how far dev accuracy lags behind
RANDAUGMENT_GROUPS = 8  # torchvision draws one operation a call: so many draws a batch


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, grouped as it is used."""

    epochs: int = 80
    batch_size: int = 128
    seed: int = 0
    # optimiser: AdamW with a linear warm-up and a cosine to zero
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_epochs: float = 2.0
    clip_norm: float = 1.0
    # regularisation
    label_smoothing: float = 0.1
    randaugment_operations: int = 1  # 0: off
    randaugment_magnitude: int = 9  # of 30
    mixup: float = 0.0  # Beta parameter; 0: off
    cutmix: float = 0.0
    # half the tokens in the first part of the run: as good a regulariser, and twice as fast
    patch_drop: float = 0.5
    patch_drop_until: float = 0.85  # share of the run
    ema: float = 0.999  # decay per step; 0: off

    @property
    def identity(self) -> str:
        """A short name for exactly this recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Training:
    """What `train` returns: the model with its averaged weights, one record an epoch, and the seconds it took."""

    vit: ViT | Classifier
    history: list[dict[str, float]]
    seconds: float


def train(
    vit: ViT | Classifier,
    data: Data,
    recipe: Recipe,
    *,
    folder: Path,
    progress: bool = True,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> Training:
    """Train ``vit`` on ``data.train``, where its parameters live; a killed run continues from its last epoch.

    Args:
        vit: its present weights are the start.
        recipe: see `Recipe`.
        folder: holds the state of this run, in a file named after the recipe.
        on_epoch: called with the history after every epoch.

    Raises:
        InputError: the loss is not finite (the last good epoch stays on disk), or the state fits another model.
    """
    run = _Run(vit, data, recipe, folder)
    done = len(run.history)
    steps = run.steps_per_epoch
    with tqdm(total=recipe.epochs * steps, initial=done * steps, unit="step", disable=not progress) as bar:
        for epoch in range(done, recipe.epochs):
            record = run.epoch(epoch, bar)
            bar.set_description(f"epoch {epoch + 1}, dev {record['dev_accuracy']:.2%}")
            run.save()
            if on_epoch:
                on_epoch(run.history)
    return Training(run.averaged.eval(), run.history, sum(record["seconds"] for record in run.history))


class _Run:
    """The state of a run and the steps that change it."""

    def __init__(self, vit: ViT | Classifier, data: Data, recipe: Recipe, folder: Path) -> None:
        self.vit, self.recipe = vit, recipe
        self.device = next(vit.parameters()).device
        self.images = torch.from_numpy(np.ascontiguousarray(data.train.images)).permute(0, 3, 1, 2).to(self.device)
        self.labels = torch.from_numpy(data.train.labels).to(self.device)
        self.dev, self.seen = data.dev, data.train.subset(SEEN)
        self.averaged = deepcopy(vit).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(vit, recipe.weight_decay), lr=0.0, betas=recipe.betas, fused=True
        )
        self.history: list[dict[str, float]] = []
        self.path = folder / f"training-{recipe.identity}.safetensors"
        self.steps_per_epoch = len(self.images) // recipe.batch_size
        if self.path.exists():
            self.history = read_state(self.path, self._modules, vit, self.optimizer)

    def epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass over the training split, then the averaged weights on dev."""
        recipe, start = self.recipe, time.perf_counter()
        order = torch.randperm(len(self.images), generator=seeded(recipe.seed, epoch, 1)).to(self.device)
        dropping = epoch < recipe.patch_drop_until * recipe.epochs and recipe.patch_drop > 0
        if hasattr(net := self.vit.net, "patch_drop"):  # other architectures have no tokens to leave out
            net.patch_drop = PatchDropout(recipe.patch_drop, net.num_prefix_tokens) if dropping else nn.Identity()
        self.vit.train()
        total = torch.zeros((), device=self.device)
        for i in range(self.steps_per_epoch):
            chosen = order[i * recipe.batch_size : (i + 1) * recipe.batch_size]
            loss = self._step(epoch * self.steps_per_epoch + i, self.images[chosen], self.labels[chosen])
            total += loss
            if i % 50 == 0 or i == self.steps_per_epoch - 1:
                if not math.isfinite(total.item()):
                    raise InputError(f"the loss is {total.item()} in epoch {epoch + 1}; lower the learning rate.")
                bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
        record = {
            "epoch": epoch + 1,
            "loss": total.item() / self.steps_per_epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_accuracy": accuracy(self.averaged, self.seen),
            "dev_accuracy": accuracy(self.averaged, self.dev),
            "seconds": time.perf_counter() - start,
            "threads": torch.get_num_threads(),
        }
        self.history.append(record)
        return record

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        recipe, vit = self.recipe, self.vit
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step / self.steps_per_epoch, recipe)
        with torch.random.fork_rng():  # patch dropout and RandAugment draw from the global generator
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            pixels, targets = _batch(images, labels, vit, recipe, seeded(recipe.seed, step, 2))
            loss = cross_entropy(vit(pixels), targets, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vit.parameters(), recipe.clip_norm)
        self.optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))  # short memory while the weights still move fast
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(vit.parameters()), 1 - decay)
            for average, value in zip(self.averaged.buffers(), vit.buffers(), strict=True):  # batch statistics
                average.lerp_(value, 1 - decay) if average.is_floating_point() else average.copy_(value)
        return loss.detach()

    def save(self) -> None:
        """Write the whole state in one file, in one step."""
        write_state(self.path, self._modules, self.vit, self.optimizer, self.history)

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"vit": self.vit, "averaged": self.averaged}


def _batch(
    images: Tensor, labels: Tensor, vit: ViT | Classifier, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented images (B, C, H, W) in [0, 1] at the model's size, and targets (B, classes)."""
    if recipe.randaugment_operations:
        operation = v2.RandAugment(recipe.randaugment_operations, recipe.randaugment_magnitude)
        images = torch.cat([operation(group) for group in images.chunk(RANDAUGMENT_GROUPS)])
    pixels = augmented(images, vit.image_size, generator)
    mixers = [v2.MixUp(alpha=recipe.mixup, num_classes=vit.num_classes)] if recipe.mixup else []
    mixers += [v2.CutMix(alpha=recipe.cutmix, num_classes=vit.num_classes)] if recipe.cutmix else []
    if not mixers:
        return pixels, one_hot(labels, vit.num_classes).float()
    return v2.RandomChoice(mixers)(pixels, labels)


def _schedule(epoch: float, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine to zero."""
    if epoch < recipe.warmup_epochs:
        return epoch / recipe.warmup_epochs
    return 0.5 * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)))


def seeded(seed: int, index: int, stream: int) -> torch.Generator:
    """A generator of its own for each (seed, index, stream), so that a draw does not depend on the draws before it."""
    return torch.Generator().manual_seed((seed * 3 + stream) * 10_000_019 + index)
