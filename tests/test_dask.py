"""Sweeps on Dask: a cluster of this machine, and a real scheduler with workers in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import psutil
import pytest
import trustme
from sweeps import command, environment, executions, grid, project, results, run

import nullpaper
from nullpaper.errors import InputError
from nullpaper.executors import Tls, dask_pool

QUICK = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}


@contextmanager
def started(root: Path, program: str, *arguments: object, ready: str, **variables: str) -> Iterator[re.Match[str]]:
    """A Dask scheduler or worker, once it has said that it is ready."""
    asked = [sys.executable, "-m", f"distributed.cli.{program}", *map(str, arguments)]
    process = subprocess.Popen(
        asked,
        cwd=root,
        env=environment(root, **variables),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        for line in process.stderr:
            if found := re.search(ready, line):
                yield found
                break
        else:
            raise AssertionError(f"{program} did not start")
    finally:
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()
        process.wait()
        process.stderr.close()


@contextmanager
def cluster(root: Path, *security: object, protocol: str = "tcp", **variables: str) -> Iterator[str]:
    """The address of a scheduler on the loopback interface with one worker."""
    scheduler = ("--host", f"{protocol}://127.0.0.1", "--port", 0, "--no-dashboard", *security)
    with started(root, "dask_scheduler", *scheduler, ready=r"Scheduler at:\s+(\S+)") as found:
        worker = (found[1], "--no-nanny", "--nthreads", 2, "--no-dashboard", *security)
        with started(root, "dask_worker", *worker, ready="Registered to", **variables):
            yield found[1]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    own = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def test_a_cluster_of_this_machine_listens_to_itself_alone(tmp_path: Path) -> None:
    with dask_pool(None, 1) as pool:
        ours = psutil.Process()
        listening = [
            connection.laddr.ip
            for process in [ours, *ours.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert pool.slots == 1 and pool.executor.submit(os.getpid).result(30) != os.getpid()
    assert listening and {*listening} == {"127.0.0.1"}


def test_a_scheduler_with_tls_does_the_jobs_and_turns_others_away(tmp_path: Path, certificates: Tls) -> None:
    root = project(tmp_path)
    file, folder = grid(root, seed=[1, 2, 3]), tmp_path / "build" / "sweeps"
    files = ("--tls-ca-file", certificates.ca, "--tls-cert", certificates.cert, "--tls-key", certificates.key)
    with cluster(root, *files, protocol="tls") as address:
        own = ("--tls-ca", certificates.ca, "--tls-cert", certificates.cert, "--tls-key", certificates.key)
        done = run(root, "sweep", file, "--scheduler", address, *own)
        assert done.returncode == 0, done.stderr
        bare = run(root, "sweep", file, "--scheduler", address)
        assert bare.returncode == 2 and "needs certificates: give --tls-ca, --tls-cert and --tls-key" in bare.stderr
        plain = run(root, "sweep", file, "--scheduler", address.replace("tls", "tcp"), **QUICK)
        assert plain.returncode == 2 and "no Dask scheduler answers" in plain.stderr
        stranger = trustme.CA().issue_cert("127.0.0.1")
        stranger.private_key_pem.write_to_path(tmp_path / "key.pem")
        stranger.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        theirs = ("--tls-ca", certificates.ca, "--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
        unknown = run(root, "sweep", file, "--scheduler", address, *theirs, **QUICK)
        assert unknown.returncode == 2 and "no Dask scheduler answers" in unknown.stderr
    assert len(results(folder)) == 3 and all(len(lines) == 1 for lines in executions(root).values())


def test_workers_that_cannot_do_the_jobs_are_named(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    notebook = root / "notebooks" / "trivial.py"
    notebook.write_text(notebook.read_text() + '\nDATA = "cifar10"\nfrom nullpaper import statistics\n')
    other = tmp_path / "other" / "nullpaper"
    shutil.copytree(Path(nullpaper.__file__).parent, other, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    (other / "errors.py").write_text((other / "errors.py").read_text().replace("n=1", "n=2"))
    file = grid(root, seed=[1])
    for variables, message in (
        ({"PYTHONPATH": str(other.parent)}, "has another version of nullpaper or of Python"),
        ({"NULLPAPER_HOME": str(tmp_path / "empty")}, "lacks the data set cifar10 in"),
    ):
        with cluster(root, **variables) as address:
            done = run(root, "sweep", file, "--scheduler", address)
            assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not executions(root)


def test_a_scheduler_that_goes_away_ends_the_sweep_with_a_sentence(tmp_path: Path) -> None:
    root = project(tmp_path)
    file = grid(root, seed=[1, 2, 3, 4, 5, 6], fixed={"nap": 1.0})
    with ExitStack() as stack:
        address = stack.enter_context(cluster(root))
        asked = command("sweep", file, "--scheduler", address)
        driver = subprocess.Popen(
            asked, cwd=root, env=environment(root, **QUICK), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert "6 jobs" in driver.stderr.readline()
        stack.close()
        said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 2 and "start them and run the sweep again; what is finished stays" in said, said


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
    with quick, pytest.raises(InputError, match=message), dask_pool(address, 1):
        pass
