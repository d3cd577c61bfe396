"""What this machine has for the paper: versions, device, profile, cache, and what is known to go wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from nullpaper.errors import InputError
from nullpaper.workflow.stray import stray_robustbench

__all__ = ["diagnose"]

OLDEST_REQUESTS = (2, 32)


def diagnose() -> Iterator[tuple[bool, str, str]]:
    """Findings one by one: whether all is well, what was looked at, and what was found, with its remedy."""
    import torch

    from nullpaper.workflow.profiles import default_profile
    from nullpaper.workflow.provenance import device_name, project_root, versions

    yield True, "versions", ", ".join(f"{name} {version}" for name, version in versions().items())
    yield True, "device", device_name()
    if not torch.cuda.is_available() and torch.version.cuda and Path("/dev/nvidiactl").exists():
        yield False, "GPU", "a driver is present but torch sees no GPU: check CUDA_VISIBLE_DEVICES and its version"
    try:
        yield True, "profile", default_profile()
    except InputError as error:
        yield False, "profile", str(error)
    yield True, "project", str(project_root())
    yield from _cache()
    yield from _packages()


def _cache() -> Iterator[tuple[bool, str, str]]:
    from nullpaper.data.fetch import DATASETS, cache_home, folder_of

    home = cache_home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    usable = existing.is_dir() and os.access(existing, os.W_OK)
    yield usable, "cache", f"{home}, {free:.0f} GB free" if usable else f"{home} cannot be written: set NULLPAPER_HOME"
    for name in DATASETS:
        there = folder_of(name).is_dir()
        needed = name == "cifar10" and not there
        yield not needed, name, "in the cache" if there else f"not fetched; `nullpaper data fetch {name}` does that"


def _packages() -> Iterator[tuple[bool, str, str]]:
    stray = stray_robustbench()
    remedy = f"torchattacks' own copy is in {stray} and would shadow the real one: python -m nullpaper.workflow.stray removes it"
    yield stray is None, "robustbench", "not shadowed" if stray is None else remedy
    version = metadata.version("requests")
    recent = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_REQUESTS
    yield recent, "requests", version if recent else f"{version} has known vulnerabilities: install requests>=2.32"
