"""A sweep: one notebook run with papermill at each point of a grid, as jobs on the workers of Dask.

A finished job is the folder ``build/sweeps/<sweep>/<job>/``, which appears by one rename and is named by parameters,
notebook, code, data and weights. These folders are all the state that a sweep has: whatever was killed, and however
many drivers there are, what is there is not done again and what is missing is. See `grid` for the files that say what
to run and `workers` for where.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nullpaper.errors import InputError, first_line
from nullpaper.files import storable, temporary_sibling, write_atomic
from nullpaper.workflow.grid import read_grid
from nullpaper.workflow.kernels import end_kernels, execute
from nullpaper.workflow.plan import Plan, plan_run
from nullpaper.workflow.provenance import ROOT_VARIABLE, project_root
from nullpaper.workflow.reference import finished, record
from nullpaper.workflow.tables import sweep_folder

PATIENCE = 1.0  # seconds to wait for the lock of a job that another process is at
REFRESH = 0.2  # seconds between two looks at the workers


@dataclass(frozen=True)
class Job:
    """What a worker has to know: a point of a grid, where the project and the results lie, and the job's identity."""

    key: str
    notebook: str
    given: Mapping[str, Any] = field(hash=False)
    profile: str
    root: str
    folder: str
    threads: int

    @property
    def name(self) -> str:
        return f"{Path(self.notebook).stem}-{self.key}"

    @property
    def path(self) -> Path:
        """The folder of its result."""
        return Path(self.folder, self.name)

    @property
    def failure(self) -> Path:
        """The folder that a failed attempt leaves: the notebook with its traceback."""
        return Path(self.folder, "failed", self.name)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.given.items())


@dataclass(frozen=True)
class Sweep:
    """The jobs of a grid under the code, data and weights of now."""

    name: str
    folder: Path
    profile: str
    jobs: tuple[Job, ...]
    finished: frozenset[str]

    def lines(self) -> Iterator[str]:
        """A line a job: its folder, whether it is finished, and its parameters."""
        for job in self.jobs:
            yield f"{job.name}  {'finished' if job.name in self.finished else 'to do':<8}  {job}"


@dataclass
class Report:
    """How a sweep ended: the jobs done now, found done, and failed, with their errors."""

    sweep: Sweep
    seconds: float = 0.0
    done: list[Job] = field(default_factory=list)
    found: list[Job] = field(default_factory=list)
    failed: dict[Job, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"failed: {job}: {error}\n        {job.failure}" for job, error in self.failed.items()]
        counts = f"{len(self.done)} done now, {len(self.found)} found done, {len(self.failed)} failed"
        again = "the same command tries them again" if self.failed else f"nullpaper report {self.sweep.name}"
        lines.append(f"{len(self.sweep.jobs)} jobs: {counts}, in {self.seconds:.0f} s")
        return "\n".join([*lines, f"results: {self.sweep.folder}; {again}"])


def plan_sweep(file: Path, *, profile: str | None = None, folder: Path | None = None, threads: int = 1) -> Sweep:
    """The jobs of a grid file with their identities; equal points are one job. Nothing is run or written.

    Args:
        profile: goes before the grid file's own; where neither names one, what fits the machine.
        folder: of the results; None: ``build/sweeps/<name of the file>``.
        threads: CPU threads of a job.

    Raises:
        InputError: what is wrong with the grid file, or with the parameters of any of its jobs.
    """
    grid = read_grid(file, profile)
    folder, root = (folder or sweep_folder(file.stem)).resolve(), project_root()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the results (--folder)")
    jobs, done = {}, set()
    for point in grid.points:
        try:
            plan = plan_run(grid.notebook, point, profile=grid.profile)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        given = {name: plan.context.parameters[name] for name in point}  # in the notebook's types
        place = (str(grid.notebook.resolve()), given, grid.profile, str(root), str(folder))
        job = jobs.setdefault(plan.key, Job(plan.key, *place, threads))
        if _is_finished(job, plan):
            done.add(job.name)
    return Sweep(file.stem, folder, grid.profile, tuple(jobs.values()), frozenset(done))


def run_sweep(
    sweep: Sweep, client: Any, *, retries: int = 1, say: Callable[[str], object] = lambda sentence: None
) -> Report:
    """Do the jobs that are not finished on the workers of a Dask client, with a bar on stderr.

    Args:
        retries: new attempts at a job that failed.
        say: called with a sentence for each failed attempt.

    Raises:
        InputError: no job can be done as things stand: a full disk, another version of the code on a worker, a
            scheduler that is gone.
    """
    from distributed import as_completed
    from tqdm import tqdm

    _register(sweep)
    report, begun, attempts = Report(sweep), time.time(), Counter[Job]()
    report.found += [job for job in sweep.jobs if job.name in sweep.finished]
    pending = {_submit(client, job): job for job in sweep.jobs if job.name not in sweep.finished}
    ended = as_completed(pending, loop=client.loop)
    with tqdm(total=len(sweep.jobs), initial=len(report.found), desc=sweep.name, unit="job", smoothing=0) as bar:
        while pending:
            time.sleep(REFRESH)
            for future in ended.next_batch(block=False):
                job = pending.pop(future)
                state, error = _outcome(future)
                attempts[job] += state == "failed"
                if state == "failed":
                    with tqdm.external_write_mode():
                        say(f"{job}: failed at attempt {attempts[job]}: {error}")
                if state == "elsewhere" or (state == "failed" and attempts[job] <= retries):
                    again = _submit(client, job, priority=-1)  # behind what nobody is at
                    pending[again] = job
                    ended.add(again)
                    continue
                _enter(report, job, state, error)
                bar.update()
            bar.refresh()
    report.seconds = time.time() - begun
    return report


