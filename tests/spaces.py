"""Parts of the nullspace tests: two nets, their nullspaces, and pairs of real CIFAR-10 images."""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy.fft
import torch
from timm.models.vision_transformer import VisionTransformer

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.vit import ViT
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace

KINDS = ("random", "smooth")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def make_vit(width: int = 96, patch: int = 8, **options) -> ViT:
    torch.manual_seed(0)
    size = dict(img_size=48, patch_size=patch, embed_dim=width, depth=2, num_heads=3, num_classes=10)
    net = VisionTransformer(**size, **options).eval()
    for value in net.parameters():
        value.data.add_(0.05 * torch.randn_like(value))
    return ViT(net, MEAN, STD)


def make_smooth_vit() -> ViT:
    """An embedding that reads mostly low frequencies, as trained ones do: many pixels end up on the box."""
    vit = make_vit()
    rng, frequency = np.random.default_rng(0), np.add.outer(np.arange(8), np.arange(8))
    weight = scipy.fft.idctn(rng.normal(size=(96, 3, 8, 8)) / (1 + frequency) ** 2, axes=(2, 3), norm="ortho")
    vit.net.patch_embed.proj.weight.data.copy_(torch.from_numpy(weight))
    return vit


@cache
def shared_vit(kind: str) -> ViT:
    return make_vit() if kind == "random" else make_smooth_vit()


@cache
def shared_space(kind: str) -> PatchNullspace:
    return patch_nullspace(shared_vit(kind))


@cache
def shared_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images, those with the most saturated pixels among 200 first, and targets of another class."""
    test = load_data("cifar10").test
    images, labels = to_pixels(test.images[:200], size=48), torch.from_numpy(np.asarray(test.labels[:200]))
    order = ((images == 0) | (images == 1)).flatten(1).sum(1).argsort(descending=True)
    chosen = torch.cat([order[:2], order[100:102]])
    other = torch.stack([images[(labels != labels[i]).nonzero()[-1 - int(i) % 50, 0]] for i in chosen])
    return images[chosen], other


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves_box(images: torch.Tensor, noise: torch.Tensor) -> float:
    return max((images + noise).max().item() - 1, -(images + noise).min().item())
