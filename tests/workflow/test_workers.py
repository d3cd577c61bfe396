"""Sweeps on Dask: a cluster of this machine, and a real scheduler with workers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import psutil
import pytest
from distributed.security import Security
from sweeping import command, environment, executions, grid, project, results, run

import nullpaper
from nullpaper.errors import InputError
from nullpaper.workflow.workers import local_workers, scheduler_workers

pytestmark = pytest.mark.long
EXAMPLE = str(Path(__file__).parents[2] / "sweeps" / "cluster.py")
QUICK = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}


@contextmanager
def started(root: Path, program: str, *arguments: object, ready: str, **variables: str) -> Iterator[re.Match[str]]:
    """A Dask scheduler, worker or cluster, once it has said that it is ready."""
    module = [program] if program == EXAMPLE else ["-m", f"distributed.cli.{program}"]
    asked = [sys.executable, "-u", *module, *map(str, arguments)]
    variables = environment(root, **variables)
    process = subprocess.Popen(
        asked, cwd=root, env=variables, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if found := re.search(ready, line):
                yield found
                break
        else:
            raise AssertionError(f"{program} did not start")
    finally:
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()
        process.wait()
        process.stdout.close()


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    end = time.time() + seconds
    while not happened() and time.time() < end:
        time.sleep(0.1)


@contextmanager
def cluster(root: Path, **variables: str) -> Iterator[str]:
    """The address of a scheduler on the loopback interface with one worker."""
    scheduler = ("--host", "tcp://127.0.0.1", "--port", 0, "--no-dashboard")
    with started(root, "dask_scheduler", *scheduler, ready=r"Scheduler at:\s+(\S+)") as found:
        worker = (found[1], "--no-nanny", "--nthreads", 2, "--no-dashboard")
        with started(root, "dask_worker", *worker, ready="Registered to", **variables):
            yield found[1]


def test_a_cluster_of_this_machine_listens_to_itself_alone() -> None:
    with local_workers(1) as client:
        ours = psutil.Process()
        listening = [
            connection.laddr.ip
            for process in [ours, *ours.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert client.nthreads().popitem()[1] == 1 and client.submit(os.getpid).result(30) != os.getpid()
    assert listening and {*listening} == {"127.0.0.1"}


def test_the_example_for_queues_does_the_jobs_with_tls_and_turns_others_away(tmp_path: Path) -> None:
    root = project(tmp_path)
    file, folder, place = grid(root, seed=[1, 2]), tmp_path / "build" / "sweeps" / "tried", tmp_path / "cluster"
    example = (EXAMPLE, "local", "--workers", 2, "--cores", 1, "--memory", "1GB", "--folder", place)
    with started(root, *example, ready="workers asked for"):
        address, certificate, key = place / "scheduler.json", place / "tls.pem", place / "key.pem"
        assert key.stat().st_mode & 0o077 == 0, "nobody else may read the key"
        wait_until(address.exists)
        own = ("--tls-ca", certificate, "--tls-cert", certificate)
        done = run(root, "sweep", file, "--scheduler", address, *own, "--tls-key", key)
        assert done.returncode == 0 and "2 jobs: 2 done now" in done.stdout, done.stderr
        bare = run(root, "sweep", file, "--scheduler", address)
        assert bare.returncode == 2 and "needs certificates: give --tls-ca, --tls-cert and --tls-key" in bare.stderr
        stranger = Security.temporary()
        (tmp_path / "cert.pem").write_text(stranger.tls_client_cert)
        (tmp_path / "key.pem").write_text(stranger.tls_client_key)
        theirs = ("--tls-ca", certificate, "--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
        unknown = run(root, "sweep", file, "--scheduler", address, *theirs, **QUICK)
        assert unknown.returncode == 2 and "no Dask scheduler answers" in unknown.stderr
    assert len(results(folder)) == 2 and all(len(lines) == 1 for lines in executions(root).values())


@pytest.mark.parametrize(("system", "directive"), [("slurm", "#SBATCH -p long"), ("pbs", "#PBS -q long")])
def test_the_example_writes_the_scripts_of_queues(system: str, directive: str, tmp_path: Path) -> None:
    asked = [sys.executable, EXAMPLE, system, "--queue", "long", "--show", "--folder", str(tmp_path)]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert directive in shown and "--nthreads 1" in shown and f"--tls-key {tmp_path / 'key.pem'}" in shown


def test_workers_with_another_version_are_named(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    notebook = root / "notebooks" / "trivial.py"
    notebook.write_text(notebook.read_text() + "\nfrom nullpaper import statistics\n")
    other = tmp_path / "other" / "nullpaper"
    shutil.copytree(Path(nullpaper.__file__).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "statistics.py").write_text((other / "statistics.py").read_text().replace("2_000", "2_001"))
    with cluster(root, PYTHONPATH=str(other.parent)) as address:
        done = run(root, "sweep", grid(root, seed=[1]), "--scheduler", address)
    assert done.returncode == 2 and "has another version of the package" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not executions(root)


def test_an_interrupt_ends_the_jobs_of_a_cluster_that_goes_on(tmp_path: Path) -> None:
    root = project(tmp_path)
    file = grid(root, seed=[1], fixed={"nap": 300.0})
    with cluster(root) as address:
        asked = command("sweep", file, "--scheduler", address)
        driver = subprocess.Popen(asked, cwd=root, env=environment(root), stderr=subprocess.PIPE, text=True)
        while not kernels(root):
            time.sleep(0.1)
        driver.send_signal(signal.SIGINT)
        said = driver.communicate(timeout=20)[1]
        assert driver.returncode == 130 and "the same command goes on from here" in said
        wait_until(lambda: not kernels(root), 10)
        assert not kernels(root), "nobody waits for the job any more"
        again = run(root, "sweep", grid(root, seed=[2]), "--scheduler", address)
        assert again.returncode == 0 and "1 done now" in again.stdout, "the worker is free"


def kernels(root: Path) -> list[psutil.Process]:
    """The kernels that run for a project."""
    running = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ipykernel_launcher" in process.cmdline() and process.environ().get("NULLPAPER_ROOT") == str(root):
                running.append(process)
    return running


def test_a_scheduler_that_goes_away_ends_the_sweep_with_a_sentence(tmp_path: Path) -> None:
    root = project(tmp_path)
    file = grid(root, seed=[1, 2, 3], fixed={"nap": 30.0})
    with ExitStack() as stack:
        address = stack.enter_context(cluster(root))
        asked = command("sweep", file, "--scheduler", address)
        driver = subprocess.Popen(
            asked, cwd=root, env=environment(root, **QUICK), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert "3 jobs" in driver.stderr.readline()
        stack.close()
        said = driver.communicate(timeout=60)[1]
    assert (
        driver.returncode == 2 and "start it and its workers and run the sweep again; what is finished stays" in said
    ), said


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("tcp://192.0.2.1:8786", "is another machine without TLS"),
        ("http://127.0.0.1:80", "is no address of a scheduler"),
        ("absent.json", "is no scheduler file"),
        ("tls://127.0.0.1:1", "needs certificates"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, message: str) -> None:
    quick = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with quick, pytest.raises(InputError, match=message), scheduler_workers(address):
        pass
