"""Accuracy of a model, clean, under attacks and under CIFAR-10-C's corruptions, with the mask of every image.

A table has one row a condition; it goes through a store in two parts, `packed`, and comes back `unpacked`. `comparison`
has what several such tables say together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from nullpaper.data.datasets import Split
from nullpaper.errors import InputError, check_count
from nullpaper.models.checkpoints import Classifier
from nullpaper.models.predict import answers
from nullpaper.models.vit import ViT, evaluating
from nullpaper.robustness.attacks import ATTACKS, attack, check_attack, split_name
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES, check_corruption, corrupt
from nullpaper.statistics import proportion

EPS = 8 / 255


@dataclass(frozen=True)
class Clean:
    """The images as they are."""

    def __str__(self) -> str:
        return "clean"

    def columns(self) -> dict[str, Any]:
        """Its columns in the table of `evaluate`."""
        return {"kind": "clean", "name": "clean", "family": "clean", "eps": 0.0, "severity": 0, "restarts": 1}


@dataclass(frozen=True)
class Threat:
    """An attack at a radius: a name that `attacks.attack` takes, eps in pixel units, and restarts."""

    name: str
    eps: float = EPS
    restarts: int = 1

    def __str__(self) -> str:
        return f"{self.name}{f'x{self.restarts}' if self.restarts > 1 else ''}@{float(self.eps)!r}"

    def columns(self) -> dict[str, Any]:
        """Its columns in the table of `evaluate`."""
        own = {"name": self.name, "eps": float(self.eps), "restarts": self.restarts}
        return Clean().columns() | {"kind": "attack", "family": "attack"} | own


@dataclass(frozen=True)
class Corrupted:
    """One of `CORRUPTIONS` at a severity from 1 to 5."""

    name: str
    severity: int

    def __str__(self) -> str:
        return f"{self.name}@{self.severity}"

    def columns(self) -> dict[str, Any]:
        """Its columns in the table of `evaluate`."""
        own = {"name": self.name, "family": CORRUPTIONS[self.name].family, "severity": int(self.severity)}
        return Clean().columns() | {"kind": "corruption"} | own


Condition = Clean | Threat | Corrupted


class Evaluation(pd.DataFrame):
    """The table of `evaluate`: a data frame that is printed without the masks in its column ``correct``."""

    PRINTED = ("condition", "accuracy", "accuracy_low", "accuracy_high", "n")

    @property
    def _constructor(self) -> type[Evaluation]:
        return Evaluation

    def __repr__(self) -> str:
        return self._printed().to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self._printed().to_html(index=False, float_format="{:.3f}".format)

    def _printed(self) -> pd.DataFrame:
        plain = pd.DataFrame(self)
        return plain[[name for name in self.PRINTED if name in plain]] if "correct" in plain else plain


def evaluate(
    vit: ViT | Classifier,
    split: Split,
    *,
    attacks: Iterable[str | tuple[str, float] | Threat] = (),
    corruptions: str | Iterable[str] | Mapping[Corrupted, Split] = (),
    severities: Sequence[int] = SEVERITIES,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = False,
) -> Evaluation:
    """Clean accuracy, and that under each attack and each (corruption, severity), all on the same images.

    The model is read in evaluation mode, and every module gets its mode back.

    Args:
        split: images (n, H, W, C) uint8 of the data set's own size, where corruptions act; attacks act at the model's.
        attacks: names, at ``eps``, or (name, eps), or `Threat`.
        corruptions: names, or "all", or what `corrupted_splits` made of this split, to be shared by several models.
        severities: of the corruptions given by name.
        eps: in pixel units.
        seed: of the attacks' and corruptions' draws.
        progress: show a bar, which counts batches.

    Returns:
        Rows: clean, the attacks and the corruptions, each kind in the order of its table. Columns: condition (all of it
        in words), kind (clean, attack, corruption), name, family, eps, severity, restarts, accuracy with its Wilson
        interval (accuracy_low, accuracy_high), n, and correct, a boolean array (n,).

    Raises:
        InputError: an unknown attack or corruption, a severity or eps out of range, an empty split, labels that the
            head lacks, prepared corruptions of another split.
    """
    check_count("batch_size", batch_size)
    _check_labels(vit, split)
    threats = _threats(vit, attacks, eps)
    if isinstance(corruptions, Mapping):
        _check_prepared(corruptions, split)
        corrupted, count = corruptions.items(), len(corruptions)
    else:
        levels = _levels(split, corruptions, severities, seed)
        corrupted, count = _corrupted(split, levels, seed), len(levels)
    masks: dict[Condition, np.ndarray] = {}
    batches = (1 + len(threats) + count) * -(-len(split) // batch_size)
    with tqdm(total=batches, disable=not progress) as bar, evaluating(vit):
        masks[Clean()] = _mask(vit, split, batch_size, bar, Clean())
        for threat in threats:
            masks[threat] = _mask(vit, split, batch_size, bar, threat, seed)
        for level, images in corrupted:
            masks[level] = _mask(vit, images, batch_size, bar, level)
    return from_masks(masks)


def corrupted_splits(
    split: Split,
    corruptions: str | Iterable[str] = "all",
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
) -> dict[Corrupted, Split]:
    """The split under each (corruption, severity); 0.23 MB an image for all 75.

    They do not depend on a model: make them once and pass them to `evaluate` for each. A dict of the published files,
    which `corruptions.load_cifar10c` reads, serves as well.

    Raises:
        InputError: an unknown corruption or severity, or images other than 32 x 32 RGB.
    """
    return dict(_corrupted(split, _levels(split, corruptions, severities, seed), seed))


def from_masks(masks: Mapping[Condition, np.ndarray]) -> Evaluation:
    """The table of `evaluate` from the masks (n,) bool of each condition, in their order.

    Raises:
        InputError: masks of different lengths, or none.
    """
    arrays = {condition: np.asarray(mask).astype(bool) for condition, mask in masks.items()}
    if len({mask.shape for mask in arrays.values()}) != 1:
        raise InputError("masks must be of one length, and there must be at least one; pass those of one evaluation.")
    return Evaluation(
        [
            {"condition": str(one), **one.columns(), **proportion(mask).columns("accuracy"), "correct": mask}
            for one, mask in arrays.items()
        ]
    )


def packed(table: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A table as rows without masks, which JSON holds, and the masks as one array (conditions, n) bool."""
    return table.drop(columns="correct").to_dict("records"), {"correct": np.stack([*table["correct"]])}


