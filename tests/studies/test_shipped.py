"""The command that trains what travels with the package: each kind once, on few images, and its refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from quick import few

from nullpaper.adapters.files import ADAPTED, load_adapter
from nullpaper.data.datasets import Data
from nullpaper.models.checkpoints import ARCHITECTURES
from nullpaper.models.vit import SHIPPED, fingerprint, load_vit, shipped_weights
from nullpaper.studies import settings, shipped


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, and the states of runs beside the test."""

    def load_data(name: str) -> Data:
        return replace(few(), test=few().test.subset(50))

    monkeypatch.setattr(shipped, "load_data", load_data)
    monkeypatch.setattr(shipped, "cache_home", lambda: tmp_path / "states")


def test_training_again_writes_weights_that_load(tmp_path: Path) -> None:
    given = ["--epochs", "1", "--augmentations", "crops and flips", "randaugment"]
    shipped.main([SHIPPED, "--to", str(tmp_path), *given])
    record = json.loads((tmp_path / f"{SHIPPED}.json").read_text())
    trained = load_vit(SHIPPED, weights=tmp_path / f"{SHIPPED}.safetensors")
    assert fingerprint(trained) == record["weights"] != fingerprint(load_vit(SHIPPED))
    assert len(record["history"]) == record["recipe"]["epochs"] == 1
    assert record["chosen"] == max(record["dev_accuracy"], key=record["dev_accuracy"].get)
    assert set(record["dev_accuracy"]) == {"crops and flips", "randaugment"}


@pytest.mark.parametrize("name", ["vit_robust", *ADAPTED])
def test_a_finetuned_checkpoint_comes_from_the_same_command(name: str, tmp_path: Path, monkeypatch) -> None:
    quick = replace(shipped.RECIPES[name], batch_size=64, noise_images=50, dev_images=20, attack_steps=1)
    monkeypatch.setitem(shipped.RECIPES, name, quick)
    record = shipped.train_shipped(name, tmp_path, epochs=1)
    if name in ADAPTED:
        trained = load_adapter(load_vit(SHIPPED), tmp_path / name)
        assert json.loads((tmp_path / name / "record.json").read_text())["weights"] == record["weights"]
    else:
        trained = load_vit(SHIPPED, weights=tmp_path / f"{name}.safetensors")
    assert fingerprint(trained) == record["weights"] != record["start"] == fingerprint(load_vit(SHIPPED))
    assert record["steps"] == record["best_step"] == 3 and [entry["step"] for entry in record["history"]] == [0, 3]


def test_recipes_are_those_of_the_records_that_travel() -> None:
    assert {*shipped.RECIPES} == {*ARCHITECTURES, *ADAPTED}
    for name, recipe in shipped.RECIPES.items():
        weights = shipped_weights(name)
        path = weights.with_suffix("") / "record.json" if name in ADAPTED else weights.with_suffix(".json")
        record = json.loads(path.read_text())
        assert type(recipe)(**record["recipe"] | {"betas": tuple(record["recipe"]["betas"])}) == recipe
        assert record.get("steps", shipped.ROBUST_STEPS) == shipped.ROBUST_STEPS
        adapter = settings.ADAPTERS["lnlora"].options() if name in ADAPTED else None
        assert record.get("adapter") == adapter


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnett"], "classifier 'resnett' is unknown. Did you mean 'resnet'?"),
        (["--augmentations", "flips"], "augmentation 'flips' is unknown."),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        shipped.main([*arguments, "--to", str(tmp_path / "absent")])
    message = str(refusal.value)
    assert message.startswith(f"Error: {sentence}") and "\n" not in message and not (tmp_path / "absent").exists()
