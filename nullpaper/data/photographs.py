"""The published sets of photographs for ImageNet models, and anybody's own folder: classes, layouts, what is whole.

Sources: ImageNet-A (arXiv 1907.07174), -R (2006.16241), -V2 (1902.10811), -Sketch (1905.13549), Stylized-ImageNet
(1811.12231), ImageNet-C (1903.12261), DAmageNet (2001.06325).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

from timm.data import ImageNetInfo

from nullpaper.data.fetch import DATASETS, fetch
from nullpaper.data.folders import Classes, Photographs, image_files, read_folders, sound_images, visible_folders
from nullpaper.errors import InputError, check_path, first_line, warn

IMAGENET_C = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The 15 corruptions that count for mCE, each at severities 1 to 5, in the order of the paper's table."""


IMAGES = {
    "imagenet": 0,
    "imagenette": 0,
    "imagenet-a": 7_500,
    "imagenet-r": 30_000,
    "imagenet-v2": 10_000,
    "imagenet-sketch": 50_889,
    "imagenet-stylized": 50_000,
    "imagenet-c": 50_000,
    "damagenet": 50_000,
}
"""The names, and how many images each has for a test as published; 0: any number. ImageNet-C: a condition."""
CROPPED = ("imagenet-stylized", "imagenet-c", "damagenet")
PARTS = {"train": ("train",), "dev": ("val", "valid", "validation", "dev"), "test": ("test",)}
"""How the folders of the parts may be called in anybody's own folder."""


@cache
def imagenet() -> Classes:
    """The 1,000 classes of ImageNet-1k in the order of every published head, from timm: first names and WordNet ids."""
    info = ImageNetInfo()
    names = tuple(info.label_name_to_description(wnid).split(",")[0] for wnid in info.label_names())
    return Classes("imagenet", names, tuple(info.label_names()), tuple(range(1_000)))


@cache
def published(name: str) -> Classes:
    """The classes of a set in `IMAGES`; of ImageNet-A and -R the 200, from timm's lists."""
    whole = imagenet()
    names, folders, places = whole.classes, whole.folders, whole.places
    if name == "imagenette":
        known = DATASETS[name]
        return Classes(name, known.classes, known.wnids, tuple(map(folders.index, known.wnids)), complete=True)
    if name in ("imagenet-a", "imagenet-r"):
        listed = resources.files("timm.data").joinpath("_info", f"{name.replace('-', '_')}_indices.txt").read_text()
        places = tuple(map(int, listed.split()))
    elif name == "imagenet-v2":
        folders = tuple(map(str, places))  # which sorted as text would be 0, 1, 10, 100
    names, folders = (tuple(each[place] for place in places) for each in (names, folders))
    return Classes(name, names, folders, places, IMAGES[name], name in CROPPED, name != "imagenet")


def read_published(name: str, root: str | Path | None, max_damaged: int) -> Photographs:
    """The photographs of a set in `IMAGES`, below the user's own ``root`` or fetched.

    Raises:
        InputError: it cannot be fetched, or as `read_folders`.
    """
    if root is None and name not in DATASETS:
        raise InputError(f"{name} cannot be fetched: load_data('{name}', root=...) takes your own folder of it.")
    folder = fetch(name) / "imagenette2-320" if root is None else check_path("root", root).absolute()
    known = published(name)
    if name == "damagenet" and (folder / "val.txt").is_file():
        found = _read_listed(folder, folder / "val.txt", known, max_damaged)
    else:
        found = read_folders(_published_parts(folder, known.folders), known, max_damaged)
    if len(found.labels["test"]) < known.images:
        count = len(found.labels["test"])
        warn(f"{folder} has {count:,} of the {known.images:,} images of {name}.")
    return found


