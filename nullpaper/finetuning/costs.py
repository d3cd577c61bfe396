"""What a training step costs when all weights train and when an adapter does: bytes on disk, bytes in memory, seconds.

Paper B (FullLoRA, arXiv 2401.01752) claims relief on storage and training time. Everything here is measured on steps of
`finetuning`, without its averaged weights.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nullpaper.adapters.files import save_adapter
from nullpaper.adapters.inject import AdaptedViT, remove, trainable
from nullpaper.errors import check_count, check_seed
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, Method, check_method, loss_of
from nullpaper.finetuning.trainer import adamw, descend, draws_from
from nullpaper.models.gradients import fast_gradients, kept, storage_bytes
from nullpaper.models.inputs import check_labelled
from nullpaper.models.vit import ViT, check_vit, evaluating, save_vit
from nullpaper.robustness.pgd import REACH
from nullpaper.statistics import Interval


def storage(vit: ViT) -> dict[str, float]:
    """What must be kept of a finetuned model.

    Returns:
        ``trainable`` parameters and their ``share`` (`adapters.trainable`); ``stored_bytes`` of the files of
        `save_adapter`, or of `save_vit` for a model without an adapter; ``stored_share`` of the plain checkpoint's.
    """
    check_vit(vit)
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


@torch.inference_mode(False)
def memory(vit: ViT, method: str, recipe: FinetuneRecipe, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Bytes that a step of finetuning needs, read off the tensors of two steps of a copy of ``vit``.

    Args:
        method: a name in `METHODS`; where it needs noise it gets zeros.
        images, labels: (B, C, H, W) in [0, 1] and (B,).

    Returns:
        ``parameters`` (frozen ones too), ``gradients`` and ``optimizer`` (AdamW's moments) after a step;
        ``saved``, the activations that the loss keeps for its backward pass; ``step_peak``, what the second step held
        at its highest point beyond parameters, moments and batch: on CUDA as its allocator counts it, on a CPU, where
        nobody counts, ``saved`` and ``gradients`` together; ``total`` of parameters, optimizer and step_peak.

    Raises:
        InputError: unknown method.
    """
    step = _Step(vit, check_method(method), recipe, images, labels)
    step()
    parameters = list(step.vit.parameters())
    gradients = storage_bytes(parameter.grad for parameter in parameters if parameter.grad is not None)
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    sizes = {"parameters": storage_bytes(parameters), "gradients": gradients, "optimizer": storage_bytes(moments)}
    step.optimizer.zero_grad(set_to_none=True)
    sizes["saved"] = step.saved()
    sizes["step_peak"] = sizes["saved"] + gradients
    if (device := step.batch.images.device).type == "cuda":
        gc.collect()  # or garbage from before, released inside, would count as memory won
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        sizes["step_peak"] = torch.cuda.max_memory_allocated(device) - before
    return sizes | {"total": sizes["parameters"] + sizes["optimizer"] + sizes["step_peak"]}


@torch.inference_mode(False)
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
        careless: instead of the method, "pgd_at" with an attack whose backward pass makes gradients of the weights too.

    Returns:
        One row a model: ``name``, ``seconds`` (median), ``ratio`` (median over rounds of the seconds over the first
        model's in the same round) with the 95 % percentile bootstrap interval of that median (``ratio_low``,
        ``ratio_high``, ``n`` rounds; up to 5 of them it spans all), and ``clock``, "cpu" or "wall".

    Raises:
        InputError: unknown method, repeats below 1, or a negative seed.
    """
    repeats = check_count("repeats", repeats)
    seed = check_seed(seed)
    chosen = Method(_careless, attack="ce") if careless else check_method(method)
    steps = [_Step(vit, chosen, recipe, images, labels) for vit in models.values()]
    on_cpu = all(step.batch.images.device.type == "cpu" for step in steps)
    clock = "cpu" if on_cpu and torch.get_num_threads() == 1 else "wall"
    now = time.process_time if clock == "cpu" else time.perf_counter
    for step in steps:
        step()
    taken, rng = np.empty((len(steps), repeats)), np.random.default_rng(seed)
    for turn in range(repeats):
        for index in rng.permutation(len(steps)):
            begun = now()
            steps[index]()
            taken[index, turn] = now() - begun
    rows = zip(models, np.median(taken, axis=1), taken / taken[0], strict=True)
    table = [{"name": name, "seconds": middle} | _median(ratios).columns("ratio") for name, middle, ratios in rows]
    return pd.DataFrame(table).assign(clock=clock)


class _Step:
    """A copy of a model in training mode, with its optimiser and a batch; a call is one step, as `finetuning` does."""

    def __init__(self, vit: ViT, method: Method, recipe: FinetuneRecipe, images: Tensor, labels: Tensor) -> None:
        check_vit(vit)
        images, labels = check_labelled(vit, images, labels)
        self.vit, self.method = deepcopy(vit).train(), method
        noise = torch.zeros(1, math.prod(vit.grid_size), vit.embed_dim, device=images.device) if method.noise else None
        begin = method.begin(images, recipe, torch.Generator().manual_seed(0))
        self.batch = Batch(images, labels, noise, begin, recipe)
        self.optimizer = adamw(self.vit, recipe, recipe.learning_rate)

    def __call__(self) -> None:
        with fast_gradients(self.vit):
            descend(self.vit, self.optimizer, self.loss(), self.batch.recipe.clip_norm)
        if self.batch.images.is_cuda:
            torch.cuda.synchronize()

    def loss(self) -> Tensor:
        with draws_from(0, self.batch.images.device):
            return loss_of(self.method, self.vit, self.batch)

    def saved(self) -> int:
        """Bytes that the graph of the loss keeps, parameters, batch and what the attack released left out."""
        there = [*self.vit.parameters(), *self.vit.buffers(), self.batch.images, self.batch.labels]
        with fast_gradients(self.vit):
            return kept(self.loss, there)


def _careless(vit: ViT, batch: Batch) -> Tensor:
    """PGD adversarial training with an attack that calls ``backward`` on a model whose weights train, as is often done.

    The images are those of `pgd.pgd`; the gradients of the weights that its steps make are thrown away. It is here to
    be timed, since against it a frozen backbone seems to save much more than against a careful attack.
    """
    eps, steps = batch.recipe.attack_eps, batch.recipe.attack_steps
    low, high = (batch.images - eps).clamp_min(0), (batch.images + eps).clamp_max(1)
    points = torch.clamp(batch.begin, low, high)
    with evaluating(vit), fast_gradients(vit):
        for _ in range(steps):
            points = points.detach().requires_grad_()
            cross_entropy(vit(points).float(), batch.labels, reduction="sum").backward()
            points = torch.clamp(points + REACH * eps / steps * points.grad.sign(), low, high)
    return METHODS["standard"].loss(vit, replace(batch, images=points.detach()))


def _median(values: np.ndarray) -> Interval:
    """Median with a 95 % percentile bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (2_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high), len(values))
