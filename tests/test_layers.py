"""The house: who may import whom, and how long a file or a function may be."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median

import pytest

from nullpaper import PUBLIC

PACKAGE = Path(__file__).parent.parent / "nullpaper"
FILES = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}
LAYERS = (
    ("errors",),
    ("files", "statistics"),
    ("data",),
    ("models",),
    ("nullspace", "synthesis", "adapters"),
    ("robustness",),
    ("finetuning", "fooling"),
    ("studies",),
)
BELOW = {
    room: {lower for rooms in LAYERS[:floor] for lower in rooms} for floor, rooms in enumerate(LAYERS) for room in rooms
}
"""What each room may import besides itself; rooms of one layer do not import each other."""
BELOW |= {
    "workflow": {"errors", "files", "statistics", "data"},
    "cli": {*BELOW, "workflow"},
    "__main__": {"cli"},
    "__init__": set(),
}
BELOW["studies"].add("workflow")


def imported(file: Path) -> set[str]:
    """The rooms of the package that a file imports from, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports by a relative name"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {module.split(".")[1] for module in modules if module.startswith("nullpaper.")}
    return {PUBLIC.get(name, name).split(".")[0] for name in names} & {
        name.split("/")[0].removesuffix(".py") for name in FILES
    }


@pytest.mark.parametrize("name", FILES)
def test_a_room_imports_those_below_it_alone(name: str) -> None:
    room = name.split("/")[0].removesuffix(".py")
    assert imported(FILES[name]) - {room} <= BELOW[room]


def test_files_and_functions_are_short() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 320} == {}
    functions = {
        f"{name}: {node.name}": node.end_lineno - node.lineno + 1
        for name, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: length for name, length in functions.items() if length > 60} == {}
    assert median(functions.values()) <= 10


def test_a_room_says_what_it_is_for() -> None:
    rooms = [file for name, file in FILES.items() if name.endswith("__init__.py")]
    assert len(rooms) == 11 and all(ast.get_docstring(ast.parse(file.read_text())) for file in rooms)
