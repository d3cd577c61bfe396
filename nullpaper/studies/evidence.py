"""Numbers read from tables of results, in words and as answers to a bound, for `nullpaper.studies.judging`.

Answers are three-valued: an interval that a bound cuts through decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullpaper.errors import InputError
from nullpaper.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    *("Answer", "Missing", "Tables", "above", "at_least", "below", "counted", "every", "interval", "negate", "number"),
    *("LONGER", "percent", "points", "some", "word"),
]

Answer = bool | None
"""Yes, no, or undecided by the interval."""


class Missing(KeyError):
    """A table, row or number that the results at hand lack."""


LONGER = "-long"


class Tables:
    """The tables (CSV files) in a folder, by name without suffix, each read once.

    A folder of the same name with ``-long`` behind it, of longer runs of the same notebooks, is asked first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, list[pd.DataFrame]] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        """The whole table.

        Raises:
            Missing: there is none.
            InputError: the file is no table.
        """
        return self._versions(name)[0]

    def rows(self, name: str, **where: Any) -> pd.DataFrame:
        """The rows of a table whose columns have these values, at least one, or `Missing`."""
        for table in self._versions(name):
            for column, value in where.items():
                table = table[table[column] == value]
            if not table.empty:
                return table
        raise Missing(f"{name}: {where}")

    def _versions(self, name: str) -> list[pd.DataFrame]:
        """The table of the longer runs and of the profile, those that there are."""
        if name not in self._read:
            folders = self.folder.with_name(f"{self.folder.name}{LONGER}"), self.folder
            paths = [path for folder in folders if (path := folder / f"{name}.csv").is_file()]
            if not paths:
                raise Missing(name)
            self._read[name] = [_table(path) for path in paths]
        return self._read[name]

    def row(self, name: str, **where: Any) -> pd.Series:
        """The one row of a table whose columns have these values, or `Missing`."""
        rows = self.rows(name, **where)
        if len(rows) > 1:
            raise Missing(f"{name}: {where} names {len(rows)} rows, not one")
        return rows.iloc[0]

    def interval(self, name: str, column: str, **where: Any) -> Interval:
        """A number of such a row with its interval and n, or `Missing`."""
        return interval(self.row(name, **where), column)


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise InputError(f"{path} is no table (CSV): delete it and run its notebook again") from error


def interval(row: pd.Series, column: str) -> Interval:
    """Columns ``column``, ``column_low``, ``column_high`` and ``n`` of a row, or `Missing` if one is empty."""
    value, low, high, n = (row[name] for name in (column, f"{column}_low", f"{column}_high", "n"))
    if any(number != number for number in (value, low, high, n)):
        raise Missing(column)
    return Interval(float(value), float(low), float(high), int(n))


def counted(rows: pd.DataFrame, column: str) -> list[Interval]:
    """The interval of every row."""
    return [interval(row, column) for _, row in rows.iterrows()]


def at_least(measured: Interval, bound: float) -> Answer:
    """Yes if the whole interval is at or above the bound, no if it is below, else undecided."""
    return True if measured.low >= bound else False if measured.high < bound else None


def below(measured: Interval, bound: float) -> Answer:
    """Yes if the whole interval is below the bound, no if it is at or above, else undecided."""
    return negate(at_least(measured, bound))


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
    """``holds`` if the whole claim is shown, ``in part`` if a part is, ``no`` if neither is true, else undecided."""
    if whole or part:
        return "holds" if whole else "in part"
    return "no" if whole is not None and part is not None else "not resolved"


def percent(measured: Interval, of: str | None = "") -> str:
    """``97.1 % [95.7, 98.5] (n = 3)``; ``of``: "of 3 images" instead of n; None: nothing, as n is said beside it."""
    value, *ends = (f"{100 * number:.1f}".replace("100.0", "100") for number in _ends(measured))
    return f"{value} %{_bracket(measured, ends)}{_count(measured, of)}"


def points(measured: Interval, of: str | None = "") -> str:
    """A difference of shares in percentage points, ``+1.2 [+0.3, +2.1] points (n = 500)``."""
    value, *ends = (f"{100 * number:+.1f}" for number in _ends(measured))
    return f"{value}{_bracket(measured, ends)} points{_count(measured, of)}"


def number(measured: Interval, spec: str = ".1f", of: str | None = "") -> str:
    """``66.9 [61.8, 71.9] (n = 2)``, each number as ``spec`` says."""
    value, *ends = (format(number, spec) for number in _ends(measured))
    return f"{value}{_bracket(measured, ends)}{_count(measured, of)}"


def _ends(measured: Interval) -> tuple[float, float, float]:
    return measured.value, measured.low, measured.high


def _bracket(measured: Interval, ends: list[str]) -> str:
    """The interval; a single observation has none."""
    return f" [{', '.join(ends)}]" if measured.n > 1 else ""


def _count(measured: Interval, of: str | None) -> str:
    return "" if of is None else f" of {measured.n:,} {of}" if of else f" (n = {measured.n:,})"
