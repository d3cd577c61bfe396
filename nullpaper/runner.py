"""Runs notebooks: py:percent -> jupytext -> papermill -> executed notebook, HTML, figures, tables, and a run record.

A run is named by the digest of all that decides it: the notebook's text, its parameters, its profile, the code that it
imports and the shipped checkpoints. A finished run whose files are all still in place is not repeated.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, storable, write_atomic
from nullpaper.identity import code_identity, dumps, identity, loads
from nullpaper.parameters import check_parameters, parameters, read_notebook
from nullpaper.plots import manifest
from nullpaper.profiles import check_profile
from nullpaper.provenance import RunContext, commit_of, device_name, project_root, versions

__all__ = ["RunReport", "paper", "run_notebook", "summary"]

GPU_PROFILES = ("gpu", "imagenet")


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


@dataclass(frozen=True)
class _Plan:
    """A checked run that has not begun: its context and its files."""

    notebook: Path
    root: Path
    context: RunContext
    injected: Mapping[str, Any]

    def output(self, suffix: str) -> Path:
        return self.root / "build" / self.context.label / f"{self.notebook.stem}{suffix}"


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
    plan = _plan(notebook, dict(given or {}), profile, force, label)
    lock = plan.output(".lock").with_name(f".{notebook.stem}.lock")
    with locked(lock, lambda: say(f"waiting for another run of {notebook.name} at profile {profile}")):
        if not (force or redraw) and (report := _up_to_date(plan)) is not None:
            return report
        return _execute(plan, progress, threads)


def paper(
    profile: str,
    *,
    force: bool = False,
    redraw: bool = False,
    progress: bool = True,
    jobs: int | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> list[RunReport]:
    """Run all numbered notebooks of the project in order; one that fails does not stop those behind it.

    Args:
        jobs: notebooks at a time; by default 1 at a GPU profile, else one a core, up to 4. They share the cores evenly,
            unless OMP_NUM_THREADS says otherwise: two kernels of one thread do more than one of two.

    Raises:
        InputError: the project has no numbered notebook, one of them is unreadable, or jobs is below 1; nothing has
            run then.
    """
    folder = project_root() / "notebooks"
    notebooks = sorted(folder.glob("[0-9]*.py"))
    if not notebooks:
        raise InputError(f"{folder} holds no numbered notebook: run this inside the repository, or set NULLPAPER_ROOT")
    for notebook in notebooks:
        parameters(notebook)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or (1 if profile in GPU_PROFILES else min(cores, 4)), len(notebooks))
    since = time.time() if force else False  # one moment for all, so that a result they share is computed once
    options = dict(profile=profile, force=since, redraw=redraw, progress=progress, say=say)

    def run(notebook: Path) -> RunReport:
        say(f"{notebook.name} at profile {profile}")
        return run_notebook(notebook, threads=max(1, cores // jobs) if jobs > 1 else None, **options)

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


def _plan(notebook: Path, given: dict[str, Any], profile: str, force: bool | float, label: str | None = None) -> _Plan:
    check_profile(profile)
    label = label or profile
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", label):
        raise InputError(f"label {label!r} is no folder name: use letters, digits, '_', '-' and '.'")
    checked, known = check_parameters(notebook, given), parameters(notebook)
    if (other := checked.get("profile", profile)) != profile:
        raise InputError(f"the parameter profile is '{other}' but the run's profile is '{profile}': give one of them")
    injected = checked | ({"profile": profile} if "profile" in known else {})
    values = {name: parameter.default for name, parameter in known.items()} | injected
    root = project_root()
    checkpoints = {path.name: sha256(path) for path in sorted((Path(__file__).parent / "checkpoints").glob("*.*"))}
    digest = identity(read_notebook(notebook), values, profile, label, code_identity([notebook]), checkpoints)
    commit, dirty = commit_of(root)
    before = time.time() if force is True else force or None
    run = f"{notebook.stem}-{digest[:12]}"
    context = RunContext(run, notebook.name, profile, values, commit, dirty, before, label)
    return _Plan(notebook, root, context, injected)


def _up_to_date(plan: _Plan) -> RunReport | None:
    """The report of an equal, finished run whose files are all as it left them."""
    try:
        record = loads(plan.output(".run.json").read_bytes())
        if record["run"] != plan.context.run:
            return None
        if any(sha256(plan.root / file) != digest for file, digest in record["files"].items()):
            return None
        return replace(_report(plan, record["seconds"], record["files"]), reused=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, incomplete or damaged: run again


def _report(plan: _Plan, seconds: float, files: Iterable[str]) -> RunReport:
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


def _execute(plan: _Plan, progress: bool, threads: int | None) -> RunReport:
    """Execute under a temporary name, then put notebook, HTML and run record in place, the record last."""
    ipynb, html, failed = plan.output(".ipynb"), plan.output(".html"), plan.output(".failed.ipynb")
    begun = time.time()
    with storable(ipynb.parent):
        ipynb.parent.mkdir(parents=True, exist_ok=True)
        plan.output(".run.json").unlink(missing_ok=True)
    running = ipynb.with_name(f".{plan.notebook.stem}.running.ipynb")  # ours alone, by the lock
    with storable(running.parent):
        error = _papermill(plan, running, progress, threads)
    seconds = round(time.time() - begun, 2)
    if error is not None:
        with storable(failed.parent):
            os.replace(running, failed)
        return RunReport(plan.notebook, plan.context.run, plan.context.profile, seconds, False, failed, error=error)
    page = _html(running, plan.notebook.stem)
    with storable(ipynb.parent):
        os.replace(running, ipynb)
        failed.unlink(missing_ok=True)
    write_atomic(html, page)
    made = [file for file, entry in manifest(plan.root).items() if entry.get("run") == plan.context.run]
    files = [path.relative_to(plan.root).as_posix() for path in (ipynb, html)] + made
    context = plan.context
    record = {"run": context.run, "notebook": context.notebook, "profile": context.profile}
    record |= {"parameters": context.parameters, "commit": context.commit, "dirty": context.dirty}
    record |= {"versions": versions(), "device": device_name(), "seconds": seconds}
    record["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun))
    record["files"] = {file: sha256(plan.root / file) for file in files}
    write_atomic(plan.output(".run.json"), dumps(record))
    return _report(plan, seconds, files)


def _papermill(plan: _Plan, running: Path, progress: bool, threads: int | None) -> str | None:
    """Execute the notebook into ``running``; the last line of the traceback if it fails."""
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    node = load_notebook_node(jupytext.reads(read_notebook(plan.notebook), fmt="py:percent"))
    if plan.injected:
        node = parameterize_notebook(node, dict(plan.injected), kernel_name="python3", language="python")
    try:
        papermill.execute_notebook(
            node,
            str(running).replace("{", "{{").replace("}", "}}"),  # papermill formats the path
            kernel_name="python3",
            language="python",
            progress_bar={"desc": plan.notebook.stem} if progress else False,
            stderr_file=sys.stderr if progress else None,
            kernel_manager_class=_kernel_manager(plan.context, threads),
            resources={"metadata": {"path": str(plan.root)}},
            coalesce_streams=True,
            start_timeout=300,  # a machine that trains on all its cores starts a kernel slowly
            iopub_timeout=120,
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}".strip().splitlines()[0]
    except DeadKernelError as error:
        return f"the kernel died, perhaps for want of memory ({error})"
    return None


def _kernel_manager(context: RunContext, threads: int | None) -> type:
    """A kernel manager that knows one kernel: this Python, told about the run in its environment.

    A kernelspec named python3 that is installed somewhere may start another Python.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from traitlets import default

    quiet = "ignore:IProgress not found"  # the hub's client asks for widgets, which an executed page cannot show
    environment = {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": quiet} | context.environment()
    if threads is not None:
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
    specification = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env={name: value.replace("$", "$$") for name, value in environment.items()},  # jupyter expands $NAME
    )

    class Specifications(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return specification

    class Manager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_python(self) -> KernelSpecManager:
            return Specifications(parent=self)

    return Manager


def _html(ipynb: Path, title: str) -> str:
    """The executed notebook as one page with its images inside; only typeset formulas ask the network for MathJax."""
    import nbformat
    from nbconvert import HTMLExporter

    unused = ("html_head_js", "html_head_js_mermaidjs")  # scripts from the network that no notebook here needs
    blocks = "".join(f"{{% block {name} %}}{{% endblock %}}" for name in unused)
    exporter = HTMLExporter(raw_template=f"{{% extends 'index.html.j2' %}}{blocks}", embed_images=True)
    page, _ = exporter.from_notebook_node(nbformat.read(ipynb, as_version=4), {"metadata": {"name": title}})
    return page
