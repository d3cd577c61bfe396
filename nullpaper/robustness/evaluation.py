"""Accuracy of a model, clean, under attacks and under CIFAR-10-C's corruptions, with the mask of every image.

A table has one row a condition; it goes through a store in two parts, `packed`, and comes back `unpacked`. `comparison`
has what several such tables say together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nullpaper.data.datasets import Split
from nullpaper.errors import InputError, check_count, check_seed, shown
from nullpaper.models.inputs import check_labelled, check_split
from nullpaper.models.predict import answers
from nullpaper.models.vit import Classifier, ViT, evaluating
from nullpaper.robustness.attacks import ATTACKS, attacked, check_attack, split_name
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES, check_corruptions, corrupted
from nullpaper.statistics import proportion

EPS = 8 / 255


@dataclass(frozen=True)
class Clean:
    """The images as they are."""

    def columns(self) -> dict[str, Any]:
        """Its columns in the table of `evaluate`."""
        return {"condition": "clean", "kind": "clean", "name": "clean", "family": "clean", "eps": 0.0, "severity": 0}


@dataclass(frozen=True)
class Threat:
    """An attack at a radius: a name that `attacks.attack` takes, and eps in pixel units."""

    name: str
    eps: float = EPS

    def columns(self) -> dict[str, Any]:
        """Its columns in the table of `evaluate`."""
        eps = float(self.eps)
        own = {"condition": f"{self.name}@{eps!r}", "kind": "attack", "name": self.name, "family": "attack"}
        return Clean().columns() | own | {"eps": eps}


@dataclass(frozen=True)
class Corrupted:
    """One of `CORRUPTIONS` at a severity from 1 to 5."""

    name: str
    severity: int

    def columns(self) -> dict[str, Any]:
        """Its columns in the table of `evaluate`."""
        own = {"condition": f"{self.name}@{self.severity}", "kind": "corruption", "name": self.name}
        return Clean().columns() | own | {"family": CORRUPTIONS[self.name].family, "severity": int(self.severity)}


Condition = Clean | Threat | Corrupted
Attacks = str | tuple[str, float] | Threat | Iterable[str | tuple[str, float] | Threat] | Mapping[str, float]


class Evaluation(pd.DataFrame):
    """The table of `evaluate`: a data frame that is printed without the masks in its column ``correct``."""

    def __repr__(self) -> str:
        return self._printed().to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self._printed().to_html(index=False, float_format="{:.3f}".format)

    def _printed(self) -> pd.DataFrame:
        return pd.DataFrame(self)[["condition", "accuracy", "accuracy_low", "accuracy_high", "n"]]


def evaluate(
    vit: ViT | Classifier,
    split: Split,
    *,
    attacks: Attacks = (),
    corruptions: str | Iterable[str] | Mapping[Corrupted, Split] = (),
    severities: int | Iterable[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = 250,
    first: int = 0,
) -> Evaluation:
    """Clean accuracy, and that under each attack and each (corruption, severity), all on the same images.

    The model is read in evaluation mode, and every module gets its mode back.

    Args:
        split: images (n, H, W, C) of the data set's own size, where corruptions act; attacks act at the model's.
        attacks: names, at 8/255, or (name, eps) with eps in pixel units, or `Threat`; one of these alone; or a mapping
            from names to eps.
        corruptions: names, or one, or what `corrupted_splits` made of this split, to be shared by several models.
        severities: of the corruptions given by name; one, or several.
        seed: of the attacks' and corruptions' draws.
        first: the place of the first image in a larger split that is evaluated in parts, a multiple of ``batch_size``.
            The attacks then draw what they would on the whole, so that `joined` parts equal it.

    Returns:
        Rows: clean, the attacks in the order of `ATTACKS`, the corruptions. Columns: condition (all of it in words),
        kind (clean, attack, corruption), name, family, eps, severity, accuracy with its Wilson interval (accuracy_low,
        accuracy_high), n, and correct, a boolean array (n,).

    Raises:
        InputError: an unknown attack or corruption, a severity or eps out of range, an empty split, labels that the
            head lacks, prepared corruptions of another split, a part that does not begin with a batch.
    """
    batch_size = check_count("batch_size", batch_size)
    seed, first = check_seed(seed), check_count("first", first, least=0)
    if first % batch_size:
        raise InputError(f"first={first} is no multiple of batch_size={batch_size}: parts begin where a batch does.")
    if first and not isinstance(corruptions, Mapping) and _several(corruptions):
        raise InputError(
            "corruptions of a part depend on the whole: pass corrupted_splits of that, cut as the part is."
        )
    check_split(vit, split)
    threats = _threats(vit, attacks)
    if not isinstance(corruptions, Mapping):
        corruptions = corrupted_splits(split, corruptions, severities, seed)
    if not all(isinstance(level, Corrupted) and isinstance(made, Split) for level, made in corruptions.items()):
        raise InputError("corruptions must be names, or what corrupted_splits made; severities are their own argument.")
    if not all(np.array_equal(corrupted.labels, split.labels) for corrupted in corruptions.values()):
        raise InputError("the corruptions were prepared from another split: its labels differ; prepare them anew.")
    with evaluating(vit):
        masks = _masks(vit, split, batch_size, threats, seed + first // batch_size)
        masks |= {level: _masks(vit, made, batch_size)[Clean()] for level, made in corruptions.items()}
    return from_masks(masks)


def corrupted_splits(
    split: Split, corruptions: str | Iterable[str], severities: int | Iterable[int] = SEVERITIES, seed: int = 0
) -> dict[Corrupted, Split]:
    """The split under each (corruption, severity); of CIFAR 0.23 MB an image for all 75, of photographs nothing.

    They do not depend on a model: make them once and pass them to `evaluate` for each.

    Raises:
        InputError: an unknown corruption or severity, a negative seed, or images that are no square RGB.
    """
    names, severities = _several(corruptions), _several(severities)
    check_corruptions(names, severities)
    seed = check_seed(seed)
    levels = [Corrupted(name, severity) for name in names for severity in severities]
    return {one: corrupted(split, one.name, one.severity, seed) for one in levels}


def from_masks(masks: Mapping[Condition, np.ndarray]) -> Evaluation:
    """The table of `evaluate` from the masks (n,) bool of each condition, in their order."""
    return Evaluation(
        [one.columns() | proportion(mask).columns("accuracy") | {"correct": mask} for one, mask in masks.items()]
    )


def joined(parts: Sequence[pd.DataFrame]) -> Evaluation:
    """The table of a split from those of its parts, in order.

    Raises:
        InputError: they are of other conditions.
    """
    conditions = [[*part["condition"]] for part in parts]
    if any(other != conditions[0] for other in conditions):
        raise InputError("the parts were evaluated under other conditions, so they make no table; evaluate them alike.")
    masks = [np.concatenate(pieces) for pieces in zip(*(part["correct"] for part in parts), strict=True)]
    rows = parts[0].drop(columns="correct").to_dict("records")
    return Evaluation(
        [row | proportion(mask).columns("accuracy") | {"correct": mask} for row, mask in zip(rows, masks, strict=True)]
    )


def packed(table: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A table as rows without masks, which JSON holds, and the masks as one array (conditions, n) bool."""
    return table.drop(columns="correct").to_dict("records"), {"correct": np.stack([*table["correct"]])}


