"""The tables of a sweep's jobs as one tidy table of pandas, with the jobs' parameters as columns.

Filters, pivots and plots are pandas and seaborn from there: see notebook 13.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nullpaper.errors import InputError, nearest
from nullpaper.files import write_atomic
from nullpaper.statistics import over_seeds
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import read_manifest

BOUNDS = ("_low", "_high")


def sweep_folder(sweep: str) -> Path:
    """The folder of a sweep: given as such, or by the sweep's name or its grid file, in ``build/sweeps``."""
    path = Path(sweep)
    return path if path.is_dir() else project_root() / "build" / "sweeps" / (path.stem if path.suffix else sweep)


def jobs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The jobs of the sweeps in a folder, as they were started last: the parameters that the grid sets, by job.

    Raises:
        InputError: no sweep was started there.
    """
    if not (records := sorted(folder.glob("*.json"))):
        others = sorted(path.name for path in folder.parent.glob("*/"))
        raise InputError(f"no sweep was started in {folder}.{nearest(folder.name, others)} Run nullpaper sweep first")
    return {job: given for path in records for job, given in json.loads(path.read_bytes())["jobs"].items()}


def collect(folder: Path, table: str | None = None) -> pd.DataFrame:
    """One table of all finished jobs of a sweep, row under row, in the order of the grid.

    A parameter whose name is a column of the table too, with other values, is called ``param.<name>``.

    Args:
        table: its name; None where the jobs have only one, verdicts aside.

    Returns:
        The parameters that the grid sets, the table's columns, and ``job``, the folder of each row. In ``attrs``,
        which Parquet keeps: ``table``, its name; ``parameters``, their columns; ``unfinished``, the number of jobs that
        are not.

    Raises:
        InputError: no such sweep or table, several tables to choose from, or no finished job.
    """
    jobs = jobs_of(folder)
    entries = {job: entry for job in jobs for entry in read_manifest(folder / job).values()}
    names = sorted({Path(file).stem for entry in entries.values() for file in entry["files"] if file.endswith(".csv")})
    choice = [name for name in names if not name.endswith("_verdicts")] or names
    table = choice[0] if table is None and len(choice) == 1 else table
    if table not in names:
        remedy = f"name one by --table: {', '.join(choice)}" if names else "run the sweep first"
        asked = f"have no table '{table}'.{nearest(table, names)}" if table else f"have {len(names)} tables:"
        raise InputError(f"the finished jobs in {folder} {asked} {remedy}")
    file = f"results/{table}.csv"
    frames = {
        job: pd.read_csv(folder / job / file, keep_default_na=False, na_values=[""])
        for job, entry in entries.items()
        if file in entry["files"]
    }
    rows = pd.concat(frames, names=["job"]).reset_index("job").reset_index(drop=True)
    varied = list(dict.fromkeys(name for given in jobs.values() for name in given))
    values = pd.DataFrame([entries[job]["parameters"] for job in frames], index=[*frames])[varied]
    values = values.map(lambda value: str(value) if isinstance(value, list) else value)
    values = values.loc[rows["job"]].reset_index(drop=True)
    values.columns = [
        f"param.{name}" if name in rows and (rows[name] != values[name]).any() else name for name in varied
    ]
    rest = rows.drop(columns=[*values, "job"], errors="ignore")
    frame = pd.concat([values, rest, rows["job"]], axis=1)
    frame.attrs |= {"table": table, "parameters": [*values], "unfinished": len(jobs) - len(entries)}
    return frame


def write(frame: pd.DataFrame, path: Path) -> list[Path]:
    """Write a table as Parquet and as CSV with all digits: ``path`` with each suffix.

    Raises:
        InputError: the folder cannot be written.
    """
    parquet, csv = Path(f"{path}.parquet"), Path(f"{path}.csv")
    write_atomic(parquet, frame.to_parquet(index=False))
    write_atomic(csv, frame.to_csv(index=False))
    return [parquet, csv]


def key_columns(frame: pd.DataFrame) -> list[str]:
    """The leftmost columns of words that tell rows of a job apart; where they do not, the user says what does."""
    words = frame.select_dtypes(exclude=["number", "bool"]).columns.drop(frame.attrs["parameters"], errors="ignore")
    keys: list[str] = []
    for name in words.drop("job"):
        if frame.groupby(["job", *keys], dropna=False)[name].nunique(dropna=False).gt(1).any():
            keys.append(name)
    return keys


def mean_over(frame: pd.DataFrame, over: str, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean over the runs in which a parameter differs, with Student's t interval at 95 %.

    Args:
        frame: as `collect` returns it.
        over: a parameter, such as the seed.
        by: the columns that tell the rows of a job apart; None: `key_columns`.

    Returns:
        A row for each point of the other parameters and each row of the table: ``x``, ``x_low``, ``x_high`` for every
        number x that the jobs measured, and ``n``, the runs behind it. The bounds within a job are dropped, since a
        mean of bounds bounds nothing; one or two runs have none (NaN).

    Raises:
        InputError: no such parameter, or several rows of one run in a group.
    """
    parameters = frame.attrs["parameters"]
    if over not in parameters:
        raise InputError(
            f"the sweep sets no parameter '{over}'.{nearest(over, parameters)} It sets {', '.join(parameters)}"
        )
    groups = [name for name in parameters if name != over] + list(key_columns(frame) if by is None else by)
    if frame.duplicated([*groups, over]).any():
        raise InputError(
            f"{', '.join([*groups, over])} do not tell the rows of the table apart: name what does by --by"
        )
    bounds = {f"{name}{end}" for name in frame for end in BOUNDS}
    numbers = frame.select_dtypes(["number", "bool"]).columns.drop([*groups, over, "n", *bounds], errors="ignore")
    rows = []
    for place, group in frame.groupby(groups, sort=False, dropna=False) if groups else [((), frame)]:
        row = dict(zip(groups, place, strict=True))
        for name in numbers:
            row |= _interval(group[name].dropna(), name)
        rows.append(row | {"n": len(group)})
    return pd.DataFrame(rows)


def _interval(values: pd.Series, name: str) -> dict[str, float]:
    low, high = (f"{name}{end}" for end in BOUNDS)
    if len(values) < 2:
        return {name: values.mean(), low: float("nan"), high: float("nan")}
    interval = over_seeds(values)
    return {name: interval.value, low: interval.low, high: interval.high}


def text(frame: pd.DataFrame) -> str:
    """A table to print, an estimate and its interval in one cell: ``0.931 [0.902, 0.96]``."""
    shown = frame.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
    for name in frame:
        if f"{name}_low" in frame:
            low, high = (shown.pop(f"{name}{end}") for end in BOUNDS)
            shown[name] += (" [" + low + ", " + high + "]").where(low != "nan", " [no interval]")
    return shown.to_string(index=False)
