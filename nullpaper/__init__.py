"""The support package of an executable paper on the nullspace of Vision Transformers."""

from __future__ import annotations

from importlib import metadata

__all__ = ["__version__"]

try:
    __version__ = metadata.version("nullpaper")
except metadata.PackageNotFoundError:
    __version__ = "0+unknown"
