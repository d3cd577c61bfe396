"""The parameters of a notebook, and what a profile changes in them: checked before anything runs.

A notebook is a py:percent file. One cell is tagged ``parameters`` and holds assignments that papermill understands; its
defaults are those of the profile ``cpu``. The file ``profiles.yaml`` beside it says what other profiles change::

    # %% tags=["parameters"]
    images: int = 1_000  # test images
    weights: str = ""  # a .safetensors file

Whole numbers are counts and seeds: none may be below 1, or below 0 where the default is 0 (only where it is negative,
any will do). So too the items of a list of them.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nullpaper.errors import InputError, check_choice, nearest

NEEDED = ("ipykernel", "jupytext", "matplotlib", "nbconvert", "papermill", "rich", "seaborn")
if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    raise InputError(f"to run notebooks needs {', '.join(missing)}: pip install 'nullpaper[notebooks]'")

PROFILES = ("smoke", "cpu", "gpu", "imagenet", "reference", "photographs")
PARTIAL = ("photographs",)
"""Profiles of those notebooks alone that have an entry for them."""
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
MARK = re.compile(r"^(?=[ \t]*#[ \t]*%%)", re.MULTILINE)  # before each cell, as jupytext reads them
TAGGED = r"\s*#\s*%%.*tags[\"']?\s*[=:].*[\"']{}[\"']"  # how a cell with this tag begins
PARAMETERS = re.compile(TAGGED.format("parameters"))
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}

Content = TypeVar("Content")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: ``type`` as annotated or as its default shows, ``help`` from its comment."""

    default: Any
    type: str
    help: str


def check_profile(name: str, source: str = "profile") -> str:
    """``name`` itself.

    Raises:
        InputError: there is no such profile.
    """
    check_choice(source, name, PROFILES)
    return name


