"""Where a number or a figure comes from: the run, the commit, the versions, the device."""

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

from nullpaper import __version__
from nullpaper.errors import InputError
from nullpaper.workflow.code_identity import dumps, loads

__all__ = [
    "RunContext",
    "commit_of",
    "device_name",
    "output_root",
    "project_root",
    "provenance",
    "run_context",
    "versions",
]

RUN_VARIABLE, ROOT_VARIABLE = "NULLPAPER_RUN", "NULLPAPER_ROOT"
PACKAGES = ("torch", "timm", "torchattacks", "numpy")
GENERATED = ("figures", "results", "build")


@dataclass(frozen=True)
class RunContext:
    """What a notebook's kernel knows of its run; the runner hands it over in the environment.

    ``label`` names the folders of its figures and tables: the profile, unless the run was given a name of its own.
    ``recompute_before`` is a Unix time: stored results begun earlier are computed anew (``--force``). ``data`` names
    the data sets and weights with their digests, ``code`` the modules. ``out`` is the folder that takes figures/ and
    results/; None: the project.
    """

    run: str = "interactive"
    notebook: str | None = None
    profile: str = "interactive"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool = False
    recompute_before: float | None = None
    label: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    out: str | None = None
    code: Mapping[str, str] = field(default_factory=dict)

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


def output_root() -> Path:
    """The folder that takes the figures/ and results/ of this run: the project, or the folder of a sweep's job."""
    out = run_context().out
    return project_root() if out is None else Path(out)


def commit_of(root: Path) -> tuple[str | None, bool]:
    """The commit checked out at ``root`` (none outside git) and whether a source file differs from it.

    Files that runs generate do not count: every run would make the next one dirty.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    changed = git("status", "--porcelain", "--", ".", *(f":(exclude){folder}" for folder in GENERATED))
    return commit, bool(changed)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; those not installed are left out."""
    found = {"python": platform.python_version(), "nullpaper": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def provenance() -> dict[str, Any]:
    """Run, notebook, profile, parameters, data, commit, versions and device: what a figure is stamped with.

    Holds no time and no path, so that the same inputs on the same machine make the same file.
    """
    context = asdict(run_context())
    del context["recompute_before"], context["out"], context["code"]
    if context["notebook"] is None:  # interactive: no runner has looked
        context["commit"], context["dirty"] = commit_of(project_root())
    return context | {
        "label": context["label"] or context["profile"],
        "versions": versions(),
        "device": device_name(),
    }
