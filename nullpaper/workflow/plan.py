"""What a run will be, before it begins: a notebook, checked parameters, and an identity made of all that decides it.

A run is named by the digest of the notebook's code and all that it imports, the values of its parameters, the data and
the weights. Neither prose, nor the profile that the values came from, nor any absolute path or label is part of it: two
runs of one name are the same run, whoever starts them and wherever.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullpaper.data.fetch import DATASETS, cache_home
from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.workflow.code_identity import identity
from nullpaper.workflow.parameters import (
    MARK,
    PARAMETERS,
    PARTIAL,
    check_parameters,
    parameters,
    profile_parameters,
    read_notebook,
    remembered,
    takes_part,
)
from nullpaper.workflow.provenance import RunContext, project_root
from nullpaper.workflow.reference import DIGITS, code_of

LONGEST_LABEL = 80
LARGE = 10_000
"""Files of a folder that is not read again by the same process unless files came or went."""
OPEN = ("weights", "root", "other_roots")
"""Parameters that the profiles of `parameters.PARTIAL` leave to the reader: where things lie, and nothing else."""
SHIPPED = Path(__file__).parents[1] / "models" / "shipped"


@dataclass(frozen=True)
class Plan:
    """A checked run that has not begun.

    ``digest``: its identity; ``given``: what papermill is to inject; ``values``: all parameters, with their paths, of
    which the context has the last names alone.
    """

    notebook: Path
    root: Path
    context: RunContext
    digest: str
    code: str
    given: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The digits of the identity that name a sweep job's folder."""
        return self.digest[:20]

    @property
    def out(self) -> Path:
        """The folder of its label, ``build/<label>``."""
        return self.root / "build" / self.context.label

    def into(self, folder: Path) -> Plan:
        """The same run with its figures and tables in ``folder``."""
        return replace(self, context=replace(self.context, out=str(folder)))


def paper_notebooks(profile: str = "cpu") -> list[Path]:
    """The numbered notebooks of the project, in order: those that make the paper at this profile.

    Raises:
        InputError: there are none.
    """
    folder = project_root() / "notebooks"
    if not (notebooks := sorted(folder.glob("[0-9]*.py"))):
        raise InputError(f"{folder} holds no numbered notebook: run this inside the repository, or set NULLPAPER_ROOT")
    return [path for path in notebooks if takes_part(path, profile)]


def notebook_path(name: str, *, beside: Path | None = None) -> Path:
    """The path as given (from ``beside``, or from here), or that of a notebook of this name in the project."""
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return beside / path if beside is not None and (beside / path).is_file() else path
    return project_root() / "notebooks" / f"{name}.py"


def plan_run(
    notebook: Path,
    given: Mapping[str, Any] | None = None,
    *,
    profile: str,
    label: str | None = None,
    recompute_before: float | None = None,
) -> Plan:
    """The run of a notebook with these parameters; nothing is executed.

    Args:
        given: parameters by name, which go before the profile's.
        label: the folder under ``build/``; None: the profile, and where ``given`` changes something a name of its own.
        recompute_before: a Unix time: stored results begun earlier are computed anew.

    Raises:
        InputError: unknown or mistyped parameters, profile or label, an unreadable notebook, or a relative
            NULLPAPER_HOME.
    """
    cache_home()
    root, usual = project_root(), profile_parameters(notebook, profile)
    defaults = {name: parameter.default for name, parameter in parameters(notebook).items()} | usual
    changes = check_parameters(notebook, given or {})
    changes = {name: value for name, value in changes.items() if value != defaults[name]}
    values = defaults | changes
    named = {name: placeless(value) for name, value in values.items()}
    label = label or _own_label(notebook.stem, profile, {name: named[name] for name in changes})
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*", label):
        raise InputError(f"label {label!r} is no folder name: use letters, digits, '_', '-', '=' and '.'")
    data, weights = inputs(notebook, values)
    code = code_of(notebook)
    digest = identity(code, named, data, weights)
    context = RunContext(
        run=run_name(notebook.stem, digest),
        notebook=notebook.stem,
        profile=profile,
        label=label,
        parameters=named,
        data=data,
        weights=weights,
        recompute_before=recompute_before,
    )
    return Plan(notebook, root, context, digest, code, usual | changes, values)


