"""Data sets: splits, and batches of pixels. CIFAR-10 is the real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nullpaper.data import datasets as data
from nullpaper.data import fetch as fetching
from nullpaper.errors import InputError


@pytest.fixture(scope="module")
def cifar() -> data.Data:
    return data.load_data("cifar10")


def test_sizes_classes_and_first_image(cifar: data.Data) -> None:
    assert (len(cifar.train), len(cifar.dev), len(cifar.test)) == (45_000, 5_000, 10_000)
    assert cifar.train.images.shape == (45_000, 32, 32, 3) and cifar.train.images.dtype == np.uint8
    assert cifar.test.labels[0] == 3 and cifar.classes[3] == "cat"


def test_dev_is_stratified_and_disjoint(cifar: data.Data) -> None:
    assert np.bincount(cifar.dev.labels).tolist() == [500] * 10
    train, dev = data.split_indices(np.concatenate([cifar.train.labels, cifar.dev.labels]))
    assert len(np.intersect1d(train, dev)) == 0 and len(train) + len(dev) == 50_000


def test_batches_are_pixels_that_a_file_can_hold(cifar: data.Data) -> None:
    batches = cifar.test.subset(70).batches(32, image_size=48)
    passes = [torch.cat([x for x, _ in batches]) for _ in range(2)]
    assert len(batches) == 3 and passes[0].shape == (70, 3, 48, 48) and torch.equal(*passes)
    assert passes[0].min() >= 0 and passes[0].max() <= 1
    assert torch.equal((passes[0] * 255).round() / 255, passes[0])
    pixels = data.to_pixels(cifar.test.images[:5])
    assert np.array_equal((pixels * 255).round().byte().permute(0, 2, 3, 1).numpy(), cifar.test.images[:5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.astype(np.int64), "are int64, from 0 to 255; pass uint8, or floats"),
        (lambda x: x.astype(float), "are float64, from 0 to 255; pass uint8, or floats"),
        (lambda x: x / 127.5 - 1, "from -1 to 1"),
        (lambda x: np.where(x > 250, np.nan, x / 255), "without NaN"),
        (lambda x: x[0], r"\(32, 32, 3\); pass a NumPy array \(n, H, W, C\)"),
        (lambda x: torch.from_numpy(x), "are a Tensor"),
        (lambda x: x.tolist(), "are a list"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(cifar: data.Data, change, words: str) -> None:
    images = cifar.test.images[:8]
    for call in (data.to_pixels, lambda images: data.Split(images, [0] * 8)):
        with pytest.raises(InputError, match=words):
            call(change(images))


@pytest.mark.parametrize("labels", [[0] * 7, [0] * 9, np.zeros(8), ["cat"] * 8, None, np.zeros((8, 1), int)])
def test_a_split_needs_one_class_index_for_each_image(cifar: data.Data, labels) -> None:
    with pytest.raises(InputError, match="one class index for each of the 8 images"):
        data.Split(cifar.test.images[:8], labels)


def test_floats_in_the_unit_interval_are_right_as_they_are(cifar: data.Data) -> None:
    images = cifar.test.images[:8]
    fine = np.random.default_rng(0).random(images.shape)
    assert torch.equal(data.to_pixels(fine), torch.from_numpy(fine).permute(0, 3, 1, 2).float())
    for kind in (np.float32, np.float64):
        floats = data.Split((images / 255).astype(kind), cifar.test.labels[:8].astype(np.int16))
        pixels, labels = next(iter(floats.batches(8, image_size=48)))
        assert (pixels - data.to_pixels(images, 48)).abs().max() <= 0.51 / 255 and labels.dtype == torch.int64
        both = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (images, floats.images))
        crops = [data.augmented(x, (32, 32), torch.Generator().manual_seed(0)) for x in both]
        assert torch.allclose(*crops, atol=1e-6)


def test_resizing_agrees_with_pillow(cifar: data.Data) -> None:
    ours = data.to_pixels(cifar.test.images[:8], 48).mul(255).permute(0, 2, 3, 1).numpy()
    pillow = [np.asarray(Image.fromarray(x).resize((48, 48), Image.Resampling.BICUBIC)) for x in cifar.test.images[:8]]
    difference = np.abs(ours - np.stack(pillow).astype(float))  # Pillow rounds between its two passes
    assert difference.mean() < 0.6 and difference.max() <= 4


def test_shuffling_is_seeded_and_keeps_pairs(cifar: data.Data) -> None:
    split = cifar.test.subset(100)
    first, second = ([y for _, y in split.batches(30, generator=torch.Generator().manual_seed(s))] for s in (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for images, labels in split.batches(30, generator=torch.Generator().manual_seed(5)):
        for image, label in zip(images, labels, strict=True):
            where = (split.images == (image * 255).round().byte().permute(1, 2, 0).numpy()).all((1, 2, 3))
            assert split.labels[where.argmax()] == label


def test_augmentation_crops_flips_and_repeats(cifar: data.Data) -> None:
    images = torch.from_numpy(cifar.test.images[:16]).permute(0, 3, 1, 2)
    first, again = (data.augmented(images, (32, 32), torch.Generator().manual_seed(0)) for _ in range(2))
    padded = torch.nn.functional.pad(images / 255, [4] * 4, mode="reflect")
    crops = padded.unfold(2, 32, 1).unfold(3, 32, 1).permute(2, 3, 0, 1, 4, 5).flatten(0, 1)  # (81, 16, 3, 32, 32)
    straight, flipped = ((crops - each).abs().amax((2, 3, 4)).amin(0) for each in (first, first.flip(-1)))
    assert torch.equal(first, again) and torch.minimum(straight, flipped).max() < 1e-6
    assert 0 < (straight < flipped).sum() < 16


def test_images_that_stay_on_the_device_are_those_that_come_batch_by_batch(cifar: data.Data, monkeypatch) -> None:
    split, indices = cifar.dev.take(range(50)), torch.tensor([7, 3, 49])
    images, labels = data.reader(split, torch.device("cpu"))(indices)
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 32, 32)
    assert np.array_equal(images.permute(0, 2, 3, 1), split.images[[7, 3, 49]])
    assert np.array_equal(labels, split.labels[[7, 3, 49]])
    monkeypatch.setattr(data, "RESIDENT", 1_000)
    again = data.reader(split, torch.device("cpu"))(indices)
    assert torch.equal(again[0], images) and torch.equal(again[1], labels)


def test_cifar100_has_the_same_interface(tmp_path, monkeypatch) -> None:
    """Stand-in arrays under the name, since only torchvision's download has the real ones."""
    labels = np.arange(1_000) % 100
    images = np.random.default_rng(0).integers(0, 256, (1_000, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path))
    folder = fetching.folder_of("cifar100")
    folder.parent.mkdir()
    fetching.save_arrays((images, labels, images[:200], labels[:200]), "cifar100", folder)
    loaded = data.load_data("cifar100")
    assert (len(loaded.train), len(loaded.dev), len(loaded.test)) == (900, 100, 200)
    assert np.bincount(loaded.dev.labels).tolist() == [1] * 100
    assert len(loaded.classes) == 100 and list(loaded.classes) == sorted(set(loaded.classes))


