"""timm models without weights, on PyTorch's "meta" device: to look at their structure before anything is downloaded."""

from __future__ import annotations

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["skeleton"]


def skeleton(name: str, **options: object) -> nn.Module:
    """A timm model at its full depth without weights, on the "meta" device; ``options`` go to timm."""
    with torch.device("meta"), _Uninitialised():
        return timm.create_model(name, pretrained=False, **options)


class _Uninitialised(TorchFunctionMode):
    """Spares meta tensors the arithmetic of weight initialisation, which has no effect but costs most of the time."""

    idle = frozenset({"add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")  # older timm reads drop-path rates out of it, which meta cannot give
        if getattr(func, "__name__", "") in self.idle and args and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)
