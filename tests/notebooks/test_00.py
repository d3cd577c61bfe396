"""Notebook 00, the shipped checkpoint: what it says of it."""

from __future__ import annotations

from notebook_runs import NotebookRun

NOTEBOOK = "00_checkpoint"


def test_the_accuracy_is_that_of_the_record(run: NotebookRun) -> None:
    table = run.table("00_accuracy").set_index("split")
    assert set(table.index) == {"dev", "test"} and (table["n"] == 300).all()
    assert ((table["accuracy_low"] < table["recorded"]) & (table["recorded"] < table["accuracy_high"])).all()
    assert f"{100 * table.loc['test', 'accuracy']:.1f} %" in run.printed and run.figures == {"00_training"}
