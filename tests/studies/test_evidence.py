"""Numbers in words, and answers that an interval may leave open."""

from __future__ import annotations

import pytest

from nullpaper.errors import InputError
from nullpaper.statistics import Interval
from nullpaper.studies.evidence import (
    Missing,
    Tables,
    above,
    at_least,
    below,
    every,
    negate,
    number,
    percent,
    points,
    some,
    word,
)


def test_answers_are_three_valued() -> None:
    interval = Interval(0.5, 0.4, 0.6, 10)
    assert [at_least(interval, bound) for bound in (0.4, 0.5, 0.7)] == [True, None, False]
    assert [below(interval, bound) for bound in (0.4, 0.5, 0.7)] == [False, None, True]
    others = (Interval(0.2, 0.1, 0.3, 9), Interval(0.5, 0.3, 0.7, 9), Interval(0.8, 0.7, 0.9, 9))
    assert [above(interval, other) for other in others] == [True, None, False]
    for first in (True, False, None):
        for second in (True, False, None):
            assert every((first, second)) == negate(some((negate(first), negate(second)))), "De Morgan"
    assert (word(True), word(False, True), word(False), word(None), word(False, None)) == (
        *("holds", "in part", "no"),
        *("not resolved", "not resolved"),
    )


def test_numbers_are_written_with_interval_and_n() -> None:
    share = Interval(1.0, 0.9962, 1.0, 1_000)
    assert percent(share) == "100 % [99.6, 100] (n = 1,000)"
    assert percent(share, "images") == "100 % [99.6, 100] of 1,000 images"
    assert points(Interval(0.012, -0.001, 0.02, 3), None) == "+1.2 [-0.1, +2.0] points"
    assert number(Interval(66.87, 61.8, 71.9, 2)) == "66.9 [61.8, 71.9] (n = 2)"
    assert number(Interval(66.87, 66.87, 66.87, 1)) == "66.9 (n = 1)", "one observation has no interval"


def test_longer_runs_are_asked_first_row_by_row(tmp_path) -> None:
    for folder, rows in (("cpu", "a,1\nb,2\n"), ("cpu-long", "a,10\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text(f"key,value\n{rows}")
    tables = Tables(tmp_path / "cpu")
    assert [tables.row("t", key=key)["value"] for key in "ab"] == [10, 2] and len(tables["t"]) == 1
    assert Tables(tmp_path / "cpu-long").row("t", key="a")["value"] == 10
    with pytest.raises(Missing):
        tables.row("t", key="c")
    (tmp_path / "cpu-long/t.csv").write_text("")
    with pytest.raises(InputError, match="cpu-long/t.csv is no table"):
        Tables(tmp_path / "cpu")["t"]
