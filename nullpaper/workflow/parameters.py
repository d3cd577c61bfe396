"""The parameters of a notebook: read from its source, and checked before anything runs.

A notebook is a py:percent file. One cell is tagged ``parameters`` and holds assignments of constants::

    # %% tags=["parameters"]
    profile: str = "cpu"
    images: int | None = None  # images evaluated; None: the profile's
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, nearest
from nullpaper.workflow.code_identity import syntax_tree

__all__ = ["Parameter", "check_parameters", "parameters", "read_notebook"]

CELL = re.compile(r"^# ?%%(.*)$", re.MULTILINE)
TAGGED = re.compile(r"\btags\s*=\s*\[[^\]]*[\"']parameters[\"']")
WORDS = {"True": True, "true": True, "yes": True, "False": False, "false": False, "no": False}
NONE = ("None", "none", "null")


@dataclass(frozen=True)
class Parameter:
    """One parameter: ``type`` as annotated (``int | None``) or as its default shows, ``help`` from its comment."""

    name: str
    default: Any
    type: str
    help: str = ""


def read_notebook(notebook: Path) -> str:
    """The text of a py:percent notebook.

    Raises:
        InputError: no such file, not a ``.py`` file, or not valid Python.
    """
    if not notebook.is_file():
        known = sorted(path.name for path in notebook.parent.glob("*.py"))
        raise InputError(f"there is no notebook {notebook}.{nearest(notebook.name, known)}")
    if notebook.suffix != ".py":
        raise InputError(f"{notebook} is not a py:percent notebook (.py): convert it by jupytext --to py:percent")
    try:
        text = notebook.read_text(encoding="utf-8")
        syntax_tree(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{notebook} is not valid Python ({error}): correct it first") from error
    return text


def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, in the order of its cell; none if it has no such cell.

    Raises:
        InputError: an unreadable notebook, or a default that is not a constant.
    """
    text = read_notebook(notebook)
    first, last = _parameter_lines(text)
    comments = _comments(text)
    found = {}
    for node in syntax_tree(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not first <= node.lineno < last or node.__class__ not in (ast.Assign, ast.AnnAssign) or node.value is None:
            continue
        try:
            name, default = ast.unparse(targets[0]), ast.literal_eval(node.value)
        except ValueError as error:
            where = f"{notebook}, line {node.lineno}: the default of {ast.unparse(targets[0])}"
            raise InputError(f"{where} must be a constant, not {ast.unparse(node.value)}") from error
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else type(default).__name__
        found[name] = Parameter(name, default, kind, comments.get(node.end_lineno or 0, ""))
    return found


def _parameter_lines(text: str) -> tuple[int, int]:
    """First line of the tagged cell and the first line behind it, counted from 1; an empty range if there is none."""
    cells = [(text.count("\n", 0, match.start()) + 1, match[1]) for match in CELL.finditer(text)]
    ends = [line for line, _ in cells[1:]] + [text.count("\n") + 2]
    tagged = [(line, end) for (line, options), end in zip(cells, ends, strict=True) if TAGGED.search(options)]
    return tagged[0] if tagged else (0, 0)


def _comments(text: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def check_parameters(
    notebook: Path, given: Mapping[str, Any], known: Mapping[str, Parameter] | None = None
) -> dict[str, Any]:
    """The given values with the types that the notebook declares; strings, as a command line gives them, are converted.

    ``known`` are the notebook's `parameters`, if they have been read already.

    Raises:
        InputError: an unknown name (the nearest and all valid ones are named), or a value of another type.
    """
    known = parameters(notebook) if known is None else known
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none at all"
            raise InputError(f"{notebook.name} has no parameter '{name}'.{nearest(name, known)} It has {listed}")
    return {name: _converted(known[name], value) for name, value in given.items()}


def _converted(parameter: Parameter, value: Any) -> Any:
    kinds = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", parameter.type)
    if kinds == "NoneType":  # a bare None says nothing about the other values
        kinds = "None | bool | int | float | list | str"
    try:
        return _typed(kinds, value, from_text=isinstance(value, str))
    except ValueError:
        raise InputError(f"parameter '{parameter.name}' must be {parameter.type}, but {value!r} is not") from None


def _typed(kinds: str, value: Any, *, from_text: bool) -> Any:
    """``value`` as the first of the annotated ``kinds`` that fits; a ValueError if none does."""
    alternatives = re.split(r" \| (?![^\[]*\])", kinds)
    for kind in sorted(alternatives, key=lambda kind: kind == "str"):  # last, since any text fits it
        base, _, inner = kind.removesuffix("]").partition("[")
        try:
            found = _parsed(base, value) if from_text else value
        except ValueError:
            continue
        if base == "float" and type(found) is int:
            found = float(found)
        if base in ("list", "tuple") and isinstance(found, (list, tuple)):
            element = inner.partition(",")[0]
            return [_typed(element, item, from_text=False) if element else item for item in found]
        types = {"None": type(None), "bool": bool, "int": int, "float": float, "str": str, "dict": dict}
        if type(found) is types.get(base) and not (base == "float" and math.isnan(found)):
            return found
    raise ValueError(kinds)


def _parsed(base: str, text: str) -> Any:
    if base == "str":
        return text
    if base == "None" and text in NONE:
        return None
    if base == "bool" and text in WORDS:
        return WORDS[text]
    if base in ("int", "float"):
        return {"int": int, "float": float}[base](text)
    if base in ("list", "tuple", "dict"):
        return json.loads(text)
    raise ValueError(base)
