"""What an additive noise does to a frozen model: paper A's "noise influence", with intervals.

A pool is a fixed set of images with what the frozen model says of them, so that the clean pass is paid for once. Noise
enters either behind the patch embedding (level "encoder", (1, N, d), paper A) or at the pixels (level "input",
(1, C, H, W), paper C). The quantity that eps bounds is the mean squared L2 distance between softmax vectors, summed
over classes (range 0 to 2), as in the official code. A model without a head has no such vectors; its noise can be
measured on the features instead, relative to their squared norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nullpaper.data.datasets import Split
from nullpaper.errors import InputError, check_choice
from nullpaper.models.gradients import CHUNK
from nullpaper.models.inputs import check_images, normal
from nullpaper.models.predict import feature_gap, probability_gap
from nullpaper.models.vit import ViT, check_evaluating, check_vit, full
from nullpaper.statistics import Interval, mean, proportion
from nullpaper.synthesis.controls import centred

Batches = Iterable[Tensor | Sequence[Tensor]]

MEASURES = {"probabilities": probability_gap, "features": feature_gap}
"""What eps bounds: a distance (B,) of noisy and clean answers, by name."""
PROBE = 4  # images on which a pool is compared with the model it is used with


@dataclass(frozen=True)
class Pool:
    """Images read once, as a model's frozen weights see them.

    ``inputs`` are patch tokens (n, N, d) at level "encoder" and images (n, C, H, W) at level "input"; ``logits`` are
    the clean ones, (n, K), or the features where ``measure`` is "features"; ``features`` (n, D) is what the head reads,
    or None if the model is not a `ViT`.
    """

    inputs: Tensor
    logits: Tensor
    features: Tensor | None
    batch_size: int
    level: str
    measure: str = "probabilities"

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (1, *self.inputs.shape[1:])

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and clean logits, by the images that go through the model at once."""
        size = min(self.batch_size, CHUNK) if self.inputs.device.type == "cpu" else self.batch_size
        count = -(-len(self) // size)  # of even length: the last bits of a product depend on how few rows it has
        return zip(self.inputs.tensor_split(count), self.logits.tensor_split(count), strict=True)

    def take(self, indices: Tensor) -> Pool:
        """The images at ``indices`` (m,), in that order."""
        features = None if self.features is None else self.features[indices]
        return replace(self, inputs=self.inputs[indices], logits=self.logits[indices], features=features)

    def to(self, device: torch.device) -> Pool:
        """The pool on a device; itself where it is there."""
        if self.inputs.device == device:
            return self
        features = None if self.features is None else self.features.to(device)
        return replace(self, inputs=self.inputs.to(device), logits=self.logits.to(device), features=features)


@dataclass(frozen=True)
class Noise:
    """A universal noise and what was verified of it.

    Attributes:
        value: the noise, shared by all images, in pixel units (input level) or token units (encoder level).
        influence: mean of sum_k (softmax(z)_k - softmax(z')_k)^2, or of another of `MEASURES`, over the held-out
            images, with its 95 % interval.
        reached: the upper end of that interval is at most eps; None where no eps was asked for.
        history: one record a step: ``step``, ``norm``, ``influence`` (of the mini-batch), ``loss``.
    """

    value: Tensor = field(repr=False)
    influence: Interval
    reached: bool | None
    history: list[dict[str, float]] = field(default_factory=list, repr=False)

    @property
    def norm(self) -> float:
        """L2 norm that can be compared: of the token-centred part at encoder level, of the whole at input level."""
        return centred(self.value).norm().item()


class EncoderNoise(Noise):
    """Noise (1, N, d) behind the patch embedding; the class token is never touched."""


class InputNoise(Noise):
    """Noise (1, C, H, W) at the pixels, in units of [0, 1]; images + noise may leave [0, 1], as in paper C."""


@torch.inference_mode(False)  # or no gradient could be taken at what is kept
def read_pool(
    model: nn.Module, batches: Batches | Pool, *, level: str = "encoder", measure: str = "probabilities"
) -> Pool:
    """Read ``batches`` once and keep inputs, clean logits and features on the model's device.

    Args:
        model: in evaluation mode: a `ViT`, or at level "input" any classifier (B, C, H, W) -> logits.
        batches: an iterable of images (B, C, H, W) in [0, 1] or of ``(images, labels)``; or a pool, which is checked.
        level: ``"encoder"`` or ``"input"``.
        measure: ``"probabilities"``, or ``"features"`` of a `ViT`, which may then be without a head.

    Raises:
        InputError: another model, training mode, no classes or features to measure, no images, images the model would
            misread, or a pool of other weights, level or measure.
    """
    check_choice("level", level, ("encoder", "input"))
    check_choice("measure", measure, MEASURES)
    if level == "encoder" or measure == "features":
        check_vit(model)
    check_evaluating(model)
    if measure == "probabilities" and getattr(model, "num_classes", 2) < 2:
        remedy = "pass measure='features'" if isinstance(model, ViT) else "take a model with a head"
        raise InputError(
            f"{getattr(model, 'name', 'the model')} has {model.num_classes} classes, so that no probabilities can be "
            f"compared; {remedy}."
        )
    if isinstance(batches, Pool):
        return _same_pool(model, batches, level, measure)
    if isinstance(batches, Tensor | Split):
        raise InputError("batches must be several: pass [images], or split.batches(250, image_size=vit.image_size).")
    parts = []
    with torch.no_grad():
        for batch in batches:
            images = check_images(model, batch[0] if isinstance(batch, Sequence) and len(batch) else batch)
            inputs = model.embed(images) if level == "encoder" else images
            logits, features = _outputs(model, inputs, level)
            parts.append((inputs, features if measure == "features" else logits, features))
    if not parts:
        raise InputError("the batches hold no images; pass a loader that yields at least one batch.")
    inputs, logits, features = zip(*parts, strict=True)
    if not all(part.isfinite().all() for part in logits):
        raise InputError("the model's logits of clean images are not finite; load other weights.")
    features = torch.cat(features) if isinstance(model, ViT) else None
    return Pool(torch.cat(inputs), torch.cat(logits), features, len(inputs[0]), level, measure)


@torch.no_grad()
def influence_of(model: nn.Module, noise: Tensor, pool: Pool) -> Tensor:
    """The pool's measure of each image, (n,), which eps bounds, such as sum_k (softmax(z)_k - softmax(z')_k)^2."""
    gap, noise = MEASURES[pool.measure], noise.to(pool.inputs.device)
    return torch.cat([gap(logits_at(model, pool, inputs + noise), clean) for inputs, clean in pool.parts()])


def noise_influence(model: nn.Module, noise: Noise | Tensor, batches: Batches | Pool) -> dict[str, Interval]:
    """Paper A's noise-influence metrics, each a mean over images with its 95 % interval.

    ``mse_features`` (`ViT` only), ``mse_logits`` and ``mse_probs`` are squared L2 distances, summed over dimensions or
    classes in spite of the papers' name; ``abs_confidence`` and ``mse_confidence`` compare the probability of the clean
    top class; ``match`` is the share of images whose top class stays. Labels are not used. Of a model without a head,
    or a pool that measures features, there are ``mse_features`` and ``features``, which is that over the squared norm.

    Args:
        noise: (1, N, d), behind the patch embedding of a `ViT`, or (1, C, H, W), at the pixels of any classifier.

    Raises:
        InputError: as `read_pool`, or a noise of the wrong shape or not finite.
    """
    headless = isinstance(model, ViT) and model.num_classes < 2
    measure = batches.measure if isinstance(batches, Pool) else "features" if headless else "probabilities"
    pool = read_pool(model, batches, level=level_of(noise), measure=measure)
    value = check_noise(noise, pool)
    with torch.no_grad():
        parts = [_outputs(model, inputs + value, pool.level) for inputs, _ in pool.parts()]
    if measure == "features":
        noisy = torch.cat([features for _, features in parts])
        values = {"mse_features": (noisy - pool.features).square().sum(-1)}
        values["features"] = feature_gap(noisy, pool.features)
        return {name: mean(value.cpu().numpy()) for name, value in values.items()}
    noisy = torch.cat([logits for logits, _ in parts])
    top = pool.logits.argmax(-1, keepdim=True)
    confidence = (noisy.softmax(-1).gather(1, top) - pool.logits.softmax(-1).gather(1, top)).squeeze(1)
    values = {
        "mse_logits": (noisy - pool.logits).square().sum(-1),
        "mse_probs": probability_gap(noisy, pool.logits),
        "abs_confidence": confidence.abs(),
        "mse_confidence": confidence.square(),
    }
    if pool.features is not None:
        values["mse_features"] = (torch.cat([f for _, f in parts]) - pool.features).square().sum(-1)
    table = {name: mean(value.cpu().numpy()) for name, value in values.items()}
    return {**table, "match": proportion((noisy.argmax(-1, keepdim=True) == top).cpu().numpy())}


def logits_at(model: nn.Module, pool: Pool, inputs: Tensor) -> Tensor:
    """What the pool compares, of other ``inputs`` of its level: logits, or features."""
    if pool.measure == "features":
        return model.features(inputs if pool.level == "encoder" else model.embed(inputs))
    return model.encode(inputs) if pool.level == "encoder" else model(inputs)


def level_of(noise: Noise | Tensor) -> str:
    """Where a noise enters, by its number of axes."""
    value = noise.value if isinstance(noise, Noise) else noise
    if not isinstance(value, Tensor) or value.ndim not in (3, 4):
        kind, shape = type(value).__name__, tuple(getattr(value, "shape", ()))
        raise InputError(f"noise is a {kind} of shape {shape}; pass (1, N, d) tokens or (1, C, H, W) pixels.")
    return "encoder" if value.ndim == 3 else "input"


def check_noise(noise: Noise | Tensor, pool: Pool) -> Tensor:
    """The noise's value on the pool's device, or an `InputError` if its shape does not fit or it is not finite."""
    value = noise.value if isinstance(noise, Noise) else noise
    if tuple(value.shape) != pool.noise_shape:
        raise InputError(f"noise has shape {tuple(value.shape)}, but the model needs {pool.noise_shape}.")
    if not value.is_floating_point() or not value.isfinite().all():
        raise InputError("noise must be floats without NaN or infinity; make it anew.")
    return normal(value).to(pool.inputs)


def _outputs(model: nn.Module, inputs: Tensor, level: str) -> tuple[Tensor, Tensor | None]:
    """Logits, and features where the model has them, from one pass through the blocks."""
    if not isinstance(model, ViT):
        return full(model(inputs)), None
    return model.encode_both(inputs if level == "encoder" else model.embed(inputs))


def _same_pool(model: nn.Module, pool: Pool, level: str, measure: str) -> Pool:
    if (pool.level, pool.measure) != (level, measure):
        raise InputError(
            f"the pool was read at level '{pool.level}' with measure '{pool.measure}', but '{level}' and '{measure}' "
            "are needed; read it again."
        )
    pool = pool.to(next(model.parameters(), pool.inputs).device)
    with torch.no_grad():
        now = logits_at(model, pool, pool.inputs[:PROBE])
    if now.shape != pool.logits[:PROBE].shape or not torch.allclose(now, pool.logits[:PROBE], rtol=1e-3, atol=1e-3):
        raise InputError("the pool was read with another model or other weights; read it again with read_pool.")
    return pool
