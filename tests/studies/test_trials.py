"""Trials are run once and shared, and may run side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.datasets import Imagenette

from nullpaper.adapters.inject import AdaptedViT
from nullpaper.data import fetch
from nullpaper.data.datasets import load_data
from nullpaper.errors import InputError
from nullpaper.finetuning.methods import METHODS, FinetuneRecipe
from nullpaper.models.predict import correct
from nullpaper.models.vit import SHIPPED, fingerprint, load_vit, save_vit
from nullpaper.robustness.attacks import ATTACKS
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import judging
from nullpaper.studies.boundary import Boundary, boundary_norm
from nullpaper.studies.settings import on_other_data
from nullpaper.studies.trials import (
    AdapterSpec,
    Protocol,
    Trial,
    TrialResult,
    _whole,
    model_of,
    run_trials,
    start_of,
)

EPS = 1 / 255
QUICK = FinetuneRecipe(batch_size=8, steps_per_noise=1, dev_images=20, noise_images=32, noise_steps=2)
PROTOCOL = Protocol(12, (Threat("fgsm", EPS), Threat("pgd-2", 8 / 255)), ("fog", "contrast"), (1, 5))


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory) -> Iterator[Path]:
    """The project, whose store all trials here share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(folder := tmp_path_factory.mktemp("project")))
        yield folder


@pytest.fixture(scope="module")
def finished(root: Path) -> list[TrialResult]:
    trials = [Trial("start"), Trial("zero", 0, 2, QUICK), Trial("zero", 1, 2, QUICK)]
    return run_trials(trials, PROTOCOL, workers=1, progress=None)


def test_a_finished_trial_is_found_and_says_the_same(root: Path, finished: list[TrialResult]) -> None:
    judged = set((root / "build/store/judged").iterdir())
    again = run_trials([finished[1].trial], PROTOCOL, workers=1, progress=None)[0]
    assert again.run.reused and not finished[1].run.reused
    assert judged == set((root / "build/store/judged").iterdir())
    assert again.history == finished[1].history and again.best_step == finished[1].best_step
    pd.testing.assert_frame_equal(again.frame, finished[1].frame)
    assert not list((root / "build/finetuning").iterdir())  # the state of a finished run is of no more use


def test_the_start_is_the_model_as_it_comes_and_a_trial_is_another(finished: list[TrialResult]) -> None:
    start, zero, other = (fingerprint(model_of(run)) for run in finished)
    assert start == fingerprint(load_vit(SHIPPED)) and len({start, zero, other}) == 3
    assert finished[0].history == [] and len(finished[1].history) == 3


def test_the_mismatched_scale_is_one_affine_map_of_what_the_checkpoint_saw() -> None:
    own, wrong = start_of(Trial("start")), start_of(Trial("start", mismatched_scale=True))
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    seen, wrongly_seen = ((images - model.mean) / model.std for model in (own, wrong))
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        half = 0.5 * seen[:, channel] + 0.5  # the pixels that mean = std = 0.5 would turn into what was seen
        assert torch.allclose(wrongly_seen[:, channel], (half - mean) / std, atol=1e-5)
    with pytest.raises(InputError, match="start 'resnet' is no ViT"):
        start_of(Trial("start", start="resnet"))


