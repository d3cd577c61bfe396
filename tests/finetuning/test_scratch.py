"""The training loop: it learns, repeats itself, survives a kill. Real CIFAR-10, the real net, few images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from processes import started

from nullpaper.data import datasets as data
from nullpaper.errors import InputError
from nullpaper.finetuning import scratch as training
from nullpaper.models import predict
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit

QUICK = training.Recipe(epochs=2, batch_size=32, warmup_epochs=0.5, ema=0.9)


@cache
def few(count: int = 160) -> data.Data:
    cifar = data.load_data("cifar10")
    return replace(cifar, train=cifar.train.subset(count), dev=cifar.dev.subset(100))


def fresh() -> ViT:
    torch.manual_seed(0)
    return load_vit(SHIPPED, pretrained=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[ViT, list[training.Record]]:
    """A run that nothing interrupts."""
    return training.train(fresh(), few(), QUICK, folder=tmp_path_factory.mktemp("whole"))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole, tmp_path) -> None:
    second, other = (training.train(fresh(), few(), replace(QUICK, seed=seed), folder=tmp_path) for seed in (0, 1))
    assert fingerprint(whole[0]) == fingerprint(second[0]) != fingerprint(other[0])
    assert [record["loss"] for record in whole[1]] == [record["loss"] for record in second[1]]


def epochs(send: Callable[[int], None], folder: Path) -> None:
    training.train(fresh(), few(), QUICK, folder=folder)


@pytest.mark.long
def test_a_killed_run_continues_to_the_same_weights(whole, tmp_path) -> None:
    child, _ = started(epochs, tmp_path / "killed")
    while not list((tmp_path / "killed").glob("training-*.safetensors")) and child.is_alive():
        time.sleep(0.005)  # until the first epoch is on disk
    child.kill()
    child.join()
    resumed, history = training.train(fresh(), few(), QUICK, folder=tmp_path / "killed")
    assert len(history) == 2 and fingerprint(resumed) == fingerprint(whole[0])


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_targets_stay_distributions_and_pixels_legal(mixing: dict[str, float]) -> None:
    vit, split = fresh(), few().train
    images = torch.from_numpy(split.images[:64]).permute(0, 3, 1, 2)
    recipe = replace(QUICK, **mixing)
    generator = torch.Generator().manual_seed(0)
    pixels, targets = training._batch(images, torch.from_numpy(split.labels[:64]), vit, recipe, generator)
    assert pixels.shape == (64, 3, 48, 48) and pixels.min() >= 0 and pixels.max() <= 1
    assert torch.allclose(targets.sum(1), torch.ones(64)) and (targets >= 0).all()
    assert (targets.max(1).values < 1).any()


def test_it_learns_a_few_images_by_heart(tmp_path) -> None:
    recipe = replace(QUICK, epochs=8, batch_size=8, randaugment_operations=0, label_smoothing=0.0, patch_drop=0.0)
    trained, history = training.train(fresh(), few(48), recipe, folder=tmp_path)
    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    assert not trained.training and history[-1]["learning_rate"] < 0.1 * recipe.learning_rate


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_epoch(tmp_path) -> None:
    recipe = replace(QUICK, epochs=1)
    training.train(fresh(), few(), recipe, folder=tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    broken = fresh()
    with torch.no_grad():
        broken.net.head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss is nan at step 1: lower the learning rate"):
        training.train(broken, few(), QUICK, folder=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_predictions_follow_the_split_and_leave_the_mode() -> None:
    vit, split = load_vit(SHIPPED), few().dev
    logits = predict.predictions(vit, split, batch_size=64)
    assert torch.allclose(logits, predict.predictions(vit, split, batch_size=77), atol=1e-5)
    vit.train()
    assert predict.accuracy(vit, split) == pytest.approx((logits.argmax(1).numpy() == split.labels).mean())
    assert vit.training
