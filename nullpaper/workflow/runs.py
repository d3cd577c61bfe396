"""Runs notebooks into ``build/<label>/``: executed notebook, page, figures, tables, and an entry in its manifest.

A run works in a hidden folder and is moved into place when it has succeeded, its manifest entry last: one that failed
or was killed replaces nothing. A finished run whose files are all still in place is not repeated.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import locked, storable
from nullpaper.workflow.kernels import end_kernels, execute, page
from nullpaper.workflow.parameters import cores, has_gpu
from nullpaper.workflow.plan import Plan, paper_notebooks, plan_run
from nullpaper.workflow.progress import Progress, duration
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import enter, finished, read_manifest, record


@dataclass(frozen=True)
class RunReport:
    """What a run made. ``reused``: it was there already. ``error``: the last line of the traceback of a failed one."""

    notebook: Path
    run: str
    out: Path
    seconds: float
    reused: bool
    ipynb: Path
    html: Path | None = None
    figures: tuple[Path, ...] = ()
    tables: tuple[Path, ...] = ()
    error: str | None = None


def run_notebook(
    notebook: Path,
    given: Mapping[str, Any] | None = None,
    *,
    profile: str,
    label: str | None = None,
    force: bool = False,
    progress: bool = True,
    threads: int | None = None,
) -> RunReport:
    """Run one notebook in a fresh kernel of this Python, unless an equal run is finished and its files are in place.

    Args:
        notebook: a py:percent file.
        given: parameters by name; strings are converted to the type that the notebook declares.
        profile: whose values the other parameters have.
        label: the folder under build/; None: the profile, or a name of its own where ``given`` changes something.
        force: compute everything anew, stored results too.
        progress: show how far it is.
        threads: of the kernel, unless OMP_NUM_THREADS is set; None: as many as it likes.

    Raises:
        InputError: unknown or mistyped parameters, an unreadable notebook, a folder that cannot be written. A notebook
            that fails while running raises nothing: ``report.error`` says why, ``report.ipynb`` holds the traceback.
    """
    plan = plan_run(notebook, given, profile=profile, label=label, recompute_before=time.time() if force else None)
    return _side_by_side([plan], 1, progress=progress, threads=threads)[0]


def paper(
    profile: str,
    *,
    notebooks: Sequence[Path] | None = None,
    force: bool = False,
    progress: bool = True,
    jobs: int | None = None,
) -> list[RunReport]:
    """Run notebooks side by side; one that fails does not stop the others.

    Args:
        notebooks: None: all numbered notebooks of the project.
        jobs: notebooks at a time; None: 1 on a machine with a GPU, else one a core, up to 4. They share the cores
            evenly, unless OMP_NUM_THREADS says otherwise: two kernels of one thread do more than one of two.

    Raises:
        InputError: the project has no numbered notebook, one of them is unreadable, or jobs is below 1; nothing has
            run then.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1")
    since = time.time() if force else None  # one moment for all, so that a result they share is computed once
    notebooks = paper_notebooks() if notebooks is None else notebooks
    plans = [plan_run(notebook, profile=profile, recompute_before=since) for notebook in notebooks]
    jobs = min(jobs or (1 if has_gpu() else min(cores(), 4)), max(1, len(plans)))
    threads = max(1, cores() // jobs) if jobs > 1 else None
    return _side_by_side(plans, jobs, progress=progress, threads=threads)


def _side_by_side(plans: Sequence[Plan], jobs: int, *, progress: bool, threads: int | None) -> list[RunReport]:
    """Each plan in a thread that waits for its kernel; an interrupt ends all kernels and is raised again."""
    watch = Progress({plan.notebook.stem: _earlier_seconds(plan) for plan in plans}, jobs)
    with watch.shown(progress), ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run, plan, watch, threads) for plan in plans]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while wait(futures, timeout=0.1).not_done:
                end_kernels()
            raise
    return [future.result() for future in futures]


def _run(plan: Plan, watch: Progress, threads: int | None) -> RunReport:
    name = plan.notebook.stem
    with locked(plan.out / f".{name}.lock", lambda: watch.say(f"waiting for another run of {name} in {plan.out}")):
        report = up_to_date(plan) if plan.context.recompute_before is None else None
        if report is None:
            report = _execute(plan, watch, threads)
            outcome = f"FAILED, {report.error}" if report.error else f"done in {duration(report.seconds)}"
            watch.end(name, report.seconds, outcome)
        else:
            watch.end(name, 0, "up to date")
        return report


