"""The command ``nullpaper sweep``."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import click

__all__ = ["sweep"]

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


@click.command()
@click.argument("grid", type=FILE)
@click.option("--profile", metavar="NAME", help="Instead of the grid file's, or of what fits the machine.")
@click.option("--dry-run", is_flag=True, help="List the jobs, and run nothing.")
@click.option("--yes", is_flag=True, help="Do start more than 10,000 jobs.")
@click.option("--folder", type=FILE, help="For the results; build/sweeps by default.")
@click.option(
    "--retries", type=click.IntRange(min=0), default=1, show_default=True, help="New attempts at a failed job."
)
@click.option(
    "--executor",
    type=click.Choice(["local", "dask"]),
    help="Processes of this machine (default), or Dask workers: a cluster of this machine, or one at --scheduler.",
)
@click.option("--workers", type=COUNT, help="Jobs at a time on this machine; by default as many as threads allow.")
@click.option("--threads", type=COUNT, help="CPU threads a job; 1 by default, with GPUs as many as it likes.")
@click.option("--gpus", metavar="0,1", help="GPUs to use; all by default, none with ''.")
@click.option("--per-gpu", type=COUNT, default=1, show_default=True, help="Jobs at a time on each GPU.")
@click.option("--scheduler", metavar="ADDRESS", help="tcp://host:port, tls://host:port or a scheduler file (JSON).")
@click.option("--tls-ca", type=FILE, help="Certificate of the authority that signed the cluster's (PEM).")
@click.option("--tls-cert", type=FILE, help="Certificate of this client (PEM).")
@click.option("--tls-key", type=FILE, help="Its key (PEM).")
@click.option("--insecure", is_flag=True, help="Use a scheduler on another machine without TLS.")
def sweep(
    grid: Path, profile: str | None, dry_run: bool, yes: bool, folder: Path | None, retries: int, **pool: Any
) -> None:
    """Run the jobs of a GRID file: papermill runs of one notebook, each in a process of its own.

    What is finished is not repeated, so the same command goes on after an interruption, and two of them share the work.
    A failed job keeps its notebook and stops no other. Exits with 1 if a job failed, 2 for bad input, 130 if
    interrupted.
    """
    from nullpaper.errors import InputError
    from nullpaper.workflow.collect import default_folder
    from nullpaper.workflow.grid import read_grid
    from nullpaper.workflow.profiles import check_profile, default_profile
    from nullpaper.workflow.sweep import drive, plan_sweep, register
    from nullpaper.workflow.watching import listing, summary, watched

    read = read_grid(grid, many=yes)
    chosen = check_profile(profile or read.profile) if profile or read.profile else default_profile()
    gpus = [] if dry_run else _gpus(pool)
    threads = pool["threads"] or (None if gpus else 1)
    planned = plan_sweep(read, folder=folder or default_folder(), profile=chosen, threads=threads)
    for sentence in planned.damaged():
        click.echo(f"{sentence.rpartition(':')[0]}: it is done again", err=True)
    if dry_run:
        progress = planned.progress()
        click.echo("\n".join(listing(planned, progress)))
        return click.echo(f"{len(planned.jobs)} jobs, {progress.count('found')} of them finished", err=True)
    register(planned)
    try:
        with _pool(pool, gpus, threads, planned) as executor, watched(planned) as callbacks:
            _say(f"{planned.grid.name}: {len(planned.jobs)} jobs at profile {chosen}, {executor.told}")
            progress = drive(planned, executor, retries=retries, **callbacks)
    except KeyboardInterrupt:
        _leave(130, "Interrupted: the same command goes on from here.")
    except InputError as error:
        _leave(2, f"Error: {error}")
    click.echo(summary(planned, progress, _shown))
    sys.exit(1 if progress.count("failed") else 0)


def _leave(status: int, message: str) -> NoReturn:
    """End at once, and with this process those of its jobs, which threads here may be waiting for."""
    _say(message)
    sys.stdout.flush()
    os._exit(status)


def _gpus(pool: dict[str, Any]) -> list[str]:
    from nullpaper.workflow.executors import visible_gpus

    if pool["gpus"] is not None:
        return [gpu.strip() for gpu in pool["gpus"].split(",") if gpu.strip()]
    return visible_gpus() if (pool["executor"] or "local") == "local" and not pool["scheduler"] else []


def _pool(pool: dict[str, Any], gpus: list[str], threads: int | None, planned: Any) -> AbstractContextManager[Any]:
    from nullpaper.errors import InputError
    from nullpaper.workflow.executors import Tls, dask_pool, local_pool
    from nullpaper.workflow.profiles import cores

    workers = pool["workers"] or max(1, cores() // (threads or 1))
    if pool["executor"] == "local" and pool["scheduler"]:
        raise InputError("--scheduler is for --executor dask: leave one of them out")
    if pool["executor"] == "dask" or pool["scheduler"]:
        tls = Tls(pool["tls_ca"], pool["tls_cert"], pool["tls_key"])
        return dask_pool(pool["scheduler"], workers, tls=tls, insecure=pool["insecure"], jobs=planned.jobs, say=_say)
    return local_pool(workers, gpus, pool["per_gpu"])


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _say(message: str) -> None:
    click.echo(message, err=True)
