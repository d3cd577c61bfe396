"""What makes two computations the same: plain values as canonical JSON, and code without its words and its place.

Code is compared as syntax trees without docstrings, comments, layout, import lines and what is raised, together with
every file of the project that it imports. Neither names nor paths of modules count, so that moving or rewording code
drops no stored result. The room `workflow` and the ground's errors and files keep results and decide none of them.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import importlib.util
import inspect
import itertools
import linecache
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from nullpaper import PUBLIC
from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.workflow.canonical import identity, placeless, plain

PARSING = Lock()
PACKAGE = Path(__file__).resolve().parents[1]
KEEPERS = (PACKAGE / "workflow", PACKAGE / "errors.py", PACKAGE / "files.py", PACKAGE / "__init__.py")
"""Files that keep results or lead to code and decide no result: left out wherever an import leads to them."""


def syntax_tree(source: str | bytes, file: str = "<unknown>") -> ast.Module:
    """``ast.parse``, one thread at a time: older Python 3.11 and 3.10 fail when two threads parse (gh-106905).

    Raises:
        SyntaxError, ValueError: it is not Python.
    """
    with PARSING:
        return ast.parse(source, filename=file)


def code_identity(*code: Any) -> str:
    """A digest of 64 hexadecimal digits of functions, modules, classes, partials or Python files, and all they rest on.

    Modules are followed into what they import from packages that are not installed libraries. A function of a file
    stands for that whole file; one of a notebook or script is followed through the names that it uses. Plain values
    that a function captures, its defaults, and settings (dataclasses of plain values) count; arrays, tensors and other
    objects are data, whose identity is for the caller to give. So is what an absolute path of a folder leads to.

    Raises:
        InputError: a function whose source is not to be had, or a file that is not Python.
    """
    description = _Description()
    parts = [description.of(item) for item in code]
    return identity(parts, sorted({_read(file)[0] for file in description.files}))


class _Description:
    """Describes values as JSON data, each object once, and gathers the files that they rest on."""

    def __init__(self) -> None:
        self.files: set[Path] = set()
        self._seen: dict[
            int, tuple[int, Any]
        ] = {}  # holds what it names, since a freed object's id is given away again

    def of(self, value: Any) -> Any:
        """The description of a value; None for data."""
        if isinstance(value, Path) and value.suffix == ".py":
            return self._file(value)
        try:
            return placeless(plain(value))
        except InputError:
            pass  # not plain: a container of other things, code, or data
        if id(value) in self._seen:
            return {"again": self._seen[id(value)][0]}
        self._seen[id(value)] = len(self._seen), value
        return self._of_object(inspect.unwrap(value) if callable(value) else value)

    def _of_object(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(item)] for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return [self.of(item) for item in value]
        if isinstance(value, functools.partial):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, ModuleType):
            return self._file(Path(value.__file__)) if _is_own(getattr(value, "__file__", None)) else value.__name__
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        settings = _settings(value)
        if settings is None and not callable(value):
            return None
        return [self.of(type(value)), settings, getattr(value, "__name__", None)]

    def _file(self, file: Path) -> str | None:
        """The digest of a file, whose imports are followed; None for one that decides nothing."""
        pending = [file.resolve()]
        while pending:
            path = pending.pop()
            if path not in self.files and not _is_keeper(path):
                self.files.add(path)
                pending += _resolved(_read(path)[1], path)
        return None if _is_keeper(file.resolve()) else _read(file.resolve())[0]

    def _function(self, function: FunctionType) -> Any:
        code, space = function.__code__, function.__globals__
        captured = dict(zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True))
        captured |= {f"default {index}": value for index, value in enumerate(function.__defaults__ or ())}
        captured |= function.__kwdefaults__ or {}
        if function.__module__ == "__main__":
            nodes = _nodes(code)
            source = sha256(repr([_canonical(node) for node in nodes]).encode())
            captured |= {name: space[name] for name in sorted(_names(code)) if name in space}
            captured["imports"] = [self._file(file) for node in nodes for file in _resolved(_imports(node), Path.cwd())]
        elif _is_own(code.co_filename):
            source = self._file(Path(code.co_filename))
        else:
            return [function.__module__, function.__qualname__]
        return [function.__qualname__, source, {name: self.of(value) for name, value in captured.items()}]

    def _class(self, kind: type) -> Any:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if kind.__module__ != "__main__":
            return [kind.__qualname__, self._file(Path(file)) if _is_own(file) else kind.__module__]
        members = {name: value for name, value in vars(kind).items() if not _is_made_by_python(name, value)}
        return [[self.of(base) for base in kind.__bases__], {name: self.of(value) for name, value in members.items()}]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # a name that is assigned below its function


def _settings(value: Any) -> Any:
    """A dataclass instance of plain values as JSON data; None for any other object, and for what the workflow keeps."""
    if not dataclasses.is_dataclass(value) or type(value).__module__.startswith(f"{PACKAGE.name}.workflow."):
        return None
    try:
        return placeless(plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}))
    except InputError:
        return None


def _is_made_by_python(name: str, value: Any) -> bool:
    """Whether a class's attribute is not of its author: bookkeeping, or a method that `dataclass` has written."""
    is_special = name.startswith("__") and name.endswith("__")
    return is_special and not (isinstance(value, FunctionType) and value.__code__.co_filename != "<string>")


