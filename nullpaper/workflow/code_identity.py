"""What makes two computations the same: plain values as JSON, and code without its words and its place.

Code is compared as syntax trees without docstrings, comments, layout, import lines and what is raised, together with
every file of the project that it imports. Neither names nor paths of modules count, so that moving or rewording code
drops no stored result. The room `workflow` and the ground's errors and files keep results and decide none of them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import dis
import functools
import gc
import importlib.util
import inspect
import json
import linecache
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from nullpaper import PUBLIC
from nullpaper.errors import InputError
from nullpaper.files import sha256

PACKAGE = Path(__file__).resolve().parents[1]
KEEPERS = (PACKAGE / "workflow", PACKAGE / "errors.py", PACKAGE / "files.py", PACKAGE / "__init__.py")
"""Files that keep results or lead to code and decide no result: left out wherever an import leads to them."""
LAZY = {f"nullpaper.{name}": [f"nullpaper.{module}"] for name, module in PUBLIC.items()}
LAZY["nullpaper"] = [module for modules in LAZY.values() for module in modules]
"""What an import of the package or of a public name may load besides."""
STDLIB = Path(os.__file__).resolve().parent


def plain(value: Any) -> Any:
    """What ``json.dumps`` writes in place of a NumPy or torch scalar (a number) and of a path (a string).

    Raises:
        TypeError: JSON cannot hold the value.
    """
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}")


def is_place(value: Any) -> bool:
    """Whether it is an absolute path, which no identity may depend on; a text such as "/" or "/255" is none."""
    return isinstance(value, str) and os.path.isabs(value) and len(Path(value).parts) > 2


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is collected: it would visit all nodes of syntax trees, again and again for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def identity(*parts: Any) -> str:
    """A digest of 64 hexadecimal digits of JSON-like ``parts``, independent of the order of keys."""
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=plain).encode())


def code_identity(*code: Any) -> str:
    """A digest of 64 hexadecimal digits of functions, modules, classes, partials or Python files, and all they rest on.

    Modules are followed into what they import from packages that are not installed libraries. A function of a file
    stands for that whole file; one of a notebook or script is followed through the names that it uses. Plain values
    that a function captures, its defaults, and settings (dataclasses of plain values) count; arrays, tensors and other
    objects are data, whose identity is for the caller to give. So is what an absolute path leads to.

    Raises:
        InputError: a function whose source is not to be had.
        SyntaxError: a file that is not Python.
    """
    description = _Description()
    parts = [description.file(item) if isinstance(item, Path) else description.of(item) for item in code]
    return identity(parts, sorted(set(description.files.values())))


class _Description:
    """Describes values as JSON data, each function and class once, and gathers the files that they rest on."""

    def __init__(self) -> None:
        self.files: dict[Path, str] = {}
        self._seen: dict[FunctionType | type, str] = {}

    def file(self, path: str | Path) -> str | None:
        """The digest of a file, whose imports are followed; None for one that decides nothing."""
        path = Path(path).resolve()
        if _is_keeper(path):
            return None
        if path not in self.files:
            self.files[path], imported = _read(path, path.read_bytes())
            for file in imported:
                if file not in self.files and file.is_file():
                    self.file(file)
        return self.files[path]

    def of(self, value: Any) -> Any:
        """The description of a value, the same for all data of a class."""
        with contextlib.suppress(TypeError):
            value = plain(value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return None if is_place(value) else value
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(item)] for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return [self.of(item) for item in value]
        if isinstance(value, functools.partial):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, ModuleType):
            return self._module(value.__name__)
        value = inspect.unwrap(value)
        if isinstance(value, (FunctionType, type)):
            if value in self._seen:
                return self._seen[value]
            self._seen[value] = f"again {len(self._seen)}"
            return self._function(value) if isinstance(value, FunctionType) else self._class(value)
        settings = None
        if dataclasses.is_dataclass(value) and not type(value).__module__.startswith("nullpaper.workflow."):
            with contextlib.suppress(TypeError):
                settings = self.of(json.loads(json.dumps(vars(value), default=plain)))
        return [self.of(type(value)), getattr(value, "__name__", None), settings]

    def _function(self, function: FunctionType) -> Any:
        is_cell = function.__module__ == "__main__"
        place = None if is_cell else self._module(function.__module__)
        if place == function.__module__:  # a library's
            return [function.__qualname__, place]
        code, space = function.__code__, function.__globals__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        captured = self.of([*cells, *(function.__defaults__ or ()), function.__kwdefaults__])
        if is_cell:
            nodes = _nodes(code)
            used = [self.of(space.get(name)) for name in sorted(_names(code))]
            imported = [self.file(file) for node in nodes for file in _imported(node, Path.cwd())]
            return [_canonical(nodes), captured, used, imported]
        return [function.__qualname__, place, captured]

    def _class(self, kind: type) -> Any:
        if kind.__module__ == "__main__":
            members = {name: value for name, value in vars(kind).items() if _is_written(name, value)}
            return [self.of(kind.__bases__), self.of(members)]
        return [kind.__qualname__, self._module(kind.__module__)]

    def _module(self, name: str) -> str | None:
        """The digest of a module's file, or the name of a library's module."""
        file = getattr(sys.modules.get(name), "__file__", None)
        return self.file(file) if _is_own(file) else name


def _is_written(name: str, value: Any) -> bool:
    """Whether a class's attribute is its author's: no bookkeeping, no method that `dataclass` has made."""
    is_made = not isinstance(value, FunctionType) or inspect.unwrap(value).__code__.co_filename == "<string>"
    return not (name.startswith("__") and is_made)


def _names(code: CodeType) -> set[str]:
    """The global names that are read; attributes of the same name do not count."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return read.union(*(_names(const) for const in code.co_consts if isinstance(const, CodeType)))


