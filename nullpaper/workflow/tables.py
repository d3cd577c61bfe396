"""One tidy table over the jobs of a sweep: a table's rows from all jobs, beside what the jobs varied.

Tables with one header are joined as text and parsed once, which makes 10,000 jobs a matter of seconds.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from nullpaper.errors import InputError, nearest
from nullpaper.workflow.code_identity import dumps
from nullpaper.workflow.collect import JobResult, damaged, listed, read_files
from nullpaper.workflow.columns import word

__all__ = ["Tidy", "choose_table", "read_tables"]

QUOTED = re.compile(rb'"[^"]*"')
OWN = ("job", "commit")

EXACT = {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}

Bodies = dict[bytes, list[tuple[int, bytes]]]


@dataclass(frozen=True)
class Tidy:
    """A table over jobs.

    Attributes:
        frame: varied parameters, the table's columns, ``job`` and ``commit``; the index is the job's place in the list.
        parameters: the varied parameters, as the columns are called, by the notebook's name for them.
        columns: those of the table.
        fixed: the other parameters, as arrays of one value, by the name that a column would have.
        notes: sentences on what a reader would not expect.
    """

    frame: pd.DataFrame
    parameters: Mapping[str, str]
    columns: Sequence[str]
    fixed: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=tuple)

    def split(self, place: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows of the jobs before a place in the list, and those from there on."""
        before = self.frame.index < place
        return self.frame[before], self.frame[~before]

    def varied_within(self, place: int) -> tuple[list[str], list[str]]:
        """The parameters that vary within either part of `split`, and sentences on those that only differ between."""
        within, between = [], []
        for name in self.parameters.values():
            parts = [part[name].drop_duplicates() for part in self.split(place)]
            if max(map(len, parts)) > 1:
                within.append(name)
                continue
            if len(pd.concat(parts).drop_duplicates()) > 1:
                one, other = (word(part.iloc[0]) for part in parts)
                between.append(f"'{name}' is {one} in the first, {other} in the other.")
        return within, between


def choose_table(jobs: Sequence[JobResult], name: str | None = None) -> str:
    """The name of the only table of some jobs, or ``name`` if there is such a table.

    Raises:
        InputError: no table, no such table, or several, which are then listed with their rows.
    """
    known = Counter(table for job in jobs for table in job.tables)
    if not known:
        raise InputError("the finished jobs have no tables: let the notebook write one by plots.save_table().")
    if name is None and len(known) > 1:
        rows = {table: sum(counts) for table in sorted(known) for _, counts, _ in [_contents(jobs, table)]}
        named = ", ".join(f"{table} ({count:,} rows)" for table, count in rows.items())
        raise InputError(f"there are {len(known)} tables, so choose one by --table: {named}.")
    name = name or next(iter(known))
    if name not in known:
        raise InputError(f"no job has a table '{name}'.{nearest(name, known) or listed(' There are', sorted(known))}")
    return name


def read_tables(jobs: Sequence[JobResult], table: str, given: Sequence[str] = ()) -> Tidy:
    """One table of all jobs that have it, with the parameters that differ between jobs, or are ``given``, in front.

    A parameter whose name the table has for a column is called ``param.<name>``, and a column ``job`` or ``commit`` of
    the table ``table.<name>``. Whole numbers and booleans stay so when some are missing (pandas' nullable types).

    Raises:
        InputError: a file is missing, is not what the job wrote, or is no table.
    """
    places, counts, bodies = _contents(jobs, table)
    frame = _parse(table, places, counts, bodies)
    frame = frame.rename(columns={name: f"table.{name}" for name in OWN})
    columns = list(frame.columns)
    values = _parameters(jobs, given)
    varied = [name for name in values if name in given or _differ(values[name])]
    called = {name: _free(name, {*columns, *OWN, "n", "row"}) for name in values}
    at = frame.index.to_numpy()
    front = {called[name]: _column(values[name]).take(at) for name in varied}
    own = {"job": pd.array([job.key for job in jobs], "string")}
    own["commit"] = pd.array([job.commit or pd.NA for job in jobs], "string")
    parts = [pd.DataFrame(front, index=at), frame, pd.DataFrame({name: own[name].take(at) for name in OWN}, index=at)]
    notes = [
        f"'{name}' is a column of the table, and the parameter is called '{called[name]}'."
        for name in varied
        if called[name] != name
    ]
    if absent := len(jobs) - len(places):
        notes.append(f"{absent} of {len(jobs)} finished jobs have no table '{table}'.")
    return Tidy(
        frame=pd.concat(parts, axis=1),
        parameters={name: called[name] for name in varied},
        columns=columns,
        fixed={called[name]: _column(values[name][:1]) for name in values if name not in varied},
        notes=notes,
    )


