"""The layout of a table for the page loses no number that the notebook printed."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from bs4 import BeautifulSoup

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book"))
import layout  # noqa: E402


def heads_and_rows(frame: pd.DataFrame) -> list[tuple[list[str], list[list[str]]]]:
    table = layout.arranged(frame.style.format(precision=2).hide(axis="index").to_html())
    assert table is not None
    parts = BeautifulSoup(layout.rendered(table), "html.parser").find_all("table")
    rows = [[[cell.get_text() for cell in row.find_all("td")] for row in part.find_all("tr")[1:]] for part in parts]
    return list(zip([[head.get_text() for head in part.find_all("th")] for part in parts], rows, strict=True))


def test_an_interval_stands_in_the_column_of_its_value_and_the_answer_among_the_first_three() -> None:
    frame = pd.DataFrame({"method": ["full", "full"], "against": ["lora", "zero"], "measure": ["clean", "pgd"]})
    frame["n"], frame["images"] = [5, 1], 500
    frame["difference"], frame["difference_low"], frame["difference_high"] = [0.1, 0.2], [-1, -2.0], 1.0
    frame["low"], frame["high"] = [-0.3, float("nan")], [0.4, float("nan")]
    frame["images_low"], frame["images_high"] = [-0.5, -0.7], 0.6
    ((heads, rows),) = heads_and_rows(frame)
    assert heads == ["against", "measure", "difference", "n", "over seeds", "over images"]  # the rest never changes
    assert rows[0] == ["lora", "clean", "0.10 [-0.30, 0.40]", "5", "[-1.00, 1.00]", "[-0.50, 0.60]"]
    assert rows[1][2] == "0.20 [-0.70, 0.60]"  # a single run: its interval over images


def test_at_most_seven_columns_are_shown_and_the_rest_is_folded() -> None:
    frame = pd.DataFrame({"model": ["a", "b"], **{f"column_{i}": [i + 0.25, i + 0.75] for i in range(20)}})
    parts = heads_and_rows(frame)
    assert [len(heads) for heads, _ in parts] == [7, 7, 7, 3] and all(heads[0] == "model" for heads, _ in parts)
    texts = [text for _, rows in parts for row in rows for text in row[1:]]
    assert sorted(texts) == sorted(f"{i + part:.2f}" for i in range(20) for part in (0.25, 0.75))


def test_a_table_with_two_levels_of_columns_keeps_the_names_of_its_index() -> None:
    long = pd.DataFrame({"form": ["L1", "L2"] * 2, "mark": [*"aabb"], "norm": range(4), "bits": range(4, 8)})
    wide = long.pivot(index="form", columns="mark", values=["norm", "bits"])
    for html in (wide.to_html(), wide.style.to_html()):
        table = layout.arranged(html)
        assert table is not None
        assert [(c.name, c.cells) for c in table.keys] == [("form", ["L1", "L2"])]
        assert [(c.name, c.cells) for c in table.shown][0] == ("norm, a", ["0", "1"])


def test_an_empty_table_is_not_shown() -> None:
    assert layout.arranged(pd.DataFrame().style.to_html()) is None
    assert layout.arranged(pd.DataFrame({"a": []}).to_html()) is None
