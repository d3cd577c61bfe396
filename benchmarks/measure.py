"""What a row of the table is, and how it is measured: ours and the reference in alternation, as ratios of pairs."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.vit import SHIPPED, ViT

ROOT = Path(__file__).parents[1]
Call = Callable[[], Any]


class Skip(Exception):
    """A row that cannot be measured here, and what would make it."""


@dataclass(frozen=True)
class Work:
    """What a row compares: the seconds of two calls or, with ``values``, the numbers that they return."""

    ours: Call
    reference: Call | None = None
    part: float = 1.0  # of our work, what one call of the reference does
    scale: float = 1.0  # from seconds to the row's unit
    values: bool = False
    counted: bool = False  # our operations in products of matrices, for the share of the limit
    traffic: float = 0.0  # bytes that have to be read or written, for the same
    note: Callable[[], str] = str  # what else there is to know afterwards, such as equal results


@dataclass(frozen=True)
class Row:
    """A line of the table. The goal bounds the "ratio" ours / reference, the "share" of the limit, or the "value"."""

    work: str
    reference: str
    make: Callable[[Setup], Work]
    goal: float | None = None
    of: str = "ratio"
    at_least: bool = False
    seconds: float = 10.0  # that 5 pairs take, about
    needs: tuple[str, ...] = ()
    unit: str = "s"
    on_request: bool = False

    def met(self, result: dict[str, Any]) -> bool:
        return result[self.of] >= self.goal if self.at_least else result[self.of] <= self.goal


ROWS: list[Row] = []


def row(work: str, reference: str = "", goal: float | None = None, **options: Any) -> Callable:
    """Decorates the function that prepares a row's `Work`."""
    return lambda make: ROWS.append(Row(work, reference, make, goal, **options))


@dataclass(frozen=True)
class Setup:
    """The machine with its two limits, and the models and images that rows share."""

    device: torch.device

    def vit(self, name: str = SHIPPED, trains: bool = False) -> ViT:
        return load_classifier(name, device=self.device).requires_grad_(trains)

    def batch(self, count: int, side: int = 48) -> tuple[Tensor, Tensor]:
        """Test images (count, 3, side, side) of CIFAR-10 in [0, 1] and their labels."""
        test = load_data("cifar10").test.take(slice(count))
        images = to_pixels(test.images, size=side, device=self.device)
        return images, torch.from_numpy(test.labels).long().to(self.device)

    @cached_property
    def flops(self) -> float:
        """Operations a second in products of float32 matrices 1,024 x 1,024, the best of 10."""
        a, b = torch.rand(2, 1024, 1024, device=self.device)
        return 2 * 1024**3 / min(self.timed(lambda: a @ b) for _ in range(10))

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second, read and written, in copies of 128 MiB, the best of 5."""
        a, b = torch.rand(2, 2**25, device=self.device)
        return 2 * a.nbytes / min(self.timed(lambda: b.copy_(a)) for _ in range(5))

    @property
    def clock(self) -> str:
        return "CPU" if self.device.type == "cpu" and torch.get_num_threads() == 1 else "wall"

    def timed(self, call: Call) -> float:
        """CPU seconds where one thread computes, since a busy machine blurs all else; wall seconds elsewhere."""
        now = time.process_time if self.clock == "CPU" else time.perf_counter
        begun = now()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return now() - begun


class Counter(TorchDispatchMode):
    """Counts operations as PyTorch's own FlopCounterMode, which cannot follow torch.autograd.grad into a module."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result, count = func(*args, **(kwargs or {})), flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def measure(line: Row, setup: Setup, pairs: int) -> dict[str, Any]:
    """The numbers of every pair, the median ratio, the share of the limit, and whether the goal is met.

    Raises:
        Skip: a package that the reference needs is not installed, or as the row says.
    """
    if missing := [name for name in line.needs if find_spec(name) is None]:
        raise Skip(f"no {' and '.join(missing)}: install the extra 'bench' (make bench does)")
    work, counter, numbers = line.make(setup), Counter(), ([], [])
    sides = [(work.ours, 1.0), (work.reference, work.part)][: 2 if work.reference else 1]
    for call, _ in sides if pairs > 1 and not work.values else []:  # a first import, say, belongs to nobody
        with counter if work.counted and call is work.ours else torch.enable_grad():
            call()
    for turn in range(pairs):
        for index in [*range(len(sides))][:: 1 - 2 * (turn % 2)]:
            call, part = sides[index]
            numbers[index].append((call() if work.values else setup.timed(call)) / part * work.scale)
    ratios = [a / b for a, b in zip(*numbers, strict=True)] if work.reference else numbers[0]
    result = {"ratio": median(ratios), "low": min(ratios), "high": max(ratios), "value": median(numbers[0])}
    least = max(counter.total / setup.flops, work.traffic / setup.bandwidth) * work.scale
    result |= {"share": least / result["value"], "numbers": numbers, "note": work.note()}
    return result | ({"met": line.met(result)} if line.goal else {})


def process(*command: str, codes: tuple[int, ...] = (0,), **environment: str) -> float:
    """CPU seconds, user and system, of a fresh process with further environment variables."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
