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
import random
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, first_line
from nullpaper.files import locked, storable, write_atomic
from nullpaper.workflow.grid import read_grid
from nullpaper.workflow.kernels import execute
from nullpaper.workflow.plan import Plan, placeless, plan_run
from nullpaper.workflow.provenance import ROOT_VARIABLE
from nullpaper.workflow.reference import finished, record
from nullpaper.workflow.tables import sweep_folder

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # which Dask sets to 1
TRIM = "MALLOC_TRIM_THRESHOLD_"  # as Dask sets it for its workers, a kernel pages every large array in anew: 2 x slower


@dataclass(frozen=True, eq=False)
class Job:
    """A point of a grid: its run as planned, the parameters that the grid sets, and where its result goes."""

    plan: Plan
    given: Mapping[str, Any]
    folder: Path
    threads: int

    @property
    def name(self) -> str:
        return f"{self.plan.notebook.stem}-{self.plan.key}"

    @property
    def path(self) -> Path:
        """The folder of its result."""
        return self.folder / self.name

    @property
    def failure(self) -> Path:
        """The folder that a failed attempt leaves: the notebook with its traceback."""
        return self.folder / "failed" / self.name

    def is_finished(self) -> bool:
        """Whether its result is there and whole; a damaged one is no result, and the next attempt replaces it."""
        with contextlib.suppress(InputError, OSError):
            return finished(self.path, self.plan.context) is not None
        return False

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.given.items())


@dataclass(frozen=True)
class Sweep:
    """The jobs of a grid under the code, data and weights of now; ``finished``: those that need not be done."""

    name: str
    folder: Path
    profile: str
    jobs: tuple[Job, ...]
    finished: frozenset[Job]

    def lines(self) -> Iterator[str]:
        """A line a job: its folder, whether it is finished, and its parameters."""
        for job in self.jobs:
            yield f"{job.name}  {'finished' if job in self.finished else 'to do':<8}  {job}"


@dataclass
class Report:
    """How a sweep ended: the numbers of jobs done now and found done, and those that failed, with their errors."""

    sweep: Sweep
    done: int = 0
    found: int = 0
    failed: dict[Job, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"failed: {job}: {error}\n        {job.failure}" for job, error in self.failed.items()]
        counts = f"{self.done} done now, {self.found} found done, {len(self.failed)} failed"
        again = "the same command tries them again" if self.failed else f"nullpaper report {self.sweep.name}"
        lines.append(f"{len(self.sweep.jobs)} jobs: {counts}")
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
    grid, folder = read_grid(file, profile), (folder or sweep_folder(file.stem)).resolve()
    jobs: dict[str, Job] = {}
    for point in grid.points:
        try:
            plan = plan_run(grid.notebook, point, profile=grid.profile)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        given = {name: plan.values[name] for name in point}  # in the notebook's types
        jobs.setdefault(plan.key, Job(plan, given, folder, threads))
    done = frozenset(job for job in jobs.values() if job.is_finished())
    return Sweep(file.stem, folder, grid.profile, tuple(jobs.values()), done)


def run_sweep(sweep: Sweep, client: Any, *, retries: int = 1) -> Report:
    """Do the jobs that are not finished on the workers of a Dask client, with a bar on stderr.

    Their order is drawn, so that two sweeps on one folder seldom wait for each other. The file
    ``<folder>/<sweep>.json`` says which jobs are those of today: see `tables.collect`.

    Args:
        retries: new attempts at a job that failed.

    Raises:
        InputError: no job can be done as things stand: a full disk, another version of the code on a worker, a
            scheduler that is gone.
    """
    from distributed import CancelledError, as_completed
    from tqdm import tqdm

    given = {job.name: {name: placeless(value) for name, value in job.given.items()} for job in sweep.jobs}
    text = json.dumps({"profile": sweep.profile, "jobs": given}, indent=1) + "\n"
    write_atomic(sweep.folder / f"{sweep.name}.json", text)
    jobs = [job for job in sweep.jobs if job not in sweep.finished]
    random.shuffle(jobs)
    futures = dict(zip(client.map(run_job, jobs, retries=retries, pure=False), jobs, strict=True))
    report = Report(sweep, found=len(sweep.finished))
    bar = {"total": len(sweep.jobs), "initial": report.found, "desc": sweep.name, "unit": "job", "smoothing": 0}
    for future in tqdm(as_completed(futures), **bar):
        try:
            computed = future.result()
            report.done += computed
            report.found += not computed
        except InputError:
            raise
        except (Exception, CancelledError) as error:  # of the job, or the death of the workers that were at it
            if future.status != "error":
                raise InputError(
                    "the scheduler is gone: start it and its workers and run the sweep again; what is finished stays"
                ) from error
            report.failed[futures[future]] = first_line(error)
            tqdm.write(f"{futures[future]} failed: {first_line(error)}", file=sys.stderr)
    return report


def run_job(job: Job) -> bool:
    """Do a job in a kernel of its own unless it is finished; called on a worker. Waits for who else is at it.

    Returns:
        Whether it was done now.

    Raises:
        RuntimeError: the notebook failed, with what it raised.
        InputError: the job cannot be done here as things stand; the message says what to mend.
    """
    from distributed import Reschedule

    host = socket.gethostname()
    if not job.folder.is_dir():
        raise InputError(f"{host} does not see the folder {job.folder}: use one that all machines share (--folder)")
    os.environ |= {ROOT_VARIABLE: str(job.plan.root)} | dict.fromkeys(THREADS, str(job.threads))
    os.environ.pop(TRIM, None)
    plan = plan_run(job.plan.notebook, job.given, profile=job.plan.context.profile)
    if plan.key != job.plan.key:
        raise InputError(
            f"{host} has another version of the package, the notebook, data or weights than the sweep was started "
            "with, or one of them was changed meanwhile: make them the same and run the sweep again"
        )
    with locked(job.folder / ".locks" / f"{job.name}.lock"):
        try:
            return not job.is_finished() and _execute(job)
        except KeyboardInterrupt as error:  # `kernels.end_kernels`
            raise Reschedule from error


def _execute(job: Job) -> bool:
    """Execute in a hidden folder, ours alone by the lock; then one rename makes it a result, or a kept failure."""
    hidden, begun = job.folder / f".{job.name}.running", time.time()
    shutil.rmtree(hidden, ignore_errors=True)  # of a killed attempt
    with storable(job.folder):
        hidden.mkdir()
        plan = job.plan
        try:
            error = execute(plan.into(hidden), hidden / f"{plan.notebook.stem}.ipynb", threads=job.threads)
            if error is None:
                record(hidden, plan.context, code=plan.code, seconds=round(time.time() - begun, 1))
            target = job.path if error is None else job.failure
            shutil.rmtree(target, ignore_errors=True)  # a damaged result, or an earlier failure
            target.parent.mkdir(exist_ok=True)
            hidden.rename(target)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    if error is not None:
        raise RuntimeError(error)
    shutil.rmtree(job.failure, ignore_errors=True)
    return True
