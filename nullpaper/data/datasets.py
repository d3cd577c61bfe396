"""Data sets behind one interface: `load_data(name)` gives ``.train``, ``.dev`` and ``.test``.

CIFAR-10 and CIFAR-100 are arrays in memory, checked against their SHA-256 sums on every load. Photographs are lazy.
Batches are float tensors in pixel units, [0, 1], at the size that the model receives: perturbations live there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nullpaper.data.fetch import DATASETS, fetch, load_arrays
from nullpaper.data.folders import LazyImages, Photographs, Transform
from nullpaper.data.photographs import IMAGES, read_own, read_published
from nullpaper.data.pixels import augmented as augmented  # "as": to be had from here too
from nullpaper.data.pixels import check_array, height_width, to_pixels
from nullpaper.errors import InputError, check_choice, check_count, check_path, check_seed, first_line, shown

DEV_SHARE = 10  # one training image in ten: CIFAR is split 45,000 / 5,000
RESIDENT = 4 << 30  # bytes: so large an array of images is sent to the device as a whole


@dataclass(frozen=True)
class Split:
    """Images (n, H, W, C), in memory or lazy, and labels (n,), an array or a list, kept as int64.

    ``classes`` is how many the data set has, if that is known: a model that is judged must have as many.

    Raises:
        InputError: images as in `check_array`, labels that are no whole numbers, another number of them than of images.
    """

    images: np.ndarray | LazyImages
    labels: np.ndarray
    classes: int | None = None

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
        images = self.images.take(places) if lazy else self.images[places]
        return Split(images, self.labels[places], self.classes)

    def batches(
        self,
        size: int,
        *,
        image_size: int | tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> Batches:
        """Re-iterable ``(images, labels)``: images (B, C, H, W) float32 in [0, 1] at ``image_size``, on ``device``.

        Shuffled anew on every pass if a ``generator`` is given, otherwise in order. Lazy images are read at that size,
        or else at that of the model whose transform they were loaded with.

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
        places = [order[start : start + self.size] for start in range(0, count, self.size)]
        images = self.split.images
        read = images.read_ahead(places) if isinstance(images, LazyImages) else (images[chosen] for chosen in places)
        for chosen, batch in zip(places, read, strict=True):
            labels = torch.from_numpy(self.split.labels[chosen]).to(self.device)
            yield to_pixels(batch, self.image_size, self.device), labels


