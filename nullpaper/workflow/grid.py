"""Grid files: a notebook and the parameters of its jobs.

::

    notebook: 02_learned_nullspace     # a name in notebooks/, or a path
    profile: cpu                       # optional, as everywhere
    fixed: {images: 500}               # the same in every job
    grid:                              # every combination
      eps: [0.01, 0.03, 0.1]
      seed: [0, 1, 2]
    zip:                               # side by side
      model: [small, wide]
      weights: [a.safetensors, b.safetensors]

An entry of another name may hold what others take by YAML's anchors: ``base: &base {nap: 9}``, ``fixed: {<<: *base}``.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, nearest
from nullpaper.workflow.parameters import check_profile, default_profile, read_yaml
from nullpaper.workflow.plan import notebook_path

ENTRIES = ("notebook", "profile", "fixed", "grid", "zip")


@dataclass(frozen=True)
class Grid:
    """A grid file: its notebook, its profile, and for each job the parameters that it sets, as they stand there."""

    notebook: Path
    profile: str
    points: tuple[dict[str, Any], ...]


def read_grid(file: Path, profile: str | None = None) -> Grid:
    """Read a grid file; whether the notebook takes its parameters is for `plan.plan_run` to say.

    Raises:
        InputError: no such file, not YAML, an unknown entry or profile, no notebook, a parameter set twice, no list
            where one belongs, or lists of different lengths under zip.
    """
    content = _content(file)
    fixed, crossed, zipped = (content.get(entry) or {} for entry in ("fixed", "grid", "zip"))
    names = [*fixed, *crossed, *zipped]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file} sets the parameter '{name}' twice: keep one of them")
    for name, values in {**crossed, **zipped}.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{file}: '{name}' must be a list of values; one value alone goes to 'fixed'")
    if len({len(values) for values in zipped.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in zipped.items())
        raise InputError(f"{file}: lists under zip must be of one length, but have {lengths} values")
    rows = [*zip(*zipped.values(), strict=True)] or [()]
    points = tuple(
        fixed | dict(zip(crossed, values, strict=True)) | dict(zip(zipped, row, strict=True))
        for *values, row in itertools.product(*crossed.values(), rows)
    )
    profile = profile or content.get("profile")
    notebook = notebook_path(content["notebook"], beside=file.parent).resolve()
    return Grid(notebook, check_profile(str(profile)) if profile else default_profile(), points)


def _content(file: Path) -> dict[str, Any]:
    content = read_yaml(file)
    if not isinstance(content.get("notebook"), str):
        raise InputError(f"{file} names no notebook: add a line such as 'notebook: 01_existence'")
    anchored = re.findall(r"^([^\s:]+)[ \t]*:[ \t]*&", file.read_text(encoding="utf-8"), re.MULTILINE)
    for entry, value in content.items():
        if entry not in ENTRIES and (entry not in anchored or nearest(entry, ENTRIES)):
            raise InputError(f"{file} has an entry '{entry}'.{nearest(entry, ENTRIES)} It takes {', '.join(ENTRIES)}")
        if entry in ENTRIES[2:] and not isinstance(value or {}, dict):
            raise InputError(f"{file}: '{entry}' must map parameters to values, not {value!r}")
    return content
