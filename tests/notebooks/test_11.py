"""Notebook 11, nullspace noise and adapters together: what its tables must say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from answers import (  # noqa: F401
    endpoint_of,
    judge,
    tables_of,
    test_a_verdict_turns_with_its_numbers,
    test_intervals_without_end_decide_nothing,
)
from notebook_runs import NotebookRun
from safetensors.torch import load_file

from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.vit import SHIPPED
from nullpaper.studies.verdicts import WORDS

NOTEBOOK = "11_joined"
TABLES = {"paired": "11_paired", "sizes": "11_norm", "norms": "11_norm_by_seed", "exact_space": "11_exact"}
OF_RUN = True
CERTAIN = ["exact_nullspace_kept"]  # dimensions, which are counted
ALTERED = [
    ("nullspace_through_adapter", [("paired", {"method": "nullspace, lnlora"}, endpoint_of(0.1))], "holds"),
    ("joined", [("paired", {"method": "pgd_at_nullspace, lnlora"}, endpoint_of(-0.1))], "does not hold"),
    ("nullspace_makes_robustness", [("paired", {"method": "nullspace, full"}, endpoint_of(0.01))], "does not hold"),
    ("exact_nullspace_kept", [("exact_space", {}, {"dimension": 96, "overlap": 1.0})], "holds"),
]
CONTROLS = {"nullspace": ("zero",), "pgd_at_nullspace": ("pgd_at",)}
RANK = 3


def test_differences_are_those_of_the_table(run: NotebookRun) -> None:
    table = run.table("11_table", keep_default_na=False).set_index(["run", "measure"])
    assert not table.index.duplicated().any() and table["value"].between(0, 1).all()
    for parts in table.reset_index().query("method != 'start'").to_dict("records"):
        assert parts["run"] == f"{parts['method']}, {parts['adapter']}" and parts["steps"] > 0
    value, found = table["value"], {}
    for row in run.table("11_paired").to_dict("records"):
        expected = value[row["method"], row["measure"]] - value[row["against"], row["measure"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9) and not row["resolved"]  # a single seed
        found[row["method"], row["against"], row["measure"]] = row["difference"]
    for row in run.table("11_kept").to_dict("records"):
        method, against = row["gain"].split(" minus ")
        ours, full = (found[f"{method}, {a}", f"{against}, {a}", row["measure"]] for a in ("lnlora", "full"))
        assert row["difference"] == pytest.approx(ours - full, abs=1e-9) and not row["resolved"]


def test_every_gain_has_its_controls_through_both_adapters(run: NotebookRun) -> None:
    pairs = set(run.table("11_paired")[["method", "against"]].itertuples(index=False, name=None))
    for method, controls in CONTROLS.items():
        for adapter in ("full", "lnlora"):
            assert {(f"{method}, {adapter}", f"{control}, {adapter}") for control in controls} <= pairs
    measures = run.table("11_table").groupby("run")["measure"].agg(set)
    assert {"clean", "fgsm", "pgd", "corruptions", "average"} <= measures["nullspace, lnlora"]
    assert {"clean", "pgd", "pgd 8/255", "cw 8/255", "corruptions"} <= measures["pgd_at_nullspace, lnlora"]
    assert "average" not in measures["pgd_at_nullspace, lnlora"]  # it would be over other measures


def test_the_base_stays_frozen_under_lnlora_and_moves_without(run: NotebookRun) -> None:
    starts = {name: load_classifier(name).net.state_dict() for name in (SHIPPED, "vit_robust")}
    kinds = []
    for path in (run.project / "build/store/finetuned").glob("*/params.json"):
        params = json.loads(path.read_text())
        if params["recipe"]["noise_images"] != 16:
            continue  # another notebook's
        state = load_file(path.with_name("tensors.safetensors"))
        base = {name: value for name, value in starts[params["start"]].items() if not name.startswith("head.")}
        moved = [name for name, value in base.items() if not value.equal(state[name])]
        assert bool(moved) == (params["adapter"] is None)
        branches = [name for name in state if name.endswith("lora_B.weight")]
        assert bool(branches) == (params["adapter"] is not None)
        assert any(state[name].any() for name in branches) == bool(branches)  # B starts at zero
        kinds.append("full" if params["adapter"] is None else params["adapter"]["kind"])
    assert {kind: kinds.count(kind) for kind in kinds} == {"full": 6, "lnlora": 5, "lora": 1}


def test_norms_are_at_the_boundary_and_compared_with_their_start(run: NotebookRun) -> None:
    table = run.table("11_norm", keep_default_na=False).set_index("run")
    assert (table[["norm", "norm_random"]] > 1).all(axis=None) and table["reached"].between(0, 1).all()
    assert (table["norm"] / table["norm_random"] - table["ratio"]).abs().max() < 1e-9
    for name, row in table.iterrows():
        first = table.loc["robust start" if name.startswith("pgd_at, ") else "start"]
        for suffix in ("", "_random"):
            assert row[f"growth{suffix}"] == pytest.approx(row[f"norm{suffix}"] / first[f"norm{suffix}"])
    assert {"nullspace, lnlora", "zero, full", "pgd_at, lnlora", "robust start", "standard"} <= set(table.index)
    assert table.loc["start", "temperature"] == pytest.approx(1, abs=1e-3)
    assert table.loc["robust start", "temperature"] < 0.9  # it is less sure
    along = run.table("11_along").set_index(["run", "step"])["norm"]
    assert along["pgd_at 8/255", 0] == along["standard", 0] == pytest.approx(table.loc["start", "norm"])
    assert along["pgd_at 8/255", 1] == pytest.approx(table.loc["pgd_at 8/255", "norm"])


def test_robustness_makes_nullspace_where_every_seed_says_so(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tables = tables_of(request)
    several = tables["norms"].loc[np.repeat(tables["norms"].index, 3)].assign(seed=[0, 1, 2] * len(tables["norms"]))
    for factor, expected in ((2, "holds"), (1, "does not hold"), (0.5, "does not hold")):
        spread = 1 + 0.01 * several["seed"] * (several["run"] == "standard")
        norm = 100 * spread * np.where(several["run"] == "pgd_at 8/255", factor, 1)
        tables["norms"] = several.assign(norm=norm)
        assert judge(NOTEBOOK, tmp_path, **tables)["holds"]["robustness_makes_nullspace"] == expected


def test_the_exact_nullspace_is_kept_where_nothing_touches_the_embedding(run: NotebookRun) -> None:
    table = run.table("11_exact", keep_default_na=False).set_index("model")
    refused = table["note"] != ""
    assert set(table.index[refused]) == {"zero, lnlora", "pgd_at, lnlora"}
    assert table.loc[refused, "note"].str.contains("not linear").all() and (table.loc[refused, "dimension"] == 0).all()
    assert (table.loc[~refused, "dimension"] == 96).all() and (table["chance"] == 0.5).all()
    overlap, seen = table.loc[~refused, "overlap"].astype(float), table["seen"]
    for name in ("start", "robust start", "pgd_at, lnlora in blocks"):
        assert overlap[name] == pytest.approx(1, abs=1e-9) and seen[name] < 1e-4
    assert 1 - RANK / 96 - 1e-9 <= overlap["pgd_at, lora"] < 1 - 1e-6
    assert overlap["zero, full"] < 1 - 1e-6 and 0.5 < overlap["robust start, against start"] < 0.99
    assert (
        seen[[name for name in table.index if name not in ("start", "robust start", "pgd_at, lnlora in blocks")]] > 1e-4
    ).all()
    assert (seen < 1).all()


def test_it_ends_with_its_answer(run: NotebookRun) -> None:
    table = run.table("11_verdicts").set_index("name")
    names = (
        "nullspace_through_adapter joined robustness_makes_nullspace nullspace_makes_robustness exact_nullspace_kept"
    )
    assert list(table.index) == names.split()
    assert set(table["holds"]) <= set(WORDS) and "Limits: " in run.printed
