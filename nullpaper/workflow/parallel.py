"""Independent pieces of work side by side: one process of one thread for each core that this process was given."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from threading import Thread
from typing import TypeVar

import torch
from tqdm import tqdm

ON_A_GPU = 4  # a card is idle where one process prepares its images

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_kept: dict[tuple[object, ...], ProcessPoolExecutor] = {}  # one at most, by how its processes began


def each(
    function: Callable[[Item], Outcome],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: str | None = None,
) -> list[Outcome]:
    """``function(item)`` for every item, in the order of the items.

    On a CPU two processes of one thread do more than one process of two, and one thread for each piece gives the same
    numbers whatever the number of processes. A piece that fails stops the rest; what the others have stored stays. The
    processes wait for the next call, and end when this process ends.

    Args:
        function: importable by name, with items and outcomes that can be sent to another process.
        workers: processes; None: this process's threads, and `ON_A_GPU` on a machine with CUDA, which they share.
        progress: what to call the bar; None: no bar.
    """
    threads, has_gpu = torch.get_num_threads(), torch.cuda.is_available()
    workers = workers or (min(ON_A_GPU, threads) if has_gpu else threads)
    bar = partial(tqdm, total=len(items), desc=progress, disable=progress is None)
    if min(workers, len(items)) <= 1:
        torch.set_num_threads(threads if has_gpu else 1)
        try:
            return [*bar(map(function, items))]
        finally:
            torch.set_num_threads(threads)
    pool = _pool(workers)
    try:
        return [*bar(pool.map(function, items))]
    except BaseException:
        _kept.clear()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _pool(workers: int) -> ProcessPoolExecutor:
    """The processes of the last call if they began as new ones would, since each takes seconds to import torch."""
    start = (workers, os.getcwd(), *sorted(os.environ.items()))
    if start not in _kept:
        while _kept:
            _kept.popitem()[1].shutdown()
        context = multiprocessing.get_context("spawn")  # a forked process inherits OpenMP's threads in no usable state
        _kept[start] = ProcessPoolExecutor(workers, context, initializer=_begin)
    return _kept[start]


def _begin() -> None:
    """In a fresh process: one thread, and an end when the process that waits for it is gone."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
