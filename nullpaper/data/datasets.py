"""Data sets behind one interface: `load_data(name)` gives ``.train``, ``.dev`` and ``.test``.

CIFAR-10 and CIFAR-100 are arrays in memory, checked against their SHA-256 sums on every load. Imagenette is lazy.
Batches are float tensors in pixel units, [0, 1], at the size that the model receives: perturbations live there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nullpaper.data.fetch import ARRAYS, DATASETS, fetch, folder_of, verified

DEV_SHARE = 10  # one training image in ten: CIFAR is split 45,000 / 5,000


@dataclass(frozen=True)
class LazyImages:
    """Image files read on demand: resized so that the shorter side is ``size``, then centre-cropped to a square."""

    paths: Sequence[str]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """uint8 (H, W, C) for an integer, (B, H, W, C) otherwise."""
        chosen = np.asarray(self.paths)[index]
        if isinstance(chosen, str):
            return self._read(chosen)
        return np.stack([self._read(path) for path in chosen])

    def take(self, indices: np.ndarray) -> LazyImages:
        return LazyImages([self.paths[i] for i in indices], self.size)

    def _read(self, path: str) -> np.ndarray:
        with Image.open(path) as image:
            image = image.convert("RGB")
            scale = self.size / min(image.size)
            image = image.resize([max(self.size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
            left, top = ((side - self.size) // 2 for side in image.size)
            return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


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


def augment(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop after reflective padding, and random horizontal flip, for images (B, C, H, W), where they live.

    The draws are made on the CPU from ``generator``, so that every device sees the same batches.
    """
    count, _, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flips = torch.rand(count, 1, generator=generator) < 0.5
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.where(flips, torch.arange(width).flip(0), torch.arange(width))
    padded = torch.nn.functional.pad(images, [padding] * 4, mode="reflect")
    batch = torch.arange(count)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[
        batch.to(images.device), rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
    ]
    return picked.permute(0, 3, 1, 2).contiguous()


def augmented(images: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """`augment` on uint8 images (B, C, H, W), then resized bicubically: float (B, C, *size) in [0, 1], not rounded."""
    pixels = augment(images.float().div_(255), generator)
    return interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp_(0, 1)


def split_indices(labels: np.ndarray, dev_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a stratified (train, dev) split: every class gives dev the same share, up to one image."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    spread = np.linspace(0, len(labels), dev_size, endpoint=False)  # an even comb over the classes, one after another
    dev = np.sort(by_class[np.floor(spread).astype(int)])
    return np.setdiff1d(np.arange(len(labels)), dev), dev


def load_data(name: str, *, image_size: int = 224, progress: bool = True) -> Data:
    """Load a data set, fetching it first if it is not in the cache.

    Args:
        name: ``cifar10``, ``cifar100`` or ``imagenette``.
        image_size: side of the images that a lazy data set (Imagenette) yields.
        progress: show a bar while fetching.

    Raises:
        InputError: unknown name, no source can be reached, or the cached files are truncated or altered.
    """
    fetch(name, progress=progress)
    if name in ARRAYS:
        arrays = verified(name)
        pool = Split(arrays["train_images"], arrays["train_labels"])
        test = Split(arrays["test_images"], arrays["test_labels"])
    else:
        pool, test = _imagenette(folder_of(name), image_size)
    dev_size = len(pool) // DEV_SHARE
    train, dev = split_indices(pool.labels, dev_size)
    identity = {"data": name, "digest": DATASETS[name].digest, "split": f"stratified, seed 0, dev {dev_size}"}
    return Data(name, pool.take(train), pool.take(dev), test, DATASETS[name].classes, identity)


def _imagenette(folder: Path, image_size: int) -> tuple[Split, Split]:
    """torchvision's Imagenette as two lazy splits, in the order of its sorted file names."""
    from torchvision.datasets import Imagenette

    splits = []
    for part in ("train", "val"):
        samples = sorted(Imagenette(folder, split=part, size="320px")._samples)
        images = LazyImages([path for path, _ in samples], image_size)
        splits.append(Split(images, np.array([label for _, label in samples], dtype=np.int64)))
    return splits[0], splits[1]
