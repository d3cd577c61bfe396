"""Folders of photographs, one folder a class: where the parts lie, what is sound, and how it is read.

A label is the place of the folder's name in the data set's own table, never its place among the folders at hand.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from nullpaper.errors import InputError, check_choice, check_number, first_line, warn

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")  # torchvision's, and GIF
WHOLE = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}  # how a JPEG and a PNG begin and end
READERS, QUEUE = 16, 1_000  # files that are looked at together, and that wait for it
WORKERS = min(4, os.cpu_count() or 1)  # threads that decode photographs
AHEAD = 1  # batches that they are ahead of who asks
SHOWN = 3  # names in a sentence
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "box")
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Transform:
    """How a checkpoint wants a photograph, in timm's words: resized so that a crop of ``size``, (height, width), is the
    share ``crop_pct`` of it, and cropped. These are the values of most ViTs of timm; `ViT.transform` has a model's own.

    Raises:
        InputError: values that timm does not know.
    """

    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        check_number("crop_pct", self.crop_pct, 0, 1, "(]", ": it is the share of a resized photograph that is kept")
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("crop_mode", self.crop_mode, CROP_MODES)

    def __str__(self) -> str:
        return f"{self.interpolation} resize, {self.crop_mode} crop of {self.crop_pct:g}"


@dataclass(frozen=True)
class LazyImages:
    """Image files that are read on demand by timm's transform for evaluation."""

    paths: np.ndarray
    transform: Transform = Transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) for an integer, (B, H, W, 3) otherwise, by several threads.

        Raises:
            InputError: a file cannot be read.
        """
        places = np.arange(len(self))[index]
        return next(self.read_ahead([places])) if places.ndim else self._read(places)

    def read_ahead(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The images at each batch of indices (B,), uint8 (B, H, W, 3), while threads read the next `AHEAD` batches.

        Decoders and resizing leave Python's lock, so that threads do what processes would, without their start, and
        nothing is left behind when the iterator is dropped or interrupted.
        """
        readers, waiting = ThreadPoolExecutor(WORKERS), deque()
        try:
            for places in chain(batches, [None] * AHEAD):
                waiting.append(None if places is None else [readers.submit(self._read, place) for place in places])
                if len(waiting) > AHEAD and (ready := waiting.popleft()) is not None:
                    yield np.stack([one.result() for one in ready]) if ready else self._none()
        finally:
            readers.shutdown(cancel_futures=True)

    def _none(self) -> np.ndarray:
        return np.zeros((0, *self.transform.size, 3), np.uint8)

    def take(self, indices: np.ndarray) -> LazyImages:
        return replace(self, paths=self.paths[indices])

    def sized(self, size: tuple[int, int]) -> LazyImages:
        """The same files, read at another (height, width)."""
        return replace(self, transform=replace(self.transform, size=size))

    def _read(self, place: int) -> np.ndarray:
        path = self.paths[place]
        try:
            image = decode(path)
        except Exception as error:  # Pillow's decoders raise all kinds
            raise InputError(
                f"{path} is damaged ({_reason(error)}): mend or delete it and load the data again."
            ) from error
        return _reader(self.transform)(image).permute(1, 2, 0).numpy()


@lru_cache(maxsize=8)
def _reader(transform: Transform) -> Callable[[Image.Image], Tensor]:
    options = asdict(transform)
    return create_transform((3, *options.pop("size")), normalize=False, **options)


