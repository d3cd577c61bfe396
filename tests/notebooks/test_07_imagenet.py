"""Notebook 07 at the profile `imagenet`, on stand-ins of all its sets and random weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import standins
from notebook_runs import NOTEBOOKS, NotebookRun

from nullpaper.studies.published import COLUMNS, average
from nullpaper.workflow.runs import run_notebooks

NOTEBOOK = "07_nullspace_finetuning"
MISSING = ("imagenet-v2", "imagenet-sketch")
TINY = dict(
    model="test_vit", paper_start="", images=8, steps=2, steps_per_noise=1, batch_size=4, noise_images=8, noise_steps=1,
    dev_images=8, boundary_images=8, boundary_steps=1,
    attack_steps=1, methods=["zero", "nullspace"], evaluation_steps=1, autoattack_methods=["start"], autoattack_steps=1,
    autoattack_images=4, checked_images=4, seeds=2, shard=2, workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    standins.imagenet(folder / "imagenet", train=40)
    standins.further_sets(folder / "sets", folder / "imagenet" / "val", without=MISSING)
    standins.weights(folder / "test_vit.safetensors")
    standins.weights(folder / "vit_small_patch16_224.safetensors", "vit_small_patch16_224", img_size=32)
    return folder


def given(place: Path, **changes: object) -> dict[str, str]:
    values = TINY | {"root": place / "imagenet", "sets": place / "sets"} | changes
    values["weights"] = place / f"{values['model']}.safetensors"
    return {name: str(value) for name, value in values.items()}


def run(place: Path, label: str, **changes: object) -> NotebookRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(place))
        (report,) = run_notebooks(
            [NOTEBOOKS / f"{NOTEBOOK}.py"], given(place, **changes), profile="imagenet", label=label
        )
    assert report.error is None, f"{report.error}: {report.ipynb}"
    return NotebookRun(report, place)


def kept(place: Path) -> dict[Path, int]:
    """The finished parts in the store, and when each was made."""
    files = (place / "build/store/judged").glob("[!.]*/provenance.json")
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.long
def test_the_profile_runs_on_stand_ins_and_goes_on_where_it_was_killed(place: Path) -> None:
    options = [word for name, value in given(place).items() for word in ("-p", name, value)]
    command = [sys.executable, "-m", "nullpaper", "run", str(NOTEBOOKS / f"{NOTEBOOK}.py"), *options]
    command += ["--profile", "imagenet", "--label", "tiny"]
    child = subprocess.Popen(command, env=os.environ | {"NULLPAPER_ROOT": str(place)}, stdout=subprocess.DEVNULL)
    while not len(kept(place)) >= 2:
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    before = kept(place)
    done = run(place, "tiny")
    after = kept(place)
    assert all(after[file] == made for file, made in before.items()), "what was finished is not computed again"
    assert len(after) > len(before)

    table = done.table("07_paper")
    assert all(f"{name} is not in " in done.printed for name in MISSING)
    own = [name for name in COLUMNS if name not in MISSING]
    for method, rows in table.groupby("method"):
        rows = rows.set_index("column")
        assert list(rows.index) == [*own, "average"] and rows.loc["average", "columns"] == 9
        assert rows.loc["average", "ours"] == pytest.approx(average(rows["ours"], own))
        assert rows["published"].isna().all() and (rows["n"] == (1 if method == "start" else 2)).all()
        assert rows.loc[["clean", "imagenet-c", "imagenet-a", "damagenet"], "images"].tolist() == [8, 8, 8, 5]
    mce = done.table("07_mce").set_index("method")["mce"]
    ours = table[table["column"] == "imagenet-c"].set_index("method")["ours"]
    assert np.allclose(mce[ours.index], ours), "both by AlexNet's errors, which no start of 1,000 classes has"
    assert (mce > 100).all(), "the answers of random weights are wrong more often than AlexNet's"
    assert table["unlike"].fillna("").eq("").sum() == 3 * (9 + 1 - 3)


@pytest.mark.long
def test_what_it_would_cost_is_said_and_nothing_runs(place: Path) -> None:
    options = [word for name, value in given(place, seeds=3).items() for word in ("-p", name, value)]
    command = [sys.executable, "-m", "nullpaper", "run", str(NOTEBOOKS / f"{NOTEBOOK}.py"), *options, "--dry-run"]
    before = kept(place)
    environment = os.environ | {"NULLPAPER_ROOT": str(place)}
    said = subprocess.run([*command, "--profile", "imagenet"], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    for part in ("finetuning", "table", "imagenet-a", "damagenet", "AutoAttack"):
        assert f"{part} " in said.stdout
    assert "TFLOP and" in said.stdout and "GB each" in said.stdout and kept(place) == before


@pytest.mark.long
def test_the_papers_start_stands_beside_its_numbers(place: Path) -> None:
    """The real architecture, on random weights and small images: differences that are far off, and say so."""
    few = dict(
        model="vit_small_patch16_224",
        paper_start="ViT-S",
        images=2,
        steps=1,
        batch_size=2,
        seeds=1,
        methods=["nullspace"],
    )
    few |= dict(
        attacks=["fgsm"], corruptions=["fog"], severities=[3], mce_by="start", autoattack_methods=[], set_images=1
    )
    table = run(place, "small", **few, checked_images=2).table("07_paper").set_index(["method", "column"])
    assert (
        table.loc[("start", "clean"), "published"] == 74.19 and table.loc[("nullspace", "fgsm"), "published"] == 25.95
    )
    assert table.loc[("start", "average"), "columns"] == 6, "clean, FGSM and four sets"
    assert np.allclose(table["difference"], table["ours"] - table["published"]) and table["source"].notna().all()