def run_name(notebook: str, digest: str) -> str:
    """The name of a run of this identity."""
    return f"{notebook}-{digest[:12]}"


def placeless(value: Any) -> Any:
    """A parameter as it is written down: of an absolute path the last name, so that no place decides or shows."""
    if isinstance(value, list):
        return [placeless(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _own_label(stem: str, profile: str, changes: Mapping[str, Any]) -> str:
    """``01_existence-images=200``: the folder of a run that is not what its profile says, and leaves to the reader."""
    left_open = OPEN if profile in PARTIAL else ()
    changes = {name: value for name, value in changes.items() if name not in left_open}
    if not changes:
        return profile
    parts = [f"{name}={value}" for name, value in changes.items()] + [profile] * (profile != "cpu")
    label = re.sub(r"[^A-Za-z0-9_.=-]+", "_", "-".join([stem, *parts]))
    return label if len(label) <= LONGEST_LABEL else f"{stem}-{identity(dict(changes), profile)[:12]}"


def inputs(notebook: Path, values: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the data sets and of the weights and files that a notebook may read.

    Data sets are those that the notebook or its parameters mention by name; they stand by the sums that their arrays
    must have. Files that parameters name stand by their content, folders by the names and sizes of their files; the key
    of an absolute path is its parameter's name. Folders that ``root``, ``data`` and ``other_roots`` name are data sets.
    What ships with the package counts always.
    """
    weights = {"shipped": identity([(path.name, _digest(path)) for path in _files(SHIPPED)])[:DIGITS]}
    words = {name: value for name, value in values.items() if value and isinstance(value, str)}
    for name, items in values.items():
        if isinstance(items, list):
            words |= {f"{name}[{index}]": item for index, item in enumerate(items) if item and isinstance(item, str)}
    mentioned = _constants(notebook) | {*words.values()}
    data = {name: dataset.digest for name, dataset in DATASETS.items() if name in mentioned}
    for name, word in words.items():
        path, key = project_root() / word, name if Path(word).is_absolute() else word
        if path.is_file():
            weights[key] = _digest(path)[:DIGITS]
        elif path.is_dir() and (name == "root" or len(Path(word).parts) > 1):  # a bare word is rather a name
            kind, key = (data, brought) if (brought := _data_set(name, values)) else (weights, key)
            kind[key] = _folder_digest(path)
    return data, weights


def _data_set(name: str, values: Mapping[str, Any]) -> str | None:
    """The data set whose folder a parameter names: ``root`` that of ``data``, ``other_roots[0]`` that of the others."""
    if name in ("data", "root"):
        return placeless(values.get("data", name))
    place, others = re.fullmatch(r"other_roots\[(\d+)\]", name), placeless(values.get("others", []))
    return others[int(place[1])] if place and int(place[1]) < len(others) else None


_digest = remembered(sha256)


@remembered
def _constants(notebook: Path) -> set[Any]:
    """All constants of a notebook but its parameters, of which the values count."""
    cells = [cell for cell in MARK.split(read_notebook(notebook)) if not PARAMETERS.match(cell)]
    return {node.value for node in ast.walk(ast.parse("".join(cells))) if isinstance(node, ast.Constant)}


_large: dict[Any, str] = {}


def _folder_digest(folder: Path) -> str:
    """Digest of the names and sizes of a folder's files; some 5 s for a million, once as long as none comes or goes."""
    folders = [folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/*/"))]
    state = tuple((str(path), path.stat().st_mtime_ns) for path in folders)
    if state in _large:
        return _large[state]
    walk = os.walk(folder, followlinks=True)
    paths = sorted(os.path.join(parent, name) for parent, _, names in walk for name in names)
    names = (path.removeprefix(str(folder)).replace(os.sep, "/") for path in paths)
    sizes = [(name, os.lstat(path).st_size) for name, path in zip(names, paths, strict=True)]
    digest = identity(sizes)[:DIGITS]
    if len(sizes) > LARGE:
        _large[state] = digest
    return digest


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