def test_imagenette_is_lazy_square_and_split(tmp_path, monkeypatch) -> None:
    """torchvision's own reader over real JPEG files in its layout."""
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path))
    root = fetching.folder_of("imagenette") / "imagenette2-320"
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 3)):
        for wnid in ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / wnid / f"{i}.jpeg")
    with pytest.warns(UserWarning, match="has no images of 5 classes: n03394916, n03417042, n03425413 and 2 more"):
        loaded = data.load_data("imagenette")
    assert (len(loaded.train), len(loaded.dev), len(loaded.test)) == (90, 10, 15)
    assert np.bincount(loaded.dev.labels).tolist() == [2] * 5
    assert isinstance(loaded.train.images, data.LazyImages) and loaded.train.images[0].shape == (224, 224, 3)
    images, labels = next(iter(loaded.test.batches(4, image_size=32)))
    assert images.shape == (4, 3, 32, 32) and labels.tolist() == [0, 0, 0, 1]


SMALL = data.Split(np.arange(50 * 8 * 8 * 3, dtype=np.uint8).reshape(50, 8, 8, 3), np.arange(50) % 10)
NO_COUNTS = (-5, 0, 2.5, True, "3", np.float64(2), float("nan"))
NO_INDICES = ([50], [-51], [1.5], "a", None, np.ones(3, bool), np.zeros((2, 2), int), [[0], [1]])


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("count", SMALL.subset),
        ("size", SMALL.batches),
        ("image_size", lambda value: SMALL.batches(4, image_size=value)),
        ("image_size", lambda value: SMALL.batches(4, image_size=(8, value))),
        ("image_size", lambda value: data.to_pixels(SMALL.images, value)),
        ("image_size", lambda value: data.to_pixels(SMALL.images, (value, 8))),
    ],
)
def test_counts_and_sizes_are_whole_and_positive(name: str, call, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}=.* must be a whole number of at least 1"):
        call(value)


def test_a_subset_has_as_many_images_as_were_asked_for() -> None:
    with pytest.raises(InputError, match="count=51 exceeds the 50 images of this split"):
        SMALL.subset(51)
    with pytest.raises(InputError, match="seed=-1 must be a whole number"):
        SMALL.subset(3, seed=-1)
    assert [len(SMALL.subset(count)) for count in (None, 50, np.int64(7))] == [50, 50, 7]
    assert np.array_equal(SMALL.subset(50).images, SMALL.images)


@pytest.mark.parametrize("indices", NO_INDICES, ids=repr)
def test_indices_that_a_split_lacks_are_refused(indices: object) -> None:
    with pytest.raises(InputError, match="no indices of a split of 50 images"):
        SMALL.take(indices)


@pytest.mark.parametrize("indices", [[3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1]), [3, -49], slice(3, 0, -2)])
def test_indices_of_every_kind_take_images_with_their_labels(indices: object) -> None:
    taken = SMALL.take(indices)
    assert taken.labels.tolist() == [3, 1] and np.array_equal(taken.images, SMALL.images[[3, 1]])


def test_a_split_without_images_says_so() -> None:
    assert len(SMALL.take([])) == 0
    with pytest.raises(InputError, match="this split has no images"):
        SMALL.take([]).batches(4)
