"""How the classifiers that travel with the package were trained, and a command that trains them again.

``python -m nullpaper.studies.shipped resnet --to build/resnet`` writes weights and record of one of `RECIPES`; without
``--to``, over those of the package. A killed run continues from its last epoch. On one kind of machine the weights come
out equal; another rounds differently.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nullpaper import statistics
from nullpaper.data.datasets import load_data
from nullpaper.data.fetch import cache_home
from nullpaper.errors import InputError, nearest
from nullpaper.files import write_atomic
from nullpaper.finetuning import scratch
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.predict import correct
from nullpaper.models.vit import SHIPPED, fingerprint, save_vit, shipped_weights
from nullpaper.workflow.provenance import device_name, versions

RECIPES = {
    SHIPPED: scratch.Recipe(epochs=80),
    "vit_wide": scratch.Recipe(epochs=12, seed=1),
    "resnet": scratch.Recipe(epochs=16),
    "convnext": scratch.Recipe(epochs=16),
}
"""The recipes of the weights that travel with the package, by name of `checkpoints.ARCHITECTURES`."""

AUGMENTATIONS = {
    "randaugment": {},
    "crops and flips": {"randaugment_operations": 0},
    "mixup and cutmix": {"randaugment_operations": 0, "mixup": 0.2, "cutmix": 1.0},
}
"""What else is done to the images, as changes of a recipe; the first is that of `RECIPES`."""


def train_shipped(
    name: str,
    folder: Path,
    *,
    augmentations: Sequence[str] = ("randaugment",),
    epochs: int | None = None,
    images: int | None = None,
) -> dict[str, Any]:
    """Train a classifier on CIFAR-10 and write ``<name>.safetensors`` and ``<name>.json`` into ``folder``.

    Args:
        name: one of `RECIPES`.
        augmentations: one run for each of these `AUGMENTATIONS`; the best on dev is kept. Test images decide nothing.
        epochs: instead of those of the recipe.
        images: training images; all 45,000 by default.

    Returns:
        The record beside the weights: recipe, data, device, seconds, accuracies, and the history by epoch.

    Raises:
        InputError: an unknown name or augmentation.
    """
    for kind, value, known in (
        ("classifier", name, RECIPES),
        *(("augmentation", a, AUGMENTATIONS) for a in augmentations),
    ):
        if value not in known:
            raise InputError(f"{kind} '{value}' is unknown.{nearest(value, known)} Choose from {', '.join(known)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cifar = load_data("cifar10")
    sample = replace(cifar, train=cifar.train.subset(images))
    state = cache_home() / f"training-{name}-{images or 'all'}-{device}"
    runs, recipes = {}, {}
    for augmentation in augmentations:
        recipe = replace(RECIPES[name], **AUGMENTATIONS[augmentation], epochs=epochs or RECIPES[name].epochs)
        torch.manual_seed(recipe.seed)
        start = load_classifier(name, pretrained=False, device=device)
        runs[augmentation] = scratch.train(start, sample, recipe, folder=state)
        recipes[augmentation] = recipe
    best = max(runs, key=lambda augmentation: runs[augmentation].history[-1]["dev_accuracy"])
    model = runs[best].vit.eval()
    record = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": fingerprint(model),
        "chosen": best,
        "recipe": asdict(recipes[best]),
        "data": cifar.identity | {"images": len(sample.train)},
        "seconds": runs[best].seconds,
        "device": device_name(),
        "versions": versions(),
        "dev_accuracy": {augmentation: run.history[-1]["dev_accuracy"] for augmentation, run in runs.items()},
        "test_accuracy": asdict(statistics.proportion(correct(model, cifar.test))),
        "history": runs[best].history,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_vit(model, folder / f"{name}.safetensors")
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m nullpaper.studies.shipped", description=__doc__)
    parser.add_argument("name", nargs="?", default=SHIPPED, help=f"one of {', '.join(RECIPES)}; default: %(default)s")
    parser.add_argument("--to", type=Path, default=shipped_weights().parent, help="folder; default: the package's own")
    parser.add_argument(
        "--augmentations", nargs="+", default=["randaugment"], metavar="NAME", help="best on dev is kept"
    )
    parser.add_argument("--epochs", type=int, help="instead of those of the recipe")
    parser.add_argument("--images", type=int, help="training images; default: all 45,000")
    given = parser.parse_args(arguments)
    try:
        record = train_shipped(
            given.name, given.to, augmentations=given.augmentations, epochs=given.epochs, images=given.images
        )
    except InputError as error:
        sys.exit(f"Error: {error}")
    print(f"{given.to / given.name}.safetensors: {record['test_accuracy']['value']:.2%} of 10,000 test images")


if __name__ == "__main__":
    main()
