"""torchattacks 3.5.1 installs a top-level package ``robustbench`` of its own, which shadows the real one."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

__all__ = ["remove", "stray_robustbench"]


def stray_robustbench() -> Path | None:
    """The folder of the ``robustbench`` that torchattacks brought, or None if there is none or it is the real one."""
    if _installed("robustbench") or not _installed("torchattacks"):
        return None  # the files of the real distribution must stay
    files = metadata.files("torchattacks") or []
    folders = {
        Path(str(file.locate())).parents[len(file.parts) - 2] for file in files if file.parts[0] == "robustbench"
    }
    return next((folder for folder in folders if folder.is_dir()), None)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def remove() -> Path | None:
    """Delete the stray package and return where it was."""
    folder = stray_robustbench()
    if folder is not None:
        shutil.rmtree(folder)
    return folder


if __name__ == "__main__":
    remove()