def unpacked(rows: list[dict[str, Any]], arrays: Mapping[str, np.ndarray]) -> Evaluation:
    """The table that `packed` took apart."""
    return Evaluation(pd.DataFrame(rows).assign(correct=[*np.asarray(arrays["correct"]).astype(bool)]))


def _masks(
    vit: ViT | Classifier, split: Split, batch_size: int, threats: Sequence[Threat] = (), seed: int = 0
) -> dict[Condition, np.ndarray]:
    """Which images of the split are classified correctly, (n,) bool, as they are and after each attack."""
    device = next(vit.parameters()).device
    right: dict[Condition, list[Tensor]] = {Clean(): [], **{threat: [] for threat in threats}}
    for number, (images, labels) in enumerate(split.batches(batch_size, image_size=vit.image_size, device=device)):
        if threats:
            images, labels = check_labelled(vit, images, labels)
        logits = answers(vit, images)
        right[Clean()].append(logits.argmax(1) == labels)
        for threat in threats:
            options = dict(eps=threat.eps, seed=seed + number, batch_size=batch_size, logits=logits)
            right[threat].append(attacked(vit, images, labels, threat.name, **options)[1])
    return {condition: torch.cat(parts).cpu().numpy() for condition, parts in right.items()}


def _threats(vit: ViT | Classifier, attacks: Attacks) -> list[Threat]:
    """The attacks, each once: in the order of their table, fewer steps first, then smaller radii."""
    if isinstance(attacks, Mapping):
        attacks = list(attacks.items())
    threats = [_threat(one) for one in ([attacks] if _is_pair(attacks) else _several(attacks))]
    for threat in threats:
        check_attack(vit, threat.name, threat.eps)
    places = {name: place for place, name in enumerate(ATTACKS)}
    return sorted(set(threats), key=lambda t: (places[split_name(t.name)[0]], len(t.name), t.name, t.eps))


def _threat(given: str | tuple[str, float] | Threat) -> Threat:
    if isinstance(given, str):
        return Threat(given)
    if _is_pair(given):
        return Threat(*given)
    if not isinstance(given, Threat):
        raise InputError(f"{shown(given)} is no attack: give a name, (name, eps), or a mapping from names to eps.")
    return given


def _is_pair(given: object) -> bool:
    """Whether this is one (name, eps), not two attacks."""
    two = isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], str)
    return two and not isinstance(given[1], str | tuple | list | Threat)


def _several(given: Any) -> list[Any]:
    """One value or several as a list."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
