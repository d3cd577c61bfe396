"""The most memory that a piece of work holds at once, as PyTorch's allocators see it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from nullpaper.errors import InputError

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that ``call`` had allocated at one time, beyond what was there before.

    On CUDA the allocator counts them. On the CPU they come from the allocations and releases in a trace of PyTorch's
    profiler, which has the buffers inside kernels too (some have one a thread), but not what libraries below PyTorch
    take for themselves.

    Raises:
        InputError: the device is neither.
    """
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"memory on {device} cannot be measured: take the CPU or CUDA.")
    if device.type == "cuda":
        gc.collect()  # or garbage from before, released inside, would count as memory won
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    present, highest, sizes = 0, 0, {}
    for event in sorted(_allocations(call), key=lambda event: event["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            sizes[address] = size
            present += size
        else:
            present -= sizes.pop(address, 0)  # 0: older than the trace
        highest = max(highest, present)
    return highest


def _allocations(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Events of the CPU's allocator; the profiler's own list leaves out those inside operators, its trace does not."""
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent():
        profiler.start()
    try:
        call()
    finally:
        with _silent():
            profiler.stop()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing reaches stderr: the profiler's library writes there, and its level is read before Python runs."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
