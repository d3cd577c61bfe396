"""How far the approximate nullspace of changing weights reaches: the largest noise within eps, by one protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch

from nullpaper.data.datasets import Data
from nullpaper.models.vit import ViT, fingerprint
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.noise import encoder_noise, rescaled
from nullpaper.workflow.store import stored


@dataclass(frozen=True)
class Boundary:
    """How the largest noise within eps is measured over a run: one protocol and the same draws for all its weights."""

    eps: float
    images: int  # of dev, for directions and scale, and as many of test, for the verification
    steps: int
    seed: int = 0  # of the images and of the noise's start


def boundary_norm(vit: ViT, data: Data, boundary: Boundary) -> dict[str, float]:
    """Norms of the learned and of random noise that are verified to stay within eps, every token of one norm.

    Found in the store where these weights were measured before, as those that all runs start from.
    """
    given = asdict(boundary) | {"weights": fingerprint(vit)}
    return stored("boundary_norm", given, partial(_boundary_norm, vit, data, boundary), data=data.identity).metrics


def _boundary_norm(vit: ViT, data: Data, boundary: Boundary) -> dict[str, float]:
    seed = boundary.seed
    pool, held_out = (
        read_pool(vit, split.batches(250, image_size=vit.image_size, device=vit.mean.device))
        for split in (data.dev.subset(boundary.images, seed + 1), data.test.subset(boundary.images, seed + 1))
    )
    given = {"held_out": held_out, "eps": boundary.eps, "seed": seed}
    learned = encoder_noise(vit, pool, steps=boundary.steps, spread=True, **given)
    draw = torch.randn(pool.noise_shape, generator=torch.Generator().manual_seed(seed + 1))
    random = rescaled(vit, draw, pool, **given)
    norms = {"norm": learned.norm, "norm_reached": float(learned.reached)}
    return norms | {"norm_random": random.norm, "norm_random_reached": float(random.reached)}
