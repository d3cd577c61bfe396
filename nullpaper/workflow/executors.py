"""Where the jobs of a sweep run: local processes or the workers of a Dask cluster, both as `concurrent.futures` pools.

Dask sends functions to its workers and runs them, so whoever reaches a scheduler can run anything there: a cluster of
this machine binds to the loopback interface alone, and a scheduler elsewhere is asked for TLS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nullpaper.errors import InputError, first_line
from nullpaper.workflow.job import Job, Outcome, run_job
from nullpaper.workflow.profiles import has_gpu

__all__ = ["Pool", "Tls", "dask_pool", "local_pool", "visible_gpus"]

DEATHS = 3  # of workers, that a job is suspected to have caused before it is given up
STARTS = 3  # attempts at a cluster of this machine


@dataclass(frozen=True)
class Pool:
    """An executor, how many jobs it does at a time, and the words for it."""

    executor: Executor
    slots: int
    told: str

    def submit(self, job: Job, wait: bool) -> Any:
        return self.executor.submit(run_job, job, wait=wait)


@dataclass(frozen=True)
class Tls:
    """Files (PEM) of a mutual TLS: the authority that signed the scheduler's and the workers' keys, and one's own."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def visible_gpus() -> list[str]:
    """The GPUs that torch sees, as names for CUDA_VISIBLE_DEVICES; torch is loaded only where a driver is present."""
    if not has_gpu():
        return []
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]


class _Slots(ThreadPoolExecutor):
    """A thread for each slot, which waits for the job's process; the slot's environment goes to the job."""

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        super().__init__(len(environments), thread_name_prefix="job")
        self._free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for environment in environments:
            self._free.put(environment)

    def submit(self, function: Any, /, *args: Any, **options: Any) -> Any:
        return super().submit(self._within_a_slot, function, *args, **options)

    def _within_a_slot(self, function: Any, *args: Any, **options: Any) -> Outcome:
        slot = self._free.get()
        try:
            return function(*args, environment=slot, **options)
        finally:
            self._free.put(slot)


@contextlib.contextmanager
def local_pool(workers: int, gpus: Sequence[str] = (), per_gpu: int = 1) -> Iterator[Pool]:
    """Processes of this machine: ``workers`` of them, or ``per_gpu`` on each GPU, of which a job sees only its own."""
    slots = [{"CUDA_VISIBLE_DEVICES": gpu} for _ in range(per_gpu) for gpu in gpus] or [{}] * workers
    told = f"on GPUs {', '.join(gpus)}, {per_gpu} at a time on each" if gpus else f"{workers} at a time"
    pool = _Slots(slots)
    try:
        yield Pool(pool, len(slots), told)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def dask_pool(
    address: str | None,
    workers: int,
    *,
    tls: Tls | None = None,
    insecure: bool = False,
    jobs: Sequence[Job] = (),
    say: Callable[[str], object] = lambda message: None,
) -> Iterator[Pool]:
    """The workers of an existing scheduler, or of a cluster of this machine with ``workers`` processes.

    Args:
        address: ``tcp://host:port``, ``tls://host:port``, or a scheduler file (JSON); None: a cluster of this machine.
        insecure: use a scheduler on another machine without TLS.
        jobs: one of them is what the workers are checked for: version, data, folder.
        say: called with a sentence while no worker is there.

    Raises:
        InputError: unreachable, no TLS to another machine, bad certificates, or workers that cannot do the jobs.
    """
    import dask
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": DEATHS}))
            target: Any = stack.enter_context(_local_cluster(workers))
            security = None
        else:
            target, security = _checked_address(address, tls, insecure), _security(tls)
        try:
            client = stack.enter_context(Client(target, security=security, set_as_default=False))
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise InputError(
                f"no Dask scheduler answers at {address} ({first_line(error)}): check the address and that it runs"
            ) from error
        slots = _checked_workers(client, address, jobs, say)
        where = f"at {address}" if address else "on this machine"
        yield Pool(client.get_executor(pure=False), slots, f"on Dask workers {where}, {slots} at a time")


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    options = dict(
        host="127.0.0.1", dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0", silence_logs=CRITICAL
    )
    for _ in range(STARTS):
        try:
            return LocalCluster(n_workers=workers, threads_per_worker=1, **options)
        except RuntimeError as error:  # a worker died before it was up
            last = error
    raise InputError(f"no Dask cluster starts on this machine ({first_line(last)}): use --executor local") from last


def _checked_address(address: str, tls: Tls | None, insecure: bool) -> str:
    """The address itself, or that inside a scheduler file, unless it leads to another machine unprotected."""
    if Path(address).suffix == ".json":
        import json

        try:
            address = json.loads(Path(address).read_bytes())["address"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{address} is no scheduler file ({first_line(error)}): name one of Dask's") from error
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise InputError(f"'{address}' is no address of a scheduler: write tcp://host:port or tls://host:port")
    if parts.scheme == "tls" and (tls is None or not all((tls.ca, tls.cert, tls.key))):
        raise InputError(f"{address} needs certificates: give --tls-ca, --tls-cert and --tls-key")
    if parts.scheme == "tcp" and not insecure and not _is_loopback(parts.hostname):
        raise InputError(
            f"{address} is another machine without TLS, where anybody in between could run code as you: use tls://, "
            "or --insecure in a network that you trust"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    return False


def _security(tls: Tls | None) -> Any:
    if tls is None or not any((tls.ca, tls.cert, tls.key)):
        return None
    from distributed.security import Security

    for file in (tls.ca, tls.cert, tls.key):
        if file is None or not Path(file).is_file():
            raise InputError(f"TLS needs --tls-ca, --tls-cert and --tls-key, but {file or 'one'} is not there")
    return Security(
        tls_ca_file=str(tls.ca), tls_client_cert=str(tls.cert), tls_client_key=str(tls.key), require_encryption=True
    )


def _checked_workers(client: Any, address: str | None, jobs: Sequence[Job], say: Callable[[str], object]) -> int:
    """The threads of all workers, if each of them can do the jobs."""
    if not client.scheduler_info(n_workers=-1)["workers"]:
        say(f"the scheduler at {address} has no workers yet: waiting for the first")
        client.wait_for_workers(1)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if jobs:
        try:
            found = client.run(inspect, jobs[0], on_error="return")
        except Exception as error:  # whatever kept the answer from coming back
            raise InputError(f"the workers at {address} do not answer ({first_line(error)}): restart them") from error
        for worker, problem in found.items():
            if isinstance(problem, BaseException):
                problem = f"cannot import this version of nullpaper ({first_line(problem)}): install it there"
            if problem:
                raise InputError(f"the worker {worker} {problem}")
    return sum(worker["nthreads"] for worker in workers.values())


def inspect(job: Job) -> str | None:
    """What keeps this machine from doing a sweep's jobs, in words; None if nothing does. Called on each Dask worker."""
    from nullpaper.data.fetch import cache_home, folder_of
    from nullpaper.workflow.planning import read_source

    if not Path(job.folder).is_dir():
        return f"does not see the folder {job.folder}: use one that all machines share (--folder)"
    try:
        source = read_source(Path(job.notebook))
    except InputError as error:
        return f"cannot read the notebook ({error})"
    if source.version != job.code:
        python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        return f"has another version of nullpaper or of Python (it has {python}): install the same there"
    missing = [name for name in job.data if not folder_of(name).is_dir()]
    if missing:
        return f"lacks the data set {missing[0]} in {cache_home()}: run 'nullpaper data fetch {missing[0]}' there"
    return None
