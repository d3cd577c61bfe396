"""Runs the answer of a notebook, its last section, on given tables: a verdict must turn with the numbers it reads.

A notebook's test names its tables and one change for each of its claims, and imports the two tests at the end::

    TABLES = {"areas": "05_faithfulness_areas"}  # the notebook's variable: the name of the saved table, or a table
    ALTERED = [("faithfulness", [("areas", {"image": "noisy"}, about("deletion_change", -0.5))], "does not hold")]
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import jupytext
import pandas as pd
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
REFERENCE = NOTEBOOKS.parent / "results"
WIDE = (("low", -0.1), ("high", 0.1))


def reference(table: str | pd.DataFrame) -> pd.DataFrame:
    """A table of the reference results; one that is given stays."""
    return pd.read_csv(REFERENCE / f"{table}.csv") if isinstance(table, str) else table


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


def gain(value: float, half: float = 1e-3) -> dict[str, float]:
    """A paired difference with its intervals over seeds and over images, as columns of a table."""
    return about("difference", value, half) | {"images_low": value - half, "images_high": value + half, "n": 3}


def endpoint_of(value: float, half: float = 1e-3) -> dict[str, float]:
    """A paired difference with its interval for new seeds and new images, as columns of a table."""
    return {"difference": value, "low": value - half, "high": value + half, "df": 10, "n": 5}


def unresolved(pairs: list[tuple[str, str]], measures: list[str]) -> pd.DataFrame:
    """A table of `contrasts.contrast` in which nothing is resolved, for claims that the reference lacks."""
    wide = endpoint_of(0, 0.1) | {f"{over}_{end}": half for over in ("difference", "images") for end, half in WIDE}
    return pd.DataFrame(
        {"method": first, "against": second, "measure": measure, **wide, "p": 1.0, "images": 500, "steps": 800}
        for first, second in pairs
        for measure in measures
    )


def tables_of(request: pytest.FixtureRequest) -> dict[str, pd.DataFrame]:
    """The tables that a file names: of the reference, or with ``OF_RUN`` of its own run at smoke."""
    of_run = getattr(request.module, "OF_RUN", False)
    read = request.getfixturevalue("run").table if of_run else reference
    return {variable: read(table) for variable, table in request.module.TABLES.items()}


def undecided(table: pd.DataFrame) -> pd.DataFrame:
    """The table with intervals that have no end."""
    ends = {"low": -1e9, "high": 1e9}
    return table.assign(**{name: ends[end] for name in table for end in ends if name.split("_")[-1] == end})


def test_a_verdict_turns_with_its_numbers(request: pytest.FixtureRequest, tmp_path: Path, altered_claim: tuple) -> None:
    notebook, (name, changes, expected) = request.module.NOTEBOOK, altered_claim
    tables = tables_of(request)
    before = judge(notebook, tmp_path, **tables).loc[name]
    for variable, where, values in changes:
        tables[variable] = altered(tables[variable], where, values)
    after = judge(notebook, tmp_path, **tables).loc[name]
    assert before["holds"] != expected == after["holds"] and before["measured"] != after["measured"]


def test_intervals_without_end_decide_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Claims that the file lists as ``CERTAIN`` read numbers that have no interval."""
    tables = {variable: undecided(table) for variable, table in tables_of(request).items()}
    words = judge(request.module.NOTEBOOK, tmp_path, **tables)["holds"].drop(getattr(request.module, "CERTAIN", []))
    assert set(words) == {"not resolved"}
