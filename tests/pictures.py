"""Photographs that tests make: small files in the layouts that data sets are published in."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from nullpaper.data.datasets import Data, load_data
from nullpaper.data.fetch import IMAGENETTE_WNIDS

TENCH, SPRINGER, PARACHUTE = IMAGENETTE_WNIDS[0], IMAGENETTE_WNIDS[1], IMAGENETTE_WNIDS[-1]


def photograph(path: Path, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    smooth = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize((80, 60), Image.Resampling.BICUBIC).save(path, **options)
    return path


def three_classes(folder: Path) -> Path:
    """Three of Imagenette's classes with 10 training photographs each and 2 of val."""
    for number, wnid in enumerate((TENCH, SPRINGER, PARACHUTE)):
        for part, count in (("train", 10), ("val", 2)):
            for index in range(count):
                photograph(folder / part / wnid / f"{wnid}_{index}.JPEG", 100 * number + index)
    return folder


def quietly(*given: object, **options: object) -> Data:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_data(*given, **options)
