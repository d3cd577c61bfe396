"""Training a classifier from scratch: light augmentation, patch dropout, the weights' moving average, a look at dev."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torchvision.transforms import v2

from nullpaper.data.datasets import Data, augmented, reader
from nullpaper.errors import check_count, check_number
from nullpaper.finetuning.trainer import (
    LARGEST_SEED,
    Inputs,
    Record,
    Trainer,
    check_training,
    schedule,
    seeded,
    state_file,
)
from nullpaper.models.inputs import check_split
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import Classifier, ViT, check_vit

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

    def __post_init__(self) -> None:
        """Raise an `InputError` for a value out of range."""
        check_training(self)
        check_count("epochs", self.epochs)
        check_count("seed", self.seed, 0, LARGEST_SEED)
        check_count("randaugment_operations", self.randaugment_operations, least=0)
        check_count("randaugment_magnitude", self.randaugment_magnitude, 0, 30)
        for name in ("warmup_epochs", "mixup", "cutmix"):
            check_number(name, getattr(self, name), 0, math.inf, "[)")
        check_number("patch_drop", self.patch_drop, 0, 1, "[)")
        check_number("patch_drop_until", self.patch_drop_until, 0, 1, "[]")


@torch.inference_mode(False)
def train(
    vit: ViT | Classifier, data: Data, recipe: Recipe, *, folder: str | Path
) -> tuple[ViT | Classifier, list[Record]]:
    """Train a copy of ``vit`` on ``data.train``, where its parameters live; a killed run continues from its last epoch.

    Args:
        vit: its present weights are the start; it is not changed.
        folder: holds the state of this run, in a file named after the recipe.

    Returns:
        The model with its averaged weights, and one record an epoch.

    Raises:
        InputError: the loss is not finite (the last good epoch stays on disk), or the state fits another model, nothing
            of ``vit`` asks for gradients, or ``folder`` cannot be written.
    """
    check_vit(vit, Classifier)
    vit = deepcopy(vit)
    for split in (data.train, data.dev):
        check_split(vit, split)
    read = reader(data.train, next(vit.parameters()).device, vit.image_size)
    count = len(data.train)
    seen, length = data.train.subset(min(SEEN, count)), count // recipe.batch_size
    trainer = Trainer(vit, recipe, recipe.seed, state_file(folder, "training", asdict(recipe)))

    def begin(first: int) -> tuple[Inputs, Record]:
        epoch = first // length
        order = torch.randperm(count, generator=seeded(recipe.seed, epoch, 1))
        _drop_patches(vit, recipe, epoch)

        def inputs(step: int) -> tuple[Tensor, Tensor]:
            start = (step - first) * recipe.batch_size
            images, labels = read(order[start : start + recipe.batch_size])
            return _batch(images, labels, vit, recipe, seeded(recipe.seed, step, 2))

        return inputs, {"epoch": epoch + 1}

    def loss(pixels: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(vit(pixels), targets, label_smoothing=recipe.label_smoothing)

    def judge(record: Record) -> Record:
        shares = {"train_accuracy": accuracy(trainer.averaged, seen)}
        shares["dev_accuracy"] = accuracy(trainer.averaged, data.dev)
        return record | shares | {"threads": torch.get_num_threads()}

    def rate(step: int) -> float:
        return recipe.learning_rate * schedule(step / length, recipe.epochs, warmup=recipe.warmup_epochs)

    trainer.run(recipe.epochs * length, length, rate, begin, loss, judge, name="training")
    return trainer.averaged, trainer.history


def _drop_patches(vit: ViT | Classifier, recipe: Recipe, epoch: int) -> None:
    dropping = epoch < recipe.patch_drop_until * recipe.epochs and recipe.patch_drop > 0
    if hasattr(net := vit.net, "patch_drop"):  # other architectures have no tokens to leave out
        net.patch_drop = PatchDropout(recipe.patch_drop, net.num_prefix_tokens) if dropping else nn.Identity()


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
