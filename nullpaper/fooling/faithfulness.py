"""How alike two attribution maps are, and how well a map explains: ranks, shared top patches, deletion and insertion.

Deletion and insertion are those of Petsiuk et al. (2018, RISE), on patches, not pixels: remove the patches that a map
ranks highest first and watch the probability fall, or start from nothing and put them back. A good map has a small area
under the deletion curve and a large one under the insertion curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from torch import Tensor

from nullpaper.errors import InputError, check_choice, check_number
from nullpaper.fooling.explanations import check_explained
from nullpaper.models.vit import ViT

STEPS = 9  # from all patches to none: 4 of 36 at once
CHUNK = 32  # images whose steps go through the model at once


@dataclass(frozen=True)
class Curves:
    """Probability of the target (B, S) as a growing ``share`` (S,) of the patches is deleted, or inserted."""

    share: Tensor
    deletion: Tensor
    insertion: Tensor

    def area(self, curve: str) -> Tensor:
        """Area (B,), in [0, 1], under the "deletion" curves, where smaller is better, or the "insertion" curves."""
        check_choice("curve", curve, ("deletion", "insertion"))
        return torch.trapezoid(getattr(self, curve), self.share, dim=1)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps (B, ...): (B,), float64 on the CPU, NaN for a constant map.

    Raises:
        InputError: the maps differ in shape.
    """
    pairs = zip(*_flat_pair(first, second), strict=True)
    return torch.tensor([spearmanr(a.numpy(), b.numpy()).statistic for a, b in pairs], dtype=torch.float64)


def top_overlap(first: Tensor, second: Tensor, share: float = 0.25) -> Tensor:
    """Share of the top entries that two maps (B, ...) have in common, (B,), float64 on the CPU.

    The top is the nearest whole number of entries to ``share`` of them, at least 1. Unrelated maps share about
    ``share``, equal ones 1.

    Raises:
        InputError: the maps differ in shape, or ``share`` is outside (0, 1).
    """
    check_number("share", share, 0, 1, why=": it is the part of a map that counts as its top")
    first, second = _flat_pair(first, second)
    count = max(1, round(share * first.shape[1]))
    marks = [torch.zeros_like(maps).scatter_(1, maps.topk(count, dim=1).indices, 1) for maps in (first, second)]
    return (marks[0] * marks[1]).sum(1) / count


@torch.no_grad()
def deletion_insertion(vit: ViT, images: Tensor, scores: Tensor, *, target: ArrayLike | Tensor) -> Curves:
    """Delete, and insert, the patches of images (B, C, H, W) from the highest of ``scores`` (B, N) downwards.

    A ninth of them goes at each step. A deleted patch has the model's mean pixel everywhere. The embedding reads every
    patch alone, so that its token is replaced by that colour's. The probability followed is that of the class
    ``target`` (B,).

    Raises:
        InputError: as `check_explained`, or scores that are not finite or not one a patch.
    """
    images, target = check_explained(vit, images, target)
    patches = math.prod(vit.grid_size)
    if tuple(scores.shape) != (len(images), patches) or not scores.isfinite().all():
        raise InputError(f"scores have shape {tuple(scores.shape)}; pass finite ones, ({len(images)}, {patches}).")
    counts = torch.tensor([*range(0, patches, max(1, round(patches / STEPS))), patches], device=images.device)
    rank = scores.to(images.device).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    absent = vit.embed(vit.mean.expand_as(images[:1]))
    parts = zip(*(values.split(CHUNK) for values in (images, rank, target)), strict=True)
    curves = [_curves(vit, vit.embed(part), absent, order, classes, counts) for part, order, classes in parts]
    deletion, insertion = (torch.cat(values).double().cpu() for values in zip(*curves, strict=True))
    return Curves(counts.double().cpu() / patches, deletion, insertion)


def _curves(
    vit: ViT, present: Tensor, absent: Tensor, rank: Tensor, target: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Probabilities (B, S) of the target after the ``counts`` (S,) foremost tokens were deleted, and inserted."""

    def probability(tokens: Tensor) -> Tensor:
        logits = vit.encode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return logits.softmax(2)[:, torch.arange(len(target), device=target.device), target].T

    foremost = (rank < counts.view(-1, 1, 1)).unsqueeze(3)
    deletion = probability(torch.where(foremost, absent, present))
    between = probability(torch.where(foremost[1:-1], present, absent))
    return deletion, torch.cat([deletion[:, -1:], between, deletion[:, :1]], dim=1)


def _flat_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise InputError(f"maps have shapes {tuple(first.shape)} and {tuple(second.shape)}; pass two of (B, ...).")
    return first.detach().double().cpu().flatten(1), second.detach().double().cpu().flatten(1)
