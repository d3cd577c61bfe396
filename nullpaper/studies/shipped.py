"""How the models that travel with the package were trained, and a command that trains them again.

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
from nullpaper.adapters.files import ADAPTED, save_adapter
from nullpaper.data.datasets import Data, load_data
from nullpaper.data.fetch import cache_home
from nullpaper.errors import InputError, check_choice, check_count
from nullpaper.files import write_atomic
from nullpaper.finetuning import scratch
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.models.checkpoints import Classifier, load_classifier
from nullpaper.models.predict import correct
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit, save_vit, shipped_weights
from nullpaper.studies.settings import ADAPTERS
from nullpaper.workflow.provenance import device_name, versions

ROBUST = FinetuneRecipe(
    learning_rate=1e-3, final_share=0.0, ema=0.99, steps_per_noise=100, dev_images=500, attack_steps=3
)
ROBUST_STEPS = 1_500
RECIPES: dict[str, scratch.Recipe | FinetuneRecipe] = {
    SHIPPED: scratch.Recipe(epochs=80),
    "vit_wide": scratch.Recipe(epochs=12, seed=1),
    "resnet": scratch.Recipe(epochs=16),
    "convnext": scratch.Recipe(epochs=16),
    "vit_robust": ROBUST,
    "vit_robust_lnlora": replace(ROBUST, learning_rate=1e-2),
}
"""The recipes of the weights that travel with the package: from scratch, or "pgd_at" from the shipped ViT."""

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
) -> dict[str, Any]:
    """Train a model on CIFAR-10 and write ``<name>.safetensors`` and ``<name>.json`` into ``folder``.

    An adapter becomes the folder ``<name>`` there, with the files of `save_adapter` and ``record.json``.

    Args:
        name: one of `RECIPES`.
        augmentations: from scratch, one run for each of these `AUGMENTATIONS`; the best on dev is kept. Test images
            decide nothing.
        epochs: instead of those of the recipe.

    Returns:
        The record beside the weights: recipe, data, device, seconds, accuracies, and the history by epoch or round.

    Raises:
        InputError: an unknown name or augmentation, or epochs below 1.
    """
    asked = [("classifier", name, RECIPES), *(("augmentation", each, AUGMENTATIONS) for each in augmentations)]
    for kind, value, known in asked:
        check_choice(kind, value, known)
    if epochs is not None:
        check_count("epochs", epochs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cifar = load_data("cifar10")
    state = cache_home() / f"training-{name}-{device}"
    if isinstance(RECIPES[name], FinetuneRecipe):
        model, history, facts = _finetuned(name, cifar, epochs, state, device)
    else:
        model, history, facts = _from_scratch(name, cifar, augmentations, epochs, state, device)
    record = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": fingerprint(model),
        **facts,
        "data": cifar.identity | {"images": len(cifar.train)},
        "seconds": sum(entry["seconds"] for entry in history),
        "device": device_name(),
        "versions": versions(),
        "test_accuracy": asdict(statistics.proportion(correct(model, cifar.test))),
        "history": history,
    }
    if name in ADAPTED:
        save_adapter(model, folder / name)
        path = folder / name / "record.json"
    else:
        save_vit(model, folder / f"{name}.safetensors")
        path = folder / f"{name}.json"
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    return record


def _from_scratch(
    name: str, data: Data, augmentations: Sequence[str], epochs: int | None, state: Path, device: str
) -> tuple[ViT | Classifier, list[dict[str, float]], dict[str, Any]]:
    """The model that is best on dev, its history, and what its record says of the choice."""
    runs, recipes = {}, {}
    for augmentation in augmentations:
        recipe = replace(RECIPES[name], **AUGMENTATIONS[augmentation])
        recipe = recipes[augmentation] = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
        torch.manual_seed(recipe.seed)
        runs[augmentation] = scratch.train(
            load_classifier(name, pretrained=False, device=device), data, recipe, folder=state
        )
    accuracies = {augmentation: history[-1]["dev_accuracy"] for augmentation, (_, history) in runs.items()}
    best = max(accuracies, key=accuracies.get)
    return *runs[best], {"chosen": best, "recipe": asdict(recipes[best]), "dev_accuracy": accuracies}


def _finetuned(
    name: str, data: Data, epochs: int | None, state: Path, device: str
) -> tuple[ViT, list[dict[str, float]], dict[str, Any]]:
    """The model of the round that is best on dev, its history, and what its record says of the run."""
    recipe, start = RECIPES[name], load_vit(SHIPPED, device=device)
    adapter = ADAPTERS["lnlora"].options() if name in ADAPTED else None
    steps = epochs * (len(data.train) // recipe.batch_size) if epochs else ROBUST_STEPS
    options = {"method": "pgd_at", "steps": steps, "seed": 0, "adapter": adapter}
    result = finetune(start, data, recipe=recipe, folder=state, **options)
    facts = options | {"recipe": asdict(recipe), "start": fingerprint(start), "best_step": result.best_step}
    return result.vit, result.history, facts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m nullpaper.studies.shipped", description=__doc__)
    parser.add_argument("name", nargs="?", default=SHIPPED, help=f"one of {', '.join(RECIPES)}; default: %(default)s")
    parser.add_argument("--to", type=Path, default=shipped_weights().parent, help="folder; default: the package's own")
    parser.add_argument(
        "--augmentations", nargs="+", default=["randaugment"], metavar="NAME", help="best on dev is kept"
    )
    parser.add_argument("--epochs", type=int, help="instead of those of the recipe")
    given = vars(parser.parse_args(arguments))
    name, folder = given.pop("name"), given.pop("to")
    try:
        record = train_shipped(name, folder, **given)
    except InputError as error:
        sys.exit(f"Error: {error}")
    print(f"{name} in {folder}: {record['test_accuracy']['value']:.2%} of 10,000 test images")


if __name__ == "__main__":
    main()
