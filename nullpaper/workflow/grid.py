"""Grid files: a notebook and the parameters of its jobs.

::

    notebook: 02_learned_nullspace     # a name in notebooks/, or a path
    profile: cpu                       # optional, as everywhere
    fixed: {images: 500}               # the same in every job
    grid:                              # every combination
      eps: [0.01, 0.03, 0.1]
      seed: {from: 0, to: 4}           # step: 1; or count: 5, and scale: log
    zip:                               # side by side; several groups as a list
      model: [small, wide]
      weights: [a.safetensors, b.safetensors]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nullpaper.errors import InputError, first_line, nearest
from nullpaper.workflow.parameters import check_profile, default_profile
from nullpaper.workflow.plan import notebook_path

MOST_JOBS = 10_000
ENTRIES = ("notebook", "profile", "fixed", "grid", "zip")
RANGE = ("from", "to", "step", "count", "scale")


@dataclass(frozen=True)
class Grid:
    """A grid file: its notebook, its profile, and for each job the parameters that it sets, as they stand there."""

    notebook: Path
    profile: str
    points: tuple[dict[str, Any], ...]


def read_grid(file: Path, profile: str | None = None) -> Grid:
    """Read a grid file; whether the notebook takes its parameters is for `plan.plan_run` to say.

    Raises:
        InputError: no such file, not YAML, an unknown entry or profile, no notebook, a parameter set twice, a bad
            range, lists of different lengths under zip, no job, or over 10,000 jobs.
    """
    content = _content(file)
    fixed, crossed = _mapping(file, content, "fixed"), _mapping(file, content, "grid")
    groups = content.get("zip") or []
    groups = [_mapping(file, {"zip": group}, "zip") for group in (groups if isinstance(groups, list) else [groups])]
    names = [*fixed, *crossed, *itertools.chain(*groups)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file} sets the parameter '{name}' twice: keep one of them")
    axes = [[{name: value} for value in _values(file, name, values)] for name, values in crossed.items()]
    axes += [_side_by_side(file, group) for group in groups]
    jobs = math.prod(map(len, axes))
    if jobs == 0 or not names:
        raise InputError(f"{file} is an empty grid: give at least one parameter with one value")
    if jobs > MOST_JOBS:
        raise InputError(f"{file} makes {jobs:,} jobs, over {MOST_JOBS:,}: shorten its lists, or make several grids")
    points = tuple(
        {name: value for part in (fixed, *point) for name, value in part.items()} for point in itertools.product(*axes)
    )
    profile = profile or content.get("profile")
    notebook = notebook_path(content["notebook"], beside=file.parent)
    return Grid(notebook, check_profile(str(profile)) if profile else default_profile(), points)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the grid file {file} cannot be read ({error.strerror}): name a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place is not None else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{file}{where} is not valid YAML ({reason}): correct it first") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no grid file: it needs 'notebook: NAME' and parameters under 'grid:'")
    for entry in content:
        if entry not in ENTRIES:
            raise InputError(
                f"{file} has an entry '{entry}'.{nearest(str(entry), ENTRIES)} It takes {', '.join(ENTRIES)}"
            )
    if not isinstance(content.get("notebook"), str):
        raise InputError(f"{file} names no notebook: add a line such as 'notebook: 01_existence'")
    return content


def _mapping(file: Path, content: Mapping[str, Any], entry: str) -> dict[str, Any]:
    mapping = content.get(entry) or {}
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
        raise InputError(f"{file}: '{entry}' must map parameters to values, not {mapping!r}")
    return mapping


def _side_by_side(file: Path, group: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {name: _values(file, name, values) for name, values in group.items()}
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise InputError(f"{file}: lists under zip must be of one length, but have {lengths} values")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _values(file: Path, name: str, values: Any) -> Sequence[Any]:
    """A list as it stands, or a range with both its ends; whole numbers stay whole."""
    if isinstance(values, list):
        return values
    if not isinstance(values, dict):
        raise InputError(f"{file}: '{name}' must be a list or a range ({{from: 0, to: 4}}); one value goes to 'fixed'")
    if not {"from", "to"} <= values.keys() <= {*RANGE} or {"step", "count"} <= values.keys():
        raise InputError(f"{file}: the range of '{name}' takes from, to, and step or count (with scale: log if wanted)")
    try:
        points = _points(values)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise InputError(f"{file}: the range of '{name}' has no points, or too many: {values}") from None
    whole = "count" not in values and all(isinstance(values.get(key, 1), int) for key in RANGE[:3])
    return [round(point) for point in points] if whole else points


def _points(given: Mapping[str, Any]) -> list[float]:
    first, last, step = float(given["from"]), float(given["to"]), float(given.get("step", 1))
    scale = given.get("scale", "linear")
    count = int(given["count"]) if "count" in given else math.floor((last - first) / step + 1e-9) + 1
    is_log = scale == "log" and "count" in given and first * last > 0
    if not 1 <= count <= MOST_JOBS * 10 or not (scale == "linear" or is_log):
        raise ValueError(given)
    last = last if "count" in given else first + (count - 1) * step
    points = np.geomspace(first, last, count) if is_log else np.linspace(first, last, count)
    return [float(f"{point:.12g}") for point in points]
