"""Workers of a SLURM or PBS queue for `nullpaper sweep`: a Dask scheduler here, and jobs of the queue that join it.

Run it on a machine that may submit jobs and that the workers can reach (a login node, usually in tmux)::

    python sweeps/cluster.py slurm --workers 8 --queue gpu --directive=--gres=gpu:1 --interface ib0
    nullpaper sweep sweeps/seeds.yaml --scheduler build/cluster/scheduler.json \\
        --tls-ca build/cluster/tls.pem --tls-cert build/cluster/tls.pem --tls-key build/cluster/key.pem

Connections are encrypted, and only who can read build/cluster/key.pem (you) can make them; the certificate is made anew
at each start. The project, its results and the cache (NULLPAPER_HOME) must lie on a disk that all machines share. A
worker whose time is up goes away, its job is done again by another one, and Ctrl-C ends them all.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import click
from dask_jobqueue import PBSCluster, SLURMCluster
from dask_jobqueue.local import LocalCluster
from distributed.security import Security

QUEUES = {"slurm": SLURMCluster, "pbs": PBSCluster, "local": LocalCluster}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("system", type=click.Choice([*QUEUES]))
@click.option("--workers", default=1, show_default=True, help="Jobs of the queue, each one worker that does one job.")
@click.option("--queue", help="Partition or queue.")
@click.option("--account", help="Account that pays.")
@click.option("--walltime", default="04:00:00", show_default=True, help="After which the queue ends a worker.")
@click.option("--cores", default=4, show_default=True, help="CPU cores a worker.")
@click.option("--memory", default="16GB", show_default=True, help="Memory a worker.")
@click.option("--directive", multiple=True, help="More for the queue, as in a job script: --gres=gpu:1. Repeatable.")
@click.option("--interface", help="Network interface that the workers reach this machine by, such as ib0.")
@click.option("--folder", type=click.Path(path_type=Path), default="build/cluster", show_default=True)
@click.option("--show", is_flag=True, help="Print the job script, and submit nothing.")
def main(system: str, workers: int, folder: Path, show: bool, **asked: Any) -> None:
    """Start a scheduler here and WORKERS in the queue of SYSTEM; "local" stands for a queue where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {name: asked[name] for name in ("cores", "memory", "walltime", "queue", "account")}
    if system == "local":
        options = {name: options[name] for name in ("cores", "memory")}
    else:
        options["job_extra_directives"] = [*asked["directive"]]
    cluster = QUEUES[system](
        processes=1,
        worker_extra_args=["--nthreads", "1"],  # one job at a time, which may use all the cores
        interface=asked["interface"],
        local_directory=str(folder.resolve()),
        protocol="tls://",
        security=_security(folder.resolve()),
        scheduler_options={"scheduler_file": str(folder / "scheduler.json"), "dashboard_address": "127.0.0.1:0"},
        **options,
    )
    if show:
        click.echo(cluster.job_script())
        return cluster.close()
    cluster.scale(workers)
    files = f"--tls-ca {folder}/tls.pem --tls-cert {folder}/tls.pem --tls-key {folder}/key.pem"
    click.echo(f"nullpaper sweep GRID.yaml --threads {asked['cores']} --scheduler {folder}/scheduler.json {files}")
    click.echo(f"{workers} workers asked for; Ctrl-C ends them")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    cluster.close()


def _security(folder: Path) -> Security:
    """One certificate that signs itself, for the scheduler, the workers and you; its key is yours alone to read."""
    made = Security.temporary()
    files = {"tls.pem": made.tls_ca_file, "key.pem": made.tls_client_key}
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    roles = ("client", "scheduler", "worker")
    paths = {f"tls_{role}_cert": str(folder / "tls.pem") for role in roles}
    paths |= {f"tls_{role}_key": str(folder / "key.pem") for role in roles}
    return Security(tls_ca_file=str(folder / "tls.pem"), require_encryption=True, **paths)


if __name__ == "__main__":
    main()
