"""Data sets behind one interface: `load_data(name)` gives ``.train``, ``.dev`` and ``.test``.

CIFAR-10 and CIFAR-100 are arrays in memory, checked against their SHA-256 sums on every load. Photographs are lazy.
Batches are float tensors in pixel units, [0, 1], at the size that the model receives: perturbations live there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nullpaper.data.fetch import DATASETS, Dataset, fetch, load_arrays
from nullpaper.data.folders import LazyImages, read_folder
from nullpaper.errors import InputError, check_choice, check_count, check_path, check_seed, first_line

DEV_SHARE = 10  # one training image in ten: CIFAR is split 45,000 / 5,000
PADDING = 4  # pixels, of the random crops
RESIDENT = 4 << 30  # bytes: so large an array of images is sent to the device as a whole


@dataclass(frozen=True)
class Split:
    """Images (n, H, W, C), in memory or lazy, and labels (n,), an array or a list, kept as int64.

    Raises:
        InputError: images as in `check_array`, labels that are no whole numbers, another number of them than of images.
    """

    images: np.ndarray | LazyImages
    labels: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.images, LazyImages):
            check_array(self.images)
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or len(labels) != len(self.images) or (len(labels) and labels.dtype.kind not in "iu"):
            raise InputError(
                f"labels have shape {labels.shape} and type {labels.dtype}; pass one class index for each of the "
                f"{len(self.images)} images."
            )
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int | None, seed: int = 0) -> Split:
        """A random subset of ``count`` images, or all for None, the same for the same seed, in the order of the split.

        Raises:
            InputError: a count below 1 or above the number of images, or a negative seed.
        """
        if count is None:
            return self
        check_count("count", count)
        check_seed(seed)
        if count > len(self):
            raise InputError(f"count={count} exceeds the {len(self)} images of this split: ask for no more than those.")
        if count == len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def take(self, indices: np.ndarray | Sequence[int] | slice) -> Split:
        """The images at ``indices``, in that order; lazy images stay lazy.

        Raises:
            InputError: an index that the split lacks, or that is no whole number.
        """
        try:
            places = np.atleast_1d(np.arange(len(self))[list(indices) if isinstance(indices, tuple) else indices])
            if places.ndim > 1:
                raise IndexError(f"they have {places.ndim} axes")
        except (IndexError, TypeError) as error:
            raise InputError(f"these are no indices of a split of {len(self)} images: {first_line(error)}.") from error
        lazy = isinstance(self.images, LazyImages)
        return Split(self.images.take(places) if lazy else self.images[places], self.labels[places])

    def batches(
        self,
        size: int,
        *,
        image_size: int | tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> Batches:
        """Re-iterable ``(images, labels)``: images (B, C, H, W) float32 in [0, 1] at ``image_size``, on ``device``.

        Shuffled anew on every pass if a ``generator`` is given, otherwise in order. Lazy images are read at that size.

        Raises:
            InputError: a size below 1, or a split without images.
        """
        check_count("size", size)
        if not len(self):
            raise InputError("this split has no images: take another, or load a folder that has them (train, for dev).")
        pair, split = height_width(image_size), self
        if pair is not None and isinstance(self.images, LazyImages):
            split = Split(self.images.sized(pair), self.labels)
        return Batches(split, size, pair, torch.device(device), generator)


@dataclass(frozen=True)
class Batches:
    """What `Split.batches` returns; ``len`` is the number of batches."""

    split: Split
    size: int
    image_size: tuple[int, int] | None
    device: torch.device
    generator: torch.Generator | None

    def __len__(self) -> int:
        return -(-len(self.split) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.split)
        order = np.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator).numpy()
        for start in range(0, count, self.size):
            chosen = order[start : start + self.size]
            labels = torch.from_numpy(self.split.labels[chosen]).to(self.device)
            yield to_pixels(self.split.images[chosen], self.image_size, self.device), labels


@dataclass(frozen=True)
class Data:
    """A data set: three splits and the names of its classes. ``identity`` names exactly these bytes and this split.

    ``damaged`` are the files that were left out.
    """

    name: str
    train: Split
    dev: Split
    test: Split
    classes: tuple[str, ...]
    identity: dict[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def height_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """A side, or (height, width), in pixels, as (height, width); None stays None.

    Raises:
        InputError: neither of these, or a side below 1.
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    for side in pair:
        check_count("image_size", side)
    return pair


def to_pixels(
    images: np.ndarray, size: int | tuple[int, int] | None = None, device: str | torch.device = "cpu"
) -> Tensor:
    """Images as a model receives them: (B, H, W, C) to float32 (B, C, size, size) in [0, 1].

    Resized bicubically. What comes as uint8 is rounded to multiples of 1/255, so that every image is one that an 8-bit
    file can hold and rounding acts on a perturbation alone; floats in [0, 1] are right as they are.

    Raises:
        InputError: as `check_array`, no images, or a size below 1.
    """
    check_array(images)
    if len(images) == 0:
        raise InputError("there are no images; pass at least one.")
    pair = height_width(size)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    eight_bits, pixels = pixels.dtype == torch.uint8, pixels.float()
    if pair is not None and tuple(pixels.shape[-2:]) != pair:
        pixels = interpolate(pixels, size=pair, mode="bicubic", antialias=True)
    return pixels.round_().clamp_(0, 255).div_(255) if eight_bits else pixels.clamp(0, 1)


