"""A source that takes its time, for processes of their own; apart, so that they need not import torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from nullpaper.data import fetch as fetching


def slow_source(name: str, staging: Path, progress: bool) -> None:
    arrays = np.zeros(3, dtype=np.uint8)
    (staging / "half-written").write_bytes(b"x" * 1_000)
    time.sleep(1.0)
    with (fetching.cache_home() / "count").open("a") as file:
        file.write("x")
    (staging / "done").mkdir()
    np.save(staging / "done" / "train_images.npy", arrays)


def fetch_slowly(home: str) -> None:
    os.environ["NULLPAPER_HOME"] = home
    fetching.SOURCES["cifar10"] = (slow_source,)
    fetching.fetch("cifar10", progress=False)
