"""Runs the answer of a notebook, its last section, on given tables: a verdict must turn with the numbers it reads."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import jupytext
import pandas as pd
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
REFERENCE = NOTEBOOKS.parent / "results"


def reference(name: str) -> pd.DataFrame:
    """A table of the reference results."""
    return pd.read_csv(REFERENCE / f"{name}.csv")


def judge(notebook: str, root: Path, **variables: Any) -> pd.DataFrame:
    """The verdicts by name, from the notebook's own parameters, imports and last section, and these variables of it.

    Args:
        notebook: such as ``01_existence``.
        root: a folder that takes what the section saves.
        variables: the tables and numbers that the section reads, by the names that the notebook gives them.
    """
    cells = jupytext.reads((NOTEBOOKS / f"{notebook}.py").read_text(), fmt="py:percent").cells
    (start,) = (i for i, cell in enumerate(cells) if cell.source.startswith("## The answer"))
    code = [cell for cell in cells if cell.cell_type == "code"]
    (defaults,) = (cell.source for cell in code if "parameters" in cell.metadata.get("tags", []))
    nodes = [node for cell in code for node in ast.parse(cell.source).body]
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    answer = [cell.source for cell in cells[start:] if cell.cell_type == "code"]
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(root))
        for source in (ast.unparse(ast.Module(imports, [])), defaults):
            exec(source, namespace)
        namespace |= variables
        for source in answer:
            exec(source, namespace)
    return namespace["answer"].table().set_index("name")


def about(column: str, value: float, half: float = 1e-3) -> dict[str, float]:
    """A number and its interval, as columns of a table."""
    return {column: value, f"{column}_low": value - half, f"{column}_high": value + half}


def altered(table: pd.DataFrame, where: dict[str, Any], changes: dict[str, float]) -> pd.DataFrame:
    """The table with these values in the rows whose columns have the values of ``where``."""
    rows = pd.Series(True, index=table.index)
    for column, value in where.items():
        rows &= table[column] == value
    assert rows.any() and changes.keys() <= set(table.columns)
    return table.assign(**{column: table[column].mask(rows, value) for column, value in changes.items()})


def undecided(table: pd.DataFrame) -> pd.DataFrame:
    """The table with intervals that have no end."""
    lows = {column: -1e9 for column in table.columns if column.endswith("_low")}
    return table.assign(**lows, **{column: 1e9 for column in table.columns if column.endswith("_high")})
