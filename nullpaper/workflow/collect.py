"""What the jobs of a sweep left on disk: which are finished, what they were given, and the tables that they made.

A sweep's folder holds ``<sweep>.json`` (its runs, each a commit with its jobs) and ``jobs/<notebook>-<key>/``, which
appears whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, nearest
from nullpaper.workflow.code_identity import NONFINITE, loads
from nullpaper.workflow.provenance import project_root

__all__ = ["JobResult", "SweepResults", "collect", "damaged", "default_folder", "listed", "read_files"]

DIGITS = 10  # of a commit
READERS = 8


@dataclass(frozen=True)
class JobResult:
    """A finished job: ``tables`` are the checksums of its CSV tables by name, ``commit`` where it was computed."""

    folder: str
    key: str
    label: str
    parameters: Mapping[str, Any]
    commit: str
    tables: Mapping[str, str]


@dataclass(frozen=True)
class SweepResults:
    """One run of a sweep: its finished jobs in the order of the grid, and what its other jobs were given.

    ``given``: the parameters that the grid sets.
    """

    name: str
    commit: str
    given: Sequence[str]
    jobs: Sequence[JobResult]
    failed: Sequence[Mapping[str, Any]]
    waiting: Sequence[Mapping[str, Any]]

    def unfinished(self) -> str:
        """A sentence on the jobs that are not finished; empty if all are."""
        missing = len(self.failed) + len(self.waiting)
        if not missing:
            return ""
        named = [
            f"{len(group)} {word} ({'; '.join(map(_told, group[:3]))}{'; ...' if len(group) > 3 else ''})"
            for word, group in (("failed", self.failed), ("not run", self.waiting))
            if group
        ]
        return f"{missing} of {missing + len(self.jobs)} jobs of '{self.name}' are not finished: {', '.join(named)}"


def default_folder() -> Path:
    """``build/sweeps`` in the project, where sweeps leave their results."""
    return project_root() / "build" / "sweeps"


def collect(folder: Path, reference: str, commit: str | None = None) -> SweepResults:
    """The latest run of a sweep, or the latest at a commit.

    Args:
        folder: of the sweeps, with ``jobs`` in it.
        reference: a sweep's name, a grid file, or either with ``@COMMIT`` behind it.
        commit: the first digits of a commit; those in ``reference`` go first.

    Raises:
        InputError: no such sweep or commit, no folder of sweeps, a damaged file, or no finished job.
    """
    base, _, at = reference.partition("@")
    name = _name(base)
    run = _run(_record(folder, name), name, at or commit)
    keys = {job["key"]: job.get("given", {}) for job in run["jobs"]}
    finished, failed = ({key: name for key, name in _folders(folder / part)} for part in ("jobs", "failed"))
    places = {key: f"{folder / 'jobs'}{os.sep}{finished[key]}" for key in keys if key in finished}
    records = read_files([(place, "job.json") for place in places.values()])
    jobs = [_job(place, key, text) for (key, place), text in zip(places.items(), records, strict=True)]
    missing = [key for key in keys if key not in finished]
    results = SweepResults(
        name=name,
        commit=_commit(run),
        given=list(dict.fromkeys(name for given in keys.values() for name in given)),
        jobs=jobs,
        failed=[keys[key] for key in missing if key in failed],
        waiting=[keys[key] for key in missing if key not in failed],
    )
    if not jobs:
        raise InputError(
            f"no job of sweep '{name}' at commit {results.commit or 'unknown'} is finished ({len(results.failed)} of "
            f"{len(keys)} failed): run 'nullpaper sweep' on it again, or choose an earlier run by --commit."
        )
    return results


def read_files(files: Sequence[tuple[str, str]]) -> list[bytes]:
    """The contents of files, each given as a job's folder and a path in it.

    Several are read at a time, since a disk that has to look for them is slow to answer and not slow to read.

    Raises:
        InputError: one cannot be read.
    """
    found: list[bytes] = [b""] * len(files)
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda first: [_bytes(*file) for file in files[first::READERS]], range(READERS))
        for first, part in enumerate(parts):
            found[first::READERS] = part
    return found


def damaged(folder: str, reason: str) -> InputError:
    """The sentence on a job's folder that is not what the job wrote."""
    return InputError(f"the result {folder} is damaged ({reason}): delete it and run the sweep again.")


