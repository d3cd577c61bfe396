"""Grid files: a notebook and the parameters of its jobs, checked before anything starts.

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

from nullpaper.errors import InputError, first_line, nearest
from nullpaper.workflow.parameters import Parameter, check_parameters, parameters
from nullpaper.workflow.planning import LABEL
from nullpaper.workflow.provenance import project_root

__all__ = ["MOST_JOBS", "Grid", "notebook_path", "read_grid"]

MOST_JOBS = 10_000
"""More than that are started only on request."""

LONGEST = 1_000_000
ENTRIES = ("name", "notebook", "profile", "fixed", "grid", "zip")
RANGE = ("from", "to", "step", "count", "scale")


@dataclass(frozen=True)
class Grid:
    """A checked grid file. ``given``: for each job the parameters that the file sets, in the notebook's types."""

    name: str
    notebook: Path
    profile: str | None
    given: tuple[dict[str, Any], ...]
    varied: tuple[str, ...]
    content: Mapping[str, Any]


def read_grid(file: Path, *, many: bool = False) -> Grid:
    """Read and check a grid file.

    Args:
        many: accept more than `MOST_JOBS` jobs.

    Raises:
        InputError: no such file, not YAML, an unknown entry, no notebook, an unknown or mistyped parameter, a bad
            range, lists of different lengths under zip, an empty grid, or too many jobs.
    """
    content = _content(file)
    listed = ", ".join(ENTRIES)
    for entry in content:
        if entry not in ENTRIES:
            raise InputError(f"{file} has an entry '{entry}'.{nearest(str(entry), ENTRIES)} It takes {listed}")
    name = str(content.get("name") or file.stem)
    if not LABEL.fullmatch(name):
        raise InputError(f"{file}: name {name!r} is no file name: use letters, digits, '_', '-' and '.'")
    if not isinstance(content.get("notebook"), str):
        raise InputError(f"{file} names no notebook: add a line such as 'notebook: 01_existence'")
    notebook = notebook_path(content["notebook"], beside=file.parent)
    fixed, crossed, zipped = _mapping(file, content, "fixed"), _mapping(file, content, "grid"), _groups(file, content)
    names = [*fixed, *crossed, *itertools.chain(*zipped)]
    for parameter in names:
        if names.count(parameter) > 1:
            raise InputError(f"{file} sets the parameter '{parameter}' twice: keep one of them")
    if "profile" in names:
        raise InputError(f"{file} varies the profile, which is one for a whole sweep: give a line 'profile: NAME'")
    known = parameters(notebook)
    axes = [_axis(file, notebook, known, name, values) for name, values in crossed.items()]
    axes += [_side_by_side(file, [_axis(file, notebook, known, *item) for item in group.items()]) for group in zipped]
    _check_count(file, math.prod(map(len, axes)), bool(names), many)
    same = check_parameters(notebook, fixed, known)
    given = tuple(same | dict(itertools.chain(*point)) for point in itertools.product(*axes))
    varied = (*crossed, *itertools.chain(*zipped))
    return Grid(name, notebook, content.get("profile"), given, varied, content)


def notebook_path(name: str, *, beside: Path | None = None) -> Path:
    """The path as given (from ``beside``, or from here), or that of a notebook of this name in the project."""
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return beside / path if beside is not None and (beside / path).is_file() else path
    return path if path.exists() else project_root() / "notebooks" / f"{name}.py"


def _content(file: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and strict: PyYAML lets a second key of one name win silently."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"'{key}' stands there twice")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"the grid file {file} cannot be read ({error.strerror}): name a YAML file") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place is not None else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{file}{where} is not valid YAML ({reason}): correct it first") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no grid file: it needs 'notebook: NAME' and parameters under 'grid:'")
    return content


def _mapping(file: Path, content: Mapping[str, Any], entry: str) -> dict[str, Any]:
    found = content.get(entry) or {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{file}: '{entry}' must map parameters to values, not {found!r}")
    return found


def _groups(file: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = content.get("zip") or []
    groups = groups if isinstance(groups, list) else [groups]
    return [_mapping(file, {"zip": group}, "zip") for group in groups]


def _axis(
    file: Path, notebook: Path, known: Mapping[str, Parameter], name: str, values: Any
) -> list[list[tuple[str, Any]]]:
    """The points of one parameter, each a list of one pair, so that axes and zipped groups are alike."""
    if isinstance(values, dict):
        values = _range(file, name, values)
    if not isinstance(values, list):
        raise InputError(f"{file}: '{name}' must be a list or a range ({{from: 0, to: 4}}); one value goes to 'fixed'")
    try:
        return [[(name, check_parameters(notebook, {name: value}, known)[name])] for value in values]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _range(file: Path, name: str, given: Mapping[str, Any]) -> list[int | float]:
    """Equal steps, both ends included; whole numbers stay whole."""
    unknown = [key for key in given if key not in RANGE]
    if unknown or not {"from", "to"} <= given.keys() or {"step", "count"} <= given.keys():
        raise InputError(f"{file}: the range of '{name}' takes from, to, and step or count (with scale: log if wanted)")
    try:
        points = _points(given)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise InputError(f"{file}: the range of '{name}' has no points, or too many: {dict(given)}") from None
    whole = "count" not in given and all(isinstance(given.get(key, 1), int) for key in RANGE[:3])
    return [round(point) for point in points] if whole else points


def _points(given: Mapping[str, Any]) -> list[float]:
    first, last, scale = float(given["from"]), float(given["to"]), given.get("scale", "linear")
    step = float(given.get("step", 1))
    count = int(given["count"]) if "count" in given else math.floor((last - first) / step + 1e-9) + 1
    if not 1 <= count <= LONGEST or (scale != "linear" and (scale != "log" or "count" not in given)):
        raise ValueError(given)
    if scale == "log":
        first, last = math.log(first), math.log(last)
    if "count" in given:
        step = (last - first) / max(1, count - 1)
    points = (first + index * step for index in range(count))
    return [float(f"{math.exp(point) if scale == 'log' else point:.12g}") for point in points]


def _side_by_side(file: Path, axes: Sequence[list[list[tuple[str, Any]]]]) -> list[list[tuple[str, Any]]]:
    lengths = {axis[0][0][0] if axis else "a list": len(axis) for axis in axes}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{file}: lists under zip must be of one length, but have {told} values")
    return [list(itertools.chain(*points)) for points in zip(*axes, strict=True)]


def _check_count(file: Path, jobs: int, any_parameter: bool, many: bool) -> None:
    if jobs == 0 or not any_parameter:
        raise InputError(f"{file} is an empty grid: give at least one parameter with one value")
    if jobs > MOST_JOBS and not many:
        raise InputError(f"{file} makes {jobs:,} jobs, over {MOST_JOBS:,}: shorten its lists, or confirm with --yes")
