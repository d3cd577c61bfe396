"""The parameters of a notebook, and what a profile changes in them: checked before anything runs.

A notebook is a py:percent file. One cell is tagged ``parameters`` and holds assignments that papermill understands; its
defaults are those of the profile ``cpu``. The file ``profiles.yaml`` beside it says what other profiles change::

    # %% tags=["parameters"]
    images: int = 1_000  # test images
    weights: str = ""  # a .safetensors file
"""

from __future__ import annotations

import ast
import functools
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, first_line, nearest

PROFILES = ("smoke", "cpu", "gpu", "imagenet", "reference")
FALLBACKS = {"imagenet": "gpu"}
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
WORDS = {"True": True, "true": True, "yes": True, "False": False, "false": False, "no": False}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
PLAIN = f"it can be {', '.join(TYPES)}"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: ``type`` as annotated or as its default shows, ``help`` from its comment."""

    name: str
    default: Any
    type: str
    help: str = ""


def check_profile(name: str, source: str = "profile") -> str:
    """``name`` itself.

    Raises:
        InputError: there is no such profile.
    """
    if name not in PROFILES:
        raise InputError(f"{source} '{name}' is unknown.{nearest(name, PROFILES)} Choose from {', '.join(PROFILES)}")
    return name


def default_profile() -> str:
    """The profile of NULLPAPER_PROFILE or PROFILE if one is set, else ``gpu`` on a machine with a GPU, else ``cpu``.

    Raises:
        InputError: the environment variable names no profile.
    """
    for variable in ("NULLPAPER_PROFILE", "PROFILE"):
        if name := os.environ.get(variable):
            return check_profile(name, f"{variable}:")
    return "gpu" if has_gpu() else "cpu"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether torch sees a GPU; torch, which takes seconds to load, is asked only where a driver is present."""
    if "torch" not in sys.modules and not any(Path(path).exists() for path in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def read_notebook(notebook: Path) -> str:
    """The text of a py:percent notebook.

    Raises:
        InputError: no such file, not a ``.py`` file, or not valid Python.
    """
    if not notebook.is_file():
        names = sorted(path.name for path in notebook.parent.glob("*.py"))
        raise InputError(f"there is no notebook {notebook}.{nearest(notebook.name, names)}")
    if notebook.suffix != ".py":
        raise InputError(f"{notebook} is not a py:percent notebook (.py): convert it by jupytext --to py:percent")
    try:
        text = notebook.read_text(encoding="utf-8")
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{notebook} is not valid Python ({error}): correct it first") from error
    return text


def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, as papermill reads them from its cell tagged ``parameters``.

    Raises:
        InputError: an unreadable notebook, a type that papermill does not know, or a default that is not a constant.
    """
    import jupytext
    from papermill.translators import PythonTranslator

    cells = jupytext.reads(read_notebook(notebook), fmt="py:percent").cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return {}
    read = {parameter.name: parameter for parameter in PythonTranslator.inspect(tagged[0])}
    for node in ast.parse(tagged[0].source).body:  # papermill passes over what it cannot read
        target = getattr(node, "target", None) or getattr(node, "targets", [node])[0]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.unparse(target) not in read:
            raise InputError(f"{notebook}: papermill cannot read the parameter {ast.unparse(node)}; {PLAIN}")
    return {name: _parameter(notebook, parameter) for name, parameter in read.items()}


def _parameter(notebook: Path, read: Any) -> Parameter:
    try:
        default = ast.literal_eval(read.default)
    except (ValueError, SyntaxError) as error:
        where = f"{notebook}: the default of the parameter {read.name}"
        raise InputError(f"{where} must be a constant, not {read.default}") from error
    kind = type(default).__name__ if read.inferred_type_name == "None" else read.inferred_type_name
    if kind.partition("[")[0] not in TYPES:
        raise InputError(f"{notebook}: the parameter {read.name} is a {kind}; {PLAIN}")
    return Parameter(read.name, default, kind, read.help)


def check_parameters(
    notebook: Path, given: Mapping[str, Any], known: Mapping[str, Parameter] | None = None
) -> dict[str, Any]:
    """The given values in the notebook's types; strings, as a command line gives them, are converted.

    ``known`` are the notebook's `parameters`, if they have been read already.

    Raises:
        InputError: an unknown name (the nearest and all valid ones are named), or a value of another type.
    """
    known = parameters(notebook) if known is None else known
    for name in given:
        if name not in known:
            names = ", ".join(known) or "none at all"
            raise InputError(f"{notebook.name} has no parameter '{name}'.{nearest(name, known)} It has {names}")
    return {name: _converted(known[name], value) for name, value in given.items()}


def _converted(parameter: Parameter, value: Any) -> Any:
    """``value`` in the parameter's type; the items of a list in the type that it names, or that its default shows."""
    base, _, inner = parameter.type.removesuffix("]").partition("[")
    items = {type(item).__name__ for item in parameter.default} if base == "list" else set()
    inner = inner or (items.pop() if len(items) == 1 else "")
    try:
        typed = _typed(base, _parsed(base, value) if isinstance(value, str) else value)
        return [_typed(inner, item) for item in typed] if inner in TYPES else typed
    except ValueError:
        kind = f"{base}[{inner}]" if inner in TYPES else base
        raise InputError(f"parameter '{parameter.name}' must be {kind}, but {value!r} is not") from None


def _parsed(base: str, text: str) -> Any:
    if base == "bool":
        return WORDS.get(text, text)
    return json.loads(text) if base == "list" else TYPES[base](text)


def _typed(base: str, value: Any) -> Any:
    value = float(value) if base == "float" and type(value) is int else list(value) if type(value) is tuple else value
    if type(value) is not TYPES[base] or (base == "float" and math.isnan(value)):
        raise ValueError(value)
    return value


def profile_parameters(notebook: Path, profile: str, known: Mapping[str, Parameter] | None = None) -> dict[str, Any]:
    """What a profile changes in a notebook's defaults, by the file ``profiles.yaml`` beside it.

    Raises:
        InputError: the file names a profile or a parameter that does not exist, or a value of another type.
    """
    file = notebook.with_name("profiles.yaml")
    entry = _profiles(file, file.stat().st_mtime_ns).get(notebook.stem) or {} if file.is_file() else {}
    for name in entry:
        check_profile(name, f"{file}, {notebook.stem}: profile")
    values = entry.get(check_profile(profile), entry.get(FALLBACKS.get(profile, ""))) or {}
    try:
        return check_parameters(notebook, values, known)
    except InputError as error:
        raise InputError(f"{file}, profile {profile}: {error}") from error


@functools.lru_cache(maxsize=4)
def _profiles(file: Path, _modified: int) -> dict[str, Any]:
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file} is not valid YAML ({first_line(error)}): correct it first") from error
