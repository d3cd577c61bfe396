"""A sweep as one watches it: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nullpaper.workflow.job import Job, Outcome
from nullpaper.workflow.sweep import Progress, Sweep

__all__ = ["described", "duration", "listing", "summary", "watched"]

STYLES = {"done": "green", "found": "green", "failed": "red", "running": "cyan"}
ROWS = 20


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def described(job: Job, sweep: Sweep) -> str:
    """A job by the parameters in which it differs from the others of its sweep."""
    return " ".join(f"{name}={job.given[name]}" for name in sweep.grid.varied or job.given)


def listing(sweep: Sweep, progress: Progress) -> Iterator[str]:
    """The jobs of a dry run, a line each."""
    for job in sweep.jobs:
        state = "finished" if progress.states[job.name] == "found" else "to do"
        yield f"{job.name}  {state:<8}  {described(job, sweep)}"


def summary(sweep: Sweep, progress: Progress, shown: Callable[[Path], str]) -> str:
    """What a sweep did, where failures lie, and what to do next."""
    lines = [""]
    for job in sweep.jobs:
        if progress.states[job.name] == "failed":
            lines.append(f"failed: {described(job, sweep)}: {progress.errors[job.name]}")
            if (kept := job.failure / "notebook.ipynb").is_file():
                lines.append(f"        {shown(kept)}")
    again = sum(attempts - 1 for attempts in progress.attempts.values())
    done, found, failed = (progress.count(state) for state in ("done", "found", "failed"))
    tried = f" ({again} attempts more)" if again else ""
    lines.append(
        f"{len(sweep.jobs)} jobs: {done} done now, {found} found done, {failed} failed{tried}, "
        f"in {duration(time.time() - progress.begun)}"
    )
    name = sweep.grid.name
    then = "run the same command again to try them anew" if failed else f"nullpaper report {name}"
    return "\n".join([*lines, f"results: {shown(sweep.folder)}; {then}"])


@contextlib.contextmanager
def watched(sweep: Sweep) -> Iterator[dict[str, Callable[..., object]]]:
    """The callbacks of `sweep.drive`: a live table on a terminal, and in any case a line for each attempt that ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)

    def tell(job: Job, outcome: Outcome, progress: Progress) -> None:
        if outcome.state not in ("done", "failed") or (console.is_terminal and outcome.state == "done"):
            return
        ended, eta = progress.count("done", "found", "failed"), progress.eta()
        left = f", {duration(eta)} left" if eta else ""
        tried = f" at attempt {progress.attempts[job.name]}: {outcome.error}" if outcome.state == "failed" else ""
        line = f"[{ended}/{len(sweep.jobs)}{left}] {described(job, sweep)}: {outcome.state}{tried}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield {"tell": tell}
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield {"tell": tell, "show": lambda progress: live.update(_table(sweep, progress))}


def _table(sweep: Sweep, progress: Progress) -> Any:
    """Counts and a bar above, below it the jobs under way, failures, and what comes next."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total, ended = len(sweep.jobs), progress.count("done", "found", "failed")
    left = duration(progress.eta() or 0) if progress.seconds else "unknown"
    head = Text.assemble(
        (f"{sweep.grid.name}  ", "bold"), f"{ended} of {total} jobs, {progress.count('running')} running, ",
        (f"{progress.count('failed')} failed", "red" if progress.count("failed") else ""),
        f"; {duration(time.time() - progress.begun)} so far, left: {left}",
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("state", "cell", "time", "job", "error"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    order = {"running": 0, "failed": 1, "waiting": 2, "elsewhere": 2}
    rows = [(job, state) for job in sweep.jobs if (state := progress.states[job.name]) in order]
    rows.sort(key=lambda row: order[row[1]])
    for job, state in rows[:ROWS]:
        cells = _status(job) if state == "running" else ("", "")
        error = progress.errors.get(job.name, "")
        table.add_row(Text(state, STYLES.get(state, "")), *cells, described(job, sweep), error)
    more = [Text(f"and {len(rows) - ROWS} more", "dim")] if len(rows) > ROWS else []
    return Group(head, ProgressBar(total=total, completed=ended), table, *more)


def _status(job: Job) -> tuple[str, str]:
    try:
        found = json.loads(job.status.read_bytes())
        return f"{found['cell']}/{found['cells']}", duration(time.time() - found["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""  # it has just ended
