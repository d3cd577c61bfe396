"""The 15 corruptions of CIFAR-10-C and ImageNet-C at 5 severities (Hendrycks & Dietterich 2019, section 3).

Square RGB images of any size. Below `LARGE` pixels a side the constants are those of ``make_cifar_c.py``, for 32 px,
and from there on those of ``make_imagenet_c.py``, for 224 px, which are harsher; both in the authors' repository
hendrycks/robustness. No maintained package has both, so `distortions` is written from the definitions. It deviates in
four:

- ``frost`` blends procedural frost in place of crops of five photographs that we do not ship; its statistics are those
  of the crops for 32 px, from which those for 224 px differ by up to a quarter in contrast.
- ``motion_blur`` and ``snow`` used ImageMagick: here its one-sided Gaussian line kernel, with the same integer offsets.
- random draws are others than the published files'.
- ImageNet-C's published files went through JPEG at quality 85 on top. Compare with published mCE on those files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nullpaper.data.datasets import Split
from nullpaper.data.folders import LazyImages
from nullpaper.errors import InputError, check_choice, check_count, check_seed
from nullpaper.robustness import distortions

SEVERITIES = (1, 2, 3, 4, 5)
CHUNK = 100  # small images at a time: stays in cache, and bounds the memory
LARGE = 128  # pixels a side: from here on as in ImageNet-C


class Corruption(NamedTuple):
    """A family, a function of (images, generator, *constants), its constants at severities 1 to 5 for small images, and
    those for large ones if they are others."""

    family: str
    function: Callable[..., np.ndarray]
    constants: tuple[tuple[float, ...], ...]
    large: tuple[tuple[float, ...], ...] = ()

    def at(self, severity: int, side: int) -> tuple[float, ...]:
        """The constants at a severity, for images of ``side`` pixels."""
        return ((self.large if side >= LARGE else ()) or self.constants)[severity - 1]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        "noise",
        distortions.gaussian_noise,
        ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    ),
    "shot_noise": Corruption(
        "noise",
        distortions.shot_noise,
        ((500,), (250,), (100,), (75,), (50,)),
        ((60,), (25,), (12,), (5,), (3,)),
    ),
    "impulse_noise": Corruption(
        "noise",
        distortions.impulse_noise,
        ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    ),
    "defocus_blur": Corruption(
        "blur",
        distortions.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Corruption(
        "blur",
        distortions.glass_blur,
        ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),
        ((0.7, 2, 1), (0.9, 1, 2), (1, 3, 2), (1.1, 2, 3), (1.5, 2, 4)),
    ),
    "motion_blur": Corruption(
        "blur",
        distortions.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Corruption(
        "blur",
        distortions.zoom_blur,
        ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,)),
        ((1.11,), (1.16,), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": Corruption(
        "weather",
        distortions.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(
        "weather",
        distortions.frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Corruption(
        "weather",
        distortions.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        "weather",
        distortions.brightness,
        ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    ),
    "contrast": Corruption(
        "digital",
        distortions.contrast,
        ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    ),
    "elastic_transform": Corruption(  # in pixels; the definitions give shares of 32, and of 244, which is not 224
        "digital",
        distortions.elastic_transform,
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        ((488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)),
    ),
    "pixelate": Corruption(
        "digital",
        distortions.pixelate,
        ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    ),
    "jpeg_compression": Corruption(
        "digital",
        distortions.jpeg_compression,
        ((80,), (65,), (58,), (50,), (40,)),
        ((25,), (18,), (15,), (10,), (7,)),
    ),
}


def corrupt(
    images: np.ndarray, name: str, severity: int, seed: int = 0, places: Sequence[int] | None = None
) -> np.ndarray:
    """Images (n, side, side, 3) uint8 under one of `CORRUPTIONS`, of the same shape; truncated to 8 bits, as published.

    Small images in order share one generator of the seed, the corruption and the severity, so what an image gets
    depends on those that come before it. Large ones have one each, by their place too, so that parts of a set agree
    with the whole.

    Args:
        places: (n,) of the images in their set, which gives small ones a generator each as well; None: in order.

    Raises:
        InputError: unknown name or severity, a negative seed, or images of another shape or type.
    """
    check_corruptions([name], [severity])
    seed = check_seed(seed)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise InputError(
            f"corruptions are defined for square uint8 images (n, side, side, 3), not {images.dtype} {images.shape}: "
            "crop them, and corrupt before anything makes floats of them."
        )
    side, draw = images.shape[1], [seed, list(CORRUPTIONS).index(name), severity]
    chosen = CORRUPTIONS[name]
    each = side >= LARGE or places is not None
    rng = np.random.default_rng(draw)
    corrupted = np.empty_like(images)
    for start in range(0, len(images), 1 if each else CHUNK):
        chunk = slice(start, start + 1 if each else start + CHUNK)
        if each:
            rng = np.random.default_rng([*draw, start if places is None else int(places[start])])
        made = chosen.function(images[chunk] / 255, rng, *chosen.at(severity, side))
        corrupted[chunk] = made.clip(0, 1) * 255 + distortions.ROUNDING
    return corrupted


@dataclass(frozen=True)
class CorruptedImages(LazyImages):
    """Photographs that are corrupted as they are read, at the size that they are read at; `corrupt` says how."""

    corruption: str = "gaussian_noise"
    severity: int = 1
    seed: int = 0
    places: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> CorruptedImages:
        return replace(self, paths=self.paths[indices], places=self.places[indices])

    def _read(self, place: int) -> np.ndarray:
        image = super()._read(place)[None]
        return corrupt(image, self.corruption, self.severity, self.seed, [self.places[place]])[0]


def corrupted(split: Split, name: str, severity: int, seed: int = 0) -> Split:
    """The split under one of `CORRUPTIONS`; lazy images stay lazy, so that none is kept in memory.

    Raises:
        InputError: as `corrupt`.
    """
    check_corruptions([name], [severity])
    images = split.images
    if not isinstance(images, LazyImages):
        return replace(split, images=corrupt(images, name, severity, seed))
    drawn = name, severity, check_seed(seed), np.arange(len(split))
    return replace(split, images=CorruptedImages(images.paths, images.transform, *drawn))


def check_corruptions(names: Iterable[str], severities: Iterable[int]) -> None:
    """Refuse names that `CORRUPTIONS` lacks, and severities that are not 1, 2, 3, 4 or 5.

    Raises:
        InputError: there is one.
    """
    for name in names:
        check_choice("corruption", name, CORRUPTIONS)
    for severity in severities:
        check_count("severity", severity, SEVERITIES[0], SEVERITIES[-1])