def _submit(client: Any, job: Job, priority: int = 0) -> Any:
    return client.submit(run_job, job, key=f"{job.name}-{uuid.uuid4().hex}", pure=False, priority=priority)


def _outcome(future: Any) -> tuple[str, str]:
    """How a job ended; the death of its workers is a failure of the job, that of the scheduler the end of the sweep."""
    try:
        return future.result()
    except InputError:
        raise
    except (OSError, CancelledError) as error:
        raise InputError(
            "the scheduler or all of its workers are gone: start them and run the sweep again; what is finished stays "
            f"({first_line(error)})"
        ) from error
    except Exception as error:
        if "Cancelled" in type(error).__name__:
            raise InputError(
                "the scheduler is gone: start it and run the sweep again; what is finished stays"
            ) from error
        return "failed", f"{type(error).__name__}: {first_line(error)}"


def _enter(report: Report, job: Job, state: str, error: str) -> None:
    if state == "failed":
        report.failed[job] = error
    else:
        (report.done if state == "done" else report.found).append(job)


def _register(sweep: Sweep) -> None:
    """Write ``<folder>/<sweep>.json``, by which `tables.collect` knows the jobs of today from those of older code."""
    with storable(sweep.folder, "make it writable, free some space, or choose another one by --folder"):
        (sweep.folder / ".locks").mkdir(parents=True, exist_ok=True)
    jobs = {job.name: dict(job.given) for job in sweep.jobs}
    text = json.dumps({"profile": sweep.profile, "jobs": jobs}, indent=1) + "\n"
    write_atomic(sweep.folder / f"{sweep.name}.json", text)


def _is_finished(job: Job, plan: Plan) -> bool:
    """Whether its result is there and whole; a damaged one is no result, and the next attempt replaces it."""
    with contextlib.suppress(InputError):
        return finished(job.path, plan.context) is not None
    return False


def run_job(job: Job) -> tuple[str, str]:
    """Do a job in a kernel of its own, unless it is finished or another process is at it; called on a worker.

    Returns:
        "done", "found" (finished before), "failed" or "elsewhere" (another process is at it), and the error if any.

    Raises:
        InputError: the job cannot be done here as things stand; the message says what to mend.
    """
    folder, host = Path(job.folder), socket.gethostname()
    if not folder.is_dir():
        raise InputError(f"{host} does not see the folder {folder}: use one that all machines share (--folder)")
    os.environ[ROOT_VARIABLE], os.environ["OMP_NUM_THREADS"] = job.root, str(job.threads)
    plan = plan_run(Path(job.notebook), job.given, profile=job.profile)
    if plan.key != job.key:
        raise InputError(
            f"{host} has another version of the package, the notebook, data or weights than the sweep was started "
            "with, or one of them was changed meanwhile: make them the same and run the sweep again"
        )
    lock = FileLock(folder / ".locks" / f"{job.name}.lock")  # the system frees that of a killed process
    try:
        with lock.acquire(timeout=PATIENCE):
            return ("found", "") if _is_finished(job, plan) else _execute(job, plan)
    except (Timeout, KeyboardInterrupt):
        return "elsewhere", ""


def _execute(job: Job, plan: Plan) -> tuple[str, str]:
    """Execute under a temporary name; then one rename makes it a result, or a failure with its traceback."""
    temporary, begun = temporary_sibling(job.path), time.time()
    with storable(job.path.parent):
        for leftover in job.path.parent.glob(f".{job.name}.*.tmp"):  # of killed attempts, and ours by the lock
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            temporary.mkdir()
            with _watched():
                error = execute(plan.into(temporary), temporary / f"{plan.notebook.stem}.ipynb", threads=job.threads)
            if error is not None:
                _rename(temporary, job.failure)
                return "failed", error
            record(temporary, plan.context, code=plan.code, seconds=round(time.time() - begun, 1))
            _rename(temporary, job.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(job.failure, ignore_errors=True)
    return "done", ""


def _rename(temporary: Path, target: Path) -> None:
    """Put a folder in place; one that stood there, damaged or of an earlier attempt, goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = target.rename(temporary_sibling(target))
        shutil.rmtree(old, ignore_errors=True)
    temporary.rename(target)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """End the kernel when its task is cancelled: the driver was interrupted, or it or the scheduler has died."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # called by hand
        yield
        return
    key, over = worker.get_current_task(), threading.Event()

    def watch() -> None:
        while not over.wait(REFRESH):
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled" or worker.status.name in ("closing", "closed"):
                return end_kernels()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