def _parameters(jobs: Sequence[JobResult], given: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each parameter in all jobs, the given parameters first."""
    known = {name: None for job in jobs for name in job.parameters}
    names = dict.fromkeys([*(name for name in given if name in known), *known])
    return {name: [job.parameters.get(name) for job in jobs] for name in names}


def _contents(jobs: Sequence[JobResult], table: str) -> tuple[list[int], list[int], Bodies]:
    """Places of the jobs with a table, its rows in each, and by header line the (order, rows as text) of each."""
    counts: list[int] = []
    bodies: Bodies = {}
    places = [place for place, job in enumerate(jobs) if table in job.tables]
    paths = [f"results/{jobs[place].label}/{table}.csv" for place in places]
    contents = read_files([(jobs[place].folder, path) for place, path in zip(places, paths, strict=True)])
    for order, (place, path, content) in enumerate(zip(places, paths, contents, strict=True)):
        job = jobs[place]
        if hashlib.sha256(content).hexdigest() != job.tables[table]:
            raise damaged(job.folder, f"{path} is not what the job wrote")
        whole = content.rstrip(b"\n")
        bare = QUOTED.sub(b"", whole) if b'"' in whole else whole
        rows, fields = bare.count(b"\n"), bare.partition(b"\n")[0].count(b",")
        if b'"' in bare or bare.count(b",") != (rows + 1) * fields:
            raise damaged(job.folder, f"{path} has rows of unequal length")
        header, _, body = whole.partition(b"\n")
        bodies.setdefault(header, []).append((order, body + b"\n" if rows else b""))
        counts.append(rows)
    return places, counts, bodies


def _parse(table: str, places: Sequence[int], counts: Sequence[int], bodies: Mapping[bytes, Any]) -> pd.DataFrame:
    """The rows of all jobs in the order of the jobs, whose places are the index."""
    frames, orders = [], []
    for header, parts in bodies.items():
        try:
            text = io.BytesIO(b"".join([header, b"\n", *(body for _, body in parts)]))
            frame = pd.read_csv(
                text,
                keep_default_na=False,
                na_values=[""],
                dtype_backend="numpy_nullable",
                **EXACT,
                skip_blank_lines=False,
                low_memory=False,
            )
        except ValueError as error:
            raise InputError(f"the tables '{table}' of these jobs cannot be read as CSV: {error}.") from error
        order = [order for order, _ in parts]
        orders.append(np.repeat(order, np.take(counts, order)))
        frames.append(frame.rename(columns={} if "index" in frame else {"Unnamed: 0": "index"}))
    filled = [frame.dropna(axis=1, how="all") for frame in frames]  # an empty column would decide the others' type
    columns = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    joined = pd.concat(filled, ignore_index=True).reindex(columns=columns) if len(filled) > 1 else frames[0]
    order = np.concatenate(orders)
    if len(frames) > 1:
        rows = np.argsort(order, kind="stable")
        joined, order = joined.iloc[rows], order[rows]
    return joined.apply(_settled).set_axis(np.take(places, order), axis=0)


def _settled(column: pd.Series) -> pd.Series:
    """A column without missing values in NumPy's type, and floats always so."""
    if pd.api.types.is_float_dtype(column.dtype) or column.isna().all():
        return column.astype("float64")
    if pd.api.types.is_bool_dtype(column.dtype) and not column.isna().any():
        return column.astype(bool)
    if column.dtype == object:  # words in some jobs, numbers in others
        return column.where(column.isna(), column.astype(str)).astype("string")
    return column.astype("int64") if column.dtype == "Int64" and not column.isna().any() else column


def _column(values: Sequence[Any]) -> Any:
    """Parameter values as a pandas array: numbers where all are, else words; lists and mixtures as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pd.array([np.nan if value is None else value for value in values], "Float64").to_numpy(float, np.nan)
    for kind, plain, nullable in ((bool, "bool", "boolean"), (int, "int64", "Int64")):
        if kinds == {kind}:
            return np.asarray(values, plain) if None not in values else pd.array(list(values), nullable)
    words = [value if value is None or isinstance(value, str) else dumps(value, canonical=True) for value in values]
    return pd.array(words, "string")


def _differ(values: Sequence[Any]) -> bool:
    first, kind = values[0], type(values[0])
    return any(type(value) is not kind or value != first for value in values)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"param.{name}"
    return name
