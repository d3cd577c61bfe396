"""Notebook 09: what its tables must say."""

from __future__ import annotations

import pytest
from answers import (  # noqa: F401
    about,
    gain,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun

from nullpaper.studies.verdicts import WORDS

NOTEBOOK = "09_fulllora"
TABLES = {
    "paired": "09_paired",
    "long_paired": "09_long_paired",
    "layernorm": "09_layernorm",
    "stored_sizes": "09_storage",
    "cost_table": "09_costs",
}
CERTAIN = ["storage", "training_memory"]  # bytes, which are counted
LNLORA = {"method": "lnlora", "against": "full"}
NORM = [("layernorm", {"kind": f"LayerNorm {kind}"}, about("relative", 0.9)) for kind in ("scale", "bias")]
ALTERED = [
    ("comparable", [("paired", LNLORA, gain(0.0))], "in part"),
    ("norm_matters", [("paired", {"method": "lnlora", "against": "lora"}, gain(0.1))], "holds"),
    ("layernorm_shift", [*NORM, ("layernorm", {"model": "standard"}, about("relative", 0.1))], "holds"),
    ("storage", [("stored_sizes", {"adapter": "lnlora"}, {"stored_share": 0.2})], "does not hold"),
    ("training_time", [("cost_table", {"adapter": "lnlora"}, about("ratio", 0.5))], "holds"),
    ("training_memory", [("cost_table", {"adapter": "lnlora"}, {"total": 0})], "holds"),
    ("robust_start", [("paired", {"method": "linear", "against": "full"}, gain(0.0))], "in part"),
]


def test_counts_are_those_of_the_formula_and_injection_changes_nothing(run: NotebookRun) -> None:
    table = run.table("09_storage").set_index("adapter")
    assert (table["trainable"] == table["formula"]).all() and (table["logits_changed_by"] == 0).all()
    assert table["share"].is_monotonic_decreasing and table.loc["full", "share"] == 1
    assert 0.04 < table.loc["lnlora", "share"] < 0.06 and table.loc["lnlora", "stored_share"] < 0.1


def test_gradients_and_moments_shrink_with_the_trained_parameters(run: NotebookRun) -> None:
    costs = run.table("09_costs").set_index("adapter")
    trainable = run.table("09_storage").set_index("adapter")["trainable"]
    assert (costs["gradients"] == 4 * trainable).all()
    assert costs["optimizer"].is_monotonic_decreasing and costs.loc["linear", "total"] < costs.loc["full", "total"]
    assert (costs[["ratio", "careless_ratio"]] > 0).all(axis=None) and (costs.loc["full", "ratio"] == 1).all()


def test_both_starts_are_there_and_differences_are_those_of_the_table(run: NotebookRun) -> None:
    keys = ["data", "start", "training", "method", "measure"]
    values = run.table("09_table").set_index(keys)["value"]
    assert set(values.index.get_level_values("start")) == {"standard", "robust"} and values.between(0, 1).all()
    paired = run.table("09_paired")
    assert {("lnlora", "full"), ("lnlora", "start"), ("linear", "full")} <= set(
        zip(paired["method"], paired["against"], strict=True)
    )
    for row in paired.to_dict("records"):
        first, second = (
            values[(*(row[name] for name in keys[:3]), row[who], row["measure"])] for who in ("method", "against")
        )
        assert row["difference"] == pytest.approx(first - second, abs=1e-9)
    attacked = run.table("09_autoattack").pivot(index=keys[1:4], columns="measure", values="value")
    assert (attacked["autoattack-1"] <= attacked["clean"]).all()


def test_the_shift_of_layernorm_stands_beside_its_controls(run: NotebookRun) -> None:
    table = run.table("09_layernorm").set_index(["model", "kind"])
    assert set(table.index.get_level_values("model")) == {"vit_robust", "standard", "pgd_at"}
    assert (table["relative"] > 0).all() and (table["cosine"] <= 1 + 1e-9).all()
    assert (table.loc["vit_robust", "relative"] > table.loc["pgd_at", "relative"]).all(), "1,500 steps against one"


def test_the_long_runs_are_compared_with_the_checkpoint_trained_in_full(run: NotebookRun) -> None:
    table = run.table("09_long_paired").set_index(["method", "against", "measure"])
    for measure in ("clean", "pgd", "cw", "autoattack-1"):
        assert ("vit_robust_lnlora", "vit_robust", measure) in table.index
        assert ("vit_robust_lnlora", "start", measure) in table.index


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("09_verdicts").set_index("name")
    names = "comparable norm_matters layernorm_shift storage training_time training_memory robust_start"
    assert list(table.index) == names.split()
    assert set(table["holds"]) <= set(WORDS) and "Limits: " in run.printed
