"""Notebooks on finetuning with another model and other data: a small ViT of timm, stand-ins for photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from notebook_runs import NotebookRun, run_at_smoke
from PIL import Image
from torchvision.datasets import Imagenette

from nullpaper.models.vit import load_vit, save_vit

CORRUPTIONS = ["gaussian_noise", "contrast"]
SMALL = {"noise_images": 8, "images": 4, "batch_size": 4}
OF_PAPER_A = SMALL | {
    "boundary_images": 8,
    "attacks": ["fgsm", "pgd"],
    "corruptions": CORRUPTIONS,
    "methods": ["zero", "nullspace", "random"],
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of 1,000 classes, and ten images a class to train on and one to judge by."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 1)):
        for wnid in Imagenette._WNID_TO_CLASS:
            (folder / part / wnid).mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (180, 170, 3), np.uint8))
                picture.save(folder / part / wnid / f"{wnid}_{index}.JPEG")
    save_vit(load_vit("test_vit", pretrained=False), folder / "small.safetensors")
    return {
        "model": "test_vit",
        "weights": str(folder / "small.safetensors"),
        "data": "imagenette",
        "root": str(folder),
    }


@pytest.mark.long
def test_nullspace_finetuning_and_its_ablations(begun: dict[str, str], tmp_path: Path) -> None:
    more = {
        "others": ["imagenet"],
        "other_roots": [begun["root"]],
        "rates": [1e-5, 1e-3],
        "rate_steps": 1,
        "autoattack_methods": [],
        "checked_images": 2,
    }
    run = run_at_smoke(tmp_path, "07_nullspace_finetuning", label="photographs", **begun, **OF_PAPER_A, **more)
    rates = run.table("07_rates")
    assert set(rates["arm"]) == set(OF_PAPER_A["methods"]) and len(rates) == 6
    assert set(run.table("07_others")["data"]) == {"imagenet"} and "07_robust" not in names(run)
    assert set(run.table("07_table")["measure"]) == {
        "clean",
        "fgsm",
        "pgd",
        "noise",
        "digital",
        "corruptions",
        "average",
    }
    assert set(run.table("07_verdicts")["holds"]) <= {"not resolved", "not measured"}, "one seed decides nothing"
    of_08 = {name: value for name, value in OF_PAPER_A.items() if name != "methods"}
    ablations = run_at_smoke(tmp_path, "08_ablations", label="photographs", **begun, **of_08)
    assert {"zero, mismatched", "official"} <= set(ablations.table("08_paired")["method"])


@pytest.mark.long
def test_adapters(begun: dict[str, str], tmp_path: Path) -> None:
    options = {"starts": ["standard"], "robust_methods": [], "autoattack_methods": [], "autoattack_starts": []}
    options |= {"cost_models": ["test_vit"], "rates": [1e-4, 1e-3], "rate_steps": 1, "wide_rank": 4, "images": 4}
    run = run_at_smoke(tmp_path, "09_fulllora", label="photographs", **begun, **options)
    assert set(run.table("09_rates")["arm"]) == {f"standard, {name}" for name in ("full", "lnlora", "lora")}
    assert set(run.table("09_table")["data"]) == {"imagenette"} and "09_long" not in names(run)
    assert run.table("09_storage")["logits_changed_by"].eq(0).all()
    assert (run.table("09_layernorm")["ratio"] > 0).all() and set(run.table("09_shift")["model"]) == {
        "standard",
        "pgd_at",
    }
    words = run.table("09_verdicts").set_index("name")["holds"]
    assert words["comparable"] == "not resolved" and words["robust_start"] == "not measured"


def names(run: NotebookRun) -> set[str]:
    """Of the tables that were saved."""
    return {path.stem for path in run.report.tables}
