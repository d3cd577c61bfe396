"""Folders of photographs: labels by WordNet id, what is damaged, and every kind of image file."""

from __future__ import annotations

import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import SPRINGER, TENCH, photograph, quietly
from PIL import Image
from timm.data import create_transform

from nullpaper.data.datasets import load_data
from nullpaper.data.folders import LazyImages, decode
from nullpaper.data.photographs import imagenet
from nullpaper.errors import InputError

RAMP = np.linspace(0, 65_535, 48 * 60).reshape(48, 60)


def test_labels_are_indices_of_the_thousand_classes(root: Path) -> None:
    data = quietly("imagenet", root)
    assert len(data.classes) == 1_000 and data.classes[0] == "tench" and data.classes[701] == "parachute"
    assert (len(data.train), len(data.dev)) == (27, 3) and data.test.labels.tolist() == [0, 0, 217, 217, 701, 701]
    assert list(imagenet().folders) == sorted(imagenet().folders)
    images, labels = next(iter(data.test.take([4, 0]).batches(2, image_size=32)))
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [701, 0] and 0 <= images.min() <= images.max() <= 1
    assert data.test.images[:0].shape == (0, 224, 224, 3) and data.test.images[np.int64(1)].shape == (224, 224, 3)


@pytest.mark.parametrize("name", ["imagenet", "imagenette"])
def test_a_class_that_is_missing_in_val_shifts_no_label(root: Path, name: str) -> None:
    for path in (root / "val" / SPRINGER).iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match=rf"val has no images of \d classes: .*{SPRINGER}"):
        data = load_data(name, str(root))
    parachute = {"imagenet": 701, "imagenette": 9}[name]
    assert data.test.labels.tolist() == [0, 0, parachute, parachute] and data.classes[parachute] == "parachute"
    assert set(data.train.labels) == {0, parachute, {"imagenet": 217, "imagenette": 1}[name]}


def test_a_foreign_folder_is_named_and_left_out(root: Path) -> None:
    photograph(root / "val" / "n00000000" / "a.jpg")
    with pytest.warns(UserWarning, match="val has 1 folders that are no class: n00000000; left out"):
        assert load_data("imagenet", root).test.labels.tolist() == [0, 0, 217, 217, 701, 701]


def test_val_alone_is_test_and_the_other_splits_say_that_they_are_empty(root: Path) -> None:
    (root / "train").rename(root / "elsewhere")
    data = quietly("imagenet", root)
    assert (len(data.train), len(data.dev), len(data.test)) == (0, 0, 6)
    for split in (data.train, data.dev):
        with pytest.raises(InputError, match="this split has no images"):
            split.batches(4)


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        ((), "x has no folder val: make one, or a link to one"),
        (("train/n01440764",), "x has no folder val"),
        (("n01440764",), "x holds no sound image in a folder of a class"),
        (("val",), "val has no folder that is named after a class, such as n01440764; it holds nothing"),
        (("val/tench", "val/church"), "it holds church, tench. Sort its images into folders"),
        (("val/n01440764",), "val holds no sound image in a folder of a class"),
    ],
)
def test_another_layout_is_named_in_one_sentence(tmp_path: Path, folders: tuple[str, ...], sentence: str) -> None:
    for folder in folders:
        (tmp_path / "x" / folder).mkdir(parents=True)
    with pytest.raises(InputError, match=sentence) as refusal:
        load_data("imagenet", tmp_path / "x")
    assert "\n" not in str(refusal.value)


def test_root_is_for_photographs_and_imagenet_needs_it(root: Path) -> None:
    with pytest.raises(InputError, match=r"load_data\('imagenet', root=\.\.\.\)"):
        load_data("imagenet")
    with pytest.raises(InputError, match="cifar10 takes no root: set NULLPAPER_HOME"):
        load_data("cifar10", root)
    with pytest.raises(InputError, match="max_damaged=-1 must be a whole number"):
        load_data("imagenet", root, max_damaged=-1)


