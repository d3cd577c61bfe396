"""What a run will be, before it begins: a notebook, checked parameters, and an identity made of all that decides it.

A run is named by the digest of the notebook's code and all that it imports, the values of its parameters, the data and
the weights. Neither prose, nor the profile that the values came from, nor any absolute path or label is part of it: two
runs of one name are the same run, whoever starts them and wherever.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullpaper.data.fetch import DATASETS, cache_home
from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.workflow.code_identity import identity
from nullpaper.workflow.parameters import check_parameters, parameters, profile_parameters, read_notebook, remembered
from nullpaper.workflow.provenance import RunContext, project_root
from nullpaper.workflow.reference import DIGITS, code_of

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
    label = label or _own_label(notebook.stem, profile, changes)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*", label):
        raise InputError(f"label {label!r} is no folder name: use letters, digits, '_', '-', '=' and '.'")
    data, weights = inputs(notebook, values)
    code = code_of(notebook)
    placeless = {name: Path(value).name if _is_absolute(value) else value for name, value in values.items()}
    digest = identity(code, placeless, data, weights)
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


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _own_label(stem: str, profile: str, changes: Mapping[str, Any]) -> str:
    """``01_existence-images=200``: the folder of a run that is not what its profile says."""
    if not changes:
        return profile
    parts = [f"{name}={value}" for name, value in changes.items()] + [profile] * (profile != "cpu")
    label = re.sub(r"[^A-Za-z0-9_.=-]+", "_", "-".join([stem, *parts]))
    return label if len(label) <= LONGEST_LABEL else f"{stem}-{identity(dict(changes), profile)[:12]}"


def inputs(notebook: Path, values: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the data sets and of the weights and files that a notebook may read.

    Data sets are those that the notebook or its parameters mention by name; they stand by the sums that their arrays
    must have. Files that parameters name stand by their content, folders by the names and sizes of their files; the key
    of an absolute path is its parameter's name. What ships with the package counts always.
    """
    weights = {"shipped": identity([(path.name, _digest(path)) for path in _files(SHIPPED)])[:DIGITS]}
    words = {name: value for name, value in values.items() if value and isinstance(value, str)}
    for name, items in values.items():
        if isinstance(items, list):
            words |= {f"{name}[{index}]": item for index, item in enumerate(items) if item and isinstance(item, str)}
    for name, word in words.items():
        path, key = project_root() / word, name if Path(word).is_absolute() else word
        if path.is_file():
            weights[key] = _digest(path)[:DIGITS]
        elif path.is_dir() and len(Path(word).parts) > 1:  # a bare word is rather a name
            sizes = [(file.relative_to(path).as_posix(), file.stat().st_size) for file in _files(path)]
            weights[key] = identity(sizes)[:DIGITS]
    mentioned = _constants(notebook) | {*words.values()}
    return {name: dataset.digest for name, dataset in DATASETS.items() if name in mentioned}, weights


_digest = remembered(sha256)


@remembered
def _constants(notebook: Path) -> set[Any]:
    return {node.value for node in ast.walk(ast.parse(read_notebook(notebook))) if isinstance(node, ast.Constant)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
