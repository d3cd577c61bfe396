"""What a training step costs when all weights train and when an adapter does: bytes on disk, bytes in memory, seconds.

Paper B (FullLoRA, arXiv 2401.01752) claims relief on storage and training time. Everything here is measured on steps of
`finetuning`, without its averaged weights; `expected_ratio` is the count of passes that the seconds are held against.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakSet

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from nullpaper.adapters.files import save_adapter
from nullpaper.adapters.inject import AdaptedViT, remove, trainable
from nullpaper.errors import InputError, check_count
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, check_method
from nullpaper.finetuning.trainer import adamw, descend
from nullpaper.models.vit import ViT, check_images, evaluating, save_vit
from nullpaper.robustness.pgd import REACH
from nullpaper.statistics import Interval


def expected_ratio(attack_steps: int, *, careless: bool = False, through: bool = True) -> float:
    """Passes of a step on attacked images with a frozen backbone, over those with all weights training.

    Forward pass, gradient of the inputs and gradient of the weights count 1 each, the adapter's own layers nothing. An
    attack step is two passes, or three where its backward pass makes gradients of weights that train (``careless``).

    Args:
        attack_steps: of the attack; 0: training on the images as they are.
        through: gradients pass the backbone to what trains in or below it; False: the head alone trains.

    Raises:
        InputError: attack_steps is no whole number of at least 0.
    """
    check_count("attack_steps", attack_steps, least=0)
    return (2 * attack_steps + 1 + through) / ((3 if careless else 2) * attack_steps + 3)


def storage(vit: ViT) -> dict[str, float]:
    """What must be kept of a finetuned model.

    Returns:
        ``trainable`` parameters and their ``share`` (`adapters.trainable`); ``stored_bytes`` of the files of
        `save_adapter`, or of `save_vit` for a model without an adapter; ``stored_share`` of the plain checkpoint's.
    """
    count, share = trainable(vit)
    adapted = isinstance(vit, AdaptedViT)
    with TemporaryDirectory() as folder:
        plain, files = Path(folder, "plain.safetensors"), Path(folder, "adapter")
        save_vit(remove(deepcopy(vit)) if adapted else vit, plain)
        stored = whole = plain.stat().st_size
        if adapted:
            save_adapter(vit, files)
            stored = sum(file.stat().st_size for file in files.iterdir())
    return {"trainable": count, "share": share, "stored_bytes": stored, "stored_share": stored / whole}


def memory(vit: ViT, method: str, recipe: FinetuneRecipe, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Bytes that a step of finetuning needs, read off the tensors of two steps of a copy of ``vit``.

    Args:
        method: a name in `METHODS`; where it needs noise it gets zeros.
        images, labels: (B, C, H, W) in [0, 1] and (B,), on the model's device.

    Returns:
        ``parameters`` (frozen ones too), ``gradients`` and ``optimizer`` (AdamW's moments) after a step;
        ``saved``, the activations that the loss keeps for its backward pass; ``step_peak``, what the second step held
        at its highest point beyond parameters, moments and batch: on CUDA as its allocator counts it, on a CPU, where
        nobody counts, ``saved`` and ``gradients`` together; ``total`` of parameters, optimizer and step_peak.

    Raises:
        InputError: unknown method, nothing that trains, an empty batch or one that does not fit the model.
    """
    loss = check_method(method).loss
    step = _Step(vit, loss, _batch(vit, method, recipe, images, labels))
    step()
    parameters = list(step.vit.parameters())
    gradients = _bytes(parameter.grad for parameter in parameters if parameter.grad is not None)
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    sizes = {"parameters": _bytes(parameters), "gradients": gradients, "optimizer": _bytes(moments)}
    step.optimizer.zero_grad(set_to_none=True)
    sizes["saved"] = step.saved()
    sizes["step_peak"] = _peak(step, images.device) if images.device.type == "cuda" else sizes["saved"] + gradients
    return sizes | {"total": sizes["parameters"] + sizes["optimizer"] + sizes["step_peak"]}