def test_what_is_no_image_changes_nothing(root: Path) -> None:
    before, folder = quietly("imagenet", root), root / "val" / TENCH
    photograph(folder / ".ipynb_checkpoints" / "a-checkpoint.JPEG")
    photograph(root / "val" / ".ipynb_checkpoints" / "b.JPEG")
    (folder / "._a.JPEG").write_bytes(b"\x00\x05\x16\x07" * 20)  # macOS's other half of a file
    for name in (".DS_Store", "Thumbs.db", "list.txt", "boxes.xml"):
        (folder / name).write_text("no image")
    assert quietly("imagenet", root).identity == before.identity


def test_identity_is_of_the_files_wherever_they_lie(root: Path, monkeypatch) -> None:
    before, copy = quietly("imagenet", root).identity, root / "copy"
    copy.mkdir()
    for part in ("train", "val"):
        (root / part).rename(copy / part)
    assert quietly("imagenet", copy).identity == before
    monkeypatch.chdir(copy)
    data = quietly("imagenet", ".")
    monkeypatch.chdir(root)
    assert data.identity == before and data.test.images[0].shape == (224, 224, 3)
    photograph(copy / "val" / TENCH / f"{TENCH}_0.JPEG", 77)
    assert quietly("imagenet", copy).identity != before


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


