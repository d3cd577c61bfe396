"""Where a test computes: the model on one device, what it is given on another, all of it real and small."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from quick import few
from torch import Tensor

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.vit import SHIPPED, ViT, load_vit
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace
from nullpaper.synthesis.influence import Pool, read_pool

DEVICE = os.environ.get("NULLPAPER_TEST_DEVICE", "cuda")


@cache
def vit_on(device: str) -> ViT:
    return load_vit(SHIPPED, device=device)


@cache
def space_on(device: str) -> PatchNullspace:
    return patch_nullspace(vit_on(device))


@cache
def pixels() -> tuple[Tensor, Tensor]:
    split = load_data("cifar10").test.take(range(16, 48))  # the first eight: seven right, one misread
    return to_pixels(split.images, 48), torch.from_numpy(split.labels)


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class World:
    """A model and what is computed from it on the device ``model``, what it is given on the device ``data``."""

    model: str
    data: str

    def __str__(self) -> str:
        return f"{self.model} given {self.data}"

    vit = property(lambda self: vit_on(self.model))
    other = property(lambda self: vit_on(self.data), doc="the same model, where the data are")
    space = property(lambda self: space_on(self.model))
    x = property(lambda self: pixels()[0][:8].to(self.data), doc="images (8, 3, 48, 48)")
    t = property(lambda self: pixels()[0][8:16].to(self.data), doc="other images")
    many = property(lambda self: [part.to(self.data) for part in pixels()[0].split(8)], doc="32 images in batches")
    labels = property(lambda self: pixels()[1][:8].to(self.data))
    tokens = property(lambda self: drawn(1, 36, 96, scale=0.1).to(self.data), doc="noise behind the embedding")
    noise = property(lambda self: drawn(1, 3, 48, 48, scale=0.01).to(self.data), doc="noise at the pixels")
    scores = property(lambda self: drawn(8, 36).to(self.data), doc="one value a patch")
    draws = property(lambda self: torch.Generator().manual_seed(0), doc="a fresh generator, on the CPU as all are")
    split = property(lambda self: few().dev.subset(16))

    @property
    def pool(self) -> Pool:
        """Read where the data are, to be used with the model."""
        return read_pool(self.other, self.many)

    @property
    def folder(self) -> Path:
        """A new empty folder."""
        return Path(mkdtemp(prefix="nullpaper-device-"))


HOST, ALONE = World("cpu", "cpu"), World(DEVICE, DEVICE)
WORLDS = {ALONE: None, World(DEVICE, "cpu"): None, World("cpu", DEVICE): None}  # on the CPU they are one