def check_array(images: np.ndarray) -> None:
    """Refuse an array that is not images (n, H, W, C) in uint8, or in floats in [0, 1].

    Raises:
        InputError: it is another.
    """
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        shape = tuple(getattr(images, "shape", ()))
        raise InputError(f"images are a {type(images).__name__} {shape}; pass a NumPy array (n, H, W, C).")
    if images.dtype == np.uint8 or images.size == 0:
        return
    if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
        span = f", from {images.min():.4g} to {images.max():.4g}"
        raise InputError(f"images are {images.dtype}{span}; pass uint8, or floats in [0, 1] without NaN.")


def reader(split: Split, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function of indices (B,), on the CPU: images (B, C, H, W) as they are stored and labels (B,), on ``device``.

    Images in memory are sent there once, and as uint8; lazy ones, and more than `RESIDENT` bytes, batch by batch.
    """
    lazy = isinstance(split.images, LazyImages) or split.images.nbytes > RESIDENT
    labels = torch.from_numpy(split.labels).to(device)
    images = None if lazy else torch.from_numpy(np.require(split.images, requirements=["C", "W"])).to(device)

    def read(indices: Tensor) -> tuple[Tensor, Tensor]:
        places = indices.to(device)
        if images is None:
            return torch.from_numpy(split.images[indices.numpy()]).to(device).permute(0, 3, 1, 2), labels[places]
        return images[places].permute(0, 3, 1, 2), labels[places]

    return read


def augmented(images: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random crop after reflective padding, and random horizontal flip, of images (B, C, H, W), where they live.

    They are uint8, or floats in [0, 1]. The result is resized bicubically: float (B, C, *size) in [0, 1], not rounded.
    The draws are made on the CPU from ``generator``, so that every device sees the same batches.
    """
    count, _, height, width = images.shape
    shifts = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    flips = torch.rand(1, count, 1, generator=generator) < 0.5
    down, across, flipped = torch.cat([shifts, flips]).to(images.device)
    image, row, column = (torch.arange(length, device=images.device) for length in (count, height, width))
    rows, columns = down + row, across + torch.where(flipped > 0, width - 1 - column, column)
    pixels = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    padded = pad(pixels, [PADDING] * 4, mode="reflect")
    cropped = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return interpolate(cropped, size=size, mode="bicubic", antialias=True).clamp_(0, 1)


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a stratified (train, dev) split: every class gives dev one tenth of its images, up to one."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    spread = np.linspace(0, len(labels), len(labels) // DEV_SHARE, endpoint=False)  # an even comb over the classes
    dev = np.sort(by_class[np.floor(spread).astype(int)])
    return np.setdiff1d(np.arange(len(labels)), dev), dev


def load_data(name: str, root: str | Path | None = None, *, max_damaged: int = 10) -> Data:
    """Load a data set: ``cifar10``, ``cifar100``, ``imagenette`` or ``imagenet``.

    All but ImageNet are fetched first if they are not in the cache. The labels of ``imagenet`` are indices of the 1,000
    classes by WordNet id, whatever subset of them is there.

    Args:
        name: of the data set.
        root: the user's own folder in ImageNet's layout, for ``imagenette`` and ``imagenet``: ``train/WNID/*`` and
            ``val/WNID/*``, or ``val`` alone, where train and dev are then empty.
        max_damaged: image files that may be unreadable; they are named in a warning and left out.

    Raises:
        InputError: unknown name, no source can be reached, the cached files are truncated or altered, or as
            `nullpaper.data.folders.read_folder`.
    """
    check_choice("data set", name, (*DATASETS, "imagenet"))
    check_count("max_damaged", max_damaged, least=0)
    if name in ("imagenette", "imagenet"):
        folder = fetch(name) / "imagenette2-320" if root is None else check_path("root", root).absolute()
        known = DATASETS[name] if name in DATASETS else imagenet()
        found = read_folder(folder, known.wnids, complete=name in DATASETS, max_damaged=max_damaged)
        pool, test = (Split(LazyImages(found.paths[part]), found.labels[part]) for part in ("train", "val"))
        digest, damaged = found.digest, found.damaged
    else:
        if root is not None:
            raise InputError(f"{name} takes no root: set NULLPAPER_HOME to the folder whose data/{name} it lies in.")
        fetch(name)
        arrays, known, damaged = load_arrays(name), DATASETS[name], ()
        pool = Split(arrays["train_images"], arrays["train_labels"])
        test = Split(arrays["test_images"], arrays["test_labels"])
        digest = known.digest
    train, dev = split_indices(pool.labels)
    identity = {"data": name, "digest": digest, "split": f"stratified, seed 0, dev {len(dev)}"}
    return Data(name, pool.take(train), pool.take(dev), test, known.classes, identity, damaged)


@cache
def imagenet() -> Dataset:
    """The 1,000 classes of ImageNet-1k in the order of every published head, from timm: first names and WordNet ids."""
    info = ImageNetInfo()
    names = tuple(info.label_name_to_description(wnid).split(",")[0] for wnid in info.label_names())
    return Dataset(names, wnids=tuple(info.label_names()))
