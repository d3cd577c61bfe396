"""What paper C claims of transfer, fooling and watermarks, and how the tables of notebooks 03 to 06 decide it."""

from __future__ import annotations

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
WATERMARK = (watermarks, any_logo, survival, solver)
FOOLING: tuple[Claim, ...] = TRANSFER + WATERMARK
