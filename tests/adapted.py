"""Parts of the adapter tests: every kind of adapter, on the shipped ViT, and eight real images."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from quick import few, start

from nullpaper.adapters.inject import KINDS, inject
from nullpaper.adapters.layers import NORMS
from nullpaper.models.vit import ViT

SEPARATE = ("patch_embed", "q", "k", "v", "proj", "fc1", "fc2")
VARIANTS = [
    *({"kind": kind} for kind in KINDS),
    *({"kind": "lnlora", "norm": norm} for norm in NORMS if norm != "affine"),
    {"kind": "lnlora", "targets": SEPARATE, "r": 3},
    {"kind": "lora", "targets": ("q", "v"), "r": 4},
    {"kind": "lora", "targets": "fc2", "r": 1, "alpha": 0.5},
    {"kind": "lnlora", "targets": ("patch_embed", "proj"), "r": 64},
]


def base() -> ViT:
    return deepcopy(start())


def adapted(moved: float = 0.0, **options) -> ViT:
    """The shipped ViT with an adapter, moved away from its start by random numbers."""
    vit = inject(base(), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter += moved * torch.randn(parameter.shape, generator=generator)
    return vit


@cache
def images(count: int = 8) -> torch.Tensor:
    return next(iter(few().dev.batches(count, image_size=48)))[0]


def named(options) -> str:
    return "-".join(str(value) for value in options.values())
