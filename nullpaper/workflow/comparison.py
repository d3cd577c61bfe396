"""Two tables of one notebook held against each other: row by row, number by number, within both intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from nullpaper.statistics import TWO_WAY

CLOSE = 5e-3
"""Relative distance of numbers that are equal to three significant digits."""
TINY = 1e-6
"""Numbers nearer than this are equal: rounding errors of float32 differ from machine to machine."""
TIMED = re.compile(r"(^|[^a-z])(seconds|minutes|ms|time|speedup|clock)([^a-z]|$)")
SHOWN = 12
OTHER, PLACE = "|reference", "|place"  # no columns of a table


def held_against(tables: Sequence[tuple[str, Path, Path]], where: str) -> list[str]:
    """How many numbers of ``tables`` agree: each is a notebook, our file, and that of the reference in ``where``."""
    compared = [
        compare(pd.read_csv(ours), pd.read_csv(theirs)).assign(notebook=notebook, table=ours.stem)
        for notebook, ours, theirs in tables
    ]
    numbers = pd.concat(compared) if compared else pd.DataFrame()
    if numbers.empty:
        return [f"No table here has a counterpart in {where}: nothing could be held against the reference."]
    lines = [f"{numbers['agrees'].sum():,} of {len(numbers):,} numbers agree with the reference in {where}."]
    if len(different := numbers[~numbers["agrees"]]):
        shown = different.head(SHOWN)[["notebook", "table", "row", "column", "here", "reference"]]
        lines += ["These do not:", shown.to_string(index=False, max_colwidth=44)]
        lines += [f"and {len(different) - SHOWN:,} more"] * (len(different) > SHOWN)
    return lines


def compare(here: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """``row``, ``column``, ``agrees``, and both as text, for each value of the rows that both tables have."""
    common = [column for column in here if column in reference]
    answers = _answers(common)
    keys = _keys(here, reference, [column for column in answers if f"{column}_low" not in common])
    here, reference = (
        table[common].assign(**{PLACE: table.groupby(keys, dropna=False).cumcount() if keys else range(len(table))})
        for table in (here, reference)
    )
    pairs = here.merge(reference, on=[*keys, PLACE], suffixes=("", OTHER))
    names = [
        ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in row)
        for row in pairs[keys].to_numpy(object)
    ]
    tables = [pd.DataFrame(columns=["row", "column", "agrees", "here", "reference"])]
    for column in answers:
        if column not in keys:
            one, other = (_with_bounds(pairs, column, suffix) for suffix in ("", OTHER))
            table = {
                "row": names,
                "column": column,
                "agrees": _agree(one, other),
                "here": _text(one),
                "reference": _text(other),
            }
            tables.append(pd.DataFrame(table)[one["value"].notna() | other["value"].notna()])
    return pd.concat(tables, ignore_index=True).astype({"agrees": bool})


def _answers(columns: Sequence[str]) -> list[str]:
    """The columns that hold answers: neither bounds, sample sizes or measured times, nor the text of verdicts."""
    timed = [column for column in columns if TIMED.search(column.replace("_", " "))]
    ratios = [column for column in columns if timed and "ratio" in column]  # of times
    bounds = [f"{column}_{end}" for column in columns for end in ("low", "high")]
    chance = {"low", "high", "df", "p", "least", "n_seeds", "n_images"}  # of an endpoint or a difference
    left_out = {"measured", "n", "images", "Unnamed: 0", *chance, *timed, *ratios, *bounds}
    return [column for column in columns if column not in left_out and not column.endswith("_n")]


def _keys(here: pd.DataFrame, reference: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Columns that name a row: words first, then numbers that both tables have, while they tell more rows apart."""
    words = [column for column in columns if not any(is_numeric_dtype(table[column]) for table in (here, reference))]
    numbers = [column for column in columns if _are_numbers(here[column], reference[column])]
    keys: list[str] = []
    repeated = len(reference) - 1
    for column in [*words, *(column for column in numbers if set(here[column]) & set(reference[column]))]:
        if (fewer := reference.duplicated([*keys, column]).sum()) < repeated:
            keys, repeated = [*keys, column], fewer
    return keys


def _are_numbers(*columns: pd.Series) -> bool:
    return all(is_numeric_dtype(column) and not is_bool_dtype(column) for column in columns)


def _with_bounds(pairs: pd.DataFrame, column: str, suffix: str) -> pd.DataFrame:
    ends = ("low", "high") if column in TWO_WAY and f"low{suffix}" in pairs else (f"{column}_low", f"{column}_high")
    names = [f"{name}{suffix}" for name in (column, *ends)]
    return pairs.reindex(columns=names).set_axis(["value", "low", "high"], axis=1)


def _agree(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    a, b = one["value"], other["value"]
    if not _are_numbers(a, b):
        return a == b
    close = (a - b).abs() <= np.maximum(CLOSE * np.maximum(a.abs(), b.abs()), TINY)
    return close | (a == b) | (b.between(one["low"], one["high"]) & a.between(other["low"], other["high"]))


def _text(values: pd.DataFrame) -> list[str]:
    if not _are_numbers(values["value"]):
        return [str(value) for value in values["value"]]
    bounds = [f" [{low:.3g}, {high:.3g}]" if low == low else "" for low, high in values[["low", "high"]].to_numpy()]
    return [f"{value:.3g}{bound}" for value, bound in zip(values["value"], bounds, strict=True)]
