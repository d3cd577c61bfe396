"""The one word that decides the size of everything: a profile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nullpaper.errors import InputError, nearest

__all__ = ["GPU_PROFILES", "PROFILES", "check_profile", "cores", "default_profile", "has_gpu"]

PROFILES = ("smoke", "cpu", "gpu", "imagenet")
GPU_PROFILES = ("gpu", "imagenet")
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")


def check_profile(name: str, source: str = "profile") -> str:
    """``name`` itself.

    Raises:
        InputError: there is no such profile.
    """
    if name not in PROFILES:
        raise InputError(f"{source} '{name}' is unknown.{nearest(name, PROFILES)} Choose from {', '.join(PROFILES)}")
    return name


def default_profile() -> str:
    """The profile of NULLPAPER_PROFILE or PROFILE if one is set, else ``gpu`` on a machine with a GPU, else ``cpu``.

    Raises:
        InputError: the environment variable names no profile.
    """
    for variable in ("NULLPAPER_PROFILE", "PROFILE"):
        if name := os.environ.get(variable):
            return check_profile(name, f"{variable}:")
    return "gpu" if has_gpu() else "cpu"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether torch sees a GPU; torch, which takes seconds to load, is asked only where a driver is present."""
    if sys.platform == "darwin" or (
        sys.platform == "linux" and "torch" not in sys.modules and not any(Path(path).exists() for path in DRIVERS)
    ):
        return False
    import torch

    return torch.cuda.is_available()
