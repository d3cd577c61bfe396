"""Runs notebooks into ``build/<label>/``: source, executed notebook, page, figures, tables, and a manifest entry.

A run works in a hidden folder and is moved into place when it has succeeded, its manifest entry last: one that failed
or was killed replaces nothing. A finished run whose files are all still in place is not repeated.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from nullpaper.files import locked, storable
from nullpaper.workflow.kernels import end_kernels, execute, page
from nullpaper.workflow.parameters import cores, has_gpu
from nullpaper.workflow.plan import Plan, plan_run
from nullpaper.workflow.progress import Progress, duration
from nullpaper.workflow.reference import checksum, finished, put, read_manifest, record, reference_folder

PAGES = (".py", ".ipynb", ".html")
"""What a run leaves beside figures and tables: the notebook as it was written, as it was executed, and as a page."""


@dataclass(frozen=True)
class RunReport:
    """What a run made. ``reused``: it was there already. ``error``: why it failed; ``ipynb`` has the traceback then."""

    notebook: Path
    out: Path
    ipynb: Path
    seconds: float
    figures: tuple[Path, ...] = ()
    tables: tuple[Path, ...] = ()
    reused: bool = False
    error: str | None = None

    def __str__(self) -> str:
        took = "FAILED" if self.error else "up to date" if self.reused else duration(self.seconds)
        made = self.error or f"{len({path.stem for path in self.figures}):2d} figures {len(self.tables):2d} tables"
        shown = self.ipynb if self.error else self.ipynb.with_suffix(".html")
        return f"{self.notebook.stem:<26} {took:>12}  {made}  {os.path.relpath(shown)}"


def run_notebooks(
    notebooks: Sequence[Path],
    given: Mapping[str, Any] | None = None,
    *,
    profile: str,
    label: str | None = None,
    force: bool = False,
    jobs: int | None = None,
    budget: float | None = None,
) -> list[RunReport]:
    """Run notebooks side by side, each in a fresh kernel of this Python; one that fails does not stop the others.

    Args:
        given: parameters by name; strings are converted to the type that the notebook declares.
        profile: whose values the other parameters have.
        label: the folder under build/; None: the profile, or a name of its own where ``given`` changes something.
        force: compute everything anew, stored results too; else an equal run that is finished is not repeated.
        jobs: notebooks at a time; None: 1 on a machine with a GPU, else one a core, up to 4. They share the cores
            evenly, unless OMP_NUM_THREADS says otherwise: two kernels of one thread do more than one of two.
        budget: seconds after which all kernels are ended; what they have stored is kept, and a later call goes on.

    Returns:
        A report of each notebook that has succeeded or failed, in their order; within a budget others may be left.

    Raises:
        InputError: unknown or mistyped parameters, an unreadable notebook; nothing has run then. Or a folder that
            cannot be written. A notebook that fails while running raises nothing.
    """
    since = time.time() if force else None  # one moment for all, so that a result they share is computed once
    plans = [plan_run(path, given, profile=profile, label=label, recompute_before=since) for path in notebooks]
    jobs = min(jobs or (1 if has_gpu() else min(cores(), 4)), len(plans))
    threads = max(1, cores() // jobs) if jobs > 1 else None
    watch = Progress({plan.notebook.stem: _earlier_seconds(plan) for plan in plans}, jobs)
    over = Event()
    with watch.shown(), ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run, plan, watch, threads, over) for plan in _in_order(plans, watch, jobs, budget)]
        try:
            for future in wait(futures, timeout=budget, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:  # what runs now is interrupted or out of time; what waits never begins
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                end_kernels()
                time.sleep(0.05)
    reports = [future.result() for future in futures if not future.cancelled() and future.exception() is None]
    return sorted(reports, key=lambda report: notebooks.index(report.notebook))


def _in_order(plans: Sequence[Plan], watch: Progress, jobs: int, budget: float | None) -> Sequence[Plan]:
    """Side by side the longest first, so that none is left alone at the end; within a budget the shortest first.

    So a budget finishes as many as fit, and what is left of it goes to one that does not fit, whose results are kept.
    """
    if jobs == 1 and budget is None:
        return plans

    def seconds(plan: Plan) -> float:
        return 0.0 if up_to_date(plan) else watch.expected[plan.notebook.stem]

    return sorted(plans, key=seconds, reverse=budget is None)


def _earlier_seconds(plan: Plan) -> float | None:
    """What this notebook took in its folder before, or as the reference."""
    folders = plan.out, reference_folder(plan.context.profile)
    entries = [read_manifest(folder).get(plan.notebook.stem, {}) for folder in folders]
    return entries[0].get("seconds") or entries[1].get("seconds")


def _run(plan: Plan, watch: Progress, threads: int | None, over: Event) -> RunReport:
    name, say = plan.notebook.stem, functools.cache(watch.say)  # once

    def waiting() -> None:
        if over.is_set():
            raise KeyboardInterrupt
        say(f"waiting for another run of {name} in {plan.out}")

    with locked(plan.out / f".{name}.lock", waiting):
        report = up_to_date(plan) or _execute(plan, watch, threads)
    watch.end(name, 0 if report.reused else report.seconds, str(report))
    return report


def up_to_date(plan: Plan) -> RunReport | None:
    """The report of an equal, finished run of the same prose whose files are as it left them; None if there is none."""
    entry = finished(plan.out, plan.context) if plan.context.recompute_before is None else None
    is_same = entry is not None and entry["files"].get(f"{plan.notebook.stem}.py") == checksum(plan.notebook)
    return _report(plan, entry, reused=True) if is_same else None


def _execute(plan: Plan, watch: Progress, threads: int | None) -> RunReport:
    """Execute in a hidden folder, ours alone by the lock; then move what was made into the folder of the label."""
    name, out, begun = plan.notebook.stem, plan.out, time.time()
    hidden, failed = out / f".{name}.running", out / f"{name}.failed.ipynb"
    shutil.rmtree(hidden, ignore_errors=True)  # of a killed run
    ipynb = hidden / f"{name}.ipynb"
    try:
        with storable(out):
            hidden.mkdir(parents=True)
            shutil.copyfile(plan.notebook, hidden / f"{name}.py")
            watch.begin(name)
            error = execute(plan.into(hidden), ipynb, threads=threads, hear=functools.partial(watch.hear, name))
            seconds = round(time.time() - begun, 1)
            if error is not None:
                os.replace(ipynb, failed)
                return RunReport(plan.notebook, out, failed, seconds, error=error)
            ipynb.with_suffix(".html").write_text(page(ipynb), encoding="utf-8")
            entry = record(hidden, plan.context, code=plan.code, seconds=seconds)
            entry["files"] |= {f"{name}{suffix}": checksum(hidden / f"{name}{suffix}") for suffix in PAGES}
            put(hidden, out, name, entry)
            failed.unlink(missing_ok=True)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return _report(plan, entry)


def _report(plan: Plan, entry: Mapping[str, Any], *, reused: bool = False) -> RunReport:
    paths = [plan.out / file for file in entry["files"]]
    figures, tables = (tuple(path for path in paths if path.parent.name == room) for room in ("figures", "results"))
    ipynb = plan.out / f"{plan.notebook.stem}.ipynb"
    return RunReport(plan.notebook, plan.out, ipynb, entry["seconds"], figures, tables, reused)
