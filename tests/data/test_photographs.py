"""The published sets in their layouts, and anybody's own folder: classes, labels, splits, what is said of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import PARACHUTE, SPRINGER, TENCH, photograph, quietly

from nullpaper.data.datasets import load_data
from nullpaper.data.folders import Transform
from nullpaper.data.photographs import IMAGES, imagenet, imagenet_c, published
from nullpaper.errors import InputError
from nullpaper.models.predict import predictions
from nullpaper.models.vit import load_vit


def test_the_named_sets_have_the_published_classes() -> None:
    data, wnids = {name: published(name) for name in IMAGES}, imagenet().folders
    assert [len(data[name].classes) for name in ("imagenet-a", "imagenet-r", "imagenet-c", "damagenet")] == [
        200, 200, 1_000, 1_000,
    ]  # fmt: skip
    for name, known in data.items():
        assert len(set(known.folders)) == len(known.classes) == len(known.places) and known.name == name
        if name != "imagenet-v2":
            assert known.folders == tuple(wnids[place] for place in known.places)
        assert known.places == tuple(sorted(known.places))
    assert data["imagenet-v2"].folders[10] == "10" and data["imagenet-a"].places[:3] == (6, 11, 13)


@pytest.mark.parametrize("below", ["", "val"])
@pytest.mark.parametrize("name", IMAGES)
def test_every_set_is_read_in_its_layout_among_stray_and_damaged_files(tmp_path: Path, name: str, below: str) -> None:
    """Eight classes, or as many as there are: the labels are those of the set, whatever lies beside the images."""
    known = published(name)
    places = np.linspace(0, len(known.folders) - 1, 8).astype(int)
    for place in places:
        photograph(tmp_path / below / known.folders[place] / "ILSVRC2012_val_00000001.JPEG", int(place))
    (tmp_path / below / known.folders[places[3]] / "empty.JPEG").touch()
    for stray in ("README.txt", ".DS_Store", f"{known.folders[0]}/list.txt", f"{known.folders[0]}/._a.JPEG"):
        (tmp_path / below / stray).write_text("no image")
    (tmp_path / below / "__MACOSX").mkdir()
    photograph(tmp_path / below / ".ipynb_checkpoints" / "a.jpg")
    with pytest.warns(UserWarning) as warned:
        data = load_data(name, tmp_path)
    said = " ".join(str(one.message) for one in warned)
    assert "1 damaged image files are left out" in said and "1 folders that are no class: __MACOSX" in said
    assert (f"8 of the {known.images:,} images of {name}" in said) is bool(known.images)
    assert data.test.labels.tolist() == places.tolist() and len(data.train) == len(data.dev) == 0
    assert data.classes == known.classes and data.imagenet == known.places and data.test.classes == len(known.folders)
    assert data.identity["transform"].endswith("crop of 1" if known.cropped else "crop of 0.9")


def test_class_folders_may_lie_in_the_root_itself(root: Path) -> None:
    nested = quietly("imagenet", root)
    direct = quietly("imagenet", root / "val")
    assert np.array_equal(direct.test.labels, nested.test.labels) and len(direct.train) == len(direct.dev) == 0
    assert list(direct.test.images.paths) == list(nested.test.images.paths)


def test_labels_of_a_set_are_its_own_and_know_their_place_among_the_thousand(tmp_path: Path) -> None:
    wnids = published("imagenet-r").folders
    for wnid in (wnids[3], wnids[150]):
        photograph(tmp_path / wnid / "a.jpg")
    with pytest.warns(UserWarning, match="2 of the 30,000 images of imagenet-r"):
        data = load_data("imagenet-r", tmp_path)
    assert data.test.labels.tolist() == [3, 150] and len(data.classes) == 200 == len(data.imagenet)
    assert (
        imagenet().folders[data.imagenet[150]] == wnids[150] and imagenet().classes[data.imagenet[3]] == data.classes[3]
    )


def test_numeric_folders_of_v2_are_numbers_not_text(tmp_path: Path) -> None:
    for number in (0, 2, 10, 999):
        photograph(tmp_path / str(number) / "a.jpeg")
    with pytest.warns(UserWarning, match="4 of the 10,000 images of imagenet-v2"):
        assert load_data("imagenet-v2", tmp_path).test.labels.tolist() == [0, 2, 10, 999]


@pytest.mark.parametrize("family", ["", "noise/"])
def test_conditions_of_imagenet_c_are_roots_of_their_own_and_are_not_cropped(tmp_path: Path, family: str) -> None:
    for severity in (1, 3):
        photograph(tmp_path / f"{family}gaussian_noise" / str(severity) / TENCH / "a.JPEG")
    photograph(tmp_path / f"{family}speckle_noise" / "1" / TENCH / "a.JPEG")
    found = imagenet_c(tmp_path)
    assert list(found) == [("gaussian_noise", 1), ("gaussian_noise", 3)]
    with pytest.warns(UserWarning, match="1 of the 50,000 images of imagenet-c"):
        data = load_data("imagenet-c", found["gaussian_noise", 3], transform=Transform(0.9, "bilinear"))
    assert data.test.images.transform == Transform(1.0, "bilinear")
    assert data.identity["transform"] == "bilinear resize, center crop of 1"
    with pytest.raises(InputError, match="holds no condition of ImageNet-C: gaussian_noise/1 to jpeg_compression/5"):
        imagenet_c(tmp_path / "elsewhere")


def test_damagenet_is_flat_with_a_list_or_in_folders(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        photograph(tmp_path / "DAmageNet" / f"ILSVRC2012_val_0000000{number}.png")
    (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_0000000{n}.JPEG {n * 65}\n" for n in (2, 1)))
    with pytest.warns(UserWarning, match="2 of the 50,000 images of damagenet"):
        assert load_data("damagenet", tmp_path).test.labels.tolist() == [65, 130]
    (tmp_path / "val.txt").write_text("a b c")
    with pytest.raises(InputError, match="val.txt is not a list of file names and labels .* take val.txt of ImageNet"):
        load_data("damagenet", tmp_path)
    (tmp_path / "val.txt").unlink()
    photograph(tmp_path / TENCH / "a.png")
    with pytest.warns(UserWarning, match="1 of the 50,000 images of damagenet"):
        assert load_data("damagenet", tmp_path).test.labels.tolist() == [0]


def own(folder: Path, parts: tuple[str, ...] = ("",), count: int = 10) -> Path:
    for part in parts:
        for number, name in enumerate(("zebra", "ant", "bee 2")):
            for index in range(count):
                photograph(folder / part / name / f"{index}.png", 100 * number + index)
    return folder


def test_any_folder_of_class_folders_is_split_by_class(tmp_path: Path) -> None:
    data = quietly(own(tmp_path / "own"))
    assert data.classes == ("ant", "bee 2", "zebra") and data.name == "own" and data.imagenet is None
    assert [len(split) for split in (data.train, data.dev, data.test)] == [25, 2, 3]
    files = [set(split.images.paths) for split in (data.train, data.dev, data.test)]
    assert len(set.union(*files)) == 30 and sorted(data.test.labels) == [0, 1, 2]
    assert data.identity["split"] == "stratified, seed 0, test 3, dev 2"
    for split in (data.train, data.test):
        assert [data.classes[label] for label in split.labels] == [
            Path(path).parent.name for path in split.images.paths
        ]
    again = quietly(str(tmp_path / "own"))
    assert again.identity == data.identity and set(again.test.images.paths) == files[2]


@pytest.mark.parametrize(
    ("parts", "counts", "rule"),
    [
        (("train", "val", "test"), (30, 30, 30), "as the folders"),
        (("train", "valid"), (27, 3, 30), "stratified, seed 0, dev 3"),
        (("train", "test"), (27, 3, 30), "stratified, seed 0, dev 3"),
        (("train",), (27, 3, 0), "stratified, seed 0, dev 3"),
        (("val",), (0, 0, 30), "stratified, seed 0, dev 0"),
    ],
)
def test_parts_of_an_own_folder_are_kept(tmp_path: Path, parts, counts, rule: str) -> None:
    data = quietly(own(tmp_path / "own", parts))
    assert tuple(len(split) for split in (data.train, data.dev, data.test)) == counts
    assert data.identity["split"] == rule and data.classes == ("ant", "bee 2", "zebra")


def test_an_own_folder_of_wordnet_ids_knows_its_place_among_the_thousand(root: Path) -> None:
    assert quietly(root).imagenet == (0, 217, 701) and quietly(root).classes == (TENCH, SPRINGER, PARACHUTE)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda root: load_data(root / "nowhere"), "nowhere is no folder: pass one that holds a folder of images"),
        (lambda root: load_data(root / "val" / TENCH), "holds no folder: sort its images into one folder a class"),
        (lambda root: load_data(root, root), "is a folder itself, and takes no root"),
        (lambda root: load_data("vals"), "data set 'vals' is unknown.* Or pass a folder of class folders"),
        (lambda root: load_data("imagenett"), "Did you mean 'imagenette'"),
        (lambda root: load_data("imagenet-a"), r"imagenet-a cannot be fetched: load_data\('imagenet-a', root=...\)"),
        (lambda root: load_data(3), "data set '3' is unknown"),
        (lambda root: load_data(root, transform=0.9), r"transform=0.9 is none: pass load_vit\(...\).transform"),
        (lambda root: Transform(90), r"crop_pct=90 must be a number in \(0, 1\]: it is the share"),
        (lambda root: Transform(0.9, "cubic"), "interpolation 'cubic' is unknown. Did you mean 'bicubic'"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(root: Path, monkeypatch, call, sentence: str) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=sentence) as refusal:
        call(root)
    assert "\n" not in str(refusal.value)


def test_a_data_set_prints_its_classes_and_counts(root: Path) -> None:
    photograph(root / "val" / TENCH / "one_more.png")
    assert str(quietly("imagenet", root)).splitlines()[:4] == [
        "imagenet: 1,000 classes, tench, goldfish, great white shark, ..., toilet tissue",
        "  train: 27 images of 3 classes, 9 to 9 each",
        "  dev: 3 images of 3 classes, 1 to 1 each",
        "  test: 7 images of 3 classes, 2 to 3 each",
    ]
    assert "  transform: bicubic resize, center crop of 0.9" in str(quietly("imagenet", root))


def test_a_vit_of_timm_knows_the_photographs_that_it_was_trained_for() -> None:
    """Labels, transform and statistics together: all images of NIPS 2017 give 87.6 %, all of Imagenette 99.0 %."""
    if not (shared := os.environ.get("NULLPAPER_SHARED")):
        pytest.skip("set NULLPAPER_SHARED to a folder with weights/ and data/ to try a ViT-Ti/16 on photographs")
    file = Path(shared, "weights", "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors")
    vit = load_vit("vit_tiny_patch16_224", weights=file, mean=(0.5,) * 3, std=(0.5,) * 3)
    for name, folder, least in (("imagenet", "nips2017", 0.7), ("imagenette", "imagenette2-320", 0.9)):
        data = load_data(name, Path(shared, "data", folder), transform=vit.transform)
        few, test = vit.restricted(data.imagenet), data.test.subset(60)
        assert (predictions(few, test).argmax(1) == torch.from_numpy(test.labels)).double().mean() > least