def _names(code: CodeType) -> set[str]:
    """The global names that are read; attributes of the same name do not count."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return read.union(*(_names(const) for const in code.co_consts if isinstance(const, CodeType)))


def _nodes(code: CodeType) -> list[ast.AST]:
    """The syntax trees of a function of a notebook's cell or a script: one, or all lambdas of its line."""
    try:
        tree = syntax_tree("".join(linecache.getlines(code.co_filename)))
    except SyntaxError:
        tree = ast.Module([], [])
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        and getattr(node, "name", "<lambda>") == code.co_name
        and min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))]) == code.co_firstlineno
    ]
    if not nodes:
        raise InputError(
            f"the source of {code.co_name} is not to be had, so that a change of it could not be told: define it in a "
            "cell of a notebook or in a Python file"
        )
    return nodes


def _canonical(node: Any) -> Any:
    """A syntax tree as nested lists, the same for every version of Python; None for what decides nothing."""
    if isinstance(node, list):
        return [item for item in map(_canonical, node) if item is not None]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        return ["Raise"]
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
        return None
    fields = [(name, _canonical(value)) for name, value in ast.iter_fields(node) if value is not None]
    kept = [field for field in fields if field[1] != []]
    if isinstance(node, ast.If) and len(kept) == 1:  # ``if TYPE_CHECKING``: its imports are gone
        return None
    return [type(node).__name__, *kept]


def _read(path: Path) -> tuple[str, tuple[tuple[int, str], ...]]:
    """A file's digest and its imports."""
    stat = path.stat()
    return _parsed(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=512)
def _parsed(path: Path, _modified: int, _size: int) -> tuple[str, tuple[tuple[int, str], ...]]:
    try:
        tree = syntax_tree(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid Python ({error.msg}); correct it first") from error
    return sha256(repr(_canonical(tree)).encode()), tuple(dict.fromkeys(_imports(tree)))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The dotted names that may be modules, with the number of dots before them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((0, name) for name in itertools.accumulate(alias.name.split("."), "{}.{}".format))
                yield from ((0, f"{PACKAGE.name}.{room}") for room in PUBLIC.values() if alias.name == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            public = [PUBLIC.get(alias.name) if base == PACKAGE.name else None for alias in node.names]
            names = [
                base,
                *(f"{base}.{name}" for name in [*(alias.name for alias in node.names), *filter(None, public)]),
            ]
            yield from ((node.level, name.strip(".")) for name in names)


def _resolved(imports: Iterable[tuple[int, str]], path: Path) -> Iterator[Path]:
    """The project's files among the modules that the file at ``path`` imports."""
    for level, name in imports:
        base = path.parents[level - 1] if level else _folder_of(name.partition(".")[0])
        candidates = [] if base is None else [base.joinpath(*name.split("."))]
        for file in (file for stem in candidates for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")):
            if file.is_file() and _is_own(str(file)):
                yield file.resolve()
                break


def _folder_of(top: str) -> Path | None:
    """The folder from which a top-level module or package is imported, found without importing it."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not _is_own(spec.origin):
        return None
    return Path(spec.origin).parents[1 if spec.submodule_search_locations else 0]


def _is_keeper(path: Path) -> bool:
    return any(path == keeper or keeper in path.parents for keeper in KEEPERS)


@functools.cache
def _is_own(file: str | None) -> bool:
    """Whether code at ``file`` is the paper's or the reader's, not that of an installed library."""
    if file is None or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    if path.is_relative_to(PACKAGE):
        return True
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    return path.is_file() and not installed and not any(path.is_relative_to(folder) for folder in _library_folders())


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
