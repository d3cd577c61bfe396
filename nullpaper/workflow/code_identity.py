"""What makes two computations the same: plain values as canonical JSON, and code without its comments.

Code is compared without comments, docstrings and layout, together with every module of its own package that it imports,
so that a stored result is dropped when something that it rests on changed, and only then.
"""

from __future__ import annotations

import ast
import dis
import functools
import importlib.util
import json
import math
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import sha256

__all__ = ["code_identity", "dumps", "identity", "loads", "plain", "syntax_tree"]

Code = ModuleType | Callable[..., Any] | Path
NONFINITE = "__float__"
PARSING = Lock()
BOOKKEEPING = {
    "nullpaper.files",
    *(f"nullpaper.workflow.{name}" for name in ("code_identity", "inputs", "outputs", "provenance", "store")),
}
"""Modules that keep results and decide none of them: left out wherever an import leads to them."""


def plain(value: Any, where: str = "value") -> Any:
    """``value`` as JSON data: tuples become lists, paths strings, NumPy and torch scalars numbers, NaN and infinities
    a tagged string (so that the file stays valid JSON and `loads` gives the same number back).

    Raises:
        InputError: something that JSON cannot hold, named by its place under ``where``.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {NONFINITE: repr(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}, but keys must be strings: write '{key}'")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InputError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: give numbers, strings, lists or dicts, a table "
        "through store.records(), and arrays as the second value that compute returns"
    )


def dumps(value: Any, *, canonical: bool = False) -> str:
    """``plain(value)`` as JSON text; ``canonical`` sorts the keys and drops the layout."""
    if canonical:
        return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


def loads(text: str | bytes) -> Any:
    """The inverse of `dumps`."""

    def untag(item: dict[str, Any]) -> Any:
        return float(item[NONFINITE]) if item.keys() == {NONFINITE} else item

    return json.loads(text, object_hook=untag)


def syntax_tree(source: str | bytes, file: str = "<unknown>") -> ast.Module:
    """``ast.parse``, one thread at a time: older Python 3.11 and 3.10 fail when two threads parse (gh-106905).

    Raises:
        SyntaxError, ValueError: it is not Python.
    """
    with PARSING:
        return ast.parse(source, filename=file)


def identity(*parts: Any) -> str:
    """A digest of 64 hexadecimal digits of JSON-like ``parts``, independent of the order of keys."""
    return sha256(dumps(parts, canonical=True).encode())


def code_identity(code: Sequence[Code]) -> dict[str, str]:
    """A digest for each piece of code that ``code`` (modules, functions, paths of Python files) rests on.

    Modules are followed into what they import from packages that are not installed libraries. A function of a file
    stands for that module; one that lives in a notebook is followed through what it calls. Plain values that a function
    captures count as part of it.
    """
    found: dict[str, str] = {}
    seen: dict[int, Any] = {}  # holds what it names, since a freed object's id is given away again
    pending: list[Any] = list(code)
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, (ModuleType, Path)):
            found.update(_module_closure(item))
        elif isinstance(item, functools.partial):
            values = [*item.args, *item.keywords.values()]
            found[f"partial of {_label(item.func)}"] = identity(sorted(item.keywords), _plain_only(values))
            pending += [item.func, *_code_in(values)]
        elif isinstance(item, MethodType):
            pending.append(item.__func__)
        elif getattr(item, "__module__", None) in BOOKKEEPING:
            continue
        elif file := _file_of(item):
            found.update(_module_closure(Path(file), item.__module__))
            pending += _captured(item, found, with_globals=False)
        elif isinstance(item, type):
            pending += [member for member in (*vars(item).values(), *item.__bases__) if _is_code(member)]
        elif isinstance(item, FunctionType):
            pending += _captured(item, found, with_globals=True)
        else:
            pending.append(type(item))
    return dict(sorted(found.items()))


def _captured(item: Any, found: dict[str, str], *, with_globals: bool) -> list[Any]:
    """Enter the digest of a function's instructions and captured plain values; return the code that it captures."""
    if not isinstance(item, FunctionType):
        return []
    cells = dict(zip(item.__code__.co_freevars, item.__closure__ or (), strict=False))
    values = {name: cell.cell_contents for name, cell in cells.items() if _is_filled(cell)}
    values |= {f"default {index}": value for index, value in enumerate(item.__defaults__ or ())}
    values |= item.__kwdefaults__ or {}
    instructions = _instructions(item.__code__)
    if with_globals:
        names = {name for name in _names(item.__code__) if name in item.__globals__}
        values |= {name: item.__globals__[name] for name in sorted(names)}
    kept = {name: part for name, value in values.items() if (part := _plain_only([value]))}
    if with_globals or kept:
        found[_label(item)] = identity(instructions if with_globals else [], kept)
    return _code_in(values)


