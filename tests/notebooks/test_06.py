"""Notebook 06, watermarks: marks leave predictions alone and come back, and verdicts follow from the tables."""

from __future__ import annotations

from pathlib import Path

from answers import (  # noqa: F401
    about,
    judge,
    reference,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

NOTEBOOK = "06_watermark"


def test_logos_are_certified_and_change_no_prediction(run: NotebookRun) -> None:
    logos = run.table("06_logo").query("mark == 'nullspace' and transport == 'float32'")
    assert len(logos) == 6, "three logos in two norms"
    assert (logos["unchanged"] == 1).all() and (logos["largest_logit_change"] < 1e-3).all()
    assert (logos["largest_gap"] < 1e-4).all()


def test_slsqp_never_does_better(run: NotebookRun) -> None:
    assert (run.table("06_solver")["excess"] > -1e-4).all()


def test_the_exact_form_is_the_one_that_loses_no_bit(run: NotebookRun) -> None:
    table = run.table("06_writing").set_index(["writing", "margin"])["bits"].unstack("writing")
    assert (table["exact"] > 0.95).all() and (table["exact"] >= table["additive"]).all()


def test_messages_come_back_with_their_key_alone(run: NotebookRun) -> None:
    message = run.table("06_message").set_index("arrival")
    assert (message["unchanged"] == 1).all() and (message.loc[["float32", "8 bits"], "bits"] > 0.95).all()
    assert message.loc[["wrong keys", "erased"], "bits"].between(0.35, 0.65).all()


def test_only_the_nullspace_leaves_the_logits_alone(run: NotebookRun) -> None:
    places = run.table("06_prediction").query("transport == 'float32'").set_index("place")
    assert places.loc["nullspace", "largest_logit_change"] < 1e-3 < places.loc["row space", "largest_logit_change"]


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("06_verdicts").set_index("name")
    assert list(table.index) == [name for name, *_ in ALTERED] and not (table["holds"] == "not measured").any()
    assert "watermarks in the nullspace leave predictions alone" in run.printed and "Limits: " in run.printed


TABLES = {
    "logo_table": "06_logo",
    "prediction_table": "06_prediction",
    "message_table": "06_message",
    "solver_table": "06_solver",
}
ALTERED = [
    ("watermarks", [("logo_table", {"transport": "float32"}, about("unchanged", 0.5))], "does not hold"),
    ("any_logo", [("logo_table", {}, about("free", 0.9))], "holds"),
    ("survival", [("message_table", {"arrival": "JPEG 75"}, about("bits", 0.5))], "does not hold"),
    ("solver", [("solver_table", {}, about("excess", 0, 1e-9))], "holds"),
]


def test_a_column_that_lacks_is_not_measured(tmp_path: Path) -> None:
    tables = {variable: reference(table) for variable, table in TABLES.items()}
    tables["solver_table"] = tables["solver_table"].drop(columns="speedup")
    verdicts = judge(NOTEBOOK, tmp_path, **tables)["holds"]
    assert list(verdicts.index[verdicts == "not measured"]) == ["solver"]
