"""Notebook 07: what its tables must say."""

from __future__ import annotations

import pandas as pd
import pytest
from answers import (  # noqa: F401
    endpoint_of,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
    unresolved,
)
from notebook_runs import NotebookRun

from nullpaper.studies.verdicts import WORDS

NOTEBOOK = "07_nullspace_finetuning"
MEASURES = ["clean", "fgsm", "pgd", "corruptions", "average"]
NOISES = ["random", "random_norm", "permuted"]
TRADED = {"pgd": endpoint_of(-0.1), "clean": endpoint_of(0.1), "corruptions": endpoint_of(0.1)}
PAIRS = [("nullspace", name) for name in ("zero", "start", "random", "pgd_at")]
TABLES = {
    "paired": unresolved(PAIRS, MEASURES),
    "found_paired": unresolved([("nullspace", name) for name in NOISES], ["noise"]),
    "robust_paired": unresolved([("vit_robust", "start")], ["clean", "pgd 8/255"]),
    "growth_table": pd.DataFrame(
        {"method": method, "seed": seed, "norm": 45.0, "norm_growth": 0.2 * (-1) ** seed, "images": 500}
        for method in ("nullspace", "zero")
        for seed in range(5)
    ),
}


def against(name: str, measure: str = "average") -> dict[str, str]:
    return {"method": "nullspace", "against": name, "measure": measure}


def on_noise(*differences: float) -> list[tuple]:
    """Of nullspace minus each of `NOISES`, on noise corruptions."""
    pairs = zip(NOISES, differences, strict=True)
    return [("found_paired", against(name, "noise"), endpoint_of(value)) for name, value in pairs]


ALTERED = [
    ("noise_or_finetuning", [("paired", against("zero"), endpoint_of(0.05))], "holds"),
    ("noise_or_finetuning", [("paired", against("zero"), endpoint_of(0, 0.005))], "does not hold"),
    ("finetuning", [("paired", against("start"), endpoint_of(-0.05))], "does not hold"),
    ("random_noise", [("paired", against("random"), endpoint_of(0.05))], "holds"),
    ("noise_corruptions", on_noise(-0.05, -0.05, -0.05), "holds"),
    ("noise_corruptions", on_noise(-0.05, -0.05, 0.05), "in part"),
    ("adversarial_training", [("paired", against("pgd_at", name), value) for name, value in TRADED.items()], "holds"),
    (
        "growth",
        [("growth_table", {"method": "nullspace", "seed": s}, {"norm_growth": 0.9 + 0.01 * s}) for s in range(5)],
        "holds",
    ),
]


def test_controls_are_in_place_and_differences_add_up(run: NotebookRun) -> None:
    rounds = run.table("07_rounds").query("step > 0").set_index(["method", "step"])
    assert set(run.table("07_found")["against"]) == {"random", "random_norm", "permuted"}
    assert (rounds.loc["zero", "noise_norm"] == 0).all()
    assert rounds.loc["pgd_at", "noise_norm"].isna().all()
    assert (rounds.loc[["nullspace", "random"], "noise_norm"] > 1).all()
    table = run.table("07_table").set_index(["method", "measure"])["value"]
    assert table.between(0, 1).all()
    for row in run.table("07_paired").to_dict("records"):
        expected = table[row["method"], row["measure"]] - table[row["against"], row["measure"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    dynamics = run.table("07_dynamics")
    assert set(dynamics["method"]) == {"nullspace", "zero"} and (dynamics[["norm", "norm_random"]] > 1).all(axis=None)
    attacked = run.table("07_autoattack").pivot(index="method", columns="measure", values="value")
    assert (attacked["autoattack-1"] <= attacked["clean"]).all()


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("07_verdicts").set_index("name")
    names = "noise_or_finetuning finetuning random_noise noise_corruptions adversarial_training growth"
    assert list(table.index) == names.split()
    assert set(table["holds"]) <= set(WORDS) and "Limits: " in run.printed
    assert table["endpoint"].notna().all() and "too small to decide; see the reference" in " ".join(run.printed.split())