def decode(path: str) -> Image.Image:
    """An image file in RGB, 8 bits a channel, as timm and torchvision read it, whose published accuracies this serves.

    As there: transparency is dropped, CMYK is converted without a profile, an EXIF rotation is not applied, of an
    animation the first picture counts. Unlike there, 16 bits of grey are divided by 257 rather than cut off at 255.

    Raises:
        ValueError: pixels of 32 bits, whose range no file says; Pillow's decoders raise errors of all kinds.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits and no known range")
        image.info.pop("transparency", None)  # Pillow would warn that it is dropped
        return image.convert("RGB")


@dataclass(frozen=True)
class Classes:
    """The classes of a set of photographs, in the order of its labels.

    Attributes:
        folders: the name of the folder of each.
        places: of each among ImageNet's 1,000; None where they are others.
        images: how many the test part has as published; 0: any number.
        cropped: the images are finished 224 px crops, of which nothing is to be cut off.
        complete: every class is expected; otherwise those that any part has.
    """

    name: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    places: tuple[int, ...] | None = None
    images: int = 0
    cropped: bool = False
    complete: bool = False


@dataclass(frozen=True)
class Photographs:
    """What `read_folders` found: image files (n,) and labels (n,) of each part, and the files that it left out.

    ``digest`` stands for the names, sizes and last bytes of exactly these files.
    """

    known: Classes
    paths: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    damaged: tuple[str, ...]
    digest: str


def read_folders(parts: Mapping[str, Path], known: Classes, max_damaged: int) -> Photographs:
    """The photographs of each part, by class and then by path.

    Hidden files and folders (``.ipynb_checkpoints``, ``._a.JPEG``) and other kinds of files are no images. Every image
    is looked at: one that is empty or truncated is named, counted and left out. Folders that are no class of the table
    are named and left out, and so are classes without an image. About 0.1 ms a file on a local disk.

    Args:
        parts: the folder that holds the class folders of each.
        max_damaged: of all parts together.

    Raises:
        InputError: no image of a class, or more damaged files than ``max_damaged``.
    """
    places = {name: place for place, name in enumerate(known.folders)}
    listed = [
        (part, places[folder.name], path)
        for part, held in parts.items()
        for folder in _class_folders(held, places)
        for path in image_files(folder)
    ]
    return sound_images(parts, listed, known, max_damaged)


def sound_images(
    parts: Mapping[str, Path], listed: Sequence[tuple[str, int, str]], known: Classes, max_damaged: int
) -> Photographs:
    """Of (part, label, path) those whose file is sound; the rest as `read_folders` says."""
    sound: dict[str, list[tuple[str, int]]] = {part: [] for part in parts}
    damaged, digest = {}, hashlib.sha256()
    for (part, label, path), (trouble, mark) in zip(listed, _looks([path for *_, path in listed]), strict=True):
        if trouble is None:
            sound[part].append((path, label))
            digest.update(os.fsencode(part + path.removeprefix(str(parts[part]))) + mark)
        else:
            damaged[path] = trouble
    _name_damage(damaged, max_damaged)
    held = {label for pairs in sound.values() for _, label in pairs}
    expected = set(range(len(known.folders))) if known.complete else held
    for part, folder in parts.items():
        _name_gaps(folder, expected - {label for _, label in sound[part]}, expected, known.folders)
    return Photographs(
        known,
        {part: np.array([path for path, _ in pairs], dtype=object) for part, pairs in sound.items()},
        {part: np.array([label for _, label in pairs], dtype=np.int64) for part, pairs in sound.items()},
        tuple(damaged),
        digest.hexdigest()[:16],
    )


def _name_damage(damaged: dict[str, str], limit: int) -> None:
    named = _shown(f"{path} ({trouble})" for path, trouble in damaged.items())
    if len(damaged) > limit:
        raise InputError(f"{len(damaged)} image files are damaged: {named}. Mend or delete them, or raise max_damaged.")
    if damaged:
        warn(f"{len(damaged)} damaged image files are left out: {named}.")


def _name_gaps(part: Path, missing: set[int], expected: set[int], wnids: Sequence[str]) -> None:
    if missing == expected:
        raise InputError(f"{part} holds no sound image in a folder of a class: add some, or move it elsewhere.")
    if missing:
        absent = _shown(wnids[label] for label in sorted(missing))
        warn(f"{part} has no images of {len(missing)} classes: {absent}.")


def image_files(folder: Path) -> list[str]:
    """The image files anywhere below a folder, sorted: by suffix, and not hidden."""
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        files += [os.path.join(parent, name) for name in images]
    return sorted(files)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): make it readable.") from error


def _class_folders(part: Path, places: dict[str, int]) -> list[Path]:
    """The folders of classes in a part, in the order of the classes; other folders are named."""
    folders = visible_folders(part)
    foreign = [path.name for path in folders if path.name not in places]
    if len(foreign) == len(folders):
        held = _shown(path.name for path in sorted(part.iterdir())) or "nothing"
        raise InputError(
            f"{part} has no folder that is named after a class, such as {next(iter(places))}; it holds {held}. Sort "
            "its images into folders of such names."
        )
    if foreign:
        warn(f"{part} has {len(foreign)} folders that are no class: {_shown(foreign)}; left out.")
    return sorted((path for path in folders if path.name in places), key=lambda path: places[path.name])


def visible_folders(part: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))


def _looks(paths: list[str]) -> Iterator[tuple[str | None, bytes]]:
    """What `_look_at` says of each, several at once since the disk of a network is slow to answer."""
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(paths), QUEUE):
            yield from readers.map(_look_at, paths[start : start + QUEUE])


def _look_at(path: str) -> tuple[str | None, bytes]:
    """Why a file is no sound image, or None; and bytes that stand for it. It is decoded only if its ends look wrong."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(2), file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            tail = file.read()
        if size == 0:
            return "empty", b""
        if head not in WHOLE or not tail.endswith(WHOLE[head]):
            decode(path)
    except Exception as error:  # Pillow's decoders raise all kinds
        return _reason(error), b""
    return None, b"%d" % size + tail


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)  # the system's reason without the path


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