def _nodes(code: CodeType) -> list[ast.AST]:
    """The syntax trees of a function of a notebook's cell or a script: all functions that begin on its line."""
    nodes = [
        node
        for node in ast.walk(ast.parse("".join(linecache.getlines(code.co_filename))))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        and min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))]) == code.co_firstlineno
    ]
    if not nodes:
        raise InputError(
            f"the source of {code.co_name} is not to be had, so that a change of it could not be told: define it in a "
            "cell of a notebook or in a Python file"
        )
    return nodes


def _canonical(node: Any) -> Any:
    """A syntax tree as nested lists without what decides nothing, the same for every version of Python."""
    if isinstance(node, list):
        return [_canonical(item) for item in node if not _is_idle(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        return ["Raise"]
    parts = [type(node).__name__]
    for name in node._fields:
        if (value := getattr(node, name, None)) is not None and (part := _canonical(value)) != []:
            parts.append([name, part])
    return parts


def _is_idle(node: Any) -> bool:
    """Whether it is a docstring or other text, an import, or an ``if`` that holds imports alone (TYPE_CHECKING)."""
    if isinstance(node, ast.If):
        return all(map(_is_idle, node.body + node.orelse))
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return is_text or isinstance(node, (ast.Import, ast.ImportFrom))


@functools.lru_cache(maxsize=512)
def _read(path: Path, source: bytes) -> tuple[str, list[Path]]:
    """A file's digest and the project's files that it imports and that decide something."""
    with uncollected():
        tree = ast.parse(source, str(path))
        return identity(_canonical(tree)), [file for file in _imported(tree, path) if not _is_keeper(file)]


def _imported(tree: ast.AST, path: Path) -> list[Path]:
    """The project's files that code of the file at ``path`` imports, found without importing them."""
    return sorted({candidate.resolve() for candidate in {*_candidates(tree, path)} if _is_own(candidate)})


def _candidates(tree: ast.AST, path: Path) -> Iterator[Path]:
    """Where the files would be, be they there or not."""
    for node in _statements(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            level, module = getattr(node, "level", 0), getattr(node, "module", None)
            direct = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            for name in [*direct, *(lazy for public in direct for lazy in LAZY.get(public, []))]:
                stem = path.parents[level - 1] if level else _folder_of(name.partition(".")[0])
                for part in name.split(".") if stem else []:
                    stem /= part
                    yield from (stem.with_suffix(".py"), stem / "__init__.py")


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all statements in it, however deep; no expressions, of which there are ten times as many."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(node, name, None)
        for child in children if isinstance(children, list) else []:
            yield from _statements(child)


def _folder_of(top: str) -> Path | None:
    """The folder from which a top-level module or package of the paper or the reader is imported."""
    spec = importlib.util.find_spec(top)
    if spec is None or not _is_own(spec.origin):
        return None
    return Path(spec.origin).parents[1 if spec.submodule_search_locations else 0]


def _is_own(file: str | Path | None) -> bool:
    """Whether there is code at ``file`` that is the paper's or the reader's, not that of an installed library."""
    if not (str(file).endswith(".py") and os.path.isfile(file)):
        return False
    path = Path(file).resolve()
    installed = path.is_relative_to(STDLIB) or {"site-packages", "dist-packages"}.intersection(path.parts)
    return path.is_relative_to(PACKAGE) or not installed


def _is_keeper(path: Path) -> bool:
    return any(path.is_relative_to(keeper) for keeper in KEEPERS)