@dataclass(frozen=True)
class Data:
    """A data set: three splits and the names of its classes. ``identity`` names exactly these bytes and this split.

    Attributes:
        damaged: files that were left out.
        imagenet: where its classes are among ImageNet's 1,000, for `ViT.restricted`; None if they are others.
    """

    name: str
    train: Split
    dev: Split
    test: Split
    classes: tuple[str, ...]
    identity: dict[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    imagenet: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """Name, classes in their order, images a split and a class, transform."""
        names = self.classes if len(self.classes) <= 10 else (*self.classes[:3], "...", self.classes[-1])
        lines = [f"{self.name}: {len(self.classes):,} classes, {', '.join(names)}"]
        for part in ("train", "dev", "test"):
            counts = np.unique(getattr(self, part).labels, return_counts=True)[1]
            spread = f", {counts.min():,} to {counts.max():,} each" if len(counts) else ""
            lines.append(f"  {part}: {counts.sum():,} images of {len(counts):,} classes{spread}")
        return "\n".join([*lines, *(f"  {key}: {value}" for key, value in self.identity.items() if key != "data")])


def reader(
    split: Split, device: torch.device, image_size: tuple[int, int] | None = None
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function of indices (B,), on the CPU: images (B, C, H, W) as they are stored and labels (B,), on ``device``.

    Images in memory are sent there once, and as uint8; more than `RESIDENT` bytes go batch by batch, and so do lazy
    ones, which are read at ``image_size``, or at their own.
    """
    if isinstance(split.images, LazyImages) and image_size is not None:
        split = Split(split.images.sized(image_size), split.labels)
    lazy = isinstance(split.images, LazyImages) or split.images.nbytes > RESIDENT
    labels = torch.from_numpy(split.labels).to(device)
    images = None if lazy else torch.from_numpy(np.require(split.images, requirements=["C", "W"])).to(device)

    def read(indices: Tensor) -> tuple[Tensor, Tensor]:
        places = indices.to(device)
        if images is None:
            return torch.from_numpy(split.images[indices.numpy()]).to(device).permute(0, 3, 1, 2), labels[places]
        return images[places].permute(0, 3, 1, 2), labels[places]

    return read


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a stratified (train, dev) split: every class gives dev one tenth of its images, up to one."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    spread = np.linspace(0, len(labels), len(labels) // DEV_SHARE, endpoint=False)  # an even comb over the classes
    dev = np.sort(by_class[np.floor(spread).astype(int)])
    return np.setdiff1d(np.arange(len(labels)), dev), dev


def load_data(
    name: str | Path,
    root: str | Path | None = None,
    *,
    transform: Transform | None = None,
    max_damaged: int = 10,
) -> Data:
    """Load a data set; ``print`` of the result says what was found.

    CIFAR and Imagenette are fetched first if they are not in the cache. The labels of ImageNet and its kin are indices
    of the set's own classes by the names of the folders, whatever subset of them is there.

    Args:
        name: ``cifar10``, ``cifar100``, a name in `nullpaper.data.photographs.IMAGES`, or a path: any folder of class
            folders, directly or under ``train``, ``val`` and ``test``.
        root: the user's own folder of a named set: ``train/WNID/*`` and ``val/WNID/*``, or ``val`` alone, or the class
            folders themselves; train and dev are empty without ``train``. Of ImageNet-C the folder of one condition
            (`nullpaper.data.photographs.imagenet_c` lists them); of DAmageNet also a flat one with its val.txt.
        transform: how photographs are resized and cropped, ``load_vit(...).transform``; None: as for most ViTs of timm,
            to 224 px. Nothing is cut off the sets that are crops already. CIFAR is resized bicubically when it is used.
        max_damaged: image files that may be unreadable; they are named in a warning and left out.

    Warns:
        UserWarning: files, folders or classes that are left out, or fewer images than the set has as published.

    Raises:
        InputError: unknown name, no source can be reached, the cached files are truncated or altered, or a layout that
            is not understood.
    """
    check_count("max_damaged", max_damaged, least=0)
    transform = Transform() if transform is None else transform
    if not isinstance(transform, Transform):
        raise InputError(f"transform={shown(transform)} is none: pass load_vit(...).transform.")
    if name in IMAGES:
        photographs = read_published(name, root, max_damaged)
    elif name not in DATASETS and (isinstance(name, Path) or "/" in str(name) or os.path.isdir(str(name))):
        if root is not None:
            raise InputError(f"{name} is a folder itself, and takes no root: leave it out.")
        photographs = read_own(check_path("name", name).absolute(), max_damaged)
    else:
        return _cifar(name, root)
    return _lazy(photographs, transform)


def _cifar(name: str, root: str | Path | None) -> Data:
    check_choice("data set", name, dict.fromkeys((*DATASETS, *IMAGES)), " Or pass a folder of class folders.")
    if root is not None:
        raise InputError(f"{name} takes no root: set NULLPAPER_HOME to the folder whose data/{name} it lies in.")
    fetch(name)
    arrays, classes = load_arrays(name), DATASETS[name].classes
    pool = Split(arrays["train_images"], arrays["train_labels"], len(classes))
    train, dev = split_indices(pool.labels)
    test = Split(arrays["test_images"], arrays["test_labels"], len(classes))
    identity = {"data": name, "digest": DATASETS[name].digest, "split": f"stratified, seed 0, dev {len(dev)}"}
    return Data(name, pool.take(train), pool.take(dev), test, classes, identity)


def _lazy(photographs: Photographs, transform: Transform) -> Data:
    """Photographs as splits: without parts one image in ten is for test; without dev, one in ten of train is for it."""
    known, rule = photographs.known, "as the folders"
    transform = replace(transform, crop_pct=1.0) if known.cropped else transform
    splits = {
        part: Split(LazyImages(paths, transform), photographs.labels[part], len(known.classes))
        for part, paths in photographs.paths.items()
    }
    nothing = next(iter(splits.values())).take([])
    if "all" in splits:
        rest, test = split_indices(splits["all"].labels)
        splits = {"train": splits["all"].take(rest), "test": splits["all"].take(test)}
        rule = f"stratified, seed 0, test {len(test)}"
    train, dev, test = (splits.get(part, nothing) for part in ("train", "dev", "test"))
    if "dev" not in splits:
        kept, held = split_indices(train.labels)
        train, dev = train.take(kept), train.take(held)
        rule = f"{rule}, dev {len(dev)}" if "all" in photographs.paths else f"stratified, seed 0, dev {len(dev)}"
    identity = {"data": known.name, "digest": photographs.digest, "split": rule, "transform": str(transform)}
    return Data(known.name, train, dev, test, known.classes, identity, photographs.damaged, known.places)
