"""How far a reader's numbers agree with the reference: table by table, row by row, number by number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool, is_bool_dtype, is_number, is_numeric_dtype

from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import read_manifest

CLOSE = 5e-3
"""Relative distance of numbers that are equal to three significant digits."""
TINY = 1e-6
"""Numbers nearer than this are equal: rounding errors of float32 differ from machine to machine."""
TIMED = re.compile(r"(^|[^a-z])(seconds|minutes|ms|time|speedup|clock)([^a-z]|$)")
COUNTS = ("n", "images")
SHOWN = 12
NUMBER = "|number"  # no column of a table


@dataclass(frozen=True)
class Agreement:
    """How many numbers of a folder agree with the reference.

    Attributes:
        compared: how many numbers, words and marks of both were held against each other.
        differences: a row for each that does not agree: notebook, table, row, column, here, reference.
        others: notebooks that ran with other parameters than the reference; their numbers are compared all the same.
    """

    compared: int
    differences: pd.DataFrame
    others: tuple[str, ...] = ()

    @property
    def agree(self) -> int:
        """How many agree."""
        return self.compared - len(self.differences)

    def __str__(self) -> str:
        if not self.compared:
            return "No table here has a counterpart in results/: nothing could be held against the reference."
        lines = [f"{self.agree:,} of {self.compared:,} numbers agree with the reference in results/."]
        if self.others:
            lines.append(f"Run with other parameters than the reference: {', '.join(self.others)}.")
        if len(self.differences):
            shown = self.differences.head(SHOWN).to_string(index=False, max_colwidth=44)
            rest = len(self.differences) - SHOWN
            lines += ["These do not:", shown, *([f"and {rest:,} more"] if rest > 0 else [])]
        return "\n".join(lines)


def agreement(out: Path) -> Agreement:
    """Hold the tables of ``out`` against those of the same names in ``results/`` of the project.

    A number with an interval agrees with another when each lies in the other's interval; any two numbers agree when
    they are equal to three significant digits. Words and marks agree when they are equal. Measured times, sample sizes
    and the text of verdicts are left out; so are rows and columns that only one side has.

    Raises:
        InputError: a damaged manifest.
    """
    root, rows, compared = project_root(), [], 0
    here, reference = read_manifest(out), read_manifest(root / "results")
    others = [name for name, entry in here.items() if _parameters(reference, name) not in (None, entry["parameters"])]
    for notebook, entry in here.items():
        for file in (file for file in entry["files"] if file.startswith("results/")):
            if (out / file).is_file() and (root / file).is_file():
                for column, row, agrees, one, other in compare(pd.read_csv(out / file), pd.read_csv(root / file)):
                    compared += 1
                    if not agrees:
                        rows.append((notebook, Path(file).stem, row, column, one, other))
    columns = ["notebook", "table", "row", "column", "here", "reference"]
    return Agreement(compared, pd.DataFrame(rows, columns=columns), tuple(others))


def _parameters(entries: dict[str, dict[str, Any]], notebook: str) -> Any:
    return entries.get(notebook, {}).get("parameters")


def compare(here: pd.DataFrame, reference: pd.DataFrame) -> Iterator[tuple[str, str, bool, str, str]]:
    """Column, row, whether the two agree, and both as text, for each value of the rows that both tables have."""
    here, reference = (table.drop(columns="measured", errors="ignore") for table in (here, reference))
    common = [column for column in here.columns if column in set(reference.columns)]
    keys = _keys(here[common], reference[common])
    here, reference = (_numbered(table, keys) for table in (here, reference))
    pairs = here.merge(reference, on=[*keys, NUMBER], suffixes=("", "|reference"))
    for column in _values(common, keys):
        for _, pair in pairs.iterrows():
            one, other = (_Value.of(pair, column, suffix) for suffix in ("", "|reference"))
            if not (one.is_empty and other.is_empty):
                row = ", ".join(f"{pair[key]:g}" if isinstance(pair[key], float) else str(pair[key]) for key in keys)
                yield column, row, one.agrees(other), str(one), str(other)


@dataclass(frozen=True)
class _Value:
    value: Any
    low: float | None
    high: float | None

    @classmethod
    def of(cls, row: pd.Series, column: str, suffix: str) -> _Value:
        low, high = (row.get(f"{column}_{end}{suffix}") for end in ("low", "high"))
        return cls(row[f"{column}{suffix}"], low, high)

    @property
    def is_empty(self) -> bool:
        return bool(pd.isna(self.value))

    @property
    def is_number(self) -> bool:
        return is_number(self.value) and not is_bool(self.value)

    def agrees(self, other: _Value) -> bool:
        if self.is_empty or other.is_empty:
            return False
        if not (self.is_number and other.is_number):
            return self.value == other.value
        close = math.isclose(self.value, other.value, rel_tol=CLOSE, abs_tol=TINY)
        return close or (self.holds(other.value) and other.holds(self.value))

    def holds(self, number: float) -> bool:
        return self.low is not None and self.high is not None and self.low <= number <= self.high

    def __str__(self) -> str:
        if not self.is_number:
            return str(self.value)
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{interval}"


def _values(columns: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The columns that hold answers: neither what names a row, nor bounds, sample sizes or measured times."""
    timed = [column for column in columns if TIMED.search(column.replace("_", " "))]
    ratios = [column for column in columns if timed and "ratio" in column]  # of times
    bounds = [f"{column}_{end}" for column in columns for end in ("low", "high")]
    return [
        column
        for column in columns
        if column not in {*keys, *bounds, *COUNTS, *timed, *ratios} and not column.endswith(("_n", "Unnamed: 0"))
    ]


def _keys(here: pd.DataFrame, reference: pd.DataFrame) -> list[str]:
    """Columns that name a row: words first, then numbers without an interval, until no two rows have one name."""
    columns = _values(list(reference.columns), [])
    bare = [column for column in columns if f"{column}_low" not in reference.columns]
    words = [column for column in bare if not any(is_numeric_dtype(table[column]) for table in (here, reference))]
    numbers = [column for column in bare if all(_holds_numbers(table[column]) for table in (here, reference))]
    keys: list[str] = []
    for column in [*words, *(column for column in numbers if set(here[column]) & set(reference[column]))]:
        if _groups(reference, keys) < len(reference) and _groups(reference, [*keys, column]) > _groups(reference, keys):
            keys.append(column)
    return keys


def _holds_numbers(column: pd.Series) -> bool:
    return is_numeric_dtype(column) and not is_bool_dtype(column)


def _groups(table: pd.DataFrame, keys: Sequence[str]) -> int:
    return len(table[list(keys)].drop_duplicates()) if keys else min(1, len(table))


def _numbered(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The table with a column that numbers the rows of one name."""
    number = table.groupby(list(keys), dropna=False).cumcount() if keys else range(len(table))
    return table.assign(**{NUMBER: number})
