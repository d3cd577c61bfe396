"""What trials will cost, before any of them begins: images, floating-point operations, memory and hours.

Operations are counted, not guessed: a step of the method, a noise and each attack run once on a tiny ViT under a
counter, which gives their forward passes an image; the model's own forward pass is counted on tensors without data. One
measured rate, that of the model under a short attack on this machine, makes hours of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.models import VisionTransformer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import Split
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, loss_of, make_noise
from nullpaper.models.gradients import CHUNK, fast_gradients, kept
from nullpaper.models.predict import answers
from nullpaper.models.vit import ViT, load_vit
from nullpaper.robustness.attacks import ATTACKS, attacked, split_name
from nullpaper.robustness.evaluation import corrupted_splits
from nullpaper.studies.judging import load
from nullpaper.studies.trials import AdapterSpec, Protocol, Trial, start_of

Plan = Mapping[str, tuple[Sequence[Trial], Protocol]]
"""By the name of a part of a notebook: trials, and how they are judged. A trial of several parts is trained once."""

TINY = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)
TRIED = 2  # images behind a count
LOOKS = 3  # at the boundary of eps in a run
SECONDS = 1.0  # that the rate is measured
AT_ONCE = 2e10  # operations of the images that it is measured on
TIMED = "pgd-2"


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost at most; what the store has already is not taken off.

    Attributes:
        parts: rows part, runs, images (each time that one is read or made), forward (passes, of all images), tflop
            (10^12 operations), hours.
        bytes: of a process at its highest: weights, their gradients, AdamW's moments and averages, and activations.
        rate: operations a second of a process, measured here.
        workers: processes side by side.
    """

    parts: pd.DataFrame
    bytes: float
    rate: float
    workers: int

    def __str__(self) -> str:
        table = self.parts.to_string(index=False, float_format="{:,.3g}".format, formatters={"images": "{:,}".format})
        tflop, hours = self.parts["tflop"].sum(), self.parts["hours"].sum()
        return (
            f"{table}\n\nAt most {tflop:,.3g} TFLOP and {hours:,.3g} hours in all, in {self.workers} process(es) of "
            f"{self.rate / 1e12:.3g} TFLOP/s, as measured here, and about {self.bytes / 1e9:.2g} GB each.\n"
            "At most: an attack is counted as if no image ever fell to it, and stored results as if there were none."
        )


def estimate(plan: Plan, workers: int = 0) -> Estimate:
    """What a plan will cost on this machine; takes seconds, and trains and judges nothing.

    Args:
        workers: as in `run_trials`.

    Raises:
        InputError: as `start_of` and `load_data`.
    """
    plan = {name: part for name, part in plan.items() if part[0]}
    trials = list(dict.fromkeys(trial for several, _ in plan.values() for trial in several))
    cuda = torch.cuda.is_available()
    workers = min(workers or (1 if cuda else torch.get_num_threads()), len(trials))
    models = {_start(trial): start_of(trial) for trial in trials}
    flops = {start: _flops(model) for start, model in models.items()}
    first = models[_start(trials[0])]
    rate = _rate(first, flops[_start(trials[0])])
    trained = [(_training(trial), flops[_start(trial)]) for trial in trials if trial.method != "start"]
    rows, seconds = [_row("finetuning", trained)], [0.0]
    for name, (several, protocol) in plan.items():
        rows.append(_row(name, [(_judging(protocol), flops[_start(trial)]) for trial in several]))
        reading, corrupting = _data_seconds(several[0], protocol, first)
        seconds.append(len(several) * reading / workers + corrupting)
    parts = pd.DataFrame(rows)
    parts["hours"] = (parts["tflop"] * 1e12 / rate / workers + seconds) / 3600
    sizes = [_bytes(models[_start(trial)], None if trial.method == "start" else trial.recipe) for trial in trials]
    return Estimate(parts[parts["runs"] > 0].reset_index(drop=True), max(sizes), rate, workers)


def _start(trial: Trial) -> tuple[Any, ...]:
    """What decides the shape of a trial's model."""
    first = trial.start
    while isinstance(first, Trial):
        trial, first = first, first.start
    return first, trial.weights, trial.data, trial.root


