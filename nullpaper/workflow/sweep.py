"""A grid of papermill runs on an executor: each job once, whatever is killed, and only what is missing.

FOLDER holds ``jobs/`` (finished ones), ``failed/`` (with tracebacks), and a file for each sweep that names its jobs.
The state of a sweep is nothing but these: a second driver on the folder, or the same one again, goes on from there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, first_line
from nullpaper.files import locked, storable, write_atomic
from nullpaper.workflow.code_identity import dumps, loads
from nullpaper.workflow.executors import Pool
from nullpaper.workflow.grid import Grid
from nullpaper.workflow.job import Job, Outcome, finished, record_of, remove_leftovers
from nullpaper.workflow.planning import Source, plan_run, read_source

__all__ = ["Progress", "Sweep", "drive", "plan_sweep", "read_sweep", "register"]

REFRESH = 0.5  # seconds


@dataclass(frozen=True)
class Sweep:
    """The jobs of a grid under the code, data and weights of now."""

    grid: Grid
    folder: Path
    profile: str
    source: Source
    jobs: tuple[Job, ...]

    def progress(self, slots: int = 1) -> Progress:
        """Where it stands before anything is started: each job is "found" or "waiting"."""
        states = {job.name: "found" if finished(job) else "waiting" for job in self.jobs}
        return Progress(self.jobs, slots, states)

    def damaged(self) -> list[str]:
        """A sentence for each job whose result is there and damaged; it is done again."""
        found = []
        for job in self.jobs:
            try:
                record_of(job.result)
            except InputError as error:
                found.append(str(error))
        return found


@dataclass
class Progress:
    """Where a sweep stands. ``states``: by job name, "waiting", "running" or the state of its `Outcome`."""

    jobs: Sequence[Job]
    slots: int = 1
    states: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.time)

    def count(self, *states: str) -> int:
        return sum(state in states for state in self.states.values())

    def eta(self) -> float | None:
        """Seconds that the jobs not done yet will take at the pace so far; None before the first is done."""
        left = self.count("waiting", "running", "elsewhere")
        return left * sum(self.seconds) / len(self.seconds) / min(self.slots, max(left, 1)) if self.seconds else None


def plan_sweep(grid: Grid, *, folder: Path, profile: str, threads: int | None = None) -> Sweep:
    """The jobs of a grid with their identities; equal points are one job. Nothing is run or written.

    Raises:
        InputError: the folder is a file, or the notebook cannot be read.
    """
    from nullpaper.data.fetch import folder_of

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the results (--folder)")
    source, folder = read_source(grid.notebook.resolve()), folder.resolve()
    code, jobs = source.version, {}
    for given in grid.given:
        plan = plan_run(source, given, profile=profile)
        data = tuple(name for name in source.inputs.datasets(plan.context.parameters) if folder_of(name).is_dir())
        place = (str(source.notebook), given, profile, str(source.root), str(folder))
        jobs.setdefault(plan.key, Job(plan.key, *place, code, data, threads))
    return Sweep(grid, folder, profile, source, tuple(jobs.values()))


def read_sweep(file: Path) -> dict[str, Any]:
    """The record of a sweep; one without runs if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        record = loads(file.read_bytes())
        return {"runs": record["runs"]}
    except FileNotFoundError:
        return {"runs": []}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the sweep's record {file} is damaged ({first_line(error)}): delete it; finished jobs are found again"
        ) from error


def register(sweep: Sweep) -> Path:
    """Enter the sweep's jobs into ``FOLDER/<name>.json``, whose last run they become, and clear what kills have left.

    Raises:
        InputError: the folder cannot be written, or the record there is damaged.
    """
    file = sweep.folder / f"{sweep.grid.name}.json"
    keys = [{"key": job.key, "given": dict(job.given)} for job in sweep.jobs]
    run = {"commit": sweep.source.commit, "dirty": sweep.source.dirty, "profile": sweep.profile, "jobs": keys}
    run["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with storable(sweep.folder, "make it writable, free some space, or choose another one by --folder"):
        for part in ("jobs", "failed", "running", "locks"):
            (sweep.folder / part).mkdir(parents=True, exist_ok=True)
    remove_leftovers(sweep.folder)
    with locked(sweep.folder / "locks" / f"{sweep.grid.name}.lock"):
        others = [other for other in read_sweep(file)["runs"] if other["jobs"] != keys]
        record = {"name": sweep.grid.name, "notebook": sweep.source.notebook.name, "grid": sweep.grid.content}
        write_atomic(file, dumps(record | {"runs": [*others, run]}))
    return file


def drive(
    sweep: Sweep,
    pool: Pool,
    *,
    retries: int = 1,
    show: Callable[[Progress], object] = lambda progress: None,
    tell: Callable[[Job, Outcome, Progress], object] = lambda job, outcome, progress: None,
) -> Progress:
    """Do every job that is not finished, once; a failed one is tried again up to ``retries`` times.

    A job that another process is at is left to it, and looked after when nothing else is left.

    Args:
        show: called twice a second, and at the end.
        tell: called at the end of each attempt.

    Raises:
        InputError: no job can be done as things stand: a full disk, changed code, a scheduler that is gone.
    """
    progress = sweep.progress(pool.slots)
    todo = [job for job in sweep.jobs if progress.states[job.name] == "waiting"]
    pending: dict[Any, Job] = {pool.submit(job, False): job for job in todo}
    try:
        while pending:
            ended, _ = wait(pending, timeout=REFRESH, return_when=FIRST_COMPLETED)
            for future in ended:
                job = pending.pop(future)
                outcome = _outcome(future)
                if outcome.state == "refused":
                    raise InputError(str(outcome.error))
                if again := _enter(progress, job, outcome, retries):
                    pending[pool.submit(job, again == "elsewhere")] = job
                tell(job, outcome, progress)
            _look_at_running(progress, pending.values())
            show(progress)
    finally:
        for future in pending:
            future.cancel()
    show(progress)
    return progress


def _outcome(future: Any) -> Outcome:
    """Of an ended attempt; a Dask worker's death is a failure of the job, a scheduler's the end of the sweep."""
    try:
        return future.result()
    except (Exception, CancelledError) as error:
        if isinstance(error, OSError) or "Cancelled" in type(error).__name__:
            reason = "the scheduler or all of its workers are gone: start them and run the sweep again"
            return Outcome("refused", f"{reason}; what is finished stays ({first_line(error)})")
        return Outcome("failed", f"{type(error).__name__}: {first_line(error)}")


def _enter(progress: Progress, job: Job, outcome: Outcome, retries: int) -> str | None:
    """Note an outcome; the reason for another attempt, if there is to be one."""
    job.status.unlink(missing_ok=True)
    if outcome.state in ("done", "failed"):
        progress.attempts[job.name] += 1
        progress.seconds.append(outcome.seconds)
    if outcome.state == "failed":
        progress.errors[job.name] = outcome.error or ""
    again = outcome.state == "elsewhere" or (outcome.state == "failed" and progress.attempts[job.name] <= retries)
    progress.states[job.name] = "waiting" if again and outcome.state == "failed" else outcome.state
    return outcome.state if again else None


def _look_at_running(progress: Progress, jobs: Iterable[Job]) -> None:
    """A job whose status file is there is under way, on whatever machine."""
    for job in jobs:
        progress.states[job.name] = "running" if job.status.is_file() else "waiting"
