"""Notebook 10: what its tables must say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from notebook_runs import NotebookRun
from safetensors.torch import load_file
from torch import Tensor

from nullpaper.adapters.inject import expected_parameters
from nullpaper.models.vit import SHIPPED, ViT, load_vit

NOTEBOOK = "10_ablations_fulllora"
STEPS = 1  # at smoke
SECTIONS = {
    "rank": {"lnlora", "lnlora, r = 4", "lora", "lora, r = 4", "full"},
    "norm": {"lnlora", "lora", "lnlora, plain norm"},
    "layers": {"lnlora", "lnlora, attention"},
    "qkv": {"lnlora", "lnlora, q k v apart, r = 3"},
    "head": {"lnlora", "lnlora, new head", "lnlora, probed head", "probe alone"},
}
MEASURES = {"clean", "pgd", "cw", "pgd 8/255", "average"}


@pytest.fixture
def finetuned(run: NotebookRun) -> dict[Path, dict]:
    """Folders of the stored finetuning runs, with what was asked of each."""
    found = (run.project / "build/store/finetuned").glob("*/params.json")
    return {path.parent: json.loads(path.read_text()) for path in found}


@pytest.fixture(scope="module")
def shipped() -> ViT:
    return load_vit(SHIPPED)


def test_every_section_has_its_variants_under_every_measure(run: NotebookRun) -> None:
    table = run.table("10_table")
    assert not table.duplicated(["section", "method", "measure"]).any() and table["value"].between(0, 1).all()
    assert {section: set(part["method"]) for section, part in table.groupby("section")} == SECTIONS
    assert all(set(part["measure"]) == MEASURES for _, part in table.groupby(["section", "method"]))
    assert (table.groupby(["method", "measure"])["value"].nunique() == 1).all()  # one run, in whatever section


def test_shares_and_steps_are_those_of_the_runs(run: NotebookRun, shipped: ViT) -> None:
    table = run.table("10_table").drop_duplicates("method").set_index("method")
    total = sum(parameter.numel() for parameter in shipped.parameters())
    known = {"full": total, "probe alone": expected_parameters(shipped, "linear")}
    known |= {name: expected_parameters(shipped, "lnlora", r=r) for name, r in (("lnlora", 3), ("lnlora, r = 4", 4))}
    known |= {name: expected_parameters(shipped, "lora", r=r) for name, r in (("lora", 3), ("lora, r = 4", 4))}
    known["lnlora, plain norm"] = expected_parameters(shipped, "lnlora", r=3, norm="plain")
    known["lnlora, attention"] = expected_parameters(shipped, "lnlora", r=3, targets=("qkv", "proj"))
    thirds = ("patch_embed", "q", "k", "v", "proj", "fc1", "fc2")
    known["lnlora, q k v apart, r = 3"] = expected_parameters(shipped, "lnlora", r=3, targets=thirds)
    known |= dict.fromkeys(("lnlora, new head", "lnlora, probed head"), known["lnlora"])
    assert table["trainable"].to_dict() == known
    assert table["share"].to_dict() == pytest.approx({name: count / total for name, count in known.items()})
    gaps = {r: abs(expected_parameters(shipped, "lora", r=r) - known["lnlora"]) for r in range(1, 9)}
    assert min(gaps, key=gaps.get) == 4  # the rank that the table calls matched
    assert table["steps"].to_dict() == dict.fromkeys(known, STEPS) | {"lnlora, probed head": 2 * STEPS}


def test_paired_differences_are_those_of_the_table(run: NotebookRun) -> None:
    table = run.table("10_table").drop_duplicates(["method", "measure"])
    value, paired = table.set_index(["method", "measure"])["value"], run.table("10_paired")
    for row in paired.to_dict("records"):
        expected = value[row["method"], row["measure"]] - value[row["against"], row["measure"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    pairs = set(zip(paired["method"], paired["against"], strict=True))
    assert {(name, "lnlora") for names in SECTIONS.values() for name in names - {"lnlora"}} < pairs
    assert {("lnlora", "lora"), ("lnlora", "lora, r = 4"), ("lnlora", "full")} < pairs  # what a claim reads
    assert ("lnlora, probed head", "lnlora, new head") in pairs
    assert not paired["resolved"].any() and (paired["n"] == 1).all()  # a single seed resolves nothing


def test_a_probed_head_starts_where_the_probe_ended(finetuned: dict[Path, dict], shipped: ViT) -> None:
    def weights(start_is_trial: bool, new_head: bool, kind: str) -> dict[str, Tensor]:
        fits = [
            folder
            for folder, asked in finetuned.items()
            if (isinstance(asked["start"], dict), asked["new_head"]) == (start_is_trial, new_head)
            and (asked["adapter"] or {}).get("kind") == kind
        ]
        assert len(fits) == 1
        return load_file(fits[0] / "tensors.safetensors")

    probe, new = weights(False, True, "linear"), weights(False, True, "lnlora")
    probed = weights(True, False, "lnlora")
    to_probe, to_new = ((probed["head.weight"] - other["head.weight"]).norm() for other in (probe, new))
    assert 0 < to_probe < to_new
    for name, frozen in shipped.net.state_dict().items():
        if not name.startswith("head."):
            assert probe[name].equal(frozen) and probed[name].equal(frozen) and new[name].equal(frozen)
    branches = [name for name in probed if ".lora_B." in name]
    assert branches and not any(".adapter." in name for name in probe)
    assert any((probed[name] - new[name]).abs().max() > 0 for name in branches)


def test_each_kind_trains_at_the_rate_that_dev_chose(run: NotebookRun, finetuned: dict[Path, dict]) -> None:
    table = run.table("10_rates")
    assert set(table["arm"]) == {"full", "lnlora"} and (table["dev_robust"] <= table["dev_accuracy"]).all()
    chosen = table[table["chosen"]].set_index("arm")["rate"]
    assert chosen.index.is_unique and set(chosen.index) == set(table["arm"])
    for kind, rate in chosen.items():
        best = table[table["arm"] == kind].sort_values(["dev_robust", "rate"], ascending=[False, True]).iloc[0]
        assert rate == best["rate"]
    used = {
        asked["recipe"]["learning_rate"]
        for asked in finetuned.values()
        if (asked["adapter"] or {}).get("norm") == "plain" and asked["adapter"]["kind"] == "lnlora"
    }
    assert used == {chosen["lnlora"]}  # a variant of which there is no rate but the base's
