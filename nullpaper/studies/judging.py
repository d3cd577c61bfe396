"""How the models of trials are judged: which images, attacks and corruptions; kept in parts, by the place of an image.

A part, `Protocol.shard` images, is a stored result of its own. So a killed AutoAttack goes on with the part that it was
at, and several jobs that share a store share the parts: each takes one that no other is at. Together the parts say what
one evaluation of all images would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nullpaper.data.datasets import Data, Split, load_data
from nullpaper.data.folders import Transform
from nullpaper.data.photographs import imagenet_c
from nullpaper.errors import InputError, check_choice, check_count, check_seed
from nullpaper.models.predict import restricted
from nullpaper.models.vit import ViT
from nullpaper.robustness.attacks import ATTACKS, split_name
from nullpaper.robustness.corruptions import CORRUPTIONS, SEVERITIES, check_corruptions
from nullpaper.robustness.evaluation import (
    Corrupted,
    Evaluation,
    Threat,
    corrupted_splits,
    evaluate,
    joined,
    packed,
    unpacked,
)
from nullpaper.robustness.pgd import check_eps
from nullpaper.workflow.code_identity import code_identity
from nullpaper.workflow.store import stored

BATCH = 250  # images that are attacked together


@dataclass(frozen=True)
class Protocol:
    """What a trial is judged on: a number of images of a split, and the attacks and corruptions of all of them."""

    images: int
    threats: tuple[Threat, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0
    data: str = ""  # whose images: any data set of the head's classes; empty: the trial's own
    root: str = ""
    split: str = "test"  # "dev", to choose something by
    corrupted: str = ""  # ImageNet-C's folder, whose files are then the corruptions; empty: ours
    shard: int = 1_000  # images of a part; a number below 250, or a multiple of it

    def __post_init__(self) -> None:
        """Raise an `InputError` for a value out of range."""
        check_count("images", self.images)
        check_seed(self.seed)
        for threat in self.threats:
            split_name(threat.name)
            check_eps(threat.eps, math.inf)  # how large depends on the norm and the model
        check_corruptions(self.corruptions, self.severities)
        check_choice("split", self.split, ("dev", "test"))
        if check_count("shard", self.shard) > BATCH and self.shard % BATCH:
            raise InputError(f"shard={self.shard} cuts a batch of {BATCH} images in two: take a multiple of it.")


@dataclass(frozen=True)
class Weights:
    """A model, of all its classes, by its fingerprint: it is made only where something has to be computed.

    It is not kept, since results with such a description travel between processes, hundreds at a time.
    """

    fingerprint: str
    transform: Transform  # how it wants photographs
    make: Callable[[], ViT]


class _Busy(Exception):
    """Another process is at this part."""


def judge(weights: Weights, data: str, root: str, protocol: Protocol) -> Evaluation:
    """What a model answers; found in the store or computed.

    Args:
        data, root: whose images, unless the protocol names others.

    Raises:
        InputError: as `load_data`, `evaluate` and `ViT.restricted`; fewer images than the protocol asks for; a folder
            of ImageNet-C that lacks a condition, or whose photographs are others.
    """
    place = (protocol.data or data, protocol.root if protocol.data else root)
    loaded = load(*place, weights.transform)
    given = described(protocol) | {"weights": weights.fingerprint, "registered": registered(protocol)}
    origin = dict(loaded.identity)
    for level, other in _published(protocol, weights.transform).items():
        origin |= {f"{level.name}@{level.severity}": other.identity["digest"]}

    def part(first: int, wait: bool) -> Evaluation:
        def compute() -> Any:
            cut = slice(first, first + protocol.shard)
            split, levels = judged_images(protocol, *place, weights.transform)
            corrupted = {level: one.take(cut) for level, one in levels.items()}
            options = {"seed": protocol.seed, "batch_size": min(BATCH, protocol.shard), "first": first}
            answering = restricted(weights.make(), loaded)
            return packed(
                evaluate(answering, split.take(cut), attacks=protocol.threats, corruptions=corrupted, **options)
            )

        kept = stored("judged", given | {"first": first}, compute, data=origin, on_wait=_nothing if wait else _leave)
        return unpacked(kept.metrics, kept.arrays())

    parts: dict[int, Evaluation] = {}
    for wait in (False, True):  # first the parts that nobody is at
        for first in range(0, protocol.images, protocol.shard):
            if first not in parts:
                try:
                    parts[first] = part(first, wait)
                except _Busy:
                    continue
    return joined([parts[first] for first in sorted(parts)])


def _nothing() -> None:
    pass


def _leave() -> None:
    raise _Busy


@lru_cache(maxsize=1)
def judged_images(
    protocol: Protocol, data: str, root: str, transform: Transform
) -> tuple[Split, dict[Corrupted, Split]]:
    """The images and the corrupted ones, made once a process and shared by its trials."""

    def of(loaded: Data) -> Split:
        return getattr(loaded, protocol.split).subset(protocol.images, protocol.seed)

    split = of(load(data, root, transform))
    if not protocol.corrupted:
        return split, corrupted_splits(split, protocol.corruptions, protocol.severities, protocol.seed)
    corrupted = {level: of(loaded) for level, loaded in _published(protocol, transform).items()}
    for level, other in corrupted.items():
        if _names(other) != _names(split):
            raise InputError(
                f"the photographs of {level.name}/{level.severity} in {protocol.corrupted} are not those of {data}, so "
                "nothing pairs them: both must be whole, or lack the same files."
            )
    return split, corrupted


def _names(split: Split) -> list[str]:
    return [Path(path).stem for path in getattr(split.images, "paths", np.arange(len(split)))]


def _published(protocol: Protocol, transform: Transform) -> dict[Corrupted, Data]:
    """The conditions of ImageNet-C that a protocol names."""
    if not protocol.corrupted:
        return {}
    folders = imagenet_c(protocol.corrupted)
    levels = [(name, severity) for name in protocol.corruptions for severity in protocol.severities]
    if missing := [f"{name}/{severity}" for name, severity in levels if (name, severity) not in folders]:
        raise InputError(
            f"{protocol.corrupted} lacks {len(missing)} of {len(levels)} conditions, such as {missing[0]}."
        )
    return {Corrupted(*level): load("imagenet-c", str(folders[level]), transform) for level in levels}


@cache
def load(name: str, root: str, transform: Transform) -> Data:
    """`load_data`, once a process."""
    return load_data(name, root or None, transform=transform)


def described(what: Any) -> dict[str, Any]:
    """All fields but the names and places of files: the content of data and weights is told by their digests."""
    places = ("data", "root", "weights", "corrupted")
    return {name: value for name, value in asdict(what).items() if name not in places}


def registered(protocol: Protocol) -> list[Any]:
    """Of the attacks and corruptions that judge; a corruption's place in its registry decides its draws."""
    attacks = dict.fromkeys(split_name(threat.name)[0] for threat in protocol.threats)
    places = [list(CORRUPTIONS).index(name) for name in protocol.corruptions]
    corruptions = code_identity(*(CORRUPTIONS[name] for name in protocol.corruptions))
    return [code_identity(*(vars(ATTACKS[name]) for name in attacks)), places, corruptions]
