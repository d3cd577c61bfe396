"""The workers of a sweep as a Dask client: processes of this machine, or those of a scheduler somewhere.

Dask sends functions to its workers and runs them, so whoever reaches a scheduler can run anything there: a cluster of
this machine listens to the loopback interface alone, and a scheduler on another machine is asked for TLS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from logging import CRITICAL
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nullpaper.errors import InputError, first_line
from nullpaper.workflow.kernels import end_kernels
from nullpaper.workflow.parameters import cores, has_gpu

try:
    import psutil
    from distributed import Client, LocalCluster, WorkerPlugin
    from distributed.security import Security
except ImportError as error:
    raise InputError(f"a sweep needs Dask ({first_line(error)}): pip install 'nullpaper[cluster]'") from error

LOOPBACK = "127.0.0.1:0"
STARTS = 5
"""Attempts at a cluster of this machine: a worker may be killed before it is up."""

Tls = tuple[Path | None, Path | None, Path | None]


class Kernels(WorkerPlugin):
    """Ends the kernel of a job that nobody waits for: its driver was interrupted, or it or the scheduler has died."""

    name, idempotent = "nullpaper", True

    def transition(self, key: Any, start: str, finish: str, **options: Any) -> None:
        if (start, finish) == ("executing", "released"):
            end_kernels()

    def teardown(self, worker: Any) -> None:
        end_kernels()


class Place(Kernels):
    """A worker of this machine: deaf to Ctrl-C, which is the driver's to hear, and of one GPU if there are any."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self.gpus = gpus

    def setup(self, worker: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(worker.name) % len(self.gpus)]


def chosen_gpus(names: str | None) -> list[str]:
    """The GPUs named as in ``0,1``; None: all that torch sees, which is loaded only where a driver is present."""
    if names is not None:
        return [name.strip() for name in names.split(",") if name.strip()]
    if not has_gpu():
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def share(workers: int | None, threads: int | None, gpus: Sequence[str], per_gpu: int = 1) -> tuple[int, int]:
    """Workers of this machine and the CPU threads of each, where either is not given: together they fill the cores."""
    if gpus:
        workers = workers or len(gpus) * per_gpu
        return workers, threads or max(1, cores() // workers)
    threads = threads or 1
    return workers or max(1, cores() // threads), threads


@contextlib.contextmanager
def local_workers(count: int, gpus: Sequence[str] = (), *, deaths: int = 3) -> Iterator[Client]:
    """``count`` processes of one thread on this machine, spread over ``gpus``, of which each sees one.

    One that dies is started again, whatever it was at.

    Args:
        deaths: of workers that a job survives.

    Raises:
        InputError: they do not start.
    """
    client = Client(_local_cluster(count, gpus, deaths))
    with contextlib.ExitStack() as stack:
        stack.callback(_end, client)
        try:
            yield client
        except KeyboardInterrupt:  # an orderly end would wait for the jobs
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            stack.pop_all()
            raise


def _local_cluster(count: int, gpus: Sequence[str], deaths: int) -> LocalCluster:
    quiet = {"memory_limit": 0, "silence_logs": CRITICAL}
    addresses = {"dashboard_address": LOOPBACK, "worker_dashboard_address": LOOPBACK}
    options = {"plugins": (Place(gpus),), "scheduler_kwargs": {"allowed_failures": deaths}}
    for _ in range(STARTS):
        try:
            return LocalCluster(n_workers=count, threads_per_worker=1, **addresses, **quiet, **options)
        except RuntimeError as died:  # a worker, before it was up
            reason = died.__cause__ or died
    raise InputError(
        f"{count} workers do not start here ({first_line(reason)}): free some memory, or ask for fewer (--workers)"
    ) from reason


def _end(client: Client) -> None:
    """Close a cluster, and kill what is left: a worker that dies meanwhile must neither hold the end up nor fail it."""
    with contextlib.suppress(Exception):
        client.close()
        client.cluster.close(timeout=10)
    for pid in [nanny.pid for nanny in client.cluster.workers.values() if nanny.pid]:
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(pid)
            for process in (*worker.children(recursive=True), worker):
                process.kill()


@contextlib.contextmanager
def scheduler_workers(address: str, *, tls: Tls = (None, None, None), insecure: bool = False) -> Iterator[Client]:
    """The workers of a scheduler that runs already.

    Args:
        address: ``tcp://host:port``, ``tls://host:port``, or a scheduler file (JSON).
        tls: PEM files of a mutual TLS: the certificate of the authority that signed those of the scheduler and its
            workers, one's own, and its key.
        insecure: use a scheduler on another machine without TLS.

    Raises:
        InputError: nobody answers, no TLS to another machine, or bad certificates.
    """
    target, (ca, cert, key) = _checked_address(address, tls, insecure), (str(file) for file in tls)
    security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key) if target.startswith("tls") else None
    try:
        client = Client(target, security=security)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address} ({first_line(error)}): check the address, the certificates and "
            "that it runs"
        ) from error
    with client:
        with contextlib.suppress(OSError):  # a worker has died; the scheduler keeps it for those that come
            client.register_plugin(Kernels())
        yield client


def _checked_address(address: str, tls: Tls, insecure: bool) -> str:
    """The address itself, or that inside a scheduler file, unless it leads to another machine unprotected."""
    if Path(address).suffix == ".json":
        try:
            address = json.loads(Path(address).read_bytes())["address"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{address} is no scheduler file ({first_line(error)}): name one of Dask's") from error
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise InputError(f"'{address}' is no address of a scheduler: write tcp://host:port or tls://host:port")
    if parts.scheme == "tls" and not all(tls):
        raise InputError(f"{address} needs certificates: give --tls-ca, --tls-cert and --tls-key")
    if parts.scheme == "tcp" and not insecure and not _is_loopback(parts.hostname):
        raise InputError(
            f"{address} is another machine without TLS, where anybody in between could run code as you: use tls://, "
            "or --insecure in a network that you trust"
        )
    return parts.geturl()


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    return False
