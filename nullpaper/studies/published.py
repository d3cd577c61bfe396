"""Paper A's printed numbers beside ours: table 1, table 2, the ablation of eps, the reply on early stopping, the CNNs.

They stand in ``published.csv`` as printed, in percent, each row with the place it was read from: the images of the
project page (liu-hy.github.io/NS-ViT), ``rebuttal.md`` of the authors' repository Liu-Hy/NS-ViT, and their replies on
OpenReview (mzkpLkd1S8) for arXiv 2403.10476. ImageNet-C is a mean corruption error by AlexNet's errors, of which less
is better; the rest are accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nullpaper.data.folders import Transform
from nullpaper.data.photographs import imagenet_c
from nullpaper.errors import InputError, check_choice, check_path
from nullpaper.robustness.comparison import ALEXNET, corruption_errors, resampled
from nullpaper.robustness.corruptions import SEVERITIES
from nullpaper.statistics import over_seeds
from nullpaper.studies.contrasts import measures
from nullpaper.studies.judging import Protocol, load
from nullpaper.studies.trials import TrialResult

COLUMNS = (
    "clean", "patchfool", "cw", "fgsm", "damagenet", "imagenet-a", "imagenet-c", "imagenet-v2", "imagenet-r",
    "imagenet-sketch", "imagenet-stylized",
)  # fmt: skip
"""The columns of table 1 in its order."""
SETS = tuple(name for name in COLUMNS if "net" in name)
ATTACKED = {"clean": "clean", "patchfool": "patch", "cw": "cw", "fgsm": "fgsm"}
"""Columns that are measured on the test images themselves, by the name of the measure in `contrasts`."""
UNLIKE = {
    "patchfool": "by the cross-entropy alone, as Patch-Fool's code does by default; the paper's settings are not known",
    "cw": "sign steps on the margin; the paper's settings are not known",
    "fgsm": "the paper's radius is not known",
}
"""Why a difference in this column may be the attack's and not the model's."""
OWN_CORRUPTIONS = {"imagenet-c": "our corruptions of these images, not the published files"}
STARTS = {"ViT-S": "vit_small_patch16_224", "ViT-B": "vit_base_patch16_224", "ViT-B + DAT": "vit_base_patch16_224"}
"""The starts of table 1 that were finetuned, by the architecture of timm."""

Parts = list[np.ndarray]
"""A number that is the sum of means over images, each part (seeds, images) of images of its own."""


@cache
def published() -> pd.DataFrame:
    """Rows (table, row) of all tables; columns `COLUMNS`, average as printed, and source; NaN where none is printed."""
    return pd.read_csv(Path(__file__).with_name("published.csv")).set_index(["table", "row"])


def average(row: Mapping[str, float], columns: Sequence[str] = COLUMNS) -> float:
    """The paper's "Average": the mean over these columns, with 100 - mCE for ImageNet-C.

    The paper does not define it. Over all columns that are printed this gives what table 1 prints; see the tests.
    """
    return float(np.mean([100 - row[name] if name == "imagenet-c" else row[name] for name in columns]))


def counterparts(start: str, eps: float) -> dict[str, tuple[str, str]]:
    """Which (table, row) is a method's of notebook 07 or 08, for one of `STARTS`; eps is that of its noise.

    Raises:
        InputError: no such start.
    """
    check_choice("paper_start", start, STARTS)
    rows = {"start": ("table 1", start), "nullspace": ("table 1", f"{start} + NS")}
    rows |= {f"{method}, mismatched": row for method, row in rows.items()}  # the input scale of the paper's code
    if start != "ViT-S":
        return rows
    rows |= {"pgd_at": ("table 2", "Madry"), "trades": ("table 2", "TRADES")}
    rows |= {"official": ("early stop", "yes"), "official, no early stop": ("early stop", "no")}
    for value in (0.01, 0.03, 0.1):
        change = "" if abs(value - eps) < 1e-9 else f", eps {value:g}"
        rows |= {f"random{change}": ("eps", f"Random {value:g}")}
        rows |= {f"nullspace{change}": ("eps", f"NS {value:g}")} if change else {}
    return rows


def check_start(start: str, model: str, data: str) -> None:
    """Refuse to set other models or data beside the paper's.

    Raises:
        InputError: a start that is none of `STARTS`, another architecture, or data other than ImageNet.
    """
    check_choice("paper_start", start, STARTS)
    if model.partition(".")[0] != STARTS[start] or data != "imagenet":
        raise InputError(
            f"paper_start='{start}' is {STARTS[start]} on imagenet, and this is {model} on {data}: leave paper_start "
            "empty."
        )


def check_reference(mce_by: str, protocol: Protocol) -> None:
    """Refuse a reference of mCE that the protocol's corruptions do not admit, before anything is trained.

    Raises:
        InputError: neither "start" nor "alexnet"; the latter without all corruptions at all severities.
    """
    check_choice("mce_by", mce_by, ("start", "alexnet"))
    whole = set(protocol.corruptions) == set(ALEXNET) and sorted(protocol.severities) == list(SEVERITIES)
    if mce_by == "alexnet" and not whole:
        raise InputError("mce_by='alexnet' needs all corruptions at severities 1 to 5, whose mean its errors are.")


def further_sets(
    folder: str, protocol: Protocol, transform: Transform, images: int = 0
) -> tuple[Protocol, dict[str, Protocol], list[str]]:
    """How models are judged on the sets of table 1, as far as a folder has them by the names of `COLUMNS`.

    Args:
        protocol: of the test images.
        transform: of the model.
        images: of each set; 0: all.

    Returns:
        The protocol, with ImageNet-C's own files for its corruptions if they are all there; those of the other sets by
        name, clean images alone; and a line for each set that is missing.

    Raises:
        InputError: no such folder, or a set that is there and cannot be loaded.
    """
    place, sets, lines = check_path("sets", folder), {}, []
    if not place.is_dir():
        raise InputError(f"sets={folder} is no folder: name one that holds {', '.join(SETS)}, as far as you have them.")
    for name in SETS:
        root = place / name
        if not root.is_dir():
            instead = "corruptions are our own" if name == "imagenet-c" else "there is no column for it"
            lines.append(f"{name} is not in {folder}: {instead}.")
        elif name == "imagenet-c":
            asked = {(corruption, s) for corruption in protocol.corruptions for s in protocol.severities}
            if missing := sorted(asked - imagenet_c(root).keys()):
                first = "/".join(map(str, missing[0]))
                lines.append(f"{name} lacks {len(missing)} conditions, such as {first}: corruptions are our own.")
            else:
                protocol = replace(protocol, corrupted=str(root))
        else:
            count = len(load(name, str(root), transform).test)
            given = {"data": name, "root": str(root), "seed": protocol.seed, "shard": protocol.shard}
            sets[name] = Protocol(min(images or count, count), **given)
    return protocol, sets, lines


def beside(
    groups: Mapping[str, Sequence[TrialResult]],
    sets: Mapping[str, Mapping[str, Sequence[TrialResult]]],
    attack_eps: float,
    rows: Mapping[str, tuple[str, str]],
    *,
    unlike: Mapping[str, str] = UNLIKE,
) -> pd.DataFrame:
    """Ours beside the paper's, in percent, for each method and column that we measured, and the average over these.

    The published numbers are of single runs and have no interval, so the interval of a difference is ours.

    Args:
        groups: finished trials by method, one a seed, judged on ImageNet's test images.
        sets: the same judged on further sets, by the names of `COLUMNS`.
        attack_eps: the radius of their attacks.
        rows: the paper's row for each method, see `counterparts`; a method without one has no published number.
        unlike: what else than the model may explain the difference in a column.

    Returns:
        Rows (method, column) with ours, ours_low, ours_high, n (Student's t over seeds), images_low, images_high,
        images (bootstrap of the mean over seeds), published, difference with the four bounds, columns (of an average:
        over how many; the paper's is over the same), unlike and source.
    """
    table = []
    for method, trials in groups.items():
        parts = _columns(trials, {name: by_method[method] for name, by_method in sets.items()}, attack_eps)
        printed = published().loc[rows[method]] if method in rows else {}
        table += _rows(method, parts, printed)
    frame = pd.DataFrame(table)
    return frame.assign(unlike=frame["column"].map(unlike).fillna(""))


def _columns(
    trials: Sequence[TrialResult], sets: Mapping[str, Sequence[TrialResult]], eps: float
) -> dict[str, np.ndarray]:
    """Percent by column, (seeds, images); in the order of table 1."""
    own = [measures(trial.frame, eps) for trial in trials]
    values = {name: [each[measure] for each in own] for name, measure in ATTACKED.items() if measure in own[0]}
    if (trials[0].frame["kind"] == "corruption").sum() == len(ALEXNET) * len(SEVERITIES):
        values["imagenet-c"] = [corruption_errors(trial.frame, ALEXNET) for trial in trials]
    values |= {name: [trial.frame["correct"][0] for trial in judged] for name, judged in sets.items()}
    return {name: 100 * np.stack(values[name]).astype(float) for name in COLUMNS if name in values}


def _rows(method: str, values: Mapping[str, np.ndarray], printed: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"method": method, "column": name, **_beside([part], printed.get(name, np.nan))}
        for name, part in values.items()
    ]
    shared = [name for name in values if not pd.isna(printed.get(name, 0.0))]
    signs = {name: -1 if name == "imagenet-c" else 1 for name in shared}
    parts = _by_images({name: (100 * (signs[name] < 0) + signs[name] * values[name]) / len(shared) for name in shared})
    theirs = average(printed, shared) if len(printed) else np.nan
    rows.append({"method": method, "column": "average", **_beside(parts, theirs)})
    source = printed.get("source", "")
    return [row | {"columns": len(shared) if row["column"] == "average" else 1, "source": source} for row in rows]


def _by_images(values: Mapping[str, np.ndarray]) -> Parts:
    """Columns that were measured on the same images make one part, so that what is paired stays paired."""
    own = [values[name] for name in values if name in ATTACKED or name == "imagenet-c"]
    return [sum(own)] * bool(own) + [values[name] for name in values if name not in (*ATTACKED, "imagenet-c")]


def _beside(parts: Parts, theirs: float) -> dict[str, Any]:
    ours = over_seeds(sum(part.mean(1) for part in parts))
    drawn = sum(resampled(part.mean(0)[:, None], seed)[:, 0] for seed, part in enumerate(parts))
    low, high = np.quantile(drawn, (0.025, 0.975))
    bounds = {"images_low": low, "images_high": high}
    row = ours.columns("ours") | bounds | {"images": sum(part.shape[1] for part in parts), "published": theirs}
    row |= {
        "difference": ours.value - theirs,
        "difference_low": ours.low - theirs,
        "difference_high": ours.high - theirs,
    }
    return row | {f"difference_{name}": bound - theirs for name, bound in bounds.items()}
