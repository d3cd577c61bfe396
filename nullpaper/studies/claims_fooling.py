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


@claim(
    "C",
    "watermarks",
    "watermarks in the nullspace leave predictions alone",
    where="06 (a), (d)",
    criterion="holds if at least 90 % of predictions stay for every logo and for messages, in float32 and in 8 bits; "
    "in part if in float32",
)
def watermarks(tables: Tables) -> tuple[str, str]:
    shares = {"float32": [], "8 bits": []}
    for transport, group in shares.items():
        group += counted(tables.rows("06_logo", mark="nullspace", transport=transport), "unchanged")
        group += counted(tables.rows("06_prediction", place="nullspace", transport=transport), "unchanged")
    *logos, messages = shares["8 bits"]
    blended = _extremes(counted(tables.rows("06_logo", mark="blended", transport="float32"), "unchanged"))[0]
    exact, coarse = (every(at_least(share, 0.9) for share in group) for group in shares.values())
    measured = (
        f"unchanged in float32 at the least {percent(_extremes(shares['float32'])[0])}, in 8 bits "
        f"{percent(_extremes(logos)[0])} with a logo and {percent(messages)} with a message; a logo blended in at "
        f"equal norm leaves {percent(blended)} at worst"
    )
    return measured, word(every((exact, coarse)), exact)


@claim(
    "",
    "",
    "any picture, and not only texture, can be the watermark",
    where="06 (a)",
    criterion="holds if at least half of every logo's energy is invisible to the model, in part if of one logo's",
)
def any_logo(tables: Tables) -> tuple[str, str]:
    rows = tables.rows("06_logo", mark="nullspace", transport="float32", form="L2")
    free = dict(zip(rows["logo"], counted(rows, "free"), strict=True))
    answers = [at_least(share, 0.5) for share in free.values()]
    shown = ", ".join(f"{logo} {percent(share, None)}" for logo, share in free.items())
    measured = f"invisible share of the logo: {shown} (n = {rows['n'].min():,})"
    return measured, word(every(answers), some(answers))


@claim(
    "",
    "",
    "a 64-bit message in the nullspace survives JPEG 75",
    where="06 (c)",
    criterion="holds if at least 90 % of bits are read when written anywhere in the nullspace, in part if written "
    "where JPEG rounds least",
)
def survival(tables: Tables) -> tuple[str, str]:
    table = tables.rows("06_message", arrival="JPEG 75")
    table = table[table["margin"] == table["margin"].max()]
    anywhere = interval(table.loc[table["share"].idxmax()], "bits")
    best = table.loc[table["bits"].idxmax()]
    chosen = interval(best, "bits")
    measured = (
        f"{percent(anywhere)} of bits if written anywhere, {percent(chosen)} in the {best['share']:g} of it that JPEG "
        f"rounds least (all 64 bits in {100 * best['messages']:.0f} % of images)"
    )
    return measured, word(at_least(anywhere, 0.9), at_least(chosen, 0.9) if best["share"] < 1 else False)


@claim(
    "C",
    "code",
    "SLSQP solves the watermark problem",
    where="06 (b)",
    criterion="holds if its objective exceeds the certified optimum by less than 1e-6 in both forms, in part if in one",
)
def solver(tables: Tables) -> tuple[str, str]:
    answers, shown = [], []
    for form in ("L1", "L2"):
        row = tables.row("06_solver", form=form, SLSQP="as the original")
        fair = tables.row("06_solver", form=form, SLSQP="exact gradient")
        excess = interval(row, "excess")
        answers.append(below(excess, 1e-6))
        shown.append(
            f"{form}: it ends {number(excess, '.1e', None)} above ours, which is certified to {row['largest_gap']:.0e} "
            f"and {row['speedup']:.0f} times faster, {fair['speedup']:.0f} if SLSQP is given the gradient"
        )
    return f"{'; '.join(shown)} (n = {excess.n} patches)", word(every(answers), some(answers))


TRANSFER = (own_noise, share_in_nullspace)
INTERPRETATION = (explanations, moved_explanations, faithfulness)
WATERMARK = (watermarks, any_logo, survival, solver)
FOOLING: tuple[Claim, ...] = TRANSFER + INTERPRETATION + WATERMARK
