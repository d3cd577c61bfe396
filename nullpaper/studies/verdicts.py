"""The answer at the end of a notebook: what the papers say, what its tables say, and whether it holds.

Answers are three-valued: an interval that a bound cuts through decides nothing. No number and no word of a verdict is
typed by hand; both follow from the tables, by a criterion that stands beside them::

    answer = Verdicts()

    @answer.claim("A, C", "", "there is a nullspace", where="01 (a)", criterion="holds if it has a dimension")
    def existence() -> tuple[str, str]:
        return f"{dim} dimensions", word(dim > 0)

    save_table(answer.table(), "01_verdicts")
    answer.show()
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from nullpaper.statistics import Interval

WORDS = ("holds", "does not hold", "in part", "ill-posed", "not resolved", "not testable here", "not measured")

Answer = bool | None
"""Yes, no, or undecided by the interval."""
Judge = Callable[[], tuple[str, str]]
"""From the tables of a notebook to what was measured, in words, and one of `WORDS`."""


class Verdicts:
    """The verdicts on the claims that one notebook decides, in the order in which they are stated."""

    def __init__(self) -> None:
        self._rows: list[dict[str, str]] = []

    def claim(self, papers: str, source: str, said: str, *, where: str, criterion: str) -> Callable[[Judge], Judge]:
        """Judge a claim at once, by the function that this decorates; its name is the name of the claim.

        Args:
            papers: which say so, such as "A, C"; empty: nobody asked.
            source: equation, section or table there, or "code" of the authors.
            said: the claim in a few words.
            where: notebook and section that measure it.
            criterion: when it holds, in words; the function is the same in numbers. It returns what was measured and
                one of `WORDS`; a row or column that its tables lack (a KeyError) makes the claim "not measured".

        Raises:
            ValueError: a word that is none of `WORDS`.
        """

        def judged(judge: Judge) -> Judge:
            name = judge.__name__
            try:
                text, holds = judge()
            except KeyError as error:
                text, holds = f"not measured with these parameters: the tables lack {error.args[0]}", "not measured"
            if holds not in WORDS:
                raise ValueError(f"claim {name} answers {holds!r}: it must be one of {', '.join(WORDS)}")
            asked = {"name": name, "papers": papers, "source": source, "said": said}
            self._rows.append({**asked, "criterion": criterion, "where": where, "measured": text, "holds": holds})
            return judge

        return judged

    def table(self) -> pd.DataFrame:
        """One row a claim: name, papers, source, said, criterion, where, measured, holds."""
        return pd.DataFrame(self._rows)

    def show(self, limits: str = "") -> None:
        """Print the answer: claim, what was measured, the word and its criterion; then the limits of all of them."""
        for row in self._rows:
            asked = ", ".join(filter(None, (f"paper {row['papers']}" if row["papers"] else "", row["source"])))
            print(f"\n{row['holds'].upper()}: {row['said']} ({asked or 'no paper asks'})")
            for text in (row["measured"], f"({row['criterion']})"):
                print(textwrap.fill(text, 110, initial_indent="    ", subsequent_indent="    "))
        if limits:
            print("\n" + textwrap.fill(f"Limits: {limits}", 110, subsequent_indent="    "))


# Numbers out of tables


def rows(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows of a table whose columns have these values.

    Raises:
        KeyError: there are none.
    """
    selection = table
    for column, value in where.items():
        selection = selection[selection[column] == value]
    if selection.empty:
        raise KeyError(f"a row with {_named(where)}")
    return selection


def row(table: pd.DataFrame, **where: Any) -> pd.Series:
    """The one row of a table whose columns have these values.

    Raises:
        KeyError: there is none, or more.
    """
    selection = rows(table, **where)
    if len(selection) > 1:
        raise KeyError(f"a single row with {_named(where)}: there are {len(selection)}")
    return selection.iloc[0]


def _named(where: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in where.items())


def interval(row: pd.Series, column: str) -> Interval:
    """Columns ``column``, ``column_low``, ``column_high`` and ``n`` of a row.

    Raises:
        KeyError: one of them is empty.
    """
    value, low, high, n = (row[name] for name in (column, f"{column}_low", f"{column}_high", "n"))
    if pd.isna([value, low, high, n]).any():
        raise KeyError(f"a value of {column}")
    return Interval(float(value), float(low), float(high), int(n))


def intervals(rows: pd.DataFrame, column: str) -> list[Interval]:
    """The interval of every row."""
    return [interval(row, column) for _, row in rows.iterrows()]


# Answers


def at_least(estimate: Interval, bound: float) -> Answer:
    """Yes if the whole interval is at or above the bound, no if it is below, else undecided."""
    return True if estimate.low >= bound else False if estimate.high < bound else None


def below(estimate: Interval, bound: float) -> Answer:
    """Yes if the whole interval is below the bound, no if it is at or above, else undecided."""
    return negate(at_least(estimate, bound))


def above(first: Interval, second: Interval) -> Answer:
    """Yes if the first interval ends above the second, no if below, undecided if they overlap."""
    return True if first.low > second.high else False if first.high < second.low else None


