"""Parts of the attack tests: the shipped ViT, eight real images, its answers."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.vit import SHIPPED, ViT, load_vit


@cache
def vit() -> ViT:
    return load_vit(SHIPPED)


@cache
def batch() -> tuple[Tensor, Tensor]:
    split = load_data("cifar10").test.take(list(range(20, 28)))  # one of them is misread
    return to_pixels(split.images, 48), torch.from_numpy(split.labels).long()


@torch.no_grad()
def logits(images: Tensor, model: nn.Module | None = None) -> Tensor:
    return (model or vit())(images)