def step_times(
    models: Mapping[str, ViT],
    method: str,
    recipe: FinetuneRecipe,
    images: Tensor,
    labels: Tensor,
    *,
    repeats: int = 5,
    careless: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Seconds of a whole step (attack, forward and backward pass, clipping, AdamW), all models in every round.

    A round times each model once, in an order drawn from ``seed``, so that drift of the machine meets all alike; a
    warm-up step of each comes before. The clock is the process's CPU time where one thread computes, since a busy
    machine blurs all else, and wall time elsewhere, on CUDA after a synchronisation.

    Args:
        models: by name; the first is what ratios refer to. Copies are trained.
        method, images, labels: as in `memory`.
        repeats: rounds.
        careless: an attack whose backward pass makes gradients of the weights as well; "pgd_at" alone.

    Returns:
        One row a model: ``name``, ``seconds`` (median), ``ratio`` (median over rounds of the seconds over the first
        model's in the same round) with the 95 % percentile bootstrap interval of that median (``ratio_low``,
        ``ratio_high``, ``n`` rounds; up to 5 of them it spans all), and ``clock``, "cpu" or "wall".

    Raises:
        InputError: as `memory`; no models, repeats below 1, or a careless attack of another method.
    """
    check_count("repeats", repeats)
    loss = check_method(method).loss
    if careless and method != "pgd_at":
        raise InputError(f"careless=True is an attack of 'pgd_at', not of '{method}': leave it out.")
    if not models:
        raise InputError("models are empty: give at least one ViT by name.")
    loss = _careless if careless else loss
    steps = {name: _Step(vit, loss, _batch(vit, method, recipe, images, labels)) for name, vit in models.items()}
    clock = "cpu" if images.device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    for step in steps.values():
        _seconds(step, clock, images.device)
    taken, rng = np.empty((len(steps), repeats)), np.random.default_rng(seed)
    for turn in range(repeats):
        for index in rng.permutation(len(steps)):
            taken[index, turn] = _seconds([*steps.values()][index], clock, images.device)
    rows = zip(steps, np.median(taken, axis=1), taken / taken[0], strict=True)
    table = [{"name": name, "seconds": middle} | _median(ratios).columns("ratio") for name, middle, ratios in rows]
    return pd.DataFrame(table).assign(clock=clock)


class _Step:
    """A copy of a model in training mode, with its optimiser and a batch; a call is one step, as `finetuning` does."""

    def __init__(self, vit: ViT, loss: Callable[[ViT, Batch], Tensor], batch: Batch) -> None:
        self.vit, self.make_loss, self.batch = deepcopy(vit).train(), loss, batch
        self.optimizer = adamw(self.vit, batch.recipe, batch.recipe.learning_rate)

    def __call__(self) -> None:
        descend(self.vit, self.optimizer, self.loss(), self.batch.recipe.clip_norm)

    def loss(self) -> Tensor:
        device, half = self.batch.images.device, self.batch.recipe.amp
        cuda = [device] if device.type == "cuda" else []
        autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=half) if cuda else nullcontext()
        with torch.random.fork_rng(cuda), autocast:  # dropout draws from the global generator
            torch.manual_seed(0)
            return self.make_loss(self.vit, replace(self.batch, generator=torch.Generator().manual_seed(0)))

    def saved(self) -> int:
        """Bytes that the graph of the loss keeps, parameters, batch and what the attack released left out."""
        packed: WeakSet[_Packed] = WeakSet()

        def pack(tensor: Tensor) -> _Packed:
            one = _Packed(tensor.detach())
            packed.add(one)
            return one

        with saved_tensors_hooks(pack, lambda one: one.tensor):
            loss = self.loss()
        there = [*self.vit.parameters(), *self.vit.buffers(), self.batch.images, self.batch.labels]
        kept = _bytes([*there, *(one.tensor for one in packed)]) - _bytes(there)
        del loss  # until here it holds the graph, which alone holds what was packed
        return kept


@dataclass(eq=False)
class _Packed:
    """A saved tensor."""

    tensor: Tensor


def _careless(vit: ViT, batch: Batch) -> Tensor:
    """`pgd_at` with an attack that calls ``backward`` on a model whose weights train, as is often done.

    The images are those of `pgd.pgd`; the gradients of the weights that its steps make are thrown away. It is here to
    be timed, since against it a frozen backbone seems to save much more than against a careful attack.
    """
    recipe, generator = batch.recipe, batch.generator
    low, high = (batch.images - recipe.attack_eps).clamp_min(0), (batch.images + recipe.attack_eps).clamp_max(1)
    start = 2 * torch.rand(batch.images.shape, generator=generator) - 1
    points = torch.clamp(batch.images + recipe.attack_eps * start.to(batch.images), low, high)
    with evaluating(vit):
        for _ in range(recipe.attack_steps):
            points = points.detach().requires_grad_()
            cross_entropy(vit(points).float(), batch.labels, reduction="sum").backward()
            points = torch.clamp(
                points + REACH * recipe.attack_eps / recipe.attack_steps * points.grad.sign(), low, high
            )
    return METHODS["standard"].loss(vit, replace(batch, images=points.detach()))


def _batch(vit: ViT, method: str, recipe: FinetuneRecipe, images: Tensor, labels: Tensor) -> Batch:
    """The batch that every step takes, if ``vit`` can train on it."""
    device = next(vit.parameters()).device
    if not trainable(vit)[0]:
        raise InputError(f"nothing of {vit.name} requires gradients, so no step trains it: inject an adapter.")
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise InputError(f"a batch of {len(images)} images and {len(labels)} labels cannot be trained on: give pairs.")
    check_images(images, vit.channels, vit.image_size, vit.name)
    if images.device != device or labels.device != device:
        raise InputError(
            f"images are on {images.device}, labels on {labels.device}, {vit.name} on {device}: move them."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < vit.num_classes:
        raise InputError(f"labels go up to {int(labels.max())}, but {vit.name} has {vit.num_classes} classes.")
    noise = None
    if METHODS[method].noise is not None:
        noise = torch.zeros(1, math.prod(vit.grid_size), vit.embed_dim, device=device)
    return Batch(images, labels, noise, recipe, torch.Generator())


def _peak(step: Callable[[], None], device: torch.device) -> int:
    """The most bytes that CUDA's allocator held at one time during ``step``, beyond what was there before."""
    gc.collect()  # or garbage from before, released inside, would count as memory won
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages behind ``tensors``, each counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _seconds(step: Callable[[], None], clock: str, device: torch.device) -> float:
    now = time.process_time if clock == "cpu" else time.perf_counter
    begun = now()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # as after the step before, so that nothing else was under way
    return now() - begun


def _median(values: np.ndarray) -> Interval:
    """Median with a 95 % percentile bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (2_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high), len(values))
