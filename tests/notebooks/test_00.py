"""Notebook 00, the shipped checkpoint: what it says of it, and the command that trains such a one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_runs import NotebookRun

from nullpaper.models.vit import SHIPPED, fingerprint, load_vit

NOTEBOOK = "00_checkpoint"


def test_the_accuracy_is_that_of_the_record(run: NotebookRun) -> None:
    table = run.table("00_accuracy").set_index("split")
    assert set(table.index) == {"dev", "test"} and (table["n"] == 1_000).all()
    assert ((table["accuracy_low"] < table["recorded"]) & (table["recorded"] < table["accuracy_high"])).all()
    assert f"{table.loc['test', 'accuracy']:.1%}" in run.printed and run.figures == {"00_training"}


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nullpaper.studies.shipped", "--to", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_training_again_writes_weights_that_load(tmp_path: Path) -> None:
    given = ("--epochs", "1", "--images", "128", "--augmentations", "crops and flips", "randaugment")
    result = train(tmp_path, *given)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / f"{SHIPPED}.json").read_text())
    trained = load_vit(SHIPPED, weights=tmp_path / f"{SHIPPED}.safetensors")
    assert fingerprint(trained) == record["weights"] != fingerprint(load_vit(SHIPPED))
    assert len(record["history"]) == record["recipe"]["epochs"] == 1
    assert record["chosen"] == max(record["dev_accuracy"], key=record["dev_accuracy"].get)
    assert set(record["dev_accuracy"]) == {"crops and flips", "randaugment"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("resnett",), "classifier 'resnett' is unknown. Did you mean 'resnet'?"),
        (("--augmentations", "flips"), "augmentation 'flips' is unknown."),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = train(tmp_path / "absent", *arguments)
    assert result.returncode and result.stderr.startswith(f"Error: {sentence}") and result.stderr.count("\n") == 1
    assert not (tmp_path / "absent").exists()