def _label(item: Any) -> str:
    return f"{getattr(item, '__module__', '?')}:{getattr(item, '__qualname__', type(item).__name__)}"


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (a cell has no other way to say that it is empty)
    except ValueError:
        return False
    return True


def _is_code(value: Any) -> bool:
    if isinstance(value, functools.partial):
        return True
    if isinstance(value, ModuleType):
        return _is_own(getattr(value, "__file__", None))
    return isinstance(value, (FunctionType, MethodType, type)) and (
        value.__module__ == "__main__" or _file_of(value) is not None
    )


def _items(value: Any) -> list[Any]:
    """The keys and values of a dict, the items of a sequence; nothing for anything else."""
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple)) else []


def _plain_only(values: Sequence[Any]) -> list[Any]:
    """The plain values, also those inside containers; the rest is data, whose identity is for the caller to give."""
    kept = []
    for value in values:
        try:
            kept.append(plain(value))
        except InputError:
            kept += filter(None, [_plain_only(_items(value))])
    return kept


def _code_in(value: Any) -> list[Any]:
    return [value] if _is_code(value) else [code for item in _items(value) for code in _code_in(item)]


def _names(code: CodeType) -> set[str]:
    """The global names that are read; attributes of the same name do not count."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return read.union(*(_names(const) for const in code.co_consts if isinstance(const, CodeType)))


def _instructions(code: CodeType) -> list[Any]:
    """The instructions without line numbers and docstring; nested functions in place of their addresses."""

    def stable(value: Any) -> Any:
        if isinstance(value, CodeType):
            return _instructions(value)
        if isinstance(value, frozenset):
            return sorted(map(repr, value))
        return repr(value)

    return [[instruction.opname, stable(instruction.argval)] for instruction in dis.get_instructions(code)]


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@functools.cache
def _is_own(file: str | None) -> bool:
    """Whether code at ``file`` is the paper's or the reader's, not that of an installed library."""
    if file is None or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    if path.is_relative_to(Path(__file__).resolve().parents[1]):
        return True
    return path.is_file() and not any(path.is_relative_to(folder) for folder in _library_folders())


def _file_of(item: Any) -> str | None:
    """The file of the importable, own module that defines a function or class; none for what a notebook defines."""
    name = getattr(item, "__module__", None)
    spec = _spec(name.partition(".")[0]) if name and name != "__main__" else None
    if spec is None:
        return None
    file = _find(name)
    return str(file) if file is not None else None


def _spec(top: str) -> Any:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _find(name: str) -> Path | None:
    """The source file of module ``name`` if it is our own code, found without importing it."""
    top, *rest = name.split(".")
    spec = _spec(top)
    if spec is None or not _is_own(spec.origin):
        return None
    if not rest:
        return Path(spec.origin)
    if not spec.submodule_search_locations:
        return None
    base = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    candidates = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _module_closure(start: ModuleType | Path, name: str | None = None) -> dict[str, str]:
    """Digests by module name of ``start`` and of all own modules that it imports, directly or not."""
    if isinstance(start, ModuleType):
        start, name = Path(start.__file__ or ""), start.__name__
    found: dict[str, str] = {}
    pending = [(name or start.name, start)]
    while pending:
        module, path = pending.pop()
        if module in found or module in BOOKKEEPING:
            continue
        stat = path.stat()
        found[module], imported = _parsed(path, module, stat.st_mtime_ns, stat.st_size)
        pending += [(other, file) for other in imported if other not in found and (file := _find(other))]
    return found


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, module: str, _modified: int, _size: int) -> tuple[str, tuple[str, ...]]:
    """Digest of the syntax tree without docstrings, and the dotted names that may be imported modules."""
    try:
        tree = syntax_tree(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid Python ({error.msg}); correct it first") from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported = tuple(dict.fromkeys(name for node in ast.walk(tree) for name in _imports(node, package)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return sha256(ast.dump(tree).encode()), imported


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            parts = alias.name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
