"""Controls of a learned noise: plain functions of the noise and a generator, each with one of its properties left.

A noise is (1, N, d) behind the patch embedding or (1, C, H, W) at the pixels. Draws are made on the CPU, so that every
device gets the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def centred(noise: Tensor) -> Tensor:
    """Token noise (1, N, d) without its mean over the width, token by token; pixel noise as it is.

    A LayerNorm encoder ignores that mean at any norm (`nullspace.layernorm`), so "the largest noise" has no answer
    before it is taken out.
    """
    return noise - noise.mean(-1, keepdim=True) if noise.ndim == 3 else noise


def spread(noise: Tensor) -> Tensor:
    """Noise (1, N, d) of the same L2 norm with every token's share of it equal."""
    share = noise.norm() / math.sqrt(noise.shape[1])
    return noise / noise.norm(dim=-1, keepdim=True) * share


def of_norm(noise: Tensor, norm: float | Tensor) -> Tensor:
    """``noise`` scaled to the L2 norm ``norm``."""
    return noise / noise.norm() * norm


def gaussian(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Another direction: Gaussian noise of the same norm, centred."""
    draw = torch.randn(noise.shape, generator=generator).to(noise)
    return of_norm(centred(draw), centred(noise).norm())


def permuted(noise: Tensor, generator: torch.Generator) -> Tensor:
    """The papers' control: the entries in one random order, centred again and brought to the same norm."""
    value = centred(noise)
    order = torch.randperm(value.numel(), generator=generator).to(value.device)
    return of_norm(centred(value.flatten()[order].view_as(value)), value.norm())


def permuted_within(noise: Tensor, generator: torch.Generator) -> Tensor:
    """The entries in a random order within each token (or channel): every token keeps its norm."""
    rows = noise.flatten(2).flatten(0, 1)
    order = torch.rand(rows.shape, generator=generator).argsort(1).to(noise.device)
    return centred(rows.gather(1, order).view_as(noise))