def _row(part: str, runs: Sequence[tuple[tuple[int, float], float]]) -> dict[str, Any]:
    images, forward = (sum(work[index] for work, _ in runs) for index in (0, 1))
    tflop = sum(work[1] * flops for work, flops in runs) / 1e12
    return {"part": part, "runs": len(runs), "images": int(images), "forward": forward, "tflop": tflop}


def _training(trial: Trial) -> tuple[int, float]:
    """Images and forward passes of a finetuning: its steps, its noises, its looks at dev and at the boundary."""
    recipe, method = trial.recipe, METHODS[trial.method]
    rounds = -(-trial.steps // recipe.steps_per_noise)
    look = 1 + (attack_passes(f"pgd-{recipe.attack_steps}") if method.attack else 0)
    work = [(trial.steps * recipe.batch_size, _step_passes(trial.method, _key(recipe), trial.adapter))]
    work.append(((rounds + 1) * recipe.dev_images, look))
    if method.noise:
        work.append((rounds * recipe.noise_images, noise_passes(method.noise, _key(recipe))))
    if (boundary := trial.boundary) is not None:
        own = _key(replace(recipe, noise_steps=boundary.steps, official=False))
        work.append((LOOKS * boundary.images, 1 + noise_passes("learned", own) + noise_passes("random", own)))
    return sum(images for images, _ in work), sum(images * passes for images, passes in work)


def _judging(protocol: Protocol) -> tuple[int, float]:
    """Images and forward passes of a trial's judgement."""
    levels = len(protocol.corruptions) * len(protocol.severities)
    passes = 1 + levels + sum(attack_passes(threat.name) for threat in protocol.threats)
    return protocol.images * (1 + levels), protocol.images * passes


def _key(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """What of a recipe decides a count: a batch of `TRIED`, and the same everywhere else."""
    return replace(recipe, batch_size=TRIED, amp=False)


@lru_cache(maxsize=1)
def _tiny() -> tuple[ViT, torch.Tensor, torch.Tensor, float]:
    """A tiny ViT of random weights, images that it gets right, and the operations of a forward pass of one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = load_vit(VisionTransformer(**TINY), mean=[0.5] * 3, std=[0.5] * 3)
        images = torch.rand(TRIED, 3, *vit.image_size)
    with fast_gradients(vit, exact=True):  # which tries a product once, and that is not to be counted
        pass
    return vit, images, answers(vit, images).argmax(1), counted(lambda: vit(images)) / TRIED


@lru_cache(maxsize=64)
def attack_passes(name: str) -> float:
    """Forward passes of an attack on an image that never falls to it; a backward pass is as many as its operations."""
    vit, images, labels, forward = _tiny()
    stem, steps = split_name(name)
    steps = ATTACKS[stem].steps if steps is None else steps

    def passes(count: int) -> float:
        options = dict(eps=1e-6, seed=0, batch_size=TRIED)
        return counted(lambda: attacked(vit, images, labels, f"{stem}-{count}", **options)) / TRIED / forward

    if steps <= 3:
        return passes(steps)
    few = [passes(count) for count in (1, 3)]
    return few[0] + (steps - 1) * (few[1] - few[0]) / 2  # every attack here is linear in its steps


@lru_cache(maxsize=64)
def _step_passes(method: str, recipe: FinetuneRecipe, adapter: AdapterSpec | None) -> float:
    """Forward passes an image of a step of a method: its loss, whatever it attacks, and the gradients."""
    vit, images, labels, forward = _tiny()
    vit = deepcopy(vit) if adapter is None else adapted_copy(vit, adapter.options(), 0)
    noise = torch.zeros(1, vit.grid_size[0] * vit.grid_size[1], vit.embed_dim) if METHODS[method].noise else None
    begin = METHODS[method].begin(images, recipe, torch.Generator().manual_seed(0))
    batch = Batch(images, labels, noise, begin, recipe)

    def step() -> None:
        with fast_gradients(vit.train()):
            loss_of(METHODS[method], vit, batch).backward()

    return counted(step) / TRIED / forward


@lru_cache(maxsize=64)
def noise_passes(kind: str, recipe: FinetuneRecipe) -> float:
    """Forward passes of making a noise, for each image that it is made from."""
    vit, _, _, forward = _tiny()
    pixels = np.random.default_rng(0).integers(0, 256, (16, *vit.image_size, 3), np.uint8)
    split = Split(pixels, np.zeros(len(pixels), int))
    return counted(lambda: make_noise(deepcopy(vit), split, kind, recipe, 0)) / len(split) / forward


class _Counter(TorchDispatchMode):
    """Adds up the operations of all matrix products, by torch's own formulas.

    torch's FlopCounterMode tells them apart by module, and fails where a gradient is taken of a leaf.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if (formula := flop_registry.get(function._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@torch.inference_mode(False)
def counted(work: Callable[[], Any]) -> int:
    """The operations of the matrix products in ``work()``, a multiplication and an addition being two."""
    with _Counter() as counter:
        work()
    return counter.total


def _empty(model: ViT) -> tuple[ViT, torch.Tensor]:
    """The model and an image, of shapes alone."""
    copy = deepcopy(model).to("meta")
    return copy, torch.empty(1, copy.channels, *copy.image_size, device="meta")


def _flops(model: ViT) -> float:
    copy, image = _empty(model)
    return float(counted(lambda: copy(image)))


def _bytes(model: ViT, recipe: FinetuneRecipe | None) -> float:
    """Weights, and for training gradients, two moments, averaged and best weights; and activations of a batch."""
    copy, image = _empty(model)
    weights = sum(parameter.nbytes for parameter in copy.parameters())
    activations = kept(lambda: copy(image), copy.parameters())
    at_once = CHUNK if model.mean.device.type == "cpu" else 250
    judging = weights + at_once * activations
    return judging if recipe is None else max(judging, 6 * weights + 2 * recipe.batch_size * activations)


def _rate(model: ViT, flops: float) -> float:
    """Operations a second of the model in a short attack, on a CPU with the one thread that a trial has.

    The clock of a CPU is the process's own time, which others that are busy there do not blur.
    """
    is_cpu, threads = model.mean.device.type == "cpu", torch.get_num_threads()
    clock = time.process_time if is_cpu else time.perf_counter
    count = int(np.clip(AT_ONCE / flops, 2, CHUNK)) if is_cpu else 250
    images = torch.rand(count, model.channels, *model.image_size, device=model.mean.device)
    labels = answers(model, images).argmax(1)

    def seconds() -> float:
        begun = clock()
        attacked(model, images, labels, TIMED, eps=1e-6, seed=0, batch_size=count)
        if not is_cpu:
            torch.cuda.synchronize()
        return clock() - begun

    try:
        torch.set_num_threads(1 if is_cpu else threads)
        taken = [seconds()]  # the first warms up
        while sum(taken) < SECONDS or len(taken) < 3:
            taken.append(seconds())
    finally:
        torch.set_num_threads(threads)
    return count * attack_passes(TIMED) * flops / float(np.median(taken[1:]))


def _data_seconds(trial: Trial, protocol: Protocol, model: ViT) -> tuple[float, float]:
    """Seconds of reading what is judged, for each trial, and of what is made once a process; by a few images."""
    place = (protocol.data or trial.data, protocol.root if protocol.data else trial.root)
    split = load(*place, model.transform).test.take(slice(0, TRIED))
    scale, levels = protocol.images / len(split), len(protocol.severities)

    def reading(one: Split) -> float:
        begun = time.perf_counter()
        next(iter(one.batches(TRIED, image_size=model.image_size)))
        return time.perf_counter() - begun

    clean = reading(split)
    if protocol.corrupted:
        return scale * clean * (1 + len(protocol.corruptions) * levels), 0.0
    begun = time.perf_counter()
    corrupted = corrupted_splits(split, protocol.corruptions, protocol.severities[:1])
    made = time.perf_counter() - begun  # photographs are corrupted when they are read
    return scale * (clean + levels * sum(map(reading, corrupted.values()))), scale * levels * made
