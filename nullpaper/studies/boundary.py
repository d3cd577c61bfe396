"""How far the approximate nullspace of changing weights reaches: the largest noise within eps, by one protocol."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial

import torch
from scipy.optimize import brentq

from nullpaper.data.datasets import Data
from nullpaper.errors import InputError, check_number
from nullpaper.models.predict import predictions, restricted
from nullpaper.models.vit import ViT
from nullpaper.studies.judging import Weights
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.noise import encoder_noise, rescaled
from nullpaper.workflow.store import stored

SPAN = 7.0  # of the logarithm of a temperature


@dataclass(frozen=True)
class Boundary:
    """How the largest noise within eps is measured over a run: one protocol and the same draws for all its weights."""

    eps: float
    images: int  # of dev, for directions and scale, and as many of test, for the verification
    steps: int
    seed: int = 0  # of the images and of the noise's start
    confidence: float | None = None  # to which `at_confidence` brings the model first; None: as it is


def confidence(vit: ViT, data: Data, images: int) -> float:
    """The mean of the largest probability, on so many dev images."""
    return _logits(vit, data, images).softmax(1).amax(1).mean().item()


def at_confidence(vit: ViT, data: Data, level: float, images: int) -> tuple[ViT, float]:
    """A copy whose logits are divided by the temperature that gives it this `confidence`; and the temperature.

    The influence that eps bounds is a distance between softmax vectors, so that an unsure model takes larger noise for
    that alone; no prediction changes.

    Raises:
        InputError: no temperature gives a confidence that is not above chance and below 1.
    """
    logits = _logits(vit, data, images)
    check_number("confidence", level, 1 / logits.shape[1], 1)

    def excess(log_temperature: float) -> float:
        return (logits / math.exp(log_temperature)).softmax(1).amax(1).mean().item() - level

    if excess(-SPAN) * excess(SPAN) > 0:
        raise InputError(f"no temperature makes {vit.name} {level:.1%} sure: its logits are all alike.")
    temperature = math.exp(brentq(excess, -SPAN, SPAN, xtol=1e-6))
    model = deepcopy(vit)
    with torch.no_grad():
        for parameter in model.net.head.parameters():
            parameter /= temperature
    return model, temperature


def _logits(vit: ViT, data: Data, images: int) -> torch.Tensor:
    return predictions(vit, data.dev.subset(images, 0)).double()


def boundary_norm(weights: Weights, data: Data, boundary: Boundary) -> dict[str, float]:
    """Norms of the learned and of random noise that are verified to stay within eps, every token of one norm.

    Found in the store where these weights were measured before, as those that all runs start from.
    """
    given = asdict(boundary) | {"weights": weights.fingerprint}
    return stored("boundary_norm", given, partial(_boundary_norm, weights, data, boundary), data=data.identity).metrics


def _boundary_norm(weights: Weights, data: Data, boundary: Boundary) -> dict[str, float]:
    vit, seed, temperature = restricted(weights.make(), data), boundary.seed, {}
    if boundary.confidence is not None:
        vit, temperature["temperature"] = at_confidence(vit, data, boundary.confidence, boundary.images)
    pool, held_out = (
        read_pool(vit, split.batches(250, image_size=vit.image_size, device=vit.mean.device))
        for split in (data.dev.subset(boundary.images, seed + 1), data.test.subset(boundary.images, seed + 1))
    )
    given = {"held_out": held_out, "eps": boundary.eps, "seed": seed}
    learned = encoder_noise(vit, pool, steps=boundary.steps, spread=True, **given)
    draw = torch.randn(pool.noise_shape, generator=torch.Generator().manual_seed(seed + 1))
    random = rescaled(vit, draw, pool, **given)
    norms = {"norm": learned.norm, "norm_reached": float(learned.reached)}
    return norms | {"norm_random": random.norm, "norm_random_reached": float(random.reached)} | temperature
