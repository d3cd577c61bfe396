"""The columns of a tidy table: which identify a row, which were measured, and rows by what stands in them."""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from nullpaper.errors import InputError, nearest
from nullpaper.workflow.collect import listed

__all__ = [
    "BOUNDS",
    "bounds_of",
    "check_columns",
    "is_words",
    "key_columns",
    "measured_columns",
    "split_names",
    "where",
    "word",
]

CONDITION = re.compile(r"\s*(.+?)\s*(!=|<=|>=|==|=|<|>)\s*(.*?)\s*")
ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
BOOLEANS = {"true": True, "false": False}
RELATIVE = 1e-9  # of equal numbers, so that 0.0313725490196 finds 8/255
BOUNDS = ("_low", "_high")
NEITHER = ("n", "job", "commit")


def key_columns(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The columns of a table that tell its rows apart within every job (the index); none if each has one row.

    The fewest that do, tried in this order: columns of words, of whole numbers, of other numbers that recur from job to
    job, of booleans; each from left to right, and what proves needless is dropped from the right. Never the bounds
    ``x_low`` and ``x_high``, a column ``x`` that has them, or a count ``n``. If no columns do, rows are told apart by
    their place in the table, in a column ``row`` that the frame is given.
    """
    codes = {name: pd.factorize(frame[name], use_na_sentinel=False)[0] for name in columns}
    job = pd.factorize(frame.index)[0]

    def unique(names: Sequence[str]) -> bool:
        return not pd.DataFrame({"": job, **{name: codes[name] for name in names}}).duplicated().any()

    def recurs(name: str) -> bool:
        pairs = len(pd.DataFrame({"": job, name: codes[name]}).drop_duplicates())
        return types.is_float_dtype(frame[name]) and pairs >= 2 * (codes[name].max() + 1)

    possible = [name for name in columns if _may_be_key(name, columns)]
    kinds = (
        [name for name in possible if is_words(frame[name])],
        [name for name in possible if types.is_integer_dtype(frame[name])],
        [name for name in possible if recurs(name)],
        [name for name in possible if types.is_bool_dtype(frame[name])],
    )
    chosen: list[str] = []
    for name in (name for kind in kinds for name in kind):
        if unique(chosen):
            break
        chosen.append(name)
    for name in chosen[::-1]:
        if unique(fewer := [other for other in chosen if other != name]):
            chosen = fewer
    if unique(chosen):
        return [name for name in columns if name in chosen]
    frame["row"] = pd.Series(job).groupby(job).cumcount().to_numpy()
    return ["row"]


def measured_columns(frame: pd.DataFrame, keys: Collection[str]) -> list[str]:
    """The columns of numbers and booleans that are neither keys nor the bounds or the number ``n`` of an interval."""
    bounds = bounds_of(frame)
    return [
        name
        for name in frame.columns
        if name not in keys and name not in NEITHER and name not in bounds and not is_words(frame[name])
    ]


def bounds_of(frame: pd.DataFrame) -> set[str]:
    """The columns ``x_low`` and ``x_high`` of a frame that has a column ``x``."""
    return {f"{name}{end}" for name in frame.columns for end in BOUNDS if f"{name}{end}" in frame.columns}


def is_words(column: pd.Series) -> bool:
    """Whether a column holds neither numbers nor booleans."""
    return not (types.is_numeric_dtype(column) or types.is_bool_dtype(column))


def check_columns(
    frame: pd.DataFrame, names: Sequence[str], option: str, also: Collection[str] = (), numbers: bool = False
) -> None:
    """Refuse names that are no columns of the frame, or no columns with a mean.

    Args:
        option: that the names come from, for the sentence.
        also: further names that may be meant, for a suggestion.
        numbers: whether they have to hold numbers or booleans.

    Raises:
        InputError: one is unknown, or holds words.
    """
    known = [*map(str, frame.columns), *also]
    for name in names:
        if name not in frame.columns:
            hint = nearest(name, known) or listed(" There are", known)
            raise InputError(f"{option}: there is no column '{name}'.{hint}")
        if numbers and is_words(frame[name]):
            raise InputError(f"{option}: '{name}' holds words, which have no mean; name a column of numbers.")


def split_names(frame: pd.DataFrame, text: str, option: str) -> list[str]:
    """A column, or several with commas between them.

    Raises:
        InputError: one is unknown.
    """
    names = [text] if text in frame.columns else [name.strip() for name in text.split(",")]
    check_columns(frame, names, option)
    return names


def where(frame: pd.DataFrame, conditions: Sequence[str], fixed: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The rows that meet all conditions such as ``eps>=8/255``, ``method=lora,lnlora`` or ``seed!=3``.

    ``=`` with a list means any of, ``!=`` none of; ``none`` stands for a missing value too; a value with a comma in it
    goes in double quotes.

    Args:
        fixed: parameters that are the same in all rows, as arrays of one value.

    Raises:
        InputError: no such column or operator, a value that does not fit the column, or no row is left.
    """
    fixed = fixed or {}
    for condition in conditions:
        found = CONDITION.fullmatch(condition)
        if found is None:
            raise InputError(f"--where '{condition}' has no operator: write NAME=VALUE, or !=, <, <=, >, >=.")
        name, sign, text = found.groups()
        if name not in frame.columns and name in fixed:
            column = pd.Series(fixed[name].take(np.zeros(len(frame), int)), index=frame.index)
        else:
            check_columns(frame, [name], f"--where '{condition}'", also=list(fixed))
            column = frame[name]
        kept = frame[_meets(column, condition, sign, text)]
        if kept.empty:
            values = listed(f" Before it, '{name}' is", [word(value) for value in column.drop_duplicates().head(20)])
            raise InputError(f"no row is left after --where '{condition}'.{values}")
        frame = kept
    return frame


def word(value: Any) -> str:
    """A value of a key as text."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _may_be_key(name: str, columns: Sequence[str]) -> bool:
    bound = any(name.endswith(end) and name.removesuffix(end) in columns for end in BOUNDS)
    estimate = all(f"{name}{end}" in columns for end in BOUNDS)
    return not (bound or estimate or name == "n" or name.endswith("_n"))


def _meets(column: pd.Series, condition: str, sign: str, text: str) -> np.ndarray:
    """Which entries meet a condition."""
    texts = next(csv.reader([text], skipinitialspace=True), [])
    if not texts or (sign in ORDERS and len(texts) > 1):
        raise InputError(f"--where '{condition}' needs {'one value' if texts else 'a value'} after {sign}.")
    if sign in ORDERS:
        if is_words(column) or types.is_bool_dtype(column):
            raise InputError(f"--where '{condition}': '{column.name}' holds no numbers to compare; use = or !=.")
        met = ORDERS[sign](column, _number(texts[0], condition))
    else:
        met = pd.Series(False, index=column.index)
        for one in texts:
            met |= _equals(column, one.strip(), condition)
        met = ~met if sign == "!=" else met
    return met.fillna(False).to_numpy(bool)


def _equals(column: pd.Series, text: str, condition: str) -> pd.Series:
    missing = column.isna() if text.lower() == "none" else pd.Series(False, index=column.index)
    if is_words(column):
        return missing | (column == text).fillna(False)
    if text.lower() == "none":
        return missing
    if types.is_bool_dtype(column):
        if text.lower() not in BOOLEANS:
            raise InputError(f"--where '{condition}': '{text}' is neither true nor false.")
        return (column == BOOLEANS[text.lower()]).fillna(False)
    number = _number(text, condition)
    return ((column == number) | ((column - number).abs() <= RELATIVE * abs(number))).fillna(False)


def _number(text: str, condition: str) -> float:
    """A number, or a fraction such as 8/255."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--where '{condition}': '{text}' is no number.") from error