def test_a_trial_through_an_adapter_keeps_the_base_and_gives_its_branches_back() -> None:
    trial = Trial(
        "pgd_at", 3, 2, replace(QUICK, attack_steps=1), adapter=AdapterSpec("lnlora", 2, targets=("qkv", "fc2"))
    )
    run = run_trials([trial], replace(PROTOCOL, corruptions=()), workers=1, progress=None)[0]
    model, start = model_of(run), load_vit(SHIPPED)
    assert isinstance(model, AdaptedViT) and (model.adapter.r, model.adapter.alpha) == (2, 2)
    kept = {name: value for name, value in model.net.state_dict().items() if ".adapter." not in name}
    changed = {name for name, value in start.net.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed == {"head.weight", "head.bias"}, "all else is frozen, to the bit"
    assert model.net.blocks[0].attn.qkv.adapter.lora_B.weight.abs().max() > 0
    assert [record["step"] for record in run.history] == [0, 1, 2] and "dev_robust" in run.history[0]


def test_a_trial_can_begin_where_another_ended_and_with_a_new_head() -> None:
    probe = Trial("standard", 0, 1, QUICK, adapter=AdapterSpec("linear"), new_head=True)
    fresh, probed = start_of(probe), start_of(Trial("standard", start=probe, adapter=AdapterSpec("lora")))
    own = load_vit(SHIPPED).net
    assert not isinstance(probed, AdaptedViT) and torch.equal(probed.net.norm.weight, own.norm.weight)
    heads = [net.head.weight for net in (own, fresh.net, probed.net)]
    assert not any(torch.equal(heads[i], heads[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(fresh.net.head.weight, start_of(probe).net.head.weight)
    other = start_of(replace(probe, seed=1)).net.head.weight
    assert not torch.equal(fresh.net.head.weight, other) and fresh.net.head.bias.abs().max() == 0


def test_other_classes_get_a_head_of_their_own(tmp_path, monkeypatch) -> None:
    """A hundred classes, in the files that CIFAR-100 leaves in the cache; the pictures are CIFAR-10's."""
    cifar, folder = load_data("cifar10"), tmp_path / "data" / "cifar100"
    folder.parent.mkdir()
    images = [split.images[:count] for split, count in ((cifar.train, 2_000), (cifar.test, 200))]
    labels = [np.arange(len(part)) % 100 for part in images]
    fetch.save_arrays((images[0], labels[0], images[1], labels[1]), "cifar100", folder)
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path))
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    trial = Trial("pgd_at", 0, 1, replace(QUICK, attack_steps=1), adapter=AdapterSpec("lnlora", 2), data="cifar100")
    run = run_trials([trial], Protocol(20, (Threat("fgsm", EPS),)), workers=1, progress=None)[0]
    assert model_of(run).num_classes == 100 and len(run.frame["correct"][0]) == 20


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Stand-ins for photographs, in a folder ``imagenette`` with train and one ``imagenet`` with val alone."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in (("imagenette/train", 5), ("imagenette/val", 1), ("imagenet/val", 1)):
        for wnid in (*sorted(Imagenette._WNID_TO_CLASS), *(["n01443537"] if "imagenet/" in part else [])):
            (folder / part / wnid).mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))
                picture.save(folder / part / wnid / f"{wnid}_{index}.JPEG")
    return folder


@pytest.fixture(scope="module")
def begun(photographs: Path) -> dict[str, str]:
    """The start of a trial on them: a small model of timm with the 1,000 classes of ImageNet, random weights."""
    save_vit(load_vit("test_vit", pretrained=False), photographs / "small.safetensors")
    files = {"weights": str(photographs / "small.safetensors"), "root": str(photographs / "imagenette")}
    return {"start": "test_vit", "data": "imagenette", **files}


PHOTOS = FinetuneRecipe(batch_size=4, steps_per_noise=1, dev_images=2, noise_images=0, attack_steps=1)


def test_a_head_of_a_thousand_classes_is_finetuned_among_those_of_the_data(begun: dict[str, str]) -> None:
    trials = [Trial("start", **begun), Trial("standard", 0, 1, PHOTOS, **begun)]
    before, after = run_trials(trials, Protocol(6, (Threat("fgsm", EPS),)), workers=1, progress=None)
    start, ended, plain = start_of(trials[0]), model_of(after), load_vit("test_vit", weights=begun["weights"])
    assert start.num_classes == ended.num_classes == 10 and len(after.frame["correct"][0]) == 6
    images, chosen = torch.rand(2, 3, 160, 160), list(load_data("imagenette", begun["root"]).imagenet)
    assert torch.equal(start(images), plain(images)[:, chosen]), "nothing is drawn anew"
    assert ended.net.head.weight.shape == (1000, 64)
    moved = (ended.net.head.weight - plain.net.head.weight).abs().amax(1)
    assert moved[chosen].min() > 100 * moved[[i for i in range(1000) if i not in chosen]].max()


def test_the_same_weights_are_judged_on_another_test_set_under_all_classes(
    photographs: Path, begun: dict[str, str]
) -> None:
    trial = Trial("standard", 0, 1, PHOTOS, **begun)
    given = ["imagenet"], [str(photographs / "imagenet")]
    elsewhere = on_other_data(Protocol(11), *given, start_of(trial).transform)["imagenet"]
    (run,) = run_trials([trial], elsewhere, workers=1, progress=None)
    whole = load_vit("test_vit", weights=begun["weights"])
    whole.net.load_state_dict(run.run.tensors())
    expected = correct(whole, load_data("imagenet", photographs / "imagenet", transform=whole.transform).test)
    assert run.frame["correct"][0].tolist() == expected.tolist() and len(expected) == 11
    with pytest.raises(InputError, match="count=12 exceeds the 11 images"):
        on_other_data(Protocol(12), *given, whole.transform)
    with pytest.raises(InputError, match="2 folders are given for 1 further test sets"):
        on_other_data(Protocol(11), ["imagenet"], ["a", "b"], whole.transform)
    (dev,) = run_trials([trial], Protocol(5, split="dev"), workers=1, progress=None)
    assert dev.run.reused and len(dev.frame["correct"][0]) == 5


