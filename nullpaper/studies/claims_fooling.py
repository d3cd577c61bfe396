"""What paper C claims of transfer, fooling and watermarks, and how the tables of notebooks 03 to 06 decide it."""

from __future__ import annotations

import pandas as pd

from nullpaper.statistics import Interval
from nullpaper.studies.evidence import (
    Tables,
    at_least,
    below,
    counted,
    every,
    interval,
    negate,
    number,
    percent,
    points,
    some,
    word,
)
from nullpaper.studies.judging import Claim, claim

__all__ = ["FOOLING"]

MAPS = ("attention rollout", "Grad-CAM", "saliency")


def _extremes(intervals: list[Interval]) -> tuple[Interval, Interval]:
    ordered = sorted(intervals, key=lambda known: known.value)
    return ordered[0], ordered[-1]


def _range(intervals: list[Interval]) -> str:
    low, high = _extremes(intervals)
    return f"{points(low, None).removesuffix(' points')} to {points(high, None)}"


@claim(
    "C",
    "input-level noise",
    "noise learned on the pixels belongs to its model",
    where="03 (c), (d)",
    criterion="holds if it gains match over itself permuted locally on every model of its own and on no other; in part "
    "if on every own",
)
def own_noise(tables: Tables) -> tuple[str, str]:
    table = tables["03_transfer"]
    own = table["noise of"] == table["read by"]
    gains = [counted(table[rows], "over permuted locally") for rows in (own, ~own)]
    gained = [[at_least(gain, 1e-9) for gain in group] for group in gains]
    free = [_range(counted(table[rows], "over permuted")) for rows in (own, ~own)]
    measured = (
        f"over itself permuted within a neighbourhood it gains {_range(gains[0])} of match on its own model and "
        f"{_range(gains[1])} on others, clearly in {gained[1].count(True)} of {len(gained[1])} pairs of ViTs and CNNs; "
        f"over itself permuted anywhere {free[0]} and {free[1]} (n = {gains[0][0].n:,})"
    )
    return measured, word(every((every(gained[0]), negate(some(gained[1])))), every(gained[0]))


@claim(
    "",
    "",
    "noise learned on the pixels finds the exact nullspace of a ViT",
    where="03 (b)",
    criterion="holds if at least 90 % of its energy lies there in each ViT, in part if in one",
)
def share_in_nullspace(tables: Tables) -> tuple[str, str]:
    table = tables["03_nullspace_share"]
    means = table.groupby("model", sort=False)[["share learned", "share of dimensions"]].mean()
    shown = (
        f"{model} {row['share learned']:.2f} of its energy, by chance {row['share of dimensions']:.2f}"
        for model, row in means.iterrows()
    )
    found = means["share learned"] >= 0.9
    return f"{'; '.join(shown)} (n = {table['seed'].nunique()} noise seed)", word(bool(found.all()), bool(found.any()))


def _agreement(tables: Tables, level: str) -> pd.DataFrame:
    table = tables.rows("05_exact_agreement", level=level)
    return table[table["noise"].str.startswith("exact")]


@claim(
    "C",
    "interpretation fooling",
    "nullspace noise fools explanations",
    where="05 (a)",
    criterion="holds if a map of patches falls below rank correlation 0.5 (proved impossible), in part if maps of "
    "pixels fall below 0.99",
)
def explanations(tables: Tables) -> tuple[str, str]:
    patches, pixels = (_agreement(tables, level) for level in ("patch", "pixel"))
    patch = counted(patches, "rank_correlation")
    moved = pixels.groupby("map", sort=False)["rank_correlation"].min()
    row = pixels.loc[pixels["rank_correlation"].idxmin()]
    pixel = interval(row, "rank_correlation")
    names = " and ".join(moved.index[moved < 0.99]) or "no map"
    least = _extremes(patch)[0]
    measured = (
        f"{patches['map'].nunique()} maps of patches keep rank correlation {number(least, '.2f', None)} at the least; "
        f"between the pixels of a patch {names} change, {row['map']} to {number(pixel, '.2f')}"
    )
    return measured, word(some(below(known, 0.5) for known in patch), below(pixel, 0.99))


@claim(
    "",
    "",
    "optimised noise moves explanations with the prediction kept",
    where="05 (b)",
    criterion="holds if each of rollout, Grad-CAM and saliency falls below rank correlation 0.5 while at least 90 % of "
    "predictions stay and the permuted noise does not do it; in part if one does",
)
def moved_explanations(tables: Tables) -> tuple[str, str]:
    answers, shown, kept = [], [], []
    for name in MAPS:
        moved = tables.interval("05_moved_agreement", "rank_correlation", noise=f"for {name}", map=name)
        control = tables.interval("05_moved_agreement", "rank_correlation", noise=f"for {name}, permuted", map=name)
        kept.append(tables.interval("05_moved_noises", "class_kept", noise=f"for {name}"))
        answers.append(every((below(moved, 0.5), at_least(control, 0.5), at_least(kept[-1], 0.9))))
        shown.append(f"{name} to {number(moved, '.2f', None)} (permuted {number(control, '.2f', None)})")
    measured = f"rank correlation of {', '.join(shown)}; predictions kept {percent(_extremes(kept)[0])}"
    return measured, word(every(answers), some(answers))


@claim(
    "",
    "",
    "explanations so moved explain the noisy image worse",
    where="05 (c)",
    criterion="holds if the deletion score rises and the insertion score falls for each map, intervals excluding 0; in "
    "part if for one",
)
def faithfulness(tables: Tables) -> tuple[str, str]:
    answers, shown = [], []
    for name in MAPS:
        row = tables.row("05_faithfulness", image="noisy", order="moved map", map=name, against="clean map")
        rises, falls = (interval(row, column) for column in ("deletion_change", "insertion_change"))
        answers.append(every((at_least(rises, 1e-9), below(falls, 0))))
        shown.append(f"{name} {number(rises, '+.2f', None)} / {number(falls, '+.2f', None)}")
    return f"deletion / insertion score: {', '.join(shown)} (n = {rises.n:,})", word(every(answers), some(answers))


TRANSFER = (own_noise, share_in_nullspace)
INTERPRETATION = (explanations, moved_explanations, faithfulness)
FOOLING: tuple[Claim, ...] = TRANSFER + INTERPRETATION
