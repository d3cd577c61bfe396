"""The verdicts of all notebooks in one table: their primary endpoints, corrected for the number of them in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nullpaper.statistics import carried, holm

COLUMNS = (
    *("name", "papers", "claim", "endpoint", "measured", "low", "high", "n_seeds", "n_images"),
    *("holm", "verdict", "where"),
)
NAMES = {"said": "claim", "value": "measured", "holds": "verdict"}
"""Columns of a notebook's own table, whose ``measured`` is a sentence, and what they are called here."""
NUMBERS = ["measured", "low", "high", "n_seeds", "n_images", "p", "least"]


def collected(tables: Sequence[Path]) -> str:
    """As CSV, the rows of one or more tables ``NN_verdicts.csv`` of `studies.verdicts.Verdicts` with columns `COLUMNS`.

    ``measured`` with ``low`` and ``high`` is the endpoint in its own unit, ``holm`` its p value adjusted by Holm's
    method over the endpoints of its paper in all notebooks, and ``verdict`` the word that this leaves.
    """
    parts = [pd.read_csv(path, dtype={"where": str}).drop(columns="measured").rename(columns=NAMES) for path in tables]
    frame = (
        pd.concat(parts, ignore_index=True)
        .reindex(columns=[*dict.fromkeys([*COLUMNS, *NUMBERS])])
        .astype(dict.fromkeys(NUMBERS, float))
    )
    frame["papers"] = frame["papers"].fillna("")
    names = (frame["where"].str[:2] + frame["name"]).tolist()
    frame["holm"] = [*holm(*(dict(zip(names, frame[part], strict=True)) for part in ("p", "papers"))).values()]
    words = frame[["verdict", "holm", "n_seeds", "high", "least"]].itertuples(index=False)
    frame["verdict"] = [
        carried(row.verdict, p=row.holm, n_seeds=row.n_seeds, high=row.high, least=row.least) for row in words
    ]
    return frame[[*COLUMNS]].to_csv(index=False, lineterminator="\n")
