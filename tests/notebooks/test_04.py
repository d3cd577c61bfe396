"""Notebook 04, network fooling: what its tables must say, and verdicts that follow from them."""

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

NOTEBOOK = "04_network_fooling"


def test_exact_noise_keeps_the_answer_and_comes_nearer(run: NotebookRun) -> None:
    exact = run.table("04_exact")
    assert (exact["unchanged, float32"] == 1).all() and (exact["largest logit change"] < 1e-3).all()
    assert (exact["relative distance"] < 1).all() and (exact["largest gap"] < 1e-3).all()
    seen = run.table("04_second_models").set_index(["network", "noise"])
    assert seen.loc[("shipped ViT", "exact, largest"), "class of x"] == 1


def test_influence_stays_within_its_bound_and_descent_beats_lines(run: NotebookRun) -> None:
    near = run.table("04_approximate")
    assert (near["largest influence"] <= near["eps"].clip(lower=1e-9)).all()
    mean = near[near["eps"] > 0].pivot(index="eps", columns="method", values="relative distance")
    assert (mean["descent from t"] <= mean["line from exact to t"] + 1e-3).all()


def test_attacks_lose_nothing_with_their_nullspace_component(run: NotebookRun) -> None:
    attacks = run.table("04_adversarial").dropna()
    assert (attacks["ratio"] <= 1 + 1e-6).all() and (attacks["found without it"] == 1).all()
    assert "descent (L2)" in set(attacks["attack"])


def test_short_noise_changes_the_answer_and_long_exact_noise_does_not(run: NotebookRun) -> None:
    table = run.table("04_distance").set_index("noise")
    assert table.loc["adversarial", ["answer changed", "norm / adversarial"]].tolist() == [1, 1]
    exact = table.loc[["exact, nearest to t", "exact, largest"]]
    assert (exact["answer changed"] == 0).all() and (exact["influence"] < 1e-6).all()
    assert (exact["norm / adversarial"] > 1).all()


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("04_verdicts").set_index("name")
    assert list(table.index) == [name for name, *_ in ALTERED] and not (table["holds"] == "not measured").any()
    assert table.loc["look_alike", "holds"] == "does not hold"
    assert "DOES NOT HOLD: exact noise makes an image look like another" in run.printed and "Limits: " in run.printed


TABLES = {
    "exact_table": "04_exact",
    "curve": "04_approximate",
    "close_seen": "04_approximate_seen",
    "seen": "04_second_models",
    "lengths": "04_distance",
    "attacked": "04_adversarial",
}
ALTERED = [
    ("look_alike", [("exact_table", {}, about("relative distance", 0.3))], "holds"),
    ("approximate_look_alike", [("curve", {"eps": 0.01}, about("relative distance", 0.9))], "does not hold"),
    ("second_models", [("seen", {"noise": "exact, largest"}, about("class of x", 0.1))], "holds"),
    ("small_noise", [("lengths", {}, about("norm / adversarial", 2))], "does not hold"),
]


def test_a_missing_row_is_not_measured(tmp_path: Path) -> None:
    tables = {variable: reference(table) for variable, table in TABLES.items()}
    tables["exact_table"] = tables["exact_table"].iloc[:0]
    words = judge(NOTEBOOK, tmp_path, **tables)["holds"]
    assert words["look_alike"] == "not measured" != words["small_noise"]
