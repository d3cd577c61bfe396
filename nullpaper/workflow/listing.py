"""A table as text to read: four digits, an estimate and its interval in one cell, nothing cut off."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from pandas.api import types

from nullpaper.workflow.columns import BOUNDS, is_words

__all__ = ["Column", "cells", "lines", "parts"]


@dataclass(frozen=True)
class Column:
    """A column's title and texts, and whether it reads from the right."""

    title: str
    texts: Sequence[str]
    numbers: bool

    @functools.cached_property
    def width(self) -> int:
        return max(map(len, [self.title, *self.texts]))


def cells(frame: pd.DataFrame) -> list[Column]:
    """The columns of a frame as text, ``x``, ``x_low`` and ``x_high`` as one: ``0.91 [0.89, 0.93]``.

    The numbers ``c_n`` of a pivot are one column ``n`` if they are the same everywhere.
    """
    columns, bounded = [], [name for name in frame if all(f"{name}{end}" in frame for end in BOUNDS)]
    counts = [f"{name}_n" for name in bounded if f"{name}_n" in frame]
    same = len(counts) == len(bounded) > 0 and (frame[counts].nunique(axis=1) == 1).all()
    hidden = {f"{name}{end}" for name in bounded for end in BOUNDS} | (set(counts) if same else set())
    for name in frame:
        if name in hidden:
            continue
        texts = _texts(frame[name])
        if name in bounded:
            bounds = zip(*(_texts(frame[f"{name}{end}"]) for end in BOUNDS), strict=True)
            texts = [
                f"{text} [{low}, {high}]" if low and high else text
                for text, (low, high) in zip(texts, bounds, strict=True)
            ]
        columns.append(Column(str(name), texts, not is_words(frame[name]) and name not in bounded))
    return [*columns, Column("n", _texts(frame[counts].bfill(axis=1).iloc[:, 0]), True)] if same else columns


def lines(columns: Sequence[Column]) -> Iterator[str]:
    """The lines of a table with a head, in columns of equal width."""
    padded = []
    for column in columns:
        pad = str.rjust if column.numbers else str.ljust
        padded.append([pad(text, column.width) for text in (column.title, "-" * column.width, *column.texts)])
    return ("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def parts(columns: Sequence[Column], keys: Collection[str], width: int) -> list[list[Column]]:
    """The columns in parts of at most ``width`` characters where that can be, each with the ``keys`` in front."""
    front = [column for column in columns if column.title in keys]
    rest = [column for column in columns if column.title not in keys]
    found: list[list[Column]] = [[]]
    for column in rest:
        if found[-1] and sum(other.width + 2 for other in [*front, *found[-1], column]) - 2 > width:
            found.append([])
        found[-1].append(column)
    return [[*front, *part] for part in found]


def _texts(column: pd.Series) -> list[str]:
    """The values as text, missing ones empty."""
    if types.is_float_dtype(column):
        return ["" if value != value else f"{value:.4g}" for value in column.tolist()]
    return ["" if value is pd.NA else str(value) for value in column.astype(object).where(column.notna(), pd.NA)]
