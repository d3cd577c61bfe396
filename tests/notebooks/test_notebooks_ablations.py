"""Notebook 10: it runs, and what its tables must say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from notebook_runs import assert_complete, numbered, project, runs, stems
from safetensors.torch import load_file
from torch import Tensor

from nullpaper.adapters.inject import expected_parameters
from nullpaper.models.vit import SHIPPED, ViT, load_vit
from nullpaper.studies import design
from nullpaper.studies import trials as experiments
from nullpaper.workflow.runs import RunReport

__all__ = ["project", "runs"]  # fixtures

NOTEBOOKS = numbered("10")
SIZE = design.ADVERSARIAL_SIZES["smoke"]
SECTIONS = {
    "rank": {"lnlora", "lnlora, r = 4", "lora", "lora, r = 4", "full"},
    "norm": {"lnlora", "lora", "lnlora, plain norm"},
    "layers": {"lnlora", "lnlora, attention"},
    "qkv": {"lnlora", "lnlora, q k v apart, r = 3"},
    "head": {"lnlora", "lnlora, new head", "lnlora, probed head", "probe alone"},
}
MEASURES = {"clean", "pgd", "cw", "pgd 8/255", "average"}


@pytest.mark.parametrize("name", stems(NOTEBOOKS))
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    assert_complete(runs[name])


@pytest.fixture
def tables(runs: dict[str, RunReport], project: Path) -> Path:
    return project / "results/smoke"


@pytest.fixture
def finetuned(runs: dict[str, RunReport], project: Path) -> dict[Path, dict]:
    """Folders of the stored finetuning runs, with what was asked of each."""
    found = (project / "build/store/finetuned").glob("*/params.json")
    return {path.parent: json.loads(path.read_text()) for path in found}


@pytest.fixture(scope="module")
def shipped() -> ViT:
    return load_vit(SHIPPED)


def test_every_section_has_its_variants_under_every_measure(tables: Path) -> None:
    table = pd.read_csv(tables / "10_table.csv")
    assert not table.duplicated(["section", "method", "measure"]).any() and table["value"].between(0, 1).all()
    assert {section: set(part["method"]) for section, part in table.groupby("section")} == SECTIONS
    assert all(set(part["measure"]) == MEASURES for _, part in table.groupby(["section", "method"]))
    assert (table.groupby(["method", "measure"])["value"].nunique() == 1).all()  # one run, in whatever section


def test_shares_and_steps_are_those_of_the_runs(tables: Path, shipped: ViT) -> None:
    table = pd.read_csv(tables / "10_table.csv").drop_duplicates("method").set_index("method")
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
    assert table["steps"].to_dict() == dict.fromkeys(known, SIZE["steps"]) | {"lnlora, probed head": 2 * SIZE["steps"]}


def test_paired_differences_are_those_of_the_table(tables: Path) -> None:
    table = pd.read_csv(tables / "10_table.csv").drop_duplicates(["method", "measure"])
    value, paired = table.set_index(["method", "measure"])["value"], pd.read_csv(tables / "10_paired.csv")
    for row in paired.to_dict("records"):
        expected = value[row["method"], row["measure"]] - value[row["against"], row["measure"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    pairs = set(zip(paired["method"], paired["against"], strict=True))
    assert {(name, "lnlora") for names in SECTIONS.values() for name in names - {"lnlora"}} < pairs
    assert {("lnlora", "lora"), ("lnlora", "lora, r = 4"), ("lnlora", "full")} < pairs  # what a claim reads
    assert ("lnlora, probed head", "lnlora, new head") in pairs
    assert not paired["resolved"].any() and (paired["n"] == 1).all()  # a single seed resolves nothing


def test_runs_of_09_are_found_and_nothing_is_trained_twice(
    finetuned: dict[Path, dict], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {name for names in SECTIONS.values() for name in names}
    assert len(finetuned) == len(variants) + 2  # and one more rate for each of two kinds
    monkeypatch.setenv("NULLPAPER_ROOT", str(project))
    radii = {name: SIZE[name] for name in ("attack_eps", "other_eps")}
    recipe, protocol = design.adversarial(SIZE, **radii, seed=0)
    options = dict(adapter="lnlora", start=design.STARTS["standard"])
    trial = design.adversarial_trial("pgd_at", 0, SIZE["steps"], recipe, **options)
    (again,) = experiments.run_trials([trial], protocol, workers=1, progress=None)
    assert len(again.sources) == 2 and all(source.reused for source in again.sources)


def test_a_probed_head_starts_where_the_probe_ended(finetuned: dict[Path, dict], shipped: ViT) -> None:
    def weights(start_is_trial: bool, head: str, kind: str) -> dict[str, Tensor]:
        fits = [
            folder
            for folder, asked in finetuned.items()
            if (isinstance(asked["start"], dict), asked["head"]) == (start_is_trial, head)
            and (asked["adapter"] or {}).get("kind") == kind
        ]
        assert len(fits) == 1
        return load_file(fits[0] / "tensors.safetensors")

    probe, new = weights(False, "new", "linear"), weights(False, "new", "lnlora")
    probed = weights(True, "kept", "lnlora")
    to_probe, to_new = ((probed["head.weight"] - other["head.weight"]).norm() for other in (probe, new))
    assert 0 < to_probe < to_new
    for name, frozen in shipped.net.state_dict().items():
        if not name.startswith("head."):
            assert probe[name].equal(frozen) and probed[name].equal(frozen) and new[name].equal(frozen)
    branches = [name for name in probed if ".lora_B." in name]
    assert branches and not any(".adapter." in name for name in probe)
    assert any((probed[name] - new[name]).abs().max() > 0 for name in branches)


def test_the_rate_is_chosen_on_dev(tables: Path) -> None:
    table = pd.read_csv(tables / "10_rates.csv")
    assert set(table["kind"]) == {"full", "lnlora"}
    for kind, part in table.groupby("kind"):
        assert set(part["rate"]) == {1e-3, design.RATES[kind]}
        best = part[part["dev_robust"] == part["dev_robust"].max()]["rate"].min()
        assert part.loc[part["chosen"], "rate"].tolist() == [best]
        assert part.loc[part["used"], "rate"].tolist() == [design.RATES[kind]]
    assert (table["dev_robust"] <= table["dev_accuracy"]).all()
    shares = table[["dev_robust", "dev_accuracy"]].mul(table["dev_images"], axis=0)
    assert (shares - shares.round()).abs().max(axis=None) < 1e-9  # counts of dev images