def _execute(plan: Plan, watch: Progress, threads: int | None) -> RunReport:
    """Execute in a hidden folder, ours alone by the lock; then move what was made into the folder of the label."""
    name, out, begun = plan.notebook.stem, plan.out, time.time()
    hidden = out / f".{name}.running"
    shutil.rmtree(hidden, ignore_errors=True)  # of a killed run
    failed, ipynb = out / f"{name}.failed.ipynb", hidden / f"{name}.ipynb"
    try:
        with storable(out):
            hidden.mkdir(parents=True)
            watch.begin(name)
            watcher = {"on_cell": functools.partial(watch.cell, name), "on_stderr": functools.partial(watch.said, name)}
            error = execute(plan.into(hidden), ipynb, threads=threads, **watcher)
            seconds = round(time.time() - begun, 1)
            if error is not None:
                os.replace(ipynb, failed)
                return RunReport(plan.notebook, plan.context.run, out, seconds, False, failed, error=error)
            ipynb.with_suffix(".html").write_text(page(ipynb, name), encoding="utf-8")
            entry = record(hidden, plan.context, code=plan.code, seconds=seconds)
            _move(hidden, out, name, entry["files"])
            failed.unlink(missing_ok=True)
        enter(out, name, entry)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return _report(plan, seconds, entry["files"])


def _move(hidden: Path, out: Path, name: str, files: Iterable[str]) -> None:
    """Move the files of a run into place, and remove those of the run before it that it did not make."""
    for file in (f"{name}.ipynb", f"{name}.html", *files):
        (out / file).parent.mkdir(exist_ok=True)
        os.replace(hidden / file, out / file)
    for file in read_manifest(out).get(name, {}).get("files", {}):
        if file not in files:
            (out / file).unlink(missing_ok=True)


def up_to_date(plan: Plan) -> RunReport | None:
    """The report of an equal, finished run of the same prose whose files are as it left them; None if there is none."""
    entry = finished(plan.out, plan.context)
    if entry is None or not _same_prose(plan):
        return None
    return _report(plan, entry["seconds"], entry["files"], reused=True)


def _same_prose(plan: Plan) -> bool:
    import jupytext

    ipynb, html = (plan.out / f"{plan.notebook.stem}{suffix}" for suffix in (".ipynb", ".html"))
    if not (ipynb.is_file() and html.is_file()):
        return False
    written = [cell.source for cell in jupytext.read(plan.notebook, fmt="py:percent").cells]
    executed = jupytext.read(ipynb).cells
    return written == [cell.source for cell in executed if "injected-parameters" not in cell.metadata.get("tags", [])]


def _report(plan: Plan, seconds: float, files: Iterable[str], *, reused: bool = False) -> RunReport:
    figures = tuple(plan.out / file for file in files if file.startswith("figures/"))
    tables = tuple(plan.out / file for file in files if file.startswith("results/"))
    ipynb, html = (plan.out / f"{plan.notebook.stem}{suffix}" for suffix in (".ipynb", ".html"))
    return RunReport(plan.notebook, plan.context.run, plan.out, seconds, reused, ipynb, html, figures, tables)


def _earlier_seconds(plan: Plan) -> float | None:
    """What this notebook took in its folder before, or as the reference."""
    for folder in (plan.out, plan.root / "results"):
        if seconds := read_manifest(folder).get(plan.notebook.stem, {}).get("seconds"):
            return float(seconds)
    return None


def summary(reports: Sequence[RunReport]) -> str:
    """One screen: per notebook what was made, how long it took and where to look."""
    root = project_root()
    lines = []
    for report in reports:
        took = "FAILED" if report.error else "up to date" if report.reused else duration(report.seconds)
        figures = len({path.stem for path in report.figures})
        made = report.error or f"{figures:2d} figures {len(report.tables):2d} tables"
        where = report.html or report.ipynb
        where = where.relative_to(root) if where.is_relative_to(root) else where
        lines.append(f"{report.notebook.stem:<26} {took:>12}  {made}  {where}")
    count = Counter(report.error is not None for report in reports)
    total = duration(sum(report.seconds for report in reports if not report.reused))
    lines += ["", f"{len(reports)} notebook{'s' * (len(reports) != 1)}, {count[True]} failed, {total} of work."]
    return "\n".join(lines)
