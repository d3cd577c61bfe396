"""Notebook 02, the approximate nullspace: what its tables must say, and verdicts that follow from them."""

from __future__ import annotations

from pathlib import Path

from answers import (  # noqa: F401
    about,
    altered,
    judge,
    reference,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

NOTEBOOK = "02_learned_nullspace"
TABLES = {
    "by_token": "02_lost_by_token",
    "nothing_learned": "02_unlearned",
    "curves": "02_lambda",
    "verified": "02_eps_runs",
    "summary": "02_eps",
    "combined": "02_closure",
    "dimension": "02_dimension",
}


def test_noise_that_learned_nothing_passes_the_papers_control(run: NotebookRun) -> None:
    table = run.table("02_unlearned").set_index("noise")
    assert table["norm"].round(2).eq(1_000).all()
    assert table.loc["random, one token", "match"] > 0.9 > 0.5 > table.loc["permuted", "match"]
    assert table.loc["permuted within", "match"] > 0.9


def test_spread_noise_gives_all_tokens_one_norm(run: NotebookRun) -> None:
    spread = run.table("02_eps_runs").query("method == 'ours, spread'")
    assert (spread["largest token"] * 6 / spread["norm"]).round(3).eq(1).all()  # 36 tokens


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("02_verdicts").set_index("name")
    assert list(table.index) == [name for name, _, _ in ALTERED]
    assert not (table["holds"] == "not measured").any()
    assert "there is a largest noise within eps = 0.03" in run.printed and "Limits: " in run.printed


CERTAIN = ["size"]  # behind it there is no interval
ALTERED = [
    ("largest_noise", [("by_token", {}, about("influence", 0.5))], "not resolved"),
    ("permutation_control", [("nothing_learned", {"noise": "permuted"}, about("match", 0.9))], "not resolved"),
    ("learned_noise", [("curves", {"noise": "learned"}, about("match", 0.5))], "does not hold"),
    ("norm_of_lambda", [("curves", {"lambda": 0.1}, about("norm", 100))], "does not hold"),
    ("published_procedure", [("verified", {"method": "official"}, about("influence", 0.01))], "holds"),
    ("norm_at_eps", [("summary", {"method": "random"}, about("norm", 100))], "does not hold"),
    ("closure", [("combined", {"factor": -1}, about("influence", 0.01))], "holds"),
    ("size", [("dimension", {"dimension": 3420}, {"norm": 100})], "does not hold"),
]


def test_an_empty_number_is_not_measured(tmp_path: Path) -> None:
    tables = {variable: reference(table) for variable, table in TABLES.items()}
    tables["nothing_learned"] = altered(tables["nothing_learned"], {"noise": "permuted"}, {"match": float("nan")})
    assert judge(NOTEBOOK, tmp_path, **tables).loc["permutation_control", "holds"] == "not measured"
