"""Numbers over the runs of a tidy table: mean and interval over seeds, paired differences of two tables, pivots."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from pandas.api import types

from nullpaper.errors import InputError
from nullpaper.workflow.columns import BOUNDS, bounds_of, check_columns, is_words, measured_columns, split_names, word

__all__ = ["differences", "left_out", "over", "pivot"]


def over(
    frame: pd.DataFrame, keys: Sequence[str], runs: Collection[str], values: Sequence[str] | None = None
) -> pd.DataFrame:
    """Mean over runs of what was measured, with Student's t interval at 95 % and the number of runs.

    Args:
        keys: columns that identify a row; those not in ``runs`` make the groups.
        runs: columns to average over, such as the seed.
        values: what to average; None: all that was measured, but whole numbers only where they differ in a group.

    Returns:
        A row a group: for each value x the columns ``x``, ``x_low``, ``x_high``, and ``x_n`` where x is missing in some
        runs; and ``n``, the runs. A single run has no interval (NaN). Without ``values``, other columns that are the
        same throughout every group are kept; the table's bounds are not, since a mean of bounds bounds nothing.
        A column ``n`` of the table is called ``table.n``.

    Raises:
        InputError: no such column, one without a mean, or rows in a group that are not from different runs.
    """
    frame = frame.rename(columns={"n": "table.n"})
    groups = [name for name in keys if name not in runs]
    check_columns(frame, values or [], "--value", numbers=True)
    check_distinct(frame, [*groups, *(name for name in runs if name in frame)], keys, "would count as different runs")
    codes, first = _grouped(frame, groups)
    kept: list[str] = []
    if values is None:
        others = [name for name in frame.columns if name not in (*groups, *runs) and name not in bounds_of(frame)]
        same = [name for name in others if _is_constant(frame[name], codes, first)]
        values = [name for name in measured_columns(frame, [*groups, *runs, "table.n"])]
        values = [name for name in values if not (name in same and types.is_integer_dtype(frame[name]))]
        kept = [name for name in same if name not in values]
    counts = np.bincount(codes, minlength=len(first))
    table = frame.iloc[first][[*groups, *kept]].reset_index(drop=True)
    return pd.concat([table, *(_intervals(frame[name], codes, counts) for name in values)], axis=1).assign(n=counts)


def left_out(before: pd.DataFrame, after: pd.DataFrame, runs: Collection[str]) -> list[str]:
    """The columns of words that differ between runs, which `over` has no place for."""
    return [
        name for name in before if is_words(before[name]) and name not in after and name not in (*runs, "job", "commit")
    ]


def differences(
    first: pd.DataFrame, second: pd.DataFrame, keys: Sequence[str], values: Sequence[str]
) -> tuple[pd.DataFrame, int, int]:
    """What was measured in two tables, row by row, and ``first`` minus ``second``.

    Returns:
        Columns ``keys`` and, for each value x, ``x_first``, ``x_second`` and ``x_difference``; how many rows only the
        first has; how many only the second has.

    Raises:
        InputError: a value without a mean, several rows for one, or none that has its like.
    """
    keys, sides = list(keys), ("_first", "_second")
    parts = []
    for frame, side in zip((first, second), sides, strict=True):
        check_columns(frame, values, "--value", numbers=True)
        others = [name for name in frame if name not in (*values, "job", "commit")]
        check_distinct(frame, keys, others, "would be paired with one row of the other")
        numbers = {f"{name}{side}": _numbers(frame[name]) for name in values}
        parts.append(pd.concat([frame[keys], pd.DataFrame(numbers, index=frame.index)], axis=1))
    pairs = parts[0].merge(parts[1], **({"on": keys} if keys else {"how": "cross"}))
    if pairs.empty:
        raise InputError(f"no row has its like in the other by {', '.join(keys)}: compare sweeps of the same values.")
    columns = {}
    for name in values:
        one, other = (pairs[f"{name}{side}"] for side in sides)
        columns |= {f"{name}{sides[0]}": one, f"{name}{sides[1]}": other, f"{name}_difference": one - other}
    table = pd.concat([pairs[keys], pd.DataFrame(columns, index=pairs.index)], axis=1)
    return table, len(first) - len(pairs), len(second) - len(pairs)


def pivot(frame: pd.DataFrame, keys: Sequence[str], rows: str, columns: str, value: str) -> pd.DataFrame:
    """A value by rows and columns, each a column's name or a list of such; with its bounds and number if it has them.

    Args:
        keys: columns that identify a row.

    Returns:
        A row a value of ``rows``, and a column ``c`` a value of ``columns``, with ``c_low``, ``c_high`` and ``c_n``.

    Raises:
        InputError: no such column, or several rows of the table fall in one cell.
    """
    left, top = (split_names(frame, text, "--pivot") for text in (rows, columns))
    check_columns(frame, [value], "--pivot")
    check_distinct(frame, [*left, *top], keys, "fall in one cell of the pivot")
    (at, first_row), (across, first_column) = (_ordered(frame, names) for names in (left, top))
    bare = all(is_words(frame[name]) and not frame[name].isin(left).any() for name in top)
    parts = {"": value}
    if all(f"{value}{end}" in frame for end in BOUNDS):
        parts |= {end: f"{value}{end}" for end in BOUNDS} | {"_n": f"{value}_n" if f"{value}_n" in frame else "n"}
    cells = {}
    for place, row in enumerate(first_column):
        named = [(name, word(frame[name].iloc[row])) for name in top]
        title = ", ".join(text if bare else f"{name}={text}" for name, text in named)
        here = across == place
        for end, name in parts.items():
            if name in frame:
                cells[f"{title}{end}"] = frame[name][here].set_axis(at[here]).reindex(range(len(first_row)))
    table = frame.iloc[first_row][left].reset_index(drop=True)
    return pd.concat([table, pd.DataFrame(cells)], axis=1)


def check_distinct(frame: pd.DataFrame, names: Sequence[str], keys: Collection[str], what: str) -> None:
    """Refuse rows that are alike in all of ``names``, and say in which of ``keys`` they differ.

    Raises:
        InputError: there are such rows.
    """
    codes, first = _grouped(frame, names)
    counts = np.bincount(codes, minlength=len(first))
    if not (counts > 1).any():
        return
    group = frame[codes == counts.argmax()]
    alike = ", ".join(f"{name}={word(group[name].iloc[0])}" for name in names)
    differ = [name for name in keys if name not in names and name in frame and group[name].nunique(dropna=False) > 1]
    raise InputError(
        f"{len(group)} rows {f'with {alike} ' if names else ''}{what}: they differ in "
        f"{', '.join(differ[:6]) or 'nothing that identifies them'}; average over that (--over), choose by --where, or "
        "name what identifies a row (--by)."
    )


def _grouped(frame: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The group of each row by equal values, in order of appearance, and the place of each group's first row."""
    codes = np.zeros(len(frame), np.int64)
    for name in names:
        own = pd.factorize(frame[name], use_na_sentinel=False)[0]
        codes = pd.factorize(codes * (own.max(initial=0) + 1) + own)[0]
    return codes, np.unique(codes, return_index=True)[1]


