"""Notebook 03, stability and transfer between architectures: what its tables must say, and verdicts that follow."""

from __future__ import annotations

from answers import (  # noqa: F401
    about,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

NOTEBOOK = "03_stability_and_transfer"
TABLES = {"cells": "03_transfer", "own_gain": "03_own", "shares": "03_nullspace_share"}
CERTAIN = ["share_in_nullspace"]  # over noises
ALTERED = [
    ("own_noise", [("cells", {}, about("over permuted locally", -0.1))], "does not hold"),
    ("share_in_nullspace", [("shares", {"seed": s}, {"share learned": 0.95 + s / 1e3}) for s in range(5)], "holds"),
]


def test_every_model_reads_every_noise(run: NotebookRun) -> None:
    table = run.table("03_transfer")
    makers, readers = table["noise of"].unique(), table["read by"].unique()
    assert len(makers) >= 4 and set(makers) == set(readers) and len(table) == len(makers) ** 2
    known = table.dropna(subset="match_low")  # few images may tie over all seeds, and then there is no interval
    assert len(known) and (known["match_low"] <= known["match"]).all() and (known["match"] <= known["match_high"]).all()
    paired = table["match"] - table["match permuted"] - table["over permuted"]
    assert paired.abs().max() < 1e-9


def test_only_vits_have_a_share_in_a_nullspace(run: NotebookRun) -> None:
    table = run.table("03_nullspace_share")
    assert set(table["model"]) == {"ViT (shipped)", "ViT (wide)"}
    shares = table.filter(like="share ")
    assert ((shares > 0) & (shares < 1)).all(axis=None)


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("03_verdicts").set_index("name")
    assert list(table.index) == ["own_noise", "share_in_nullspace"] and not (table["holds"] == "not measured").any()
    assert "noise learned on the pixels belongs to its model" in run.printed and "Limits: " in run.printed