def test_where_weights_and_photographs_lie_decides_no_trial(photographs: Path, begun: dict[str, str]) -> None:
    (here,) = run_trials([Trial("standard", 0, 1, PHOTOS, **begun)], Protocol(5), workers=1, progress=None)
    copy = shutil.copytree(photographs, photographs.parent / "moved")
    moved = begun | {"weights": str(copy / "small.safetensors"), "root": str(copy / "imagenette")}
    first = Trial("standard", 0, 1, PHOTOS, **moved)
    (there,) = run_trials([first], Protocol(5), workers=1, progress=None)
    assert there.run.reused and there.run.key == here.run.key
    second = [
        Trial("standard", 1, 1, PHOTOS, **files | {"start": begin})
        for files, begin in ((begun, here.trial), (moved, first))
    ]
    one, other = run_trials(second, Protocol(5), workers=1, progress=None)
    assert one.run.key == other.run.key, "nor does it where a start is a trial"
    assert str(photographs) not in "".join(path.read_text() for path in here.run.path.glob("*.json"))


def test_the_largest_noise_found_is_longer_than_random_at_the_same_eps() -> None:
    vit, data = load_vit(SHIPPED), load_data("cifar10")
    found = boundary_norm(_whole(vit), data, Boundary(0.1, 160, 10))
    assert found["norm"] > 1.2 * found["norm_random"] > 0


def test_a_killed_set_of_trials_keeps_what_was_finished(root: Path, finished: list[TrialResult]) -> None:
    broken = replace(finished[1].trial, seed=7, recipe=replace(QUICK, noise_images=5_000))
    kept = set((root / "build/store/finetuned").iterdir())
    with pytest.raises(InputError, match="noise_images=5000 leaves none"):
        run_trials([finished[1].trial, broken], PROTOCOL, workers=1, progress=None)
    assert set((root / "build/store/finetuned").iterdir()) >= kept


def test_no_path_decides_a_trial(root: Path, finished: list[TrialResult], tmp_path: Path, monkeypatch) -> None:
    """A copied checkout finds what was computed: the project's folder is no part of an identity."""
    copy = tmp_path / "another" / "project"
    shutil.copytree(root / "build/store", copy / "build/store")
    monkeypatch.setenv("NULLPAPER_ROOT", str(copy))
    again = run_trials([finished[1].trial], PROTOCOL, workers=1, progress=None)[0]
    assert again.run.reused and again.run.path.is_relative_to(copy)


MODULE = """
from torch.nn.functional import cross_entropy
from nullpaper.finetuning.methods import Method

def loss(vit, batch):
    return {factor} * cross_entropy(vit(batch.images), batch.labels)

METHOD = Method(loss)
"""


@pytest.mark.long
def test_a_registered_method_counts_and_reaches_the_workers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    trial, keys = Trial("mine", 0, 1, QUICK), []
    for factor, workers in ((1.0, 2), (2.0, 1)):  # two: in processes that never registered it
        (tmp_path / f"own_{workers}.py").write_text(MODULE.format(factor=factor))
        monkeypatch.setitem(METHODS, "mine", import_module(f"own_{workers}").METHOD)
        trials = [replace(trial, seed=seed) for seed in range(workers)]
        results = run_trials(trials, Protocol(4), workers=workers, progress=None)
        assert not any(result.run.reused for result in results)
        keys.append(results[0].run.key)
    assert keys[0] != keys[1], "a changed loss is another result"


def test_a_method_that_no_process_can_import_runs_in_this_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    calls = []

    def loss(vit, batch):
        calls.append(len(batch.images))
        return METHODS["standard"].loss(vit, batch)

    monkeypatch.setitem(METHODS, "local", replace(METHODS["standard"], loss=loss))
    run_trials([Trial("local", s, 1, QUICK) for s in range(2)], Protocol(4), workers=2, progress=None)
    assert calls == [8, 8]


def test_registered_attacks_and_corruptions_are_part_of_what_judges(monkeypatch) -> None:
    def identity() -> list:
        return judging.registered(PROTOCOL)

    before = identity()
    monkeypatch.setitem(ATTACKS, "fgsm", replace(ATTACKS["fgsm"], steps=2))
    attacked = identity()
    monkeypatch.setitem(CORRUPTIONS, "fog", CORRUPTIONS["fog"]._replace(constants=((0.1, 3),) * 5))
    assert len({json.dumps(each) for each in (before, attacked, identity())}) == 3


def test_an_unknown_method_or_corruption_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="method 'nullspce' is unknown"):
        run_trials([Trial("start"), Trial("nullspce")], PROTOCOL, progress=None)
    with pytest.raises(InputError, match="fogg"):
        run_trials([Trial("zero")], replace(PROTOCOL, corruptions=("fogg",)), progress=None)
