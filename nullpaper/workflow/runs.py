"""Runs notebooks: py:percent -> jupytext -> papermill -> executed notebook, HTML, figures, tables, and a run record.

A run is named by the digest of all that decides it: the notebook's text, its parameters, its profile, the code that it
imports and the shipped checkpoints. A finished run whose files are all still in place is not repeated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, storable, write_atomic
from nullpaper.workflow.code_identity import dumps, loads
from nullpaper.workflow.figures import files_of
from nullpaper.workflow.kernels import execute, page
from nullpaper.workflow.parameters import parameters
from nullpaper.workflow.planning import Plan, paper_notebooks, plan_run
from nullpaper.workflow.profiles import GPU_PROFILES, cores
from nullpaper.workflow.provenance import project_root

__all__ = ["RunReport", "paper", "run_notebook", "summary", "up_to_date"]


@dataclass(frozen=True)
class RunReport:
    """What a run made. ``reused``: it was up to date. ``error``: the last line of the traceback of a failed one."""

    notebook: Path
    run: str
    profile: str
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
    force: bool | float = False,
    redraw: bool = False,
    progress: bool = True,
    threads: int | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> RunReport:
    """Run one notebook in a fresh kernel of this Python, unless an equal run is finished and its files are in place.

    Args:
        notebook: a py:percent file.
        given: parameters by name; strings are converted to the type that the notebook declares.
        profile: handed to the notebook as its parameter ``profile`` and to every figure.
        label: name of the folders under figures/, results/ and build/; None: the profile's.
        force: compute everything anew, stored results too; a Unix time spares those begun since.
        redraw: execute the notebook even if it is up to date; stored results are reused.
        progress: show a bar over cells, and what the kernel writes to stderr.
        threads: of the kernel, unless OMP_NUM_THREADS is set; None: as many as it likes.
        say: called with a sentence when the run waits for another one.

    Raises:
        InputError: unknown or mistyped parameters, an unreadable notebook, a folder that cannot be written. A notebook
            that fails while running raises nothing: ``report.error`` says why, ``report.ipynb`` holds the traceback.
    """
    before = time.time() if force is True else force or None
    plan = plan_run(notebook, given or {}, profile=profile, label=label, recompute_before=before)
    lock = plan.output(".lock").with_name(f".{notebook.stem}.lock")
    with locked(lock, lambda: say(f"waiting for another run of {notebook.name} at profile {profile}")):
        if not (force or redraw) and (report := up_to_date(plan)) is not None:
            return report
        return _execute(plan, progress, threads)


def paper(
    profile: str,
    *,
    force: bool = False,
    redraw: bool = False,
    stale: bool = False,
    progress: bool = True,
    jobs: int | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> list[RunReport]:
    """Run all numbered notebooks of the project in order; one that fails does not stop those behind it.

    Args:
        stale: only those whose figures or tables are not what they would be today (`verify.to_redraw`).
        jobs: notebooks at a time; by default 1 at a GPU profile, else one a core, up to 4. They share the cores evenly,
            unless OMP_NUM_THREADS says otherwise: two kernels of one thread do more than one of two.

    Raises:
        InputError: the project has no numbered notebook, one of them is unreadable, or jobs is below 1; nothing has
            run then.
    """
    notebooks = paper_notebooks()
    for notebook in notebooks:
        parameters(notebook)
    if stale and not force:
        from nullpaper.workflow.verify import to_redraw

        notebooks = to_redraw(notebooks, profile)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1")
    jobs = min(jobs or (1 if profile in GPU_PROFILES else min(cores(), 4)), max(1, len(notebooks)))
    since = time.time() if force else False  # one moment for all, so that a result they share is computed once
    options = dict(profile=profile, force=since, redraw=redraw, progress=progress, say=say)

    def run(notebook: Path) -> RunReport:
        say(f"{notebook.name} at profile {profile}")
        return run_notebook(notebook, threads=max(1, cores() // jobs) if jobs > 1 else None, **options)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, notebooks))


def summary(reports: Iterable[RunReport]) -> str:
    """One screen: per notebook what was made, how long it took and where to look."""
    reports, root = list(reports), project_root()

    def shown(path: Path) -> str:
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

    lines = []
    for report in reports:
        took = "FAILED" if report.error else "up to date" if report.reused else _duration(report.seconds)
        figures = len({path.stem for path in report.figures})
        tables = len({path.stem for path in report.tables})
        made = report.error or f"{figures:3d} figures {tables:3d} tables"
        lines.append(f"{report.notebook.stem:<24} {took:>10}  {made}")
        lines.append(f"{'':<24} {'':>10}  {shown(report.html or report.ipynb)}")
    folders = sorted({shown(path.parent) for report in reports for path in (*report.figures, *report.tables)})
    failed = sum(report.error is not None for report in reports)
    total = _duration(sum(report.seconds for report in reports if not report.reused))
    counted = f"{len(reports)} notebook{'s' * (len(reports) != 1)}"
    lines += ["", f"{counted}, {failed} failed, {total} of work. Figures and tables: {', '.join(folders) or 'none'}"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {int(rest):02d} s" if minutes else f"{rest:.1f} s"


def up_to_date(plan: Plan) -> RunReport | None:
    """The report of an equal, finished run whose files are all as it left them."""
    try:
        record = loads(plan.output(".run.json").read_bytes())
        if record["run"] != plan.context.run:
            return None
        files = {file for file in record["files"] if not file.startswith("build/")}
        if not files <= {*files_of(plan.context.run, plan.root)}:
            return None  # the manifest knows them by another run
        if any(sha256(plan.root / file) != digest for file, digest in record["files"].items()):
            return None
        return replace(_report(plan, record["seconds"], record["files"]), reused=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, incomplete or damaged: run again


def _report(plan: Plan, seconds: float, files: Iterable[str]) -> RunReport:
    paths = [plan.root / file for file in files]
    return RunReport(
        plan.notebook,
        plan.context.run,
        plan.context.profile,
        seconds,
        reused=False,
        ipynb=plan.output(".ipynb"),
        html=plan.output(".html"),
        figures=tuple(path for path in paths if path.is_relative_to(plan.root / "figures")),
        tables=tuple(path for path in paths if path.is_relative_to(plan.root / "results")),
    )


def _execute(plan: Plan, progress: bool, threads: int | None) -> RunReport:
    """Execute under a temporary name, then put notebook, HTML and run record in place, the record last."""
    ipynb, html, failed = plan.output(".ipynb"), plan.output(".html"), plan.output(".failed.ipynb")
    begun = time.time()
    with storable(ipynb.parent):
        ipynb.parent.mkdir(parents=True, exist_ok=True)
        plan.output(".run.json").unlink(missing_ok=True)
    running = ipynb.with_name(f".{plan.notebook.stem}.running.ipynb")  # ours alone, by the lock
    with storable(running.parent):
        error = execute(plan, running, progress=progress, threads=threads)
    seconds = round(time.time() - begun, 2)
    if error is not None:
        with storable(failed.parent):
            os.replace(running, failed)
        return RunReport(plan.notebook, plan.context.run, plan.context.profile, seconds, False, failed, error=error)
    html_text = page(running, plan.notebook.stem)
    with storable(ipynb.parent):
        os.replace(running, ipynb)
        failed.unlink(missing_ok=True)
    write_atomic(html, html_text)
    files = [path.relative_to(plan.root).as_posix() for path in (ipynb, html)] + files_of(plan.context.run, plan.root)
    sums = {"files": {file: sha256(plan.root / file) for file in files}}
    write_atomic(plan.output(".run.json"), dumps(plan.record(begun, seconds) | sums))
    return _report(plan, seconds, files)