def read_own(root: Path, max_damaged: int) -> Photographs:
    """The photographs of anybody's folder of class folders, by the parts of `PARTS` that it has, or all as one part.

    The classes are the sorted names of the folders, as torchvision's ``ImageFolder`` has them.

    Raises:
        InputError: as `read_folders`, or no class folders.
    """
    parts, classes = _own_parts(root)
    wnids = imagenet().folders
    places = tuple(map(wnids.index, classes)) if set(classes) <= set(wnids) else None
    found = read_folders(parts, Classes(root.name, classes, classes, places), max_damaged)
    if "dev" in parts and "test" not in parts:  # as for ImageNet, val is what is reported
        names = {"dev": "test", "train": "train"}
        paths, labels = ({names[part]: held for part, held in each.items()} for each in (found.paths, found.labels))
        return replace(found, paths=paths, labels=labels)
    return found


def imagenet_c(root: str | Path) -> dict[tuple[str, int], Path]:
    """The conditions of ImageNet-C below ``root``, as published or by family: (corruption, severity) to its folder.

    Each is a root of its own, ``load_data("imagenet-c", folder)``. Those of the 75 that are missing are left out.

    Raises:
        InputError: there is none.
    """
    root = check_path("root", root)
    found = {
        (name, severity): folder / str(severity)
        for name in IMAGENET_C
        for folder in (root / name, *sorted(root.glob(f"*/{name}")))
        for severity in range(1, 6)
        if (folder / str(severity)).is_dir()
    }
    if not found:
        raise InputError(
            f"{root} holds no condition of ImageNet-C: {IMAGENET_C[0]}/1 to {IMAGENET_C[-1]}/5 belong there."
        )
    return found


def _published_parts(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where the class folders of a published set lie: ``root/val``, ``root/train`` if it is there; or ``root`` itself.

    Raises:
        InputError: neither ``val`` nor a folder of a class is in ``root``.
    """
    if (root / "val").is_dir():
        train = {"train": root / "train"} if (root / "train").is_dir() else {}
        return {**train, "test": root / "val"}
    if not root.is_dir() or not {path.name for path in root.iterdir() if path.is_dir()} & set(names):
        raise InputError(
            f"{root} has no folder val: make one, or a link to one, that holds a folder of images for each class, such "
            f"as val/{names[0]}; train/{names[0]} may stand beside it."
        )
    return {"test": root}


def _own_parts(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Where the class folders of anybody's folder lie, and the classes: the sorted names of all of them.

    The parts are those of `PARTS` that ``root`` has; or "all", which is ``root`` itself.

    Raises:
        InputError: no such folder, or none inside that could be a class.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder: pass one that holds a folder of images for each class.")
    found = {part: root / name for part, names in PARTS.items() for name in names if (root / name).is_dir()}
    found = found or {"all": root}
    classes = sorted({path.name for folder in found.values() for path in visible_folders(folder)})
    if len(classes) < 2:
        held = f"the folder {classes[0]} alone" if classes else "no folder"
        raise InputError(
            f"{root} holds {held}: sort its images into one folder a class, at least two, directly or under train and "
            "val or test."
        )
    return found, tuple(classes)


def _read_listed(root: Path, listing: Path, known: Classes, max_damaged: int) -> Photographs:
    """The photographs below ``root`` that a text file names, a line each: file name, space, label of the 1,000.

    As DAmageNet is published; suffixes do not count, since the list is that of ImageNet's own files.

    Raises:
        InputError: a line of another kind, no image that the list names, or as `read_folders`.
    """
    try:
        rows = [line.split() for line in listing.read_text().splitlines() if line.strip()]
        labels = {Path(file).stem: int(label) for file, label in rows}
        if not all(0 <= label < 1_000 for label in labels.values()):
            raise ValueError("a label is none of 0 to 999")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{listing} is not a list of file names and labels ({first_line(error)}): take val.txt of ImageNet."
        ) from error
    files = [(Path(path).stem, path) for path in image_files(root)]
    listed = [("test", labels[stem], path) for stem, path in files if stem in labels]
    return sound_images({"test": root}, listed, known, max_damaged)
