"""Data sets behind one interface: `load_data(name)` gives ``.train``, ``.dev`` and ``.test``.

CIFAR-10 and CIFAR-100 are arrays in memory, checked against their SHA-256 sums on every load. Imagenette is lazy.
Batches are float tensors in pixel units, [0, 1], at the size that the model receives: perturbations live there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.datasets import Imagenette
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from nullpaper.data.fetch import DATASETS, fetch, load_arrays

DEV_SHARE = 10  # one training image in ten: CIFAR is split 45,000 / 5,000
PADDING = 4  # pixels, of the random crops


@dataclass(frozen=True)
class LazyImages:
    """Image files read on demand: resized so that the shorter side is ``size``, then centre-cropped to a square."""

    paths: np.ndarray
    size: int = 224

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """uint8 (H, W, C) for an integer, (B, H, W, C) otherwise."""
        paths = self.paths[index]
        return self._read(paths) if isinstance(paths, str) else np.stack([self._read(path) for path in paths])

    def take(self, indices: np.ndarray) -> LazyImages:
        return LazyImages(self.paths[indices], self.size)

    def _read(self, path: str) -> np.ndarray:
        with Image.open(path) as image:
            image = resize(image.convert("RGB"), self.size, InterpolationMode.BICUBIC)
        return np.asarray(center_crop(image, self.size))


@dataclass(frozen=True)
class Split:
    """Images (n, H, W, C) uint8, in memory or lazy, and labels (n,) int64."""

    images: np.ndarray | LazyImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int | None, seed: int = 0) -> Split:
        """A random subset of ``count`` images, the same for the same seed, in the order of the split."""
        if count is None or count >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def take(self, indices: np.ndarray) -> Split:
        """The images at ``indices``, in that order; lazy images stay lazy."""
        lazy = isinstance(self.images, LazyImages)
        return Split(self.images.take(indices) if lazy else self.images[indices], self.labels[indices])

    def batches(
        self,
        size: int,
        *,
        image_size: int | tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> Batches:
        """Re-iterable ``(images, labels)``: images (B, C, H, W) float32 in [0, 1] at ``image_size``, on ``device``.

        Shuffled anew on every pass if a ``generator`` is given, otherwise in order.
        """
        return Batches(self, size, image_size, torch.device(device), generator)


@dataclass(frozen=True)
class Batches:
    """What `Split.batches` returns; ``len`` is the number of batches."""

    split: Split
    size: int
    image_size: int | tuple[int, int] | None
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
    """A data set: three splits and the names of its classes. ``identity`` names exactly these bytes and this split."""

    name: str
    train: Split
    dev: Split
    test: Split
    classes: tuple[str, ...]
    identity: dict[str, str] = field(default_factory=dict)


def to_pixels(
    images: np.ndarray, size: int | tuple[int, int] | None = None, device: str | torch.device = "cpu"
) -> Tensor:
    """Images as a model receives them: uint8 (B, H, W, C) to float32 (B, C, size, size) in [0, 1].

    Resized bicubically and rounded to multiples of 1/255, so that every image is one that an 8-bit file can hold and
    rounding acts on a perturbation alone.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
    height_width = (size, size) if isinstance(size, int) else size
    if height_width is not None and tuple(pixels.shape[-2:]) != tuple(height_width):
        pixels = interpolate(pixels, size=tuple(height_width), mode="bicubic", antialias=True)
    return pixels.round_().clamp_(0, 255).div_(255)


def augmented(images: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random crop after reflective padding, and random horizontal flip, of uint8 images (B, C, H, W), where they live.

    The result is resized bicubically: float (B, C, *size) in [0, 1], not rounded. The draws are made on the CPU from
    ``generator``, so that every device sees the same batches.
    """
    count, _, height, width = images.shape
    shifts = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    flips = torch.rand(count, 1, generator=generator) < 0.5
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.where(flips, torch.arange(width).flip(0), torch.arange(width))
    places = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    image, row, column = (place.to(images.device) for place in places)
    padded = pad(images.float().div_(255), [PADDING] * 4, mode="reflect")
    cropped = padded[image, :, row, column].permute(0, 3, 1, 2).contiguous()
    return interpolate(cropped, size=size, mode="bicubic", antialias=True).clamp_(0, 1)


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a stratified (train, dev) split: every class gives dev one tenth of its images, up to one."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    spread = np.linspace(0, len(labels), len(labels) // DEV_SHARE, endpoint=False)  # an even comb over the classes
    dev = np.sort(by_class[np.floor(spread).astype(int)])
    return np.setdiff1d(np.arange(len(labels)), dev), dev


def load_data(name: str) -> Data:
    """Load a data set, ``cifar10``, ``cifar100`` or ``imagenette``, fetching it first if it is not in the cache.

    Raises:
        InputError: unknown name, no source can be reached, or the cached files are truncated or altered.
    """
    folder = fetch(name)
    if name == "imagenette":
        pool, test = (_imagenette(folder, part) for part in ("train", "val"))
    else:
        arrays = load_arrays(name)
        pool = Split(arrays["train_images"], arrays["train_labels"])
        test = Split(arrays["test_images"], arrays["test_labels"])
    train, dev = split_indices(pool.labels)
    identity = {"data": name, "digest": DATASETS[name].digest, "split": f"stratified, seed 0, dev {len(dev)}"}
    return Data(name, pool.take(train), pool.take(dev), test, DATASETS[name].classes, identity)


def _imagenette(folder: Path, part: str) -> Split:
    """A split of torchvision's Imagenette, lazy, in the order of its sorted file names."""
    paths, labels = zip(*sorted(Imagenette(folder, split=part, size="320px")._samples), strict=True)
    return Split(LazyImages(np.array(paths)), np.array(labels, dtype=np.int64))
