"""The tables of a sweep's jobs as one tidy table of pandas, with the jobs' parameters as columns.

Filters, pivots and plots are pandas and seaborn from there: see notebook 13.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nullpaper.errors import InputError, first_line, nearest
from nullpaper.files import storable, temporary_sibling
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
        InputError: no sweep was started there, or its record is damaged.
    """
    jobs: dict[str, dict[str, Any]] = {}
    if not (records := sorted(folder.glob("*.json"))):
        others = sorted(path.name for path in folder.parent.glob("*/"))
        raise InputError(f"no sweep was started in {folder}.{nearest(folder.name, others)} Run nullpaper sweep first")
    for path in records:
        try:
            jobs |= json.loads(path.read_bytes())["jobs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({first_line(error)}): run the sweep again; no job is repeated"
            ) from error
    return jobs


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
    entries = {job: next(iter(read_manifest(folder / job).values()), None) for job in jobs}
    finished = {job: entry for job, entry in entries.items() if entry}
    names = {Path(file).stem for entry in finished.values() for file in entry["files"] if file.startswith("results/")}
    table = table or _only([name for name in names if not name.endswith("_verdicts")] or names, folder)
    varied = list(dict.fromkeys(name for given in jobs.values() for name in given))
    frames = []
    for job, entry in finished.items():
        if (file := f"results/{table}.csv") in entry["files"]:
            rows = pd.read_csv(folder / job / file, keep_default_na=False, na_values=[""])
            frames.append((rows, {name: _plain(entry["parameters"].get(name)) for name in varied}, job))
    if not frames:
        raise InputError(f"no finished job in {folder} has a table '{table}'.{nearest(table, names)}")
    clashing = {
        name for name in varied if any(name in rows and not (rows[name] == own[name]).all() for rows, own, _ in frames)
    }
    column = {name: f"param.{name}" if name in clashing else name for name in varied}
    frame = pd.concat(
        [rows.assign(**{column[name]: value for name, value in own.items()}, job=job) for rows, own, job in frames],
        ignore_index=True,
    )
    parameters = list(column.values())
    frame = frame[[*parameters, *(name for name in frame if name not in (*parameters, "job")), "job"]]
    frame.attrs |= {"table": table, "parameters": parameters, "unfinished": len(jobs) - len(finished)}
    return frame


def _only(names: Sequence[str] | set[str], folder: Path) -> str:
    if not names:
        raise InputError(f"no job in {folder} has finished with a table: run the sweep first")
    if len(names) > 1:
        raise InputError(f"the jobs in {folder} have several tables: choose one by --table: {', '.join(sorted(names))}")
    return next(iter(names))


def _plain(value: Any) -> Any:
    """A parameter as one cell of a table: a list as its JSON text."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def write(frame: pd.DataFrame, path: Path) -> list[Path]:
    """Write a table as Parquet and as CSV with all digits: ``path`` with each suffix.

    Raises:
        InputError: the folder cannot be written.
    """
    paths = [Path(f"{path}.parquet"), Path(f"{path}.csv")]
    with storable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, save in zip(paths, (frame.to_parquet, frame.to_csv), strict=True):
            save(temporary := temporary_sibling(target), index=False)
            temporary.replace(target)
    return paths


def key_columns(frame: pd.DataFrame) -> list[str]:
    """The leftmost columns that tell the rows of a job apart, words before numbers; bounded estimates are no keys."""
    estimates = {f"{name}{end}" for name in frame if f"{name}_low" in frame for end in ("", *BOUNDS)}
    candidates = [name for name in frame if name not in (*frame.attrs["parameters"], *estimates, "job", "n")]
    words = [name for name in candidates if not pd.api.types.is_numeric_dtype(frame[name])]
    keys: list[str] = []
    for name in [*words, *(name for name in candidates if name not in words)]:
        if not frame.duplicated(["job", *keys]).any():
            return keys
        if len(frame[["job", *keys, name]].drop_duplicates()) > len(frame[["job", *keys]].drop_duplicates()):
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
        mean of bounds bounds nothing; a single run has none (NaN).

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
    numbers = [name for name in frame.select_dtypes(["number", "bool"]) if name not in (*groups, over, "n")]
    values = [
        name for name in numbers if not any(name.endswith(end) and name.removesuffix(end) in frame for end in BOUNDS)
    ]
    rows = []
    for place, group in frame.groupby(groups, sort=False, dropna=False) if groups else [((), frame)]:
        row = dict(zip(groups, place, strict=True))
        for name in values:
            row |= _interval(group[name].dropna(), name)
        rows.append(row | {"n": len(group)})
    return pd.DataFrame(rows)


def _interval(values: pd.Series, name: str) -> dict[str, float]:
    if values.empty:
        return dict.fromkeys((name, *(f"{name}{end}" for end in BOUNDS)), float("nan"))
    interval = over_seeds(values)
    bounds = (interval.low, interval.high) if len(values) > 1 else (float("nan"),) * 2
    return {name: interval.value, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}


def text(frame: pd.DataFrame, digits: int = 3) -> str:
    """A table to print, an estimate and its interval in one cell: ``0.931 [0.902, 0.960]``."""
    cells = {}
    for name in frame:
        if any(name.endswith(end) and name.removesuffix(end) in frame for end in BOUNDS):
            continue
        if f"{name}_low" in frame:
            bounds = zip(frame[name], frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
            cells[name] = [_number(value, digits) + _bounds(low, high, digits) for value, low, high in bounds]
        else:
            cells[name] = [_number(value, digits) for value in frame[name]]
    return pd.DataFrame(cells).to_string(index=False)


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _bounds(low: float, high: float, digits: int) -> str:
    return f" [{_number(low, digits)}, {_number(high, digits)}]" if low == low else ""
