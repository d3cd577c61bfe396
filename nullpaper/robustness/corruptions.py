"""The 15 corruptions of CIFAR-10-C at 5 severities, for 32 x 32 RGB images (Hendrycks & Dietterich 2019, section 3).

The constants are those of ``make_cifar_c.py`` in the authors' repository hendrycks/robustness, milder than
ImageNet-C's. No maintained package has them, so `distortions` is written from the definitions. It deviates in three:

- ``frost`` blends procedural frost in place of crops of five photographs that we do not ship.
- ``motion_blur`` and ``snow`` used ImageMagick: here its one-sided Gaussian line kernel, with the same integer offsets.
- random draws are others than the published files'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from nullpaper.errors import InputError, check_choice, check_count, check_seed
from nullpaper.robustness import distortions

SEVERITIES = (1, 2, 3, 4, 5)
CHUNK = 100  # images at a time: stays in cache, and bounds the memory


class Corruption(NamedTuple):
    """A family, a function of (images, generator, *constants), and its constants at severities 1 to 5."""

    family: str
    function: Callable[..., np.ndarray]
    constants: tuple[tuple[float, ...], ...]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", distortions.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": Corruption("noise", distortions.shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": Corruption("noise", distortions.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": Corruption(
        "blur", distortions.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "glass_blur": Corruption("blur", distortions.glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": Corruption("blur", distortions.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption("blur", distortions.zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
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
    ),
    "frost": Corruption("weather", distortions.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Corruption("weather", distortions.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption("weather", distortions.brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": Corruption("digital", distortions.contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": Corruption(  # in pixels: the definition gives 0 to 0.2 of the side
        "digital",
        distortions.elastic_transform,
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    ),
    "pixelate": Corruption("digital", distortions.pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": Corruption("digital", distortions.jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
}


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Images (n, 32, 32, 3) uint8 under one of `CORRUPTIONS`, of the same shape; truncated to 8 bits, as published.

    One generator of the seed, the corruption and the severity draws for all images in order, so what an image gets
    depends on those that come before it.

    Raises:
        InputError: unknown name or severity, a negative seed, or images of another size or type.
    """
    check_corruptions([name], [severity])
    seed = check_seed(seed)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise InputError(
            f"corruptions are defined for uint8 images (n, 32, 32, 3), not {images.dtype} {images.shape}: apply them "
            "to CIFAR before resizing, and take ImageNet-C's own files for larger images."
        )
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name), severity])
    function, constants = CORRUPTIONS[name].function, CORRUPTIONS[name].constants[severity - 1]
    corrupted = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        chunk = slice(start, start + CHUNK)
        corrupted[chunk] = function(images[chunk] / 255, rng, *constants).clip(0, 1) * 255 + distortions.ROUNDING
    return corrupted


def check_corruptions(names: Iterable[str], severities: Iterable[int]) -> None:
    """Refuse names that `CORRUPTIONS` lacks, and severities that are not 1, 2, 3, 4 or 5.

    Raises:
        InputError: there is one.
    """
    for name in names:
        check_choice("corruption", name, CORRUPTIONS)
    for severity in severities:
        check_count("severity", severity, SEVERITIES[0], SEVERITIES[-1])