def default_profile() -> str:
    """``gpu`` on a machine with a GPU, else ``cpu``."""
    return "gpu" if has_gpu() else "cpu"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether torch sees a GPU; torch, which takes seconds to load, is asked only where a driver is present."""
    if not any(Path(path).exists() for path in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def remembered(read: Callable[[Path], Content]) -> Callable[[Path], Content]:
    """``read``, a function of a file, which reads a file anew only when its time or size has changed."""

    @functools.lru_cache(maxsize=256)
    def once(path: Path, _state: tuple[int, int] | None) -> Content:
        return read(path)

    @functools.wraps(read)
    def look(path: Path) -> Content:
        status = path.stat() if path.is_file() else None
        return once(path, status and (status.st_mtime_ns, status.st_size))

    return look


@remembered
def read_notebook(notebook: Path) -> str:
    """The text of a py:percent notebook.

    Raises:
        InputError: no such file, not valid Python, or nothing that begins a cell.
    """
    if notebook.suffix != ".py" or not notebook.is_file():
        names = sorted(path.name for path in notebook.parent.glob("*.py"))
        raise InputError(
            f"there is no notebook {notebook}: name a py:percent file (.py).{nearest(notebook.name, names)}"
        )
    try:
        text = notebook.read_text(encoding="utf-8")
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{notebook} is not valid Python ({error}): correct it first") from error
    if not MARK.search(text):
        raise InputError(f"{notebook} has no cells: begin each with a line '# %%', as py:percent notebooks do")
    return text


@remembered
def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name: the assignments in its cell tagged ``parameters``.

    Raises:
        InputError: an unreadable notebook, or a parameter that is no constant of a type that papermill knows.
    """
    source = next((cell for cell in MARK.split(read_notebook(notebook)) if PARAMETERS.match(cell)), "")
    known = {}
    for node in ast.parse(source).body:
        try:
            default, is_annotated = ast.literal_eval(node.value), isinstance(node, ast.AnnAssign)
            name = ast.unparse(node.target if is_annotated else node.targets[0])
            kind = ast.unparse(node.annotation) if is_annotated else type(default).__name__
            if kind not in TYPES:
                raise ValueError(kind)
        except (AttributeError, ValueError) as error:
            sentence = f"{notebook}: the parameter {ast.unparse(node)} must be a constant: {', '.join(TYPES)}"
            raise InputError(sentence) from error
        rest = source.splitlines()[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        known[name] = Parameter(default, kind, rest.partition("#")[2].strip())
    return known


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values in the notebook's types; strings, as a command line gives them, are read as Python constants.

    Raises:
        InputError: an unknown name (the nearest and all valid ones are named), a value of another type, or a whole
            number below the least.
    """
    known = parameters(notebook)
    for name in given:
        if name not in known:
            names = ", ".join(known) or "none: they stand in the cell that begins '# %% tags=[\"parameters\"]'"
            raise InputError(f"{notebook.name} has no parameter '{name}'.{nearest(name, known)} It has {names}")
    return {name: _converted(name, known[name], value) for name, value in given.items()}


def _converted(name: str, parameter: Parameter, given: Any) -> Any:
    """``given`` in the parameter's type; the items of a list in the type of those of its default."""
    kind, value = TYPES[parameter.type], given
    items = {type(item) for item in parameter.default} if kind is list else set()
    try:
        if isinstance(given, str) and kind is not str:
            value = ast.literal_eval(given.capitalize() if kind is bool else given)
        value = _typed(kind, value)
        value = [_typed(*items, item) for item in value] if len(items) == 1 else value
    except (ValueError, SyntaxError, TypeError):
        of = f"[{items.pop().__name__}]" if len(items) == 1 else ""
        raise InputError(f"parameter '{name}' must be {parameter.type}{of}, but {given!r} is not") from None
    usual = _whole(parameter.default)
    least = min(1, *usual) if usual else -1
    if least >= 0 and any(number < least for number in _whole(value)):
        raise InputError(f"parameter '{name}' must be at least {least}, but {given!r} is not")
    return value


def _whole(value: Any) -> list[int]:
    return [number for number in (value if isinstance(value, list) else [value]) if type(number) is int]


def _typed(kind: type, value: Any) -> Any:
    value = float(value) if kind is float and type(value) is int else list(value) if type(value) is tuple else value
    if type(value) is not kind or value != value:  # NaN
        raise ValueError(value)
    return value


def profile_parameters(notebook: Path, profile: str) -> dict[str, Any]:
    """What a profile changes in a notebook's defaults, by the file ``profiles.yaml`` beside it.

    Raises:
        InputError: the file names a profile or a parameter that does not exist, or a value of another type; or the
            notebook is no part of the profile.
    """
    parameters(notebook)  # what is wrong with the notebook itself is not the profile's fault
    file, entry = notebook.with_name("profiles.yaml"), _entry(notebook)
    for name in entry:
        check_profile(name, f"{file}, {notebook.stem}: profile")
    fallback = entry.get("gpu") if check_profile(profile) == "imagenet" else None
    if not takes_part(notebook, profile):
        raise InputError(f"{notebook.stem} is no part of the profile {profile}: add an entry for it to {file}")
    values = entry.get(profile, fallback) or {}
    if not isinstance(values, dict):
        raise InputError(f"{file}, {notebook.stem}: profile {profile} must map parameters to values, not {values!r}")
    try:
        return check_parameters(notebook, values)
    except InputError as error:
        raise InputError(f"{file}, profile {profile}: {error}") from error


def takes_part(notebook: Path, profile: str) -> bool:
    """Whether a profile runs this notebook: any but those of `PARTIAL` run all."""
    return profile not in PARTIAL or profile in _entry(notebook)


def _entry(notebook: Path) -> dict[str, Any]:
    return _profiles(notebook.with_name("profiles.yaml")).get(notebook.stem) or {}


@remembered
def _profiles(file: Path) -> dict[str, dict[str, Any]]:
    content = read_yaml(file) if file.is_file() else {}
    for name, entry in content.items():
        if not isinstance(entry or {}, dict):
            raise InputError(f"{file}: {name} must map profiles to parameters, not {entry!r}")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping, of which YAML would drop the first, or that is no text."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names: list[str] = []
        for key in [key for key, _ in node.value if not key.tag.endswith(":merge")]:
            problem = None if key.tag.endswith(":str") else "a name must be a text: put it in quotes"
            problem = f"'{key.value}' stands there twice" if key.value in names else problem
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            names.append(key.value)
        return node


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with its anchors and merge keys (``<<: *base``) resolved; an empty file holds none.

    Raises:
        InputError: the file cannot be read, is not valid YAML, or holds no mapping or one with a name twice.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): name a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file} is not valid YAML ({' '.join(str(error).split())}): correct it first") from error
    if not isinstance(content or {}, dict):
        raise InputError(f"{file} must map names to values, but holds {content!r}")
    return content or {}
