"""Notebook 02, the approximate nullspace: what its tables must say, and verdicts that follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
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
    "single": "02_lambda_runs",
    "by_start": "02_lambda_starts",
    "verified": "02_eps_runs",
    "by_length": "02_eps_lengths",
    "summary": "02_eps",
    "published_end": "02_published_end",
    "gains": "02_gains",
    "combined": "02_closure",
    "dimension": "02_dimension",
    "certificate_runs": "02_certified_runs",
    "proved": "02_certified",
}


def test_noise_that_learned_nothing_passes_the_papers_control(run: NotebookRun) -> None:
    table = run.table("02_unlearned").set_index("noise")
    assert table["norm"].round(2).eq(1_000).all()
    assert table.loc["random, one token", "match"] > 0.9 > 0.5 > table.loc["permuted", "match"]
    assert table.loc["permuted within", "match"] > 0.9


def test_spread_noise_gives_all_tokens_one_norm(run: NotebookRun) -> None:
    spread = run.table("02_eps_runs").query("method == 'ours, equal tokens'")
    assert (spread["largest token"] * 6 / spread["norm"]).round(3).eq(1).all()  # 36 tokens


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("02_verdicts").set_index("name")
    assert list(table.index) == [name for name, _, _ in ALTERED]
    assert not (table["holds"] == "not measured").any()
    assert "there is a largest noise within eps = 0.3" in run.printed and "Limits: " in run.printed


def each(column: str, *values: float) -> list[tuple[dict[str, int], dict[str, float]]]:
    """A number for each noise seed."""
    return [({"seed": seed}, {column: value}) for seed, value in enumerate(values)]


CERTAIN = ["learned_noise", "norm_of_lambda", "norm_at_eps", "gain_of_the_solver", "size", "certificate"]  # over noises
LARGER = [("gains", {"over": "random"} | seed, gain) for seed, gain in each("gain", -0.5, -0.51, -0.52)]
WELL_POSED = {"norm": "ours, equal tokens", "over": "published, no stop, equal tokens", "at": "best"}
SOLVED = [("gains", WELL_POSED | seed, gain) for seed, gain in each("gain", -0.5, -0.51, -0.52)]
WITHIN = [("published_end", {}, about("margin", 0.01)), ("verified", {"method": "published"}, about("influence", 0.01))]
ALTERED = [
    ("largest_noise", [("by_token", {}, about("influence", 0.5))], "not resolved"),
    ("permutation_control", [("nothing_learned", {"noise": "permuted"}, about("match", 0.9))], "not resolved"),
    ("learned_noise", [("single", {"noise": "learned"}, {"match": 0.5})], "does not hold"),
    ("norm_of_lambda", [("single", {"lambda": 0.01}, {"norm": 1e4})], "does not hold"),
    ("published_procedure", WITHIN, "holds"),
    ("norm_at_eps", LARGER, "does not hold"),
    ("gain_of_the_solver", SOLVED, "does not hold"),
    ("closure", [("combined", {"factor": -1}, about("influence", 0.01))], "holds"),
    ("size", [("dimension", {"dimension": 3420}, {"norm": 100})], "does not hold"),
    ("certificate", [("certificate_runs", {"test": "certified"}, {"norm": 10})], "does not hold"),
]


def test_certified_noise_is_shorter_than_what_a_bootstrap_accepts(run: NotebookRun) -> None:
    table = run.table("02_certified_runs").pivot(index=["noise", "images", "sample"], columns="test", values="norm")
    assert len(table) >= 2 and (table["certified"] <= table["bootstrap"]).all()


def test_runs_that_failed_their_verification_are_kept(run: NotebookRun) -> None:
    runs, summary = run.table("02_eps_runs"), run.table("02_eps").set_index("method")
    assert not runs["reached"].all() and set(runs["method"]) == set(summary.index)
    published = runs[runs["method"] == "published"]
    assert summary.loc["published", "norm"] == pytest.approx(published["norm"].mean())


def test_an_empty_number_is_not_measured(tmp_path: Path) -> None:
    tables = {variable: reference(table) for variable, table in TABLES.items()}
    tables["nothing_learned"] = altered(tables["nothing_learned"], {"noise": "permuted"}, {"match": float("nan")})
    assert judge(NOTEBOOK, tmp_path, **tables).loc["permutation_control", "holds"] == "not measured"
