"""One job of a sweep: a papermill run in a process of its own, whose result is one folder that appears by one rename.

``python -m nullpaper.workflow.job`` reads a job as one line of JSON from its standard input, which stays open for as long as
whoever asked for the job lives: at its end the process ends its kernel and itself. While it works it holds a lock on
the job, which the operating system frees when it dies, however it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nullpaper.errors import InputError
from nullpaper.files import sha256, storable, temporary_sibling, write_atomic
from nullpaper.workflow.code_identity import dumps, loads
from nullpaper.workflow.collect import damaged
from nullpaper.workflow.provenance import ROOT_VARIABLE

__all__ = ["Job", "Outcome", "finished", "record_of", "remove_leftovers", "run_job"]

RECORD, NOTEBOOK, ERROR = "job.json", "notebook.ipynb", "error.json"


@dataclass(frozen=True)
class Job:
    """What a worker has to know.

    Attributes:
        key: the job's identity.
        given: the parameters that the grid sets.
        root, folder: of the project and of the results.
        code: digest of the notebook and all that it imports, which another version of the package changes.
        data: the data sets that it may need.
        threads: of its kernel; None: as many as it likes.
    """

    key: str
    notebook: str
    given: Mapping[str, Any]
    profile: str
    root: str
    folder: str
    code: str
    data: tuple[str, ...] = ()
    threads: int | None = None

    @property
    def name(self) -> str:
        return f"{Path(self.notebook).stem}-{self.key}"

    @property
    def result(self) -> Path:
        return Path(self.folder, "jobs", self.name)

    @property
    def failure(self) -> Path:
        return Path(self.folder, "failed", self.name)

    @property
    def status(self) -> Path:
        return Path(self.folder, "running", f"{self.name}.json")

    @property
    def lock(self) -> Path:
        return Path(self.folder, "locks", f"{self.name}.lock")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    ``state``: "done"; "found", it was finished before; "failed", the notebook raised or its process died; "elsewhere",
    another process is at it; "refused", no job can be done here as things stand (``error`` says what to mend).
    """

    state: str
    error: str | None = None
    seconds: float = 0.0


def record_of(folder: Path) -> dict[str, Any] | None:
    """The record of a finished job, or None if there is no such folder.

    Raises:
        InputError: the folder is damaged: its record cannot be read, or a file is missing or has another size.
    """
    if not folder.is_dir():
        return None
    try:
        record = loads((folder / RECORD).read_bytes())
        wrong = [name for name, size in record["sizes"].items() if (folder / name).stat().st_size != size]
        reason = f"{wrong[0]} has another size" if wrong else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} in {RECORD}" if not isinstance(error, OSError) else f"{error.strerror}"
    if reason is not None:
        raise damaged(str(folder), reason)
    return record