def every(answers: Iterable[Answer]) -> Answer:
    """Yes if all are yes, no if one is no, else undecided (Kleene's conjunction)."""
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def some(answers: Iterable[Answer]) -> Answer:
    """Yes if one is yes, no if all are no, else undecided (Kleene's disjunction)."""
    answers = list(answers)
    return True if True in answers else None if None in answers else False


def negate(answer: Answer) -> Answer:
    """No for yes, yes for no; undecided stays."""
    return None if answer is None else not answer


def word(whole: Answer, part: Answer = False) -> str:
    """``holds`` if the whole claim is true, ``in part`` if a part is, ``does not hold`` if neither, else undecided."""
    if whole or part:
        return "holds" if whole else "in part"
    return "does not hold" if whole is not None and part is not None else "not resolved"


# Numbers in words


def percent(estimate: Interval, of: str | None = "") -> str:
    """``97.1 % [95.7, 98.5] (n = 3)``; ``of``: "of 3 images" instead of n; None: nothing, as n is said beside it."""
    return _written(estimate, lambda share: f"{100 * share:.1f}".replace("100.0", "100"), of, unit=" %")


def points(estimate: Interval, of: str | None = "") -> str:
    """A difference of shares in percentage points, ``+1.2 [+0.3, +2.1] points (n = 500)``."""
    return _written(estimate, lambda share: f"{100 * share:+.1f}", of, last=" points")


def number(estimate: Interval, spec: str = ".1f", of: str | None = "") -> str:
    """``66.9 [61.8, 71.9] (n = 2)``, each number as ``spec`` says."""
    return _written(estimate, lambda value: format(value, spec), of)


def _written(
    estimate: Interval, write: Callable[[float], str], of: str | None, *, unit: str = "", last: str = ""
) -> str:
    value, low, high = map(write, (estimate.value, estimate.low, estimate.high))
    bracket = f" [{low}, {high}]" if estimate.n > 1 else ""  # a single observation has none
    count = "" if of is None else f" of {estimate.n:,} {of}" if of else f" (n = {estimate.n:,})"
    return f"{value}{unit}{bracket}{last}{count}"


# Paired differences: tables such as 07_paired, one row for two methods trained alike and a measure, with columns
# difference (of the accuracies; _low and _high over n seeds, Student's t), images_low and images_high (bootstrap)

NAMES = {"fgsm": "FGSM", "cw": "CW", "patch": "patch attack", "pgd": "PGD", "pgd 8/255": "PGD 8/255"}
FEWEST_SEEDS = 3  # below which nothing is said of a training method
BETTER = "better: the intervals over seeds, of three or more, and over images both exclude 0. "
WORSE = ", does not hold if worse on one and better on none"


def difference(
    paired: pd.DataFrame, method: str, against: str, measure: str, **where: Any
) -> tuple[Interval, Interval, str]:
    """Accuracy of a method minus that of another, with the intervals over seeds and over images, and over how long.

    A pair may stand in the table either way round. ``where``: values of other columns.
    """
    try:
        line, turned = row(paired, method=method, against=against, measure=measure, **where), False
    except KeyError:
        line, turned = row(paired, method=against, against=method, measure=measure, **where), True
    seeds = interval(line, "difference")
    images = Interval(seeds.value, float(line["images_low"]), float(line["images_high"]), seeds.n)
    if turned:
        seeds, images = (Interval(-one.value, -one.high, -one.low, one.n) for one in (seeds, images))
    return seeds, images, f", {int(line['steps'])} steps" if "steps" in line else ""


def over_images(paired: pd.DataFrame, method: str, against: str, measure: str) -> Interval:
    """Accuracy of a single run minus that of another, with the interval over images and their number."""
    line = row(paired, method=method, against=against, measure=measure)
    return Interval(*(float(line[name]) for name in ("difference", "images_low", "images_high")), int(line["images"]))


def better(seeds: Interval, images: Interval) -> Answer:
    """Yes or no if both intervals of a difference exclude zero on one side; one or two runs decide nothing."""
    zero = Interval(0, 0, 0, 1)
    first, second = above(seeds, zero), above(images, zero)
    return first if first == second and seeds.n >= FEWEST_SEEDS else None


def compare(
    paired: pd.DataFrame, method: str, against: str, measures: Iterable[str], **where: Any
) -> tuple[str, dict[str, Answer]]:
    """Differences in words, and by measure whether the method is better."""
    texts, answers = [], {}
    for measure in measures:
        seeds, images, length = difference(paired, method, against, measure, **where)
        answers[measure] = better(seeds, images)
        over = f"[{100 * images.low:+.1f}, {100 * images.high:+.1f}]"
        texts.append(f"{NAMES.get(measure, measure)} {points(seeds, None).removesuffix(' points')} / {over}")
    return f"{', '.join(texts)} points over {seeds.n} seed{'s' * (seeds.n > 1)} / images{length}", answers


def grade(answers: Iterable[Answer]) -> str:
    """``does not hold`` also if worse on a measure and better on none, whatever more seeds would say of the others."""
    answers = list(answers)
    return "does not hold" if False in answers and True not in answers else word(every(answers), some(answers))
