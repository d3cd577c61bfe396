"""Where a number or a figure comes from: the run, its parameters, data and weights, the device, the versions."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError

RUN_VARIABLE, ROOT_VARIABLE = "NULLPAPER_RUN", "NULLPAPER_ROOT"
PACKAGES = ("nullpaper", "torch", "timm", "torchattacks", "numpy")
GENERATED = ("figures", "results", "notebooks/rendered", "build")


@dataclass(frozen=True)
class RunContext:
    """What a notebook's kernel knows of its run; the runner hands it over in the environment.

    Attributes:
        notebook: the name without its suffix.
        label: of the folder ``build/<label>/`` that takes what the run makes.
        data, weights: names of the data sets and of the files of weights, with their digests.
        recompute_before: a Unix time: stored results begun earlier are computed anew (``--force``).
        out: the folder that takes figures/, results/ and latex/; None: ``build/interactive``.
    """

    run: str = "interactive"
    notebook: str = "interactive"
    profile: str = "interactive"
    label: str = "interactive"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    recompute_before: float | None = None
    out: str | None = None

    def environment(self) -> dict[str, str]:
        """The environment variable that hands this context to another process."""
        return {RUN_VARIABLE: json.dumps(asdict(self))}


def run_context() -> RunContext:
    """The context that the runner gave to this process; without one, that of an interactive session."""
    return RunContext(**json.loads(os.environ.get(RUN_VARIABLE, "{}")))


def project_root() -> Path:
    """NULLPAPER_ROOT, else the nearest folder that is a project, else the working directory.

    A project has pyproject.toml or notebooks/profiles.yaml, or is the working directory with numbered notebooks in
    notebooks/; a folder merely called notebooks makes none.

    Raises:
        InputError: NULLPAPER_ROOT is no folder.
    """
    if given := os.environ.get(ROOT_VARIABLE):
        if not Path(given).is_dir():
            raise InputError(f"{ROOT_VARIABLE} names {given}, which is not a folder: create it or unset the variable")
        return Path(given).resolve()
    here = Path.cwd()
    if any((here / "notebooks").glob("[0-9]*.py")):
        return here
    marks = ("pyproject.toml", "notebooks/profiles.yaml")
    return next((folder for folder in (here, *here.parents) if any((folder / mark).is_file() for mark in marks)), here)


def commit_of(root: Path) -> str | None:
    """The commit checked out at ``root``, followed by " with changes" if a source file differs; None outside git.

    Files that runs generate do not count: every run would make the next one differ.
    """

    def git(*arguments: str) -> str:
        with contextlib.suppress(FileNotFoundError):  # git is not installed
            return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()
        return ""

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    changed = git("status", "--porcelain", "--", ".", *(f":(exclude){folder}" for folder in GENERATED))
    return (f"{commit} with changes" if changed else commit) or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; those not installed are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def device_name() -> str:
    """The GPU that torch would use, else the processor and its thread count. Does not load torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads() if torch is not None else os.cpu_count()
    linux = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)", linux.read_text(), re.MULTILINE) if linux.exists() else []
    processor = models[0].strip() if models else platform.processor() or platform.machine()
    return f"{processor}, {threads} thread{'s' * (threads != 1)}"
