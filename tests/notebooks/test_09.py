"""Notebook 09: what its tables must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from answers import (  # noqa: F401
    about,
    endpoint_of,
    judge,
    tables_of,
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
    "excess": "09_excess",
    "curves": "09_curves",
    "by_rate": "09_rates",
    "stored_sizes": "09_storage",
    "cost_table": "09_costs",
    "auto_table": "09_autoattack",
}
OF_RUN = True
CERTAIN = ["storage", "training_memory"]  # bytes, which are counted
ALTERED = [
    ("comparable", [("paired", {"method": "lnlora", "against": "full"}, endpoint_of(0.0))], "holds"),
    ("norm_matters", [("paired", {"method": "lnlora", "against": "lora"}, endpoint_of(0.1))], "holds"),
    ("storage", [("stored_sizes", {"adapter": "lnlora"}, {"stored_share": 0.2})], "does not hold"),
    ("training_time", [("cost_table", {"adapter": "lnlora"}, about("ratio", 0.5))], "holds"),
    ("training_memory", [("cost_table", {"adapter": "lnlora"}, {"total": 1e12})], "does not hold"),
    ("robust_start", [("paired", {"method": "linear", "against": "full"}, endpoint_of(0.0))], "in part"),
]


STARTS = {"standard, start", "robust, start"}


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
    assert set(run.table("09_rates")["arm"]) == {f"{s}, {a}" for s, _, a, _ in values.droplevel("data").index} - STARTS
    attacked = run.table("09_autoattack").pivot(index=keys[1:4], columns="measure", values="value")
    assert (attacked["autoattack-1"] <= attacked["clean"]).all()


def test_the_shift_of_layernorm_is_measured_against_standard_finetuning(run: NotebookRun) -> None:
    table = run.table("09_shift").set_index(["model", "name"])
    assert set(table.index.get_level_values("model")) == {"vit_robust", "standard", "pgd_at"}
    assert (table["change"] > 0).all() and (table.loc["vit_robust", "change"] > table.loc["pgd_at", "change"]).all()
    ratio = table.loc["pgd_at", "change"] / table.loc["standard", "change"]
    pd.testing.assert_series_equal(table.loc["pgd_at", "ratio"], ratio, check_names=False)
    first = run.table("09_excess").iloc[0]
    both = np.log(ratio[["blocks.0.norm1.weight", "blocks.0.norm1.bias"]]).mean()
    assert first["blocks.0.norm1"] == pytest.approx(both - np.log(ratio["blocks.0.attn.qkv.weight"]))


def test_layernorm_differs_where_it_moves_more_than_its_readers_in_all_seeds(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tables, draws = tables_of(request), np.random.default_rng(0).normal(0, 0.1, (3, 12))
    for shift, expected in ((0.5, "holds"), (0.0, "does not hold"), (0.22, "holds")):
        tables["excess"] = pd.DataFrame(draws + shift)
        row = judge(NOTEBOOK, tmp_path, **tables).loc["layernorm_shift"]
        assert row["holds"] == expected and row["n_seeds"] == 3


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
