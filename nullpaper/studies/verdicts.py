"""The answer at the end of a notebook: what the papers say, what its tables say, and whether it holds.

Answers are three-valued: an interval that a bound cuts through decides nothing. No number and no word of a verdict is
typed by hand; both follow from the tables, by a criterion that stands beside them. Each claim has one primary endpoint,
positive where the claim is right, with the least effect that matters; everything else that it prints is exploratory::

    answer = Verdicts()

    @answer.claim(
        "A", "table 1", "nullspace noise helps", where="07", criterion="holds if ...", endpoint="PGD, minus noise 0"
    )
    def helps() -> tuple[str, str, Endpoint]:
        gain = endpoint(paired, "nullspace", "zero", "pgd", least=0.02)
        return gain.in_points(), gain.word, gain

    save_table(answer.table(), "07_verdicts")
    answer.show(question=..., answer=..., would_change=..., limits=...)

A word is final when `statistics.carried` has let it pass, with p values corrected for all endpoints of a paper.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import pandas as pd
from scipy import stats

from nullpaper.statistics import FEWEST_SEEDS, Interval, carried, holm
from nullpaper.studies.endpoints import Endpoint
from nullpaper.studies.endpoints import power as power  # what a notebook needs is in one place

WORDS = ("holds", "does not hold", "in part", "ill-posed", "not resolved", "not testable here", "not measured")

Answer = bool | None
"""Yes, no, or undecided by the interval."""
Judge = Callable[[], tuple[str, str] | tuple[str, str, Endpoint]]
"""From the tables of a notebook to what was measured, in words, one of `WORDS`, and the number that decides."""
Sentence = str | Callable[[], str]
"""With computed numbers; a function may miss a row or column of its tables (a KeyError)."""


class Verdicts:
    """The verdicts on the claims that one notebook decides, in the order in which they are stated."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def claim(
        self, papers: str, source: str, said: str, *, where: str, criterion: str, endpoint: str = ""
    ) -> Callable[[Judge], Judge]:
        """Judge a claim at once, by the function that this decorates; its name is the name of the claim.

        Args:
            papers: which say so, such as "A, C"; empty: nobody asked.
            source: equation, section or table there, or "code" of the authors.
            said: the claim in a few words.
            where: notebook and section that measure it.
            criterion: when it holds, in words; the function is the same in numbers. It returns what was measured and
                one of `WORDS`, and the number that decides; a row or column that its tables lack (a KeyError) makes the
                claim "not measured".
            endpoint: what that number is, in a few words.

        Raises:
            ValueError: a word that is none of `WORDS`.
        """

        def judged(judge: Judge) -> Judge:
            name, number = judge.__name__, Endpoint()
            try:
                text, holds, *given = judge()
                number = given[0] if given else number
            except KeyError as error:
                text, holds = f"not measured with these parameters: the tables lack {error.args[0]}", "not measured"
            if holds not in WORDS:
                raise ValueError(f"claim {name} answers {holds!r}: it must be one of {', '.join(WORDS)}")
            asked = {"name": name, "papers": papers, "source": source, "said": said, "criterion": criterion}
            measured = {"where": where, "endpoint": endpoint, "measured": text, **asdict(number), "holds": holds}
            self._rows.append(asked | measured)
            return judge

        return judged

    def table(self) -> pd.DataFrame:
        """One row a claim: name, papers, source, said, criterion, where, endpoint, measured, `Endpoint`'s, holds."""
        return pd.DataFrame({**row, "holds": final} for row, final in zip(self._rows, self._final(), strict=True))

    def _final(self) -> list[str]:
        """The words that are left when a paper's endpoints were corrected for their number."""
        adjusted = holm(*({one["name"]: one[part] for one in self._rows} for part in ("p", "papers")))
        numbers = ("n_seeds", "high", "least")
        found = [(one["holds"], adjusted[one["name"]], {name: one[name] for name in numbers}) for one in self._rows]
        return [carried(holds, p=p, **known) for holds, p, known in found]

    def show(self, limits: str = "", *, question: str = "", answer: Sentence = "", would_change: str = "") -> None:
        """Print every claim, what was measured, the word and its criterion; then `conclude` for all of them."""
        for row in self.table().to_dict("records"):
            asked = ", ".join(filter(None, (f"paper {row['papers']}" * bool(row["papers"]), row["source"])))
            print(f"\n{row['holds'].upper()}: {row['said']} ({asked or 'no paper asks'})")
            for text in (row["measured"], f"({row['criterion']})"):
                print(textwrap.fill(text, 110, initial_indent="    ", subsequent_indent="    "))
        conclude(question, answer, would_change, limits)


