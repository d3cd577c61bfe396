"""The table of speed: that it runs, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.measure import ROWS


def test_the_list_names_every_row() -> None:
    lines = CliRunner().invoke(main, ["--list"]).output.splitlines()
    assert len(lines) == len(ROWS) > 35
    assert len({(row.work, row.reference) for row in ROWS}) == len(ROWS)


@pytest.mark.long
def test_rows_are_measured_in_pairs_and_a_missing_reference_is_said(tmp_path: Path, monkeypatch) -> None:
    absent = "foolbox"
    monkeypatch.setattr("benchmarks.measure.find_spec", lambda name: None if name == absent else name)
    chosen = ["--only", "128 images plain loop", "--only", absent, "--pairs", "2"]
    done = CliRunner().invoke(main, [*chosen, "--json", str(tmp_path / "bench.json")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {"processor", "torch", "threads"} <= report["machine"].keys()
    row, skipped = report["rows"]
    assert f"no {absent}" in skipped["skipped"] and "bench" in done.output
    assert [len(numbers) for numbers in row["numbers"]] == [2, 2]
    assert row["low"] <= row["ratio"] <= row["high"] and 0 < row["share"] < 2


def test_a_row_that_fails_is_said_and_the_others_still_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.rows.process", lambda *command, **options: 1 / 0)
    chosen = ["--only", "nullpaper --help", "--only", "nullpaper verify"]
    done = CliRunner().invoke(main, [*chosen, "--json", str(tmp_path / "bench.json")])
    assert done.exit_code == 1 and done.output.count("failed: ZeroDivisionError") == 2


def test_words_that_no_row_has_are_refused() -> None:
    assert CliRunner().invoke(main, ["--only", "nothing of this"]).exit_code == 2