def unpacked(rows: list[dict[str, Any]], arrays: Mapping[str, np.ndarray]) -> Evaluation:
    """The table that `packed` took apart."""
    return Evaluation(rows).assign(correct=[*np.asarray(arrays["correct"]).astype(bool)])


def _mask(
    vit: ViT | Classifier, split: Split, batch_size: int, bar: tqdm, condition: Condition, seed: int = 0
) -> np.ndarray:
    """Which images of the split are classified correctly, (n,) bool, after the attack if the condition is one."""
    bar.set_description(str(condition))
    device = next(vit.parameters()).device
    right = []
    for number, (images, labels) in enumerate(split.batches(batch_size, image_size=vit.image_size, device=device)):
        if isinstance(condition, Threat):
            options = dict(eps=condition.eps, restarts=condition.restarts, seed=seed + number, batch_size=batch_size)
            images = attack(vit, images, labels, condition.name, **options)
        right.append((answers(vit, images).argmax(1) == labels).cpu())
        bar.update()
    return torch.cat(right).numpy()


def _corrupted(split: Split, levels: Sequence[Corrupted], seed: int) -> Iterator[tuple[Corrupted, Split]]:
    images = split.images[:] if levels else None  # lazy images are read once
    for level in levels:
        yield level, Split(corrupt(images, level.name, level.severity, seed), split.labels)


def _levels(split: Split, corruptions: str | Iterable[str], severities: Sequence[int], seed: int) -> list[Corrupted]:
    """All (corruption, severity), each once, after a trial on one image."""
    names = list(CORRUPTIONS) if corruptions == "all" else corruptions
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        for severity in severities:
            check_corruption(name, severity)
    if names and len(split):
        corrupt(split.images[:1], names[0], 1, seed)
    return [Corrupted(name, level) for name in CORRUPTIONS if name in names for level in sorted(set(severities))]


def _threats(vit: ViT | Classifier, attacks: Iterable[str | tuple[str, float] | Threat], eps: float) -> list[Threat]:
    """The attacks, each once: in the order of their table, fewer steps first, then smaller radii."""
    given = [attacks] if isinstance(attacks, str | Threat) else list(attacks)
    threats = [t if isinstance(t, Threat) else Threat(t, eps) if isinstance(t, str) else Threat(*t) for t in given]
    for threat in threats:
        check_attack(vit, threat.name, eps=threat.eps, restarts=threat.restarts)
    places = {name: place for place, name in enumerate(ATTACKS)}
    keys = {one: (places[split_name(one.name)[0]], len(one.name), one.name, one.restarts, one.eps) for one in threats}
    return sorted(keys, key=keys.get)


def _check_labels(vit: ViT | Classifier, split: Split) -> None:
    if len(split) == 0:
        raise InputError("the split is empty; pass at least one image.")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= vit.num_classes:
        raise InputError(
            f"labels span {low} to {high}, but the head of {vit.name} has the classes 0 to {vit.num_classes - 1}: "
            "evaluate it on the data that it was trained for."
        )


def _check_prepared(prepared: Mapping[Corrupted, Split], split: Split) -> None:
    for level, corrupted in prepared.items():
        if not isinstance(level, Corrupted):
            raise InputError(f"{level!r} is no Corrupted(name, severity); prepare them with corrupted_splits.")
        check_corruption(level.name, level.severity)
        if not np.array_equal(corrupted.labels, split.labels):
            raise InputError(f"'{level}' was prepared from another split: its labels differ; prepare it from this one.")