def conclude(question: str, answer: Sentence, would_change: str, limits: str = "") -> None:
    """Print how a notebook ends: what it asked, the answer with its numbers, what would change it, and the limits."""
    try:
        answer = answer if isinstance(answer, str) else answer()
    except KeyError as error:
        answer = f"not measured with these parameters: the tables lack {error.args[0]}."
    parts = {"Question": question, "Answer": answer, "What would change it": would_change, "Limits": limits}
    for name, text in ((name, text) for name, text in parts.items() if text):
        print("\n" + textwrap.fill(f"{name}: {text}", 110, subsequent_indent="    "))


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
    """Columns ``column``, ``column_low``, ``column_high`` (empty: no interval) and ``n`` of a row.

    Raises:
        KeyError: the value is empty.
    """
    value, low, high, n = (row[name] for name in (column, f"{column}_low", f"{column}_high", "n"))
    if pd.isna([value, n]).any():
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
    bracket = "" if estimate.n == 1 else f" [{low}, {high}]"  # a single observation has none
    bracket = " [no interval]" if bracket and math.isnan(estimate.low) else bracket
    count = "" if of is None else f" of {estimate.n:,} {of}" if of else f" (n = {estimate.n:,})"
    return f"{value}{unit}{bracket}{last}{count}"


# Paired differences: tables such as 07_paired, one row for two methods trained alike and a measure, with columns
# difference (of the accuracies; _low and _high over n seeds, Student's t), images_low and images_high (bootstrap)

NAMES = {"fgsm": "FGSM", "cw": "margin PGD", "patch": "patch attack", "pgd": "PGD", "pgd 8/255": "PGD 8/255"}
BETTER = "better: the intervals over seeds, of three or more, and over images both exclude 0. "
WORSE = ", does not hold if worse on one and better on none"


def difference(
    paired: pd.DataFrame, method: str, against: str, measure: str, **where: Any
) -> tuple[Interval, Interval, str]:
    """Accuracy of a method minus that of another, with the intervals over seeds and over images, and over how long.

    A pair may stand in the table either way round. ``where``: values of other columns.
    """
    line, sign = _pair(paired, method, against, measure, where)
    ends = [(line[f"{over}_low"], line[f"{over}_high"]) for over in ("difference", "images")]
    value, n = sign * float(line["difference"]), int(line["n"])
    seeds, images = (Interval(value, *(sign * float(end) for end in pair[::sign]), n) for pair in ends)
    return seeds, images, f", {int(line['steps'])} steps" if "steps" in line else ""


def endpoint(
    paired: pd.DataFrame, method: str, against: str, measure: str, *, least: float, null: float = 0.0, **where: Any
) -> Endpoint:
    """The difference of a row of `contrasts.contrast`, whichever way round, as the number that decides a claim.

    Args:
        least: the smallest difference that matters, a share.
        null: the difference that ``p`` tests against, such as ``-least`` where the claim is "not worse".
        where: values of other columns.
    """
    line, sign = _pair(paired, method, against, measure, where)
    value, *ends = (sign * float(line[name]) for name in ("difference", *("low", "high")[::sign]))
    error = (ends[1] - ends[0]) / 2 / float(stats.t.ppf(0.975, line["df"]))
    p = float(2 * stats.t.sf(abs(value - null) / error, line["df"]))
    return Endpoint(value, *ends, p, int(line["n"]), int(line["images"]), least)


def _pair(
    paired: pd.DataFrame, method: str, against: str, measure: str, where: dict[str, Any]
) -> tuple[pd.Series, int]:
    """The row of a pair, and -1 if it stands there the other way round."""
    try:
        return row(paired, method=method, against=against, measure=measure, **where), 1
    except KeyError:
        return row(paired, method=against, against=method, measure=measure, **where), -1


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
