"""Judgements in parts say what one of all images would, go on where they were killed, and are shared by jobs."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import standins
from filelock import FileLock
from processes import started

from nullpaper.data.datasets import load_data
from nullpaper.errors import InputError
from nullpaper.models.predict import predictions
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import judging
from nullpaper.studies.judging import Protocol, Weights, judge
from nullpaper.studies.published import further_sets

EPS = 1 / 255


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    return tmp_path / "build" / "store" / "judged"


def firsts(store: Path) -> dict[int, Path]:
    """The parts that the store has, by the place of their first image."""
    folders = [path for path in store.glob("[!.]*") if (path / "params.json").is_file()]
    return {json.loads((path / "params.json").read_text())["first"]: path for path in folders}


def weights(vit: ViT) -> Weights:
    return Weights(fingerprint(vit), vit.transform, lambda: vit)


def judged(protocol: Protocol) -> pd.DataFrame:
    return judge(weights(load_vit(SHIPPED)), "cifar10", "", protocol)


@pytest.mark.long
def test_parts_say_what_one_judgement_of_all_images_says(store: Path) -> None:
    """Up to a shard there is one part; above it attacks draw as if there were one."""
    whole = Protocol(252, (Threat("pgd-1", EPS),))
    expected = judged(whole)
    assert sorted(firsts(store)) == [0]
    pd.testing.assert_frame_equal(judged(replace(whole, shard=250)), expected)
    assert len(list(store.glob("[!.]*"))) == 3 and expected["n"].tolist() == [252, 252]


def test_a_part_that_another_job_is_at_waits_till_last(store: Path) -> None:
    protocol = Protocol(10, (Threat("fgsm", EPS),), ("fog",), (3,), shard=4)
    expected = judged(protocol)
    first = firsts(store)[0]
    for folder in firsts(store).values():
        folder.rename(store.parent / folder.name)
    other = FileLock(store / f".{first.name}.lock", thread_local=False)
    with other:
        results: list[pd.DataFrame] = []
        mine = Thread(target=lambda: results.append(judged(protocol)))
        mine.start()
        while sorted(firsts(store)) != [4, 8]:
            assert mine.is_alive()
            time.sleep(0.02)
        (store.parent / first.name).rename(first)  # what the other job has made
    mine.join()
    pd.testing.assert_frame_equal(results[0], expected)
    assert sorted(firsts(store)) == [0, 4, 8]


def _attacked(send: Callable[[object], None], protocol: Protocol) -> None:
    send("begun")
    judged(protocol)
    send("ended")


@pytest.mark.long
def test_a_killed_autoattack_goes_on_with_the_part_that_it_was_at(store: Path) -> None:
    protocol = Protocol(12, (Threat("autoattack-1", EPS),), shard=3)
    child, ours = started(_attacked, protocol)
    assert ours.recv() == "begun"
    while not firsts(store):
        assert child.is_alive()
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    kept = {first: (folder / "provenance.json").stat().st_mtime_ns for first, folder in firsts(store).items()}
    assert 0 < len(kept) < 4
    resumed = judged(protocol)
    assert sorted(firsts(store)) == [0, 3, 6, 9]
    assert all((firsts(store)[first] / "provenance.json").stat().st_mtime_ns == made for first, made in kept.items())
    for folder in firsts(store).values():
        folder.rename(store.parent / folder.name)
    pd.testing.assert_frame_equal(judged(protocol), resumed)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shard": 300}, "shard=300 cuts a batch of 250 images in two"),
        ({"shard": 0}, "shard=0 must be"),
        ({"images": 0}, "images=0 must be"),
        ({"split": "val"}, "split 'val' is unknown"),
        ({"corruptions": ("fogg",)}, "corruption 'fogg' is unknown"),
        ({"threats": (Threat("pgdd", EPS),)}, "attack 'pgdd' is unknown"),
    ],
)
def test_what_cannot_be_judged_by_is_refused_before_any_work(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Protocol(**{"images": 4} | changes)


# On stand-ins of ImageNet's sets


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("imagenet")
    standins.imagenet(folder / "imagenet", train=1)
    standins.further_sets(folder / "sets", folder / "imagenet" / "val")
    standins.weights(folder / "tiny.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "images", "heads"),
    [("imagenet-a", 8, 200), ("imagenet-r", 8, 200), ("imagenet-v2", 8, 1000), ("damagenet", 5, 1000)],
)
def test_a_set_is_judged_among_its_own_classes(store: Path, place: Path, name: str, images: int, heads: int) -> None:
    """ImageNet-A and -R by the logits of their 200 classes alone: the others' may be the largest."""
    vit = load_vit("test_vit", weights=place / "tiny.safetensors")
    root = str(place / "sets" / name)
    frame = judge(weights(vit), "imagenet", str(place / "imagenet"), Protocol(images, data=name, root=root))
    data = load_data(name, root, transform=vit.transform)
    logits = predictions(vit, data.test)
    kept = list(data.imagenet)
    assert len(kept) == len(data.classes) == heads and len(data.damaged) == (name != "damagenet")
    masked = logits.new_full(logits.shape, float("-inf"))
    masked[:, kept] = logits[:, kept]
    right = [kept[label] == guess for label, guess in zip(data.test.labels, masked.argmax(1).tolist(), strict=True)]
    assert frame["correct"][0].tolist() == right and frame["n"].tolist() == [images]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_files_of_imagenet_c_are_paired_with_the_photographs(store: Path, place: Path) -> None:
    """Here they are the very same, so that under every condition the answers are those of the clean images."""
    vit, folder = load_vit("test_vit", weights=place / "tiny.safetensors"), place / "sets" / "imagenet-c"
    protocol = Protocol(8, (), ("fog", "snow"), (1, 5), corrupted=str(folder), shard=5)
    frame = judge(weights(vit), "imagenet", str(place / "imagenet"), protocol)
    assert frame["condition"].tolist() == ["clean", "fog@1", "fog@5", "snow@1", "snow@5"]
    assert all((mask == frame["correct"][1]).all() for mask in frame["correct"][2:]) and frame["n"].eq(8).all()
    moved = next((folder / "all/snow/5").glob("*/*_1.JPEG"))
    moved.rename(moved.with_name("another.JPEG"))
    judging.load.cache_clear()
    judging.judged_images.cache_clear()
    with pytest.raises(InputError, match="snow/5 in .* are not those of imagenet"):
        judge(weights(vit), "imagenet", str(place / "imagenet"), protocol)
    with pytest.raises(InputError, match="lacks 1 of 2 conditions, such as snow/5"):
        (folder / "all/snow/5").rename(folder / "all/snow/6")
        judge(weights(vit), "imagenet", str(place / "imagenet"), replace(protocol, corruptions=("snow",)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_set_that_is_missing_is_a_line(place: Path, tmp_path: Path) -> None:
    """And so is an ImageNet-C that lacks a condition; the others are judged."""
    sets = standins.further_sets(
        tmp_path / "sets", place / "imagenet" / "val", without=("imagenet-v2", "imagenet-sketch")
    )
    transform = load_vit("test_vit", weights=place / "tiny.safetensors").transform
    own = Protocol(8, corruptions=("fog", "snow"))
    protocol, further, lines = further_sets(str(sets), own, transform, images=6)
    assert protocol == replace(own, corrupted=str(sets / "imagenet-c"))
    assert {name: judged_on.images for name, judged_on in further.items()} == {
        "damagenet": 5,
        "imagenet-a": 6,
        "imagenet-r": 6,
        "imagenet-stylized": 6,
    }
    assert [line.partition(" ")[0] for line in lines] == ["imagenet-v2", "imagenet-sketch"]
    (sets / "imagenet-c/all/fog/2").rename(sets / "imagenet-c/all/fog/7")
    protocol, _, lines = further_sets(str(sets), own, transform)
    assert protocol == own and lines[0] == "imagenet-c lacks 1 conditions, such as fog/2: corruptions are our own."
    with pytest.raises(InputError, match="is no folder: name one that holds damagenet, imagenet-a"):
        further_sets(str(tmp_path / "nowhere"), own, transform)
