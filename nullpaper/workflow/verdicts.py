"""The verdicts of all notebooks in one table: their primary endpoints, corrected for the number of them in a paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.statistics import carried, holm

COLUMNS = (
    *("name", "papers", "claim", "endpoint", "measured", "low", "high", "n_seeds", "n_images"),
    *("holm", "verdict", "where"),
)
NAMES = {"claim": "said", "measured": "value", "verdict": "holds"}
"""What columns are called in a notebook's own table, whose ``measured`` is a sentence."""
NUMBERS = ("measured", "low", "high", "n_seeds", "n_images", "holm")


def collected(tables: Sequence[Path]) -> str:
    """As CSV, the rows of one or more tables ``NN_verdicts.csv`` of `studies.verdicts.Verdicts` with columns `COLUMNS`.

    ``measured`` with ``low`` and ``high`` is the endpoint in its own unit, ``holm`` its p value adjusted by Holm's
    method over the endpoints of its paper in all notebooks, and ``verdict`` the word that this leaves.

    Raises:
        InputError: two verdicts of a notebook have one name.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in tables:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if (name := row["where"][:2] + row["name"]) in rows:
                    raise InputError(
                        f"{path.name} has two verdicts of the name {row['name']}: rename one in its notebook"
                    )
                rows[name] = row
    adjusted = holm(
        {name: _number(row.get("p", "")) for name, row in rows.items()},
        {n: row.get("papers", "") for n, row in rows.items()},
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, row in rows.items():
        ends = {part: _number(row.get(part, "")) for part in ("n_seeds", "high", "least")}
        row |= {"holm": adjusted[name], "holds": carried(row["holds"], p=adjusted[name], **ends)}
        values = {column: row.get(NAMES.get(column, column), "") for column in COLUMNS}
        numbers = {column: _number(values[column]) for column in NUMBERS}
        writer.writerow((values | {column: "" if math.isnan(x) else x for column, x in numbers.items()}).values())
    return text.getvalue()


def _number(value: str | float) -> float:
    return float(value) if value != "" else math.nan
