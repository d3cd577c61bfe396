"""Accuracy of a model, clean, under attacks and under CIFAR-10-C's corruptions, with the mask of every image.

A table has one row a condition. Its masks go through a store as tensors and come back with `masks` and `from_masks`;
`comparison` has what several such tables say together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from nullpaper.data.datasets import Split, to_pixels
from nullpaper.errors import InputError, check_count
from nullpaper.models.checkpoints import Classifier
from nullpaper.models.predict import answers
from nullpaper.models.vit import ViT, evaluating
from nullpaper.robustness.attacks import ATTACKS, attack
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES, check_corruption, corrupt
from nullpaper.robustness.pgd import check_eps
from nullpaper.statistics import proportion

__all__ = ["EPS", "Threat", "corrupted_splits", "evaluate", "from_masks", "masks"]

EPS = 8 / 255
KINDS = ("clean", "attack", "corruption")


@dataclass(frozen=True)
class Threat:
    """An attack at a radius: a name that `attacks.attack` takes, eps in pixel units, and restarts."""

    name: str
    eps: float = EPS
    restarts: int = 1

    @property
    def key(self) -> str:
        """``name@eps``, as in ``pgd-20@0.03``, with ``x5`` after the name for five restarts."""
        return f"{self.name}{f'x{self.restarts}' if self.restarts > 1 else ''}@{float(self.eps)!r}"


def evaluate(
    vit: ViT | Classifier,
    split: Split,
    *,
    attacks: Iterable[str | tuple[str, float] | Threat] = (),
    corruptions: str | Iterable[str] | Mapping[str, Split] = (),
    severities: Sequence[int] = SEVERITIES,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = False,
) -> pd.DataFrame:
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
        Rows in a fixed order, with the columns kind (clean, attack, corruption), name, family, eps, severity, accuracy
        with its Wilson interval (accuracy_low, accuracy_high), n, and correct, a boolean array (n,).

    Raises:
        InputError: an unknown attack or corruption, a severity or eps out of range, an empty split, labels that the
            head lacks, prepared corruptions of another split.
    """
    check_count("batch_size", batch_size)
    _check_labels(vit, split)
    threats = _threats(vit, split, attacks, eps)
    prepared = corruptions if isinstance(corruptions, Mapping) else None
    conditions = list(prepared) if prepared is not None else _conditions(split, corruptions, severities, seed)
    if prepared is not None:
        _check_prepared(prepared, split)
    found: dict[str, np.ndarray] = {}
    steps = (1 + len(threats) + len(conditions)) * -(-len(split) // batch_size)
    with tqdm(total=steps, disable=not progress) as bar, evaluating(vit):
        found["clean"] = _mask(vit, split, batch_size, bar, "clean")
        for threat in threats:
            found[threat.key] = _mask(vit, split, batch_size, bar, threat.key, threat, seed)
        for key, corrupted in prepared.items() if prepared is not None else _corrupted(split, conditions, seed):
            found[key] = _mask(vit, corrupted, batch_size, bar, key)
    return from_masks(found)


def corrupted_splits(
    split: Split,
    corruptions: str | Iterable[str] = "all",
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    *,
    progress: bool = False,
) -> dict[str, Split]:
    """The split under each (corruption, severity), by key, as in ``fog@3``; 0.23 MB an image for all 75.

    They do not depend on a model: make them once and pass them to `evaluate` for each. A dict of the published files,
    which `corruptions.load_cifar10c` reads, serves as well.

    Raises:
        InputError: an unknown corruption or severity, or images other than 32 x 32 RGB.
    """
    conditions = _conditions(split, corruptions, severities, seed)
    return dict(tqdm(_corrupted(split, conditions, seed), total=len(conditions), disable=not progress))


def masks(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which images were classified correctly, (n,) bool, by key: ``clean``, ``pgd-20@0.03``, ``fog@3``."""
    return dict(zip(map(_key, frame.to_dict("records")), frame["correct"], strict=True))


def from_masks(found: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The table of `evaluate` from `masks`, in whatever order these come.

    Raises:
        InputError: a key that names no condition, masks of different lengths, or none.
    """
    arrays = {key: np.asarray(mask).astype(bool) for key, mask in found.items()}
    if len({mask.shape for mask in arrays.values()}) != 1:
        raise InputError("masks must be of one length, and there must be at least one; pass those of one evaluation.")
    rows = []
    for key in sorted(arrays, key=_rank):
        kind, name, value = _parsed(key)
        family = CORRUPTIONS[name].family if kind == "corruption" else kind
        row = {"kind": kind, "name": name, "family": family, "eps": value if kind == "attack" else np.nan}
        row["severity"] = int(value) if kind == "corruption" else 0
        rows.append({**row, **proportion(arrays[key]).columns("accuracy"), "correct": arrays[key]})
    return pd.DataFrame(rows)


def _mask(
    vit: ViT | Classifier,
    split: Split,
    batch_size: int,
    bar: tqdm,
    title: str,
    threat: Threat | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Which images of the split are classified correctly, (n,) bool, after the attack if there is one."""
    bar.set_description(title)
    device = next(vit.parameters()).device
    right = []
    for number, (images, labels) in enumerate(split.batches(batch_size, image_size=vit.image_size, device=device)):
        if threat is not None:
            options = dict(eps=threat.eps, restarts=threat.restarts, seed=seed + number, batch_size=batch_size)
            images = attack(vit, images, labels, threat.name, **options)
        right.append((answers(vit, images).argmax(1) == labels).cpu())
        bar.update()
    return torch.cat(right).numpy()


def _corrupted(split: Split, conditions: Sequence[str], seed: int) -> Iterator[tuple[str, Split]]:
    images = split.images[:] if conditions else None  # lazy images are read once
    for key in conditions:
        yield key, Split(corrupt(images, *_condition(key), seed), split.labels)


def _conditions(split: Split, corruptions: str | Iterable[str], severities: Sequence[int], seed: int) -> list[str]:
    """The keys of all (corruption, severity), each once, after a trial on one image."""
    names = list(CORRUPTIONS) if corruptions == "all" else corruptions
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        for severity in severities:
            check_corruption(name, severity)
    if names and len(split):
        corrupt(split.images[:1], names[0], 1, seed)
    return list(dict.fromkeys(f"{name}@{severity}" for name in names for severity in severities))


def _condition(key: str) -> tuple[str, int]:
    name, _, severity = key.partition("@")
    return name, int(severity)


def _threats(
    vit: ViT | Classifier, split: Split, attacks: Iterable[str | tuple[str, float] | Threat], eps: float
) -> list[Threat]:
    """The attacks, each once, after a trial at eps 0 on one image, which checks all but eps and costs nothing."""
    given = [attacks] if isinstance(attacks, str | Threat) else list(attacks)
    threats = [t if isinstance(t, Threat) else Threat(t, eps) if isinstance(t, str) else Threat(*t) for t in given]
    image = to_pixels(split.images[:1], vit.image_size, next(vit.parameters()).device)
    label = torch.from_numpy(split.labels[:1]).to(image.device)
    for threat in dict.fromkeys(threats):
        attack(vit, image, label, threat.name, eps=0, restarts=threat.restarts)
        if ATTACKS[_stem(threat.name)].norm != "L2":
            check_eps(threat.eps)
    return list(dict.fromkeys(threats))


def _stem(attack_name: str) -> str:
    """The attack in `ATTACKS`: the name without steps and restarts, as in ``pgd-20x5``."""
    return re.fullmatch(r"(.*?)(-\d+)?(x\d+)?", attack_name)[1]


def _check_labels(vit: ViT | Classifier, split: Split) -> None:
    if len(split) == 0:
        raise InputError("the split is empty; pass at least one image.")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= vit.num_classes:
        raise InputError(
            f"labels span {low} to {high}, but the head of {vit.name} has the classes 0 to {vit.num_classes - 1}: "
            "evaluate it on the data that it was trained for."
        )


def _check_prepared(prepared: Mapping[str, Split], split: Split) -> None:
    for key, corrupted in prepared.items():
        if _parsed(key)[0] != "corruption":
            raise InputError(f"{key!r} is no corruption; prepare them with corrupted_splits.")
        if not np.array_equal(corrupted.labels, split.labels):
            raise InputError(f"{key!r} was prepared from another split: its labels differ; prepare it from this one.")


def _key(row: Mapping[str, Any]) -> str:
    if row["kind"] == "clean":
        return "clean"
    return f"{row['name']}@{row['severity'] if row['kind'] == 'corruption' else row['eps']!r}"


def _parsed(key: str) -> tuple[str, str, float]:
    """Kind, name, and eps or severity of a key."""
    if key == "clean":
        return "clean", "clean", 0.0
    name, _, value = key.partition("@")
    if name in CORRUPTIONS and value in map(str, SEVERITIES):
        return "corruption", name, float(value)
    try:
        eps = float(value)
    except ValueError:
        eps = np.nan
    if _stem(name) not in ATTACKS or not eps >= 0:
        raise InputError(f"{key!r} is no condition: 'clean', '<attack>@<eps>' or '<corruption>@<severity>'.")
    return "attack", name, eps


def _rank(key: str) -> tuple[int, int, int, str, float]:
    """Clean first, then attacks in the order of their table, fewer steps first, then corruptions in that of theirs."""
    kind, name, value = _parsed(key)
    place = {"clean": ["clean"], "attack": [*ATTACKS], "corruption": [*CORRUPTIONS]}[kind]
    return KINDS.index(kind), place.index(_stem(name)), len(name), name, value