def finished(job: Job) -> bool:
    """Whether the job's result is there and whole; a damaged one does not count, and is replaced by a new attempt."""
    with contextlib.suppress(InputError):
        return record_of(job.result) is not None
    return False


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder of results what killed jobs left half-written, except where a job is under way."""
    leftovers = [path for part in ("jobs", "failed") for path in (folder / part).glob(".*.tmp")]
    for leftover in [*leftovers, *(folder / "running").glob("*.json")]:
        name = leftover.name[1:].partition(".")[0] if leftover.suffix == ".tmp" else leftover.stem
        lock = FileLock(folder / "locks" / f"{name}.lock")
        with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
            leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)


def run_job(job: Job, *, wait: bool = False, environment: Mapping[str, str] | None = None) -> Outcome:
    """Do a job in a process of its own, unless it is finished or under way; called on the worker, whatever it is.

    Args:
        wait: for another process that is at it.
        environment: of the process, beside this one's: a GPU slot, for example.
    """
    if finished(job):
        return Outcome("found")
    threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
    variables = {**os.environ, ROOT_VARIABLE: job.root, **threads, **(environment or {})}
    command = [sys.executable, "-m", "nullpaper.workflow.job"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        text=True,
        start_new_session=True,  # an interrupt from the terminal is for the caller, whose end ends this
    )
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.append(process.stderr.read()), daemon=True)
    listener.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status says so
            process.stdin.write(json.dumps({"job": asdict(job), "wait": wait, "since": time.time()}) + "\n")
            process.stdin.flush()
        answer = process.stdout.read()
        status = process.wait()
        listener.join(1)
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()  # its sign to end
        if process.poll() is None:
            process.wait()
    try:
        return Outcome(**json.loads(answer.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (said or [""])[0].strip().splitlines()[-1:]
        died = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return Outcome("failed", f"the job's process died ({'; '.join([died, *last])})")


def main() -> None:
    """Do the job that standard input describes, and answer with an `Outcome` as the last line of standard output."""
    asked = json.loads(sys.stdin.readline())
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    try:
        outcome = _perform(Job(**asked["job"]), asked["wait"], asked["since"])
    except InputError as error:
        outcome = Outcome("refused", str(error))
    print(json.dumps(asdict(outcome)), file=answers, flush=True)
    os._exit(0)  # the thread above may hold standard input


def _end_with_the_caller() -> None:
    import psutil

    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.read(1):
            pass
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(1)


def _perform(job: Job, wait: bool, since: float) -> Outcome:
    from nullpaper.workflow.planning import plan_run, read_source

    source = read_source(Path(job.notebook))
    plan = plan_run(source, job.given, profile=job.profile)
    if plan.key != job.key:
        same_code = source.version == job.code
        what = (
            "other data or weights, or another text of the notebook," if same_code else "another version of the package"
        )
        raise InputError(
            f"{socket.gethostname()} has {what} than the sweep was started with, or it was changed meanwhile: make "
            "them the same and run the sweep again"
        )
    lock = FileLock(job.lock)
    with storable(job.lock.parent):
        job.lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
        except Timeout:
            return Outcome("elsewhere")
    with lock:
        if finished(job):
            return Outcome("found")
        _remove_leftovers(job)
        try:
            return _execute(job, plan, time.time() if wait else since)
        finally:
            _remove_leftovers(job)


def _execute(job: Job, plan: Any, begun: float) -> Outcome:
    """Execute under a temporary name; then one rename makes it a result, or a failure with its traceback."""
    from nullpaper.workflow.kernels import execute

    temporary = temporary_sibling(job.result)
    with storable(job.result.parent):
        temporary.mkdir(parents=True)
    with _status(job, plan) as on_cell, storable(temporary.parent):
        error = execute(plan.into(temporary), temporary / NOTEBOOK, on_cell=on_cell)
    seconds = round(time.time() - begun, 3)
    facts = plan.record(begun, seconds) | {"key": job.key, "given": dict(job.given), "code": job.code}
    with storable(temporary.parent):
        if error is not None:
            write_atomic(temporary / ERROR, dumps(facts | {"error": error}))
            _rename(temporary, job.failure)
            return Outcome("failed", error, seconds)
        shutil.rmtree(temporary / "build", ignore_errors=True)  # a lock of the manifest
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        facts["files"] = {path.relative_to(temporary).as_posix(): sha256(path) for path in files}
        facts["sizes"] = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in files}
        write_atomic(temporary / RECORD, dumps(facts))
        _rename(temporary, job.result)
        shutil.rmtree(job.failure, ignore_errors=True)
    return Outcome("done", None, seconds)


def _rename(temporary: Path, target: Path) -> None:
    """Put a folder in place; one that stood there, damaged or of an earlier attempt, goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        os.rename(target, temporary_sibling(target))
    os.rename(temporary, target)


def _remove_leftovers(job: Job) -> None:
    """Remove what killed attempts at this job left, which its lock makes ours."""
    for folder in (job.result.parent, job.failure.parent):
        for leftover in folder.glob(f".{job.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _status(job: Job, plan: Any) -> Iterator[Any]:
    """A small file that says how far the job is, for whoever watches."""
    cells = plan.source.text.count("\n# %%")
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "cells": cells}

    def on_cell(index: int) -> None:
        write_atomic(job.status, json.dumps(facts | {"cell": index}))

    on_cell(0)
    try:
        yield on_cell
    finally:
        job.status.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