def page(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def png(path: Path) -> None:
    photograph(path, format="PNG")
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize("damage", [empty, truncated, page, dangling, png])
def test_damaged_files_are_named_counted_and_left_out_up_to_a_limit(root: Path, damage) -> None:
    files = [root / "val" / TENCH / f"{TENCH}_0.JPEG", *sorted((root / "train" / SPRINGER).iterdir())[:3]]
    for path in files:
        damage(path)
    with pytest.warns(UserWarning, match=r"4 damaged image files are left out: .*_0.JPEG \(.+\).* and 1 more"):
        data = load_data("imagenet", root)
    assert sorted(data.damaged) == sorted(map(str, files)) and data.test.labels.tolist() == [0, 217, 217, 701, 701]
    assert len(data.train) + len(data.dev) == 27
    assert not set(data.damaged) & {*data.train.images.paths, *data.dev.images.paths, *data.test.images.paths}
    with pytest.raises(InputError, match="4 image files are damaged: .*Mend or delete them, or raise max_damaged"):
        load_data("imagenet", root, max_damaged=3)
    with pytest.warns(UserWarning):
        load_data("imagenet", root, max_damaged=4)
    for path in files:
        path.unlink()
    assert quietly("imagenet", root, max_damaged=0).damaged == ()


def test_a_file_that_fails_later_is_named(root: Path) -> None:
    data, path = quietly("imagenet", root), root / "val" / SPRINGER / f"{SPRINGER}_0.JPEG"
    truncated(path)
    with pytest.raises(InputError, match=rf"{path} is damaged \(.+\): mend or delete it and load the data again"):
        list(data.test.batches(4))
    path.unlink()
    assert len(quietly("imagenet", root).test) == 5


def test_a_file_with_bytes_behind_its_end_is_sound(root: Path) -> None:
    path = root / "val" / TENCH / f"{TENCH}_0.JPEG"
    path.write_bytes(path.read_bytes() + b"\n\0 a camera's own notes")
    assert len(quietly("imagenet", root).test) == 6


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (48, 64)])
def test_images_are_to_the_bit_what_timm_gives_the_model(root: Path, size: tuple[int, int]) -> None:
    data = quietly("imagenet", root)
    ours, _ = next(iter(data.test.batches(6, image_size=size)))
    transform = create_transform((3, *size), interpolation="bicubic", crop_pct=0.9, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(
        ours, torch.stack([transform(Image.open(path).convert("RGB")) for path in data.test.images.paths])
    )


def deep_png(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour; ``kind`` 0: grey, 2: RGB."""
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    framed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("kind", ["grey.png", "colour.png", "grey.pgm", "grey.tiff", "big-endian.tiff"])
def test_sixteen_bits_become_eight_without_saturating(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if path.suffix == ".png":
        colour = kind.startswith("colour")
        path.write_bytes(deep_png(np.stack([RAMP] * 3, -1) if colour else RAMP, 2 if colour else 0))
    elif path.suffix == ".pgm":
        path.write_bytes(b"P5 60 48 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        image = Image.fromarray(RAMP.astype(np.uint16))
        (Image.frombytes("I;16B", image.size, RAMP.astype(">u2").tobytes()) if "big" in kind else image).save(path)
    pixels = np.asarray(decode(str(path)))
    assert pixels.shape == (48, 60, 3) and np.abs(pixels - RAMP[..., None] / 257).max() <= 1


def test_thirty_two_bits_have_no_known_range(root: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(root / "val" / TENCH / "measured.tiff")
    with pytest.warns(UserWarning, match=r"measured.tiff \(its pixels have 32 bits and no known range\)"):
        assert len(load_data("imagenet", root).test) == 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA", "clear P"])
def test_every_mode_is_read_as_timm_and_torchvision_read_it(tmp_path: Path, mode: str) -> None:
    path = photograph(tmp_path / "a.png")
    image = Image.open(path)
    options = {"transparency": bytes(range(200))} if mode == "clear P" else {}
    image.convert(mode.removeprefix("clear ")).save(
        path := tmp_path / ("b.jpg" if mode == "CMYK" else "b.png"), **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.asarray(Image.open(path).convert("RGB"))
    ours = quietly_decoded(path)
    assert np.array_equal(ours, theirs) and ours.shape == (60, 80, 3)
    if mode not in ("1", "P", "clear P"):
        grey = "RGB" if mode in ("CMYK", "RGBA") else "L"
        assert np.abs(ours - np.asarray(image.convert(grey).convert("RGB")).astype(float)).mean() < 6


def quietly_decoded(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(decode(str(path)))


def test_a_rotation_in_exif_is_not_applied_and_an_animation_shows_its_first_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    turned, straight = photograph(tmp_path / "a.jpg", exif=exif), photograph(tmp_path / "b.jpg")
    assert np.array_equal(quietly_decoded(turned), quietly_decoded(straight))
    first, second = (Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (50, 200))
    for name in ("a.gif", "a.webp", "a.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert np.abs(quietly_decoded(tmp_path / name).astype(int) - 50).max() <= 2


def test_lazy_images_keep_their_files_when_sized_or_taken(root: Path) -> None:
    images = quietly("imagenet", root).test.images
    again = images.take(np.array([3, 0])).sized((16, 24))
    assert isinstance(again, LazyImages) and again.paths.tolist() == [images.paths[3], images.paths[0]]
    assert again[:].shape == (2, 16, 24, 3) and again[:].dtype == np.uint8


def test_batches_that_are_read_ahead_are_those_read_one_by_one(root: Path) -> None:
    split = quietly("imagenet", root).train
    one_by_one = np.stack([split.images.sized((32, 32))[place] for place in range(len(split))])
    batches = [(images, labels) for images, labels in split.batches(5, image_size=32)]
    assert np.array_equal(torch.cat([x for x, _ in batches]).mul(255).round().byte().permute(0, 2, 3, 1), one_by_one)
    assert torch.cat([y for _, y in batches]).tolist() == split.labels.tolist()
    shuffled = split.batches(5, image_size=32, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    images = torch.cat([x for x, _ in shuffled])
    assert np.array_equal(images.mul(255).round().byte().permute(0, 2, 3, 1), one_by_one[order])


def test_readers_end_with_who_asks(root: Path) -> None:
    split, before = quietly("imagenet", root).train, threading.active_count()
    batches = iter(split.batches(4, image_size=32))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    truncated(Path(split.images.paths[9]))
    with pytest.raises(InputError, match="is damaged"):
        list(split.batches(4, image_size=32))
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    photograph(tmp_path / "a" / "0.png"), photograph(tmp_path / "b" / "0.png")
    for name in ("a", "b"):
        for index in range(1, 60):
            (tmp_path / name / f"{index}.png").symlink_to(tmp_path / name / "0.png")
    split, peaks = quietly(tmp_path).train, []
    for count in (12, len(split)):
        few = split.take(range(count))
        sum(images.sum() for images, _ in few.batches(4, image_size=64))  # what is made once
        tracemalloc.start()
        sum(images.sum() for images, _ in few.batches(4, image_size=64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    batch = 4 * 64 * 64 * 3
    assert len(split) > 90 and peaks[1] < peaks[0] + 2 * batch < len(split) * 64 * 64 * 3
