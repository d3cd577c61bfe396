"""What a run will be, before it begins: a notebook, checked parameters, and an identity made of all that decides it.

A run is named by the digest of the notebook's code and all that it imports, the values of its parameters, the data and
the weights. Neither prose, nor the profile that the values came from, nor any path or label is part of it: two runs of
one name are the same run, whoever starts them and wherever.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullpaper.data.fetch import DATASETS
from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.workflow.canonical import identity
from nullpaper.workflow.parameters import check_parameters, parameters, profile_parameters, read_notebook
from nullpaper.workflow.provenance import RunContext, project_root
from nullpaper.workflow.reference import code_of

LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*")
LONGEST_LABEL = 80
SHIPPED = Path(__file__).parents[1] / "models" / "shipped"


@dataclass(frozen=True)
class Plan:
    """A checked run that has not begun. ``digest``: its identity; ``given``: what papermill is to inject."""

    notebook: Path
    root: Path
    context: RunContext
    digest: str
    code: str
    given: Mapping[str, Any]

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


def paper_notebooks() -> list[Path]:
    """The numbered notebooks of the project, in order: those that make the paper.

    Raises:
        InputError: there are none.
    """
    folder = project_root() / "notebooks"
    if not (notebooks := sorted(folder.glob("[0-9]*.py"))):
        raise InputError(f"{folder} holds no numbered notebook: run this inside the repository, or set NULLPAPER_ROOT")
    return notebooks


def notebook_path(name: str, *, beside: Path | None = None) -> Path:
    """The path as given (from ``beside``, or from here), or that of a notebook of this name in the project."""
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return beside / path if beside is not None and (beside / path).is_file() else path
    return path if path.exists() else project_root() / "notebooks" / f"{name}.py"


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
        InputError: unknown or mistyped parameters, profile or label, or an unreadable notebook.
    """
    root, known = project_root(), parameters(notebook)
    usual = profile_parameters(notebook, profile, known)
    defaults = {name: parameter.default for name, parameter in known.items()} | usual
    changes = check_parameters(notebook, given or {}, known)
    changes = {name: value for name, value in changes.items() if value != defaults[name]}
    values = defaults | changes
    label = label or _own_label(notebook.stem, profile, changes)
    if not LABEL.fullmatch(label):
        raise InputError(f"label {label!r} is no folder name: use letters, digits, '_', '-', '=' and '.'")
    data, weights = inputs(read_notebook(notebook), values, root)
    code = code_of(notebook)
    digest = identity(code, values, data, weights)
    context = RunContext(
        run=f"{notebook.stem}-{digest[:12]}",
        notebook=notebook.stem,
        profile=profile,
        label=label,
        parameters=values,
        data=data,
        weights=weights,
        recompute_before=recompute_before,
    )
    return Plan(notebook, root, context, digest, code, usual | changes)


def _own_label(stem: str, profile: str, changes: Mapping[str, Any]) -> str:
    """``01_existence-images=200``: the folder of a run that is not what its profile says."""
    if not changes:
        return profile
    parts = [f"{name}={value}" for name, value in changes.items()] + [profile] * (profile != "cpu")
    label = re.sub(r"[^A-Za-z0-9_.=-]+", "_", "-".join([stem, *parts]))
    return label if len(label) <= LONGEST_LABEL else f"{stem}-{identity(dict(changes), profile)[:12]}"


def inputs(text: str, values: Mapping[str, Any], root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the data sets and of the weights and files that a notebook may read.

    Data sets are those that the notebook or its parameters mention by name; they stand by the sums that their arrays
    must have. Files that parameters name stand by their content, folders by the names and sizes of their files. What
    ships with the package counts always.
    """
    constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    named = {*_strings(list(values.values()))}
    mentioned = named | {value for value in constants if isinstance(value, str)}
    data = {name: dataset.digest for name, dataset in DATASETS.items() if name in mentioned}
    weights = {"shipped": identity([(path.name, sha256(path)) for path in _files(SHIPPED)])[:16]}
    for name in sorted(named - {""}):
        path = root / name
        if path.is_file():
            weights[name] = sha256(path)[:16]
        elif path.is_dir() and len(Path(name).parts) > 1:  # a bare word is rather a name
            sizes = [(file.relative_to(path).as_posix(), file.stat().st_size) for file in _files(path)]
            weights[name] = identity(sizes)[:16]
    return data, weights


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