def _ordered(frame: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `_grouped`, but numbers ascend; words stay in order of appearance."""
    codes, first = _grouped(frame, names)
    ranks = []
    for name in names[::-1]:
        column = frame[name]
        numbers = pd.factorize(column, use_na_sentinel=False)[0] if is_words(column) else _numbers(column)
        ranks.append(numbers[first])
    order = np.lexsort(ranks)
    return np.argsort(order)[codes], first[order]


def _is_constant(column: pd.Series, codes: np.ndarray, first: np.ndarray) -> bool:
    own = pd.factorize(column, use_na_sentinel=False)[0]
    return bool((own == own[first][codes]).all())


def _numbers(column: pd.Series) -> np.ndarray:
    return column.astype("Float64").to_numpy(float, na_value=np.nan)


def _intervals(column: pd.Series, codes: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    """Mean and t interval by group, all groups at once: what `statistics.over_seeds` gives for each."""
    from scipy.special import stdtrit

    values = _numbers(column)
    there = ~np.isnan(values)
    codes, values, groups = codes[there], values[there], len(counts)
    n = np.bincount(codes, minlength=groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(codes, values, groups) / n
        spread = np.bincount(codes, (values - means[codes]) ** 2, groups) / (n - 1)
        half = stdtrit(n - 1, 0.975) * np.sqrt(spread / n)  # NaN for a single run
    name = column.name
    table = pd.DataFrame({name: means, f"{name}_low": means - half, f"{name}_high": means + half})
    return table if (n == counts).all() else table.assign(**{f"{name}_n": n})
