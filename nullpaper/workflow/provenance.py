"""Where a number or a figure comes from: the run, its parameters, data and weights, the device, the versions."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.workflow.canonical import dumps, loads

RUN_VARIABLE, ROOT_VARIABLE = "NULLPAPER_RUN", "NULLPAPER_ROOT"
PACKAGES = ("nullpaper", "torch", "timm", "torchattacks", "numpy")
GENERATED = ("figures", "results", "build")


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
        return {RUN_VARIABLE: dumps(asdict(self), canonical=True)}


def run_context() -> RunContext:
    """The context that the runner gave to this process; without one, that of an interactive session.

    Raises:
        InputError: NULLPAPER_RUN was set by hand to something else.
    """
    text = os.environ.get(RUN_VARIABLE)
    if text is None:
        return RunContext()
    try:
        return RunContext(**loads(text))
    except (TypeError, ValueError) as error:
        raise InputError(f"{RUN_VARIABLE} is not a run context ({error}): unset it; the runner sets it") from error


def project_root() -> Path:
    """NULLPAPER_ROOT, else the nearest folder at or above the working directory with pyproject.toml or notebooks/.

    Raises:
        InputError: NULLPAPER_ROOT is no folder.
    """
    if given := os.environ.get(ROOT_VARIABLE):
        if not Path(given).is_dir():
            raise InputError(f"{ROOT_VARIABLE} names {given}, which is not a folder: create it or unset the variable")
        return Path(given).resolve()
    here = Path.cwd()
    for path in (here, *here.parents):
        if (path / "pyproject.toml").is_file() or (path / "notebooks").is_dir():
            return path
    return here


def output_folder() -> Path:
    """The folder that takes what this process draws: that of its run, else ``build/interactive`` of the project."""
    out = run_context().out
    return project_root() / "build" / "interactive" if out is None else Path(out)


def commit_of(root: Path) -> str | None:
    """The commit checked out at ``root``, followed by " with changes" if a source file differs; None outside git.

    Files that runs generate do not count: every run would make the next one differ.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    changed = git("status", "--porcelain", "--", ".", *(f":(exclude){folder}" for folder in GENERATED))
    return f"{commit} with changes" if commit and changed else commit


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; those not installed are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def device_name() -> str:
    """The GPU that torch would use, else the processor and its thread count. Does not load torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads() if torch is not None else os.cpu_count()
    return f"{_processor()}, {threads} thread{'s' * (threads != 1)}"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def stamp() -> dict[str, Any]:
    """What a figure carries inside itself: notebook, parameters, data, weights and device.

    Neither time, path nor commit: what is drawn alike from the same inputs on the same machine is the same file.
    """
    context = asdict(run_context())
    return {name: context[name] for name in ("notebook", "parameters", "data", "weights")} | {"device": device_name()}