def listed(before: str, names: Sequence[str]) -> str:
    """``before`` and the first few names, with a full stop; empty without names."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{before} {', '.join(names[:8])}{more}." if names else ""


def _record(folder: Path, name: str) -> Path:
    """The file that names a sweep's jobs."""
    if not (folder / "jobs").is_dir():
        raise InputError(f"{folder} is not a folder of sweeps: run 'nullpaper sweep GRID.yaml' or give --folder.")
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(other.stem for other in folder.glob("*.json"))
        hint = nearest(name, known) or listed(" It has", known) or " Run 'nullpaper sweep GRID.yaml' first."
        raise InputError(f"there is no sweep '{name}' in {folder}.{hint}")
    return path


def _name(reference: str) -> str:
    """A sweep's name: as given, or that in a grid file, or the file's."""
    path = Path(reference)
    if path.suffix not in (".yaml", ".yml"):
        return reference
    if not path.is_file():
        known = sorted(str(other) for other in path.parent.glob("*.y*ml"))
        raise InputError(f"there is no grid file {path}.{nearest(str(path), known)}")
    import yaml

    try:
        grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not valid YAML: correct it, or give the sweep's name.") from error
    return str(grid["name"]) if isinstance(grid, dict) and grid.get("name") else path.stem


def _run(path: Path, name: str, commit: str | None) -> Mapping[str, Any]:
    """The latest run in a sweep's file, at a commit if one is given."""
    try:
        runs = loads(path.read_bytes())["runs"]
        chosen = [run for run in runs if not commit or (run["commit"] or "").startswith(commit)]
        whole = all(isinstance(job["key"], str) for run in runs for job in run["jobs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: delete it and run the sweep again, which finds its jobs.") from error
    if not whole or not runs:
        raise InputError(f"{path} names no jobs: delete it and run the sweep again, which finds its jobs.")
    if not chosen:
        known = list(dict.fromkeys(_commit(run) or "an unknown commit" for run in runs))
        raise InputError(f"sweep '{name}' has no run at commit '{commit}'.{listed(' It has runs at', known)}")
    return chosen[-1]


def _commit(record: Mapping[str, Any]) -> str:
    """The first digits of a commit, with a ``+`` for changes on top of it."""
    return f"{(record.get('commit') or '')[:DIGITS]}{'+' if record.get('dirty') and record.get('commit') else ''}"


def _folders(folder: Path) -> list[tuple[str, str]]:
    """Pairs (key, name) of the folders of jobs."""
    if not folder.is_dir():
        return []
    return [(name.rpartition("-")[2], name) for name in os.listdir(folder) if not name.startswith(".")]


def _bytes(folder: str, path: str) -> bytes:
    try:
        with open(os.path.join(folder, path), "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise damaged(folder, f"{path} cannot be read, {error.strerror}") from error


def _job(folder: str, key: str, text: bytes) -> JobResult:
    try:
        record = loads(text) if NONFINITE.encode() in text else json.loads(text)
        prefix, end = f"results/{record['label']}/", ".csv"
        tables = {
            path[len(prefix) : -len(end)]: digest
            for path, digest in record["files"].items()
            if path.startswith(prefix) and path.endswith(end)
        }
        if record["key"] != key or not isinstance(record["parameters"], dict):
            raise ValueError("another job's")
        return JobResult(folder, key, record["label"], record["parameters"], _commit(record), tables)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, "job.json is not the record of this job") from error


def _told(given: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in given.items()) or "without parameters"
