"""Many small operators as one launch of a GPU: captured once as a CUDA graph, then replayed on other numbers.

A step of the small ViT is hundreds of operators of a few microseconds each, which a processor launches more slowly than
the card computes them. A replay runs the same operators on the same numbers, so nothing that it returns is another.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

FINEST = 4  # lengths between two powers of two that rows are padded to: at most a quarter more work

Outputs = tuple[Tensor, ...]


class Replay:
    """A function of tensors that runs the same operators at every call, whatever the tensors hold.

    The first calls run it as it stands, one captures it, and from then on it is replayed for tensors of the shapes of
    that one. What it returns is overwritten by the next replay. Elsewhere than on CUDA it is called, no more.

    Args:
        function: takes tensors or None, and returns tensors; it may also change other tensors in place. It must not
            wait for the device, nor read or draw anything on the CPU.
        warm: calls before the capture, in which libraries allocate what they keep.
        pool: memory that it shares with other graphs, which are kept as long; None: its own.
    """

    def __init__(self, function: Callable[..., Outputs], warm: int = 2, pool: Any = None) -> None:
        self.function, self.warm, self.pool, self.graph = function, warm, pool, None

    def __call__(self, *tensors: Tensor | None) -> Outputs:
        if not tensors[0].is_cuda:
            return self.function(*tensors)
        if self.warm > 0:
            self.warm -= 1
            return self._aside(tensors)
        if self.graph is None:
            self._capture(tensors)
        pairs = [(own, given) for own, given in zip(self.inputs, tensors, strict=True) if given is not None]
        if any(own.shape != given.shape for own, given in pairs):
            return self._aside(tensors)
        for own, given in pairs:
            own.copy_(given)
        self.graph.replay()
        return self.outputs

    def _aside(self, tensors: tuple[Tensor | None, ...]) -> Outputs:
        """Not on the default stream, whose autograd nodes no capture may meet."""
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            outputs = self.function(*tensors)
        here.wait_stream(aside)
        return outputs

    def _capture(self, tensors: tuple[Tensor | None, ...]) -> None:
        self.inputs = [None if given is None else given.clone() for given in tensors]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.outputs = self.function(*self.inputs)
        self.graph = graph


_replays: weakref.WeakKeyDictionary[nn.Module, tuple[Any, dict[Any, Replay]]] = weakref.WeakKeyDictionary()
"""Of each model, with the memory that they share, since one runs at a time and what it returned has been read."""


def by_rows(function: Callable[..., Outputs], model: nn.Module, *tensors: Tensor) -> Outputs:
    """``function(model, *tensors)`` of tensors (B, ...), where a row of what it returns depends on that row alone.

    On CUDA it is replayed, for few different B: the last rows are padded.

    Args:
        function: importable by name, or a partial of such a one.
        model: whose weights may change in place between two calls.
    """
    if not tensors[0].is_cuda or not isinstance(model, nn.Module) or torch.cuda.is_current_stream_capturing():
        return function(model, *tensors)
    count, length = len(tensors[0]), padded(len(tensors[0]))
    places = tuple(value.data_ptr() for value in (*model.parameters(), *model.buffers()))
    rounding = torch.backends.cuda.matmul.fp32_precision, torch.is_grad_enabled(), torch.is_autocast_enabled("cuda")
    shapes = tuple((value.shape[1:], value.dtype) for value in tensors)
    what = function
    if isinstance(function, partial):  # equal ones are not the same object
        what = function.func, function.args, tuple(sorted(function.keywords.items()))
    key = what, length, shapes, model.training, rounding, places
    if model not in _replays:
        _replays[model] = torch.cuda.graph_pool_handle(), {}
    pool, replays = _replays[model]
    if key not in replays:
        own = weakref.proxy(model)  # or what belongs to the model would keep it
        replays[key] = Replay(partial(function, own), warm=1, pool=pool)
    if length > count:
        tensors = tuple(torch.cat([value, value[:1].expand(length - count, *value.shape[1:])]) for value in tensors)
    return tuple(value[:count].clone() for value in replays[key](*tensors))


def padded(count: int) -> int:
    """The least length that is at least ``count``: eight, or one of four between two powers of two."""
    step = max(8, 1 << max(0, (count - 1).bit_length() - 1)) // FINEST
    return max(8, -(-count // step) * step)
