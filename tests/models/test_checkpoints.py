"""The other architectures: they load, classify better than chance, train by the same loop, and refuse wrong names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from noises import batches
from torch import nn

from nullpaper.adapters.files import load_adapted
from nullpaper.data import datasets as data
from nullpaper.errors import InputError
from nullpaper.finetuning import scratch as training
from nullpaper.models.checkpoints import ARCHITECTURES, load_classifier
from nullpaper.models.predict import accuracy
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit, save_vit, shipped_weights
from nullpaper.robustness.evaluation import evaluate


@pytest.mark.long
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_takes_pixels_and_is_far_better_than_chance(name: str) -> None:
    model = load_classifier(name)
    test = data.load_data("cifar10").test.subset(500)
    assert not model.training and model.num_classes == 10 and model.image_size == (48, 48)
    assert accuracy(model, test) > 0.4


def test_the_shipped_vit_is_the_one_that_load_vit_gives() -> None:
    images, _ = next(iter(batches()))
    with torch.no_grad():
        assert torch.equal(load_classifier(SHIPPED)(images), load_vit(SHIPPED)(images))
    assert isinstance(load_classifier("vit_wide"), ViT)


def attacked(model: ViT, split: data.Split) -> float:
    """Accuracy under PGD with 20 steps at 8/255."""
    return evaluate(model, split, attacks=[("pgd-20", 8 / 255)]).set_index("name")["accuracy"]["pgd-20"]


WHOLE, ADAPTER = shipped_weights("vit_robust"), shipped_weights("vit_robust_lnlora").with_suffix("")
RECORDS = {"vit_robust": WHOLE.with_suffix(".json"), "vit_robust_lnlora": ADAPTER / "record.json"}


@pytest.mark.parametrize("name", RECORDS)
def test_the_robust_checkpoints_are_robust_where_they_were_trained(name: str) -> None:
    """PGD with 20 steps at 8/255, on which they must gain 15 points over their start."""
    split = data.load_data("cifar10").test.subset(60)
    model = load_classifier(name) if name in ARCHITECTURES else load_adapted(name)
    assert attacked(model, split) - attacked(load_classifier(SHIPPED), split.subset(30)) >= 0.15
    record = json.loads(RECORDS[name].read_text())
    assert record["weights"] == fingerprint(model) and record["start"] == fingerprint(load_vit(SHIPPED))


def test_the_adapter_alone_is_stored_and_its_run_was_that_of_the_whole() -> None:
    records = [json.loads(path.read_text()) for path in RECORDS.values()]
    whole, adapter = ({**record["recipe"], "learning_rate": None} for record in records)
    assert whole == adapter and all(records[0][key] == records[1][key] for key in ("method", "steps", "seed", "start"))
    assert sum(file.stat().st_size for file in ADAPTER.glob("adapter_*")) < 0.1 * WHOLE.stat().st_size
    own, frozen = (model.net.state_dict() for model in (load_vit(SHIPPED), load_adapted("vit_robust_lnlora")))
    assert all(torch.equal(own[key], frozen[key]) for key in own if not key.startswith("head"))


def test_weights_survive_the_disk_and_wrong_ones_are_refused(tmp_path) -> None:
    model = load_classifier("resnet")
    save_vit(model, tmp_path / "resnet.safetensors")
    assert fingerprint(load_classifier("resnet", weights=tmp_path / "resnet.safetensors")) == fingerprint(model)
    with pytest.raises(InputError, match="does not fit convnext"):
        load_classifier("convnext", weights=tmp_path / "resnet.safetensors")
    with pytest.raises(InputError, match="'resnte' is unknown. Did you mean 'resnet'"):
        load_classifier("resnte")


def test_batch_statistics_reach_the_averaged_weights(tmp_path) -> None:
    cifar = data.load_data("cifar10")
    few = replace(cifar, train=cifar.train.subset(256), dev=cifar.dev.subset(100))
    torch.manual_seed(0)
    fresh = load_classifier("resnet", pretrained=False)
    start = {name: value.clone() for name, value in fresh.net.named_buffers()}
    recipe = training.Recipe(epochs=1, batch_size=64, warmup_epochs=0.5)
    trained, _ = training.train(fresh, few, recipe, folder=tmp_path)
    norm = next(module for module in trained.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 4
    moved = [name for name, value in trained.net.named_buffers() if not torch.equal(value, start[name])]
    assert len(moved) == len(start)
