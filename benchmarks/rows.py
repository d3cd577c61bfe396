"""The rows of the table: the paper's work, each beside what a reader would use otherwise."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import ROOT, Call, Setup, Skip, Work, nullpaper, process, row
from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import load_data
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, loss_of
from nullpaper.finetuning.trainer import adamw, descend
from nullpaper.fooling.watermark import draw_logo, official_noise, watermark
from nullpaper.models.predict import answers
from nullpaper.models.vit import SHIPPED, ViT, evaluating, load_vit, patchify
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace
from nullpaper.robustness.attacks import attack, torchattacks
from nullpaper.robustness.corruptions import CORRUPTIONS, corrupt
from nullpaper.robustness.pgd import REACH, pgd
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.noise import BATCH, TURN_RATE, encoder_noise, polar, rescaled
from nullpaper.synthesis.problem import pose

# Synthesis: the published loop and one by hand


@row(
    "encoder noise: norm at influence 0.03", "published loop, same time", 1.25, at_least=True, seconds=120, unit="norm"
)
def noise_norm(setup: Setup) -> Work:
    """Both begin with images and end with a verified noise; the loop, never stopped, gets images for the same time."""
    vit, data, seeds = setup.vit(), load_data("cifar10"), count()
    options = {"size": BATCH, "image_size": 48, "device": setup.device}
    dev, test = (split.subset(setup.size(2_000, 400)).batches(**options) for split in (data.dev, data.test))
    asked = {"eps": 0.03, "held_out": read_pool(vit, test)}
    ours_too = {"steps": 10} if setup.quick else {}
    images, seconds, reached = setup.size(4_000, 200), [1.0, 1.0], []

    def norm(side: int, call: Call) -> float:
        noises: list = []
        seconds[side] = setup.timed(lambda: noises.append(call()))
        reached.append(noises[0].reached)
        return noises[0].norm

    def published() -> float:
        nonlocal images
        train = data.train.subset(images).batches(**options)
        loop = {"official": True, "early_stop": False, "seed": next(seeds)}
        value = norm(1, lambda: rescaled(vit, encoder_noise(vit, train, **loop, **asked), dev, **asked))
        images = int(images * seconds[0] / seconds[1])
        return value

    def ours() -> float:
        return norm(0, lambda: encoder_noise(vit, dev, seed=next(seeds), **asked, **ours_too))

    def note() -> str:
        return f"{seconds[0] / seconds[1]:.2f} x its time, {sum(reached)} of {len(reached)} verified"

    ours(), published()  # for the number of images
    return Work(ours, published, values=True, note=note)


@row("synthesis step, 64 images", "plain loop, frozen weights", 0.5, seconds=12)
def noise_step(setup: Setup) -> Work:
    """The loop computes clean and noisy answers from images in every step, as the published one does."""
    vit, steps, (images, _) = setup.vit(), setup.size(10, 2), setup.batch(8 * BATCH)
    problem = pose(vit, [images], level="encoder", held_out=[images[:8]], eps=0.03)
    start = torch.rand(problem.fit.noise_shape, device=setup.device) * 2 - 1

    def plain() -> None:
        noise = start.clone().requires_grad_()
        adam = torch.optim.AdamW([noise], lr=0.1)
        for step in range(steps):
            batch = images[BATCH * (step % 8) :][:BATCH]
            with torch.no_grad():
                clean = vit(batch)
            adam.zero_grad()
            (vit.encode(vit.embed(batch) + noise) - clean).square().sum(1).mean().backward()
            adam.step()

    return Work(lambda: polar(problem, start, steps, TURN_RATE), plain, counted=True)


# Steps of training: a plain loop, torchattacks inside one, PEFT

RECIPE = FinetuneRecipe()


def our_step(vit: ViT, method: str, images: Tensor, labels: Tensor) -> Call:
    """One step of `finetuning` as a call, on a copy of ``vit``."""
    vit = deepcopy(vit).train()
    batch = Batch(images, labels, torch.randn(1, 36, vit.embed_dim).to(images), RECIPE, torch.Generator())
    optimizer = adamw(vit, RECIPE, RECIPE.learning_rate)
    return lambda: descend(vit, optimizer, loss_of(METHODS[method], vit, batch), RECIPE.clip_norm)


def plain_step(vit: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Call:
    """The same by hand: AdamW with clipped gradients on ``loss(vit)``."""
    vit = deepcopy(vit).train()
    weights = [weight for weight in vit.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RECIPE.learning_rate, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss(vit).backward()
        nn.utils.clip_grad_norm_(weights, RECIPE.clip_norm)
        optimizer.step()

    return step


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, label_smoothing=RECIPE.label_smoothing)


@row("training step, 128 images", "plain loop", 0.46, of="share", at_least=True, seconds=6)
def train(setup: Setup) -> Work:
    vit, (images, labels) = setup.vit(trains=True), setup.batch(128)
    plain = plain_step(vit, lambda vit: entropy(vit(images), labels))
    return Work(our_step(vit, "standard", images, labels), plain, counted=True)


@row("nullspace finetuning step, 128 images", "two passes", 0.9, seconds=12)
def train_nullspace(setup: Setup) -> Work:
    vit, (images, labels) = setup.vit(trains=True), setup.batch(128)
    noise = torch.randn(1, 36, vit.embed_dim, device=setup.device)

    def two_passes(vit: ViT) -> Tensor:
        return (entropy(vit(images), labels) + entropy(vit.encode(vit.embed(images) + noise), labels)) / 2

    return Work(our_step(vit, "nullspace", images, labels), plain_step(vit, two_passes), counted=True)


@row("PGD-10 training step, 64 images", "torchattacks inside", 0.87, seconds=20, needs=("torchattacks",))
def train_pgd(setup: Setup) -> Work:
    vit, (images, labels) = setup.vit(trains=True), setup.batch(64)
    eps, steps = RECIPE.attack_eps, RECIPE.attack_steps

    def attacked(vit: ViT) -> Tensor:
        with evaluating(vit):
            points = torchattacks().PGD(vit, eps=eps, alpha=REACH * eps / steps, steps=steps)(images, labels)
        return entropy(vit(points), labels)

    return Work(our_step(vit, "pgd_at", images, labels), plain_step(vit, attacked), counted=True)


def adapter_step(setup: Setup, kind: str) -> Work:
    """Rank 16 in all linear layers, the patch embedding among them, and the head."""
    from peft import LoraConfig, get_peft_model

    vit, (images, labels) = setup.vit(), setup.batch(128)
    theirs, targets = deepcopy(vit), ["qkv", "proj", "fc1", "fc2"]  # "proj" is the patch embedding's too
    config = LoraConfig(r=16, lora_alpha=16, target_modules=targets, modules_to_save=["head"])
    theirs.net = get_peft_model(theirs.net, config).base_model.model
    plain = plain_step(theirs, lambda vit: entropy(vit(images), labels))
    return Work(our_step(adapted_copy(vit, kind), "standard", images, labels), plain, counted=True)


for kind, title, goal in (("lora", "LoRA", 0.9), ("lnlora", "LNLoRA", 1.0)):
    row(f"{title} training step, 128 images", "PEFT's LoRA", goal, seconds=8, needs=("peft",))(
        lambda setup, kind=kind: adapter_step(setup, kind)
    )

# Attacks: equal eps, steps and step lengths, weights frozen for all

STEPS = 20
Arguments = tuple[ViT, Tensor, Tensor]


def with_foolbox(arguments: Arguments, eps: float) -> Tensor:
    import foolbox

    model = foolbox.PyTorchModel(arguments[0], bounds=(0, 1), device=arguments[1].device)
    method = foolbox.attacks.LinfPGD(abs_stepsize=REACH * eps / STEPS, steps=STEPS)
    return method.run(model, *arguments[1:], epsilon=eps)


def with_adv_lib(arguments: Arguments, eps: float) -> Tensor:
    from adv_lib.attacks import pgd_linf

    return pgd_linf(*arguments, eps, steps=STEPS, absolute_step_size=REACH * eps / STEPS)


def with_torchattacks(arguments: Arguments, eps: float) -> Tensor:
    method = torchattacks().PGD(arguments[0], eps=eps, alpha=REACH * eps / STEPS, steps=STEPS)
    return method(*arguments[1:])


def ours_and(setup: Setup, library: Callable, eps: float, name: str = SHIPPED, **options: Any) -> Work:
    arguments = (setup.vit(name), *setup.batch(setup.size(128, 32)))
    calls = lambda: pgd(*arguments, eps=eps, steps=STEPS, **options), lambda: library(arguments, eps)  # noqa: E731

    def note() -> str:
        shares = [(answers(arguments[0], call()).argmax(1) == arguments[2]).float().mean() for call in calls]
        return "accuracy {:.1%} and {:.1%}".format(*shares)

    return Work(*calls, counted=not options, note=note)


for name, needs, library in (
    ("torchattacks", ("torchattacks",), with_torchattacks),
    ("foolbox", ("foolbox",), with_foolbox),
    ("adv-lib", ("adv_lib", "visdom"), with_adv_lib),
):
    row("PGD-20, all steps, 128 images", name, 0.85, seconds=45, needs=needs)(
        lambda setup, library=library: ours_and(setup, library, 1 / 255)
    )
for title, goal, name, eps in (("standard", 0.45, SHIPPED, 1 / 255), ("robust", 0.3, "vit_robust", 8 / 255)):
    row(f"PGD-20, fooled images dropped, {title} net", "torchattacks", goal, seconds=35, needs=("torchattacks",))(
        lambda setup, *given, pair=(eps, name): ours_and(setup, with_torchattacks, *pair, stop_when_fooled=True)
    )


@row("standard AutoAttack, robust net", "pyautoattack", 0.8, seconds=200, needs=("torchattacks", "pyautoattack"))
def autoattack(setup: Setup) -> Work:
    from pyautoattack import AutoAttack

    vit, (images, labels), robust = setup.vit("vit_robust"), setup.batch(setup.size(16, 2)), {}
    reference = AutoAttack(vit, norm="Linf", eps=8 / 255, version="standard", seed=0, device=setup.device)

    def keep(name: str, points: Tensor) -> None:
        robust[name] = set((answers(vit, points).argmax(1) == labels).nonzero().flatten().tolist())

    def note() -> str:
        equal = "equal" if robust["ours"] == robust["theirs"] else f"not equal to {len(robust['theirs'])}:"
        return f"{equal} robust sets, {len(robust['ours'])} of {len(labels)}"

    return Work(
        lambda: keep("ours", attack(vit, images, labels, "autoattack", eps=8 / 255)),
        lambda: keep("theirs", reference.run_standard_evaluation(images, labels)[0]),
        note=note,
    )


# The nullspace's convex problems: general solvers, patch by patch

LARGE = "vit_tiny_patch16_224"  # with random weights: 768 values a patch, 576 dimensions


def space_of(setup: Setup, side: int) -> PatchNullspace:
    return patch_nullspace(setup.vit() if side == 48 else load_vit(LARGE, pretrained=False, device=setup.device))


def some_patches(space: PatchNullspace, count: int, *images: Tensor) -> list[np.ndarray]:
    """The same ``count`` patches of each of ``images``, drawn once and for all, (count, C*p*p) float64."""
    parts = [patchify(part.cpu().double(), space.patch_size).flatten(0, 1).numpy() for part in images]
    return [part[np.random.default_rng(0).choice(len(part), count, replace=False)] for part in parts]


def daqp(space: PatchNullspace, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The noise B a (n, D) that minimises |x + B a - t| with 0 <= x + B a <= 1, by DAQP, set up once."""
    from daqp import Model

    basis, noise, model = space.basis.cpu().numpy().copy(), np.empty_like(x), Model()
    model.setup(np.eye(space.dim), np.zeros(space.dim), basis, 1 - x[0], -x[0], np.zeros(len(basis), dtype=np.int32))
    for i in range(len(x)):
        model.update(f=basis.T @ (x[i] - t[i]), bupper=1 - x[i], blower=-x[i])
        noise[i] = basis @ model.solve()[0]
    return noise


def nearest(setup: Setup, side: int, images: int, solved: int) -> Work:
    (images, _), space = setup.batch(images, side), space_of(setup, side)
    targets, total = images.flip(0), len(images) * space.image_dim // space.dim
    x, t = some_patches(space, solved, images, targets)

    def note() -> str:
        (ours,) = some_patches(space, solved, space.nearest(images, targets)[0])
        best, own = (np.square(x + noise - t).sum(1) for noise in (daqp(space, x, t), ours))
        return f"worst excess over its objective {np.max(own / np.maximum(best, 1e-6) - 1):.0e}"

    calls = lambda: space.nearest(images, targets), lambda: daqp(space, x, t)  # noqa: E731
    return Work(*calls, part=solved / total, scale=1e3 / total, note=note)


def largest(setup: Setup, side: int, images: int) -> Work:
    (images, _), space = setup.batch(images, side), space_of(setup, side)

    def note() -> str:
        certificate = space.certify_largest(images, space.largest(images))
        return f"norm {certificate.norm.mean():.3f}, at most {certificate.upper_bound.mean():.3f}"

    return Work(lambda: space.largest(images), scale=1e3 / len(images), note=note)


for values, size in ((192, (48, 100, 400)), (768, (224, 4, 20))):
    row(f".nearest, patch of {values} values", "DAQP", 1.0, seconds=15, needs=("daqp",), unit="ms a patch")(
        lambda setup, size=size: nearest(setup, *size)
    )
for goal, size in ((11, (48, 10)), (340, (224, 1))):
    row(f".largest, image of {size[0]} px", "", goal, of="value", seconds=8, unit="ms an image")(
        lambda setup, size=size: largest(setup, *size)
    )


@row("watermark, L1", "SLSQP, exact gradient", seconds=40, unit="ms a patch")
def watermarked(setup: Setup) -> Work:
    (images, _), space, logo = setup.batch(20), space_of(setup, 48), draw_logo((48, 48)).to(setup.device)
    total, solved = len(images) * space.image_dim // space.dim, setup.size(4, 1)
    pairs = [*zip(*map(torch.from_numpy, some_patches(space, solved, images, logo.expand_as(images))), strict=True)]

    def slsqp() -> None:
        for pair in pairs:
            official_noise(space, *pair, norm="l1", gradient=True)

    return Work(lambda: watermark(space, images, logo, norm="l1"), slsqp, part=solved / total, scale=1e3 / total)


# Corruptions: severity 3 of CIFAR-10-C here, of ImageNet-C there, at 32 px


def corrupted(setup: Setup, names: tuple[str, ...]) -> Work:
    from imagecorruptions import corrupt as theirs

    images = load_data("cifar10").test.images[: setup.size(100, 20)]

    def reference() -> None:
        for name in names:
            np.stack([theirs(image, severity=3, corruption_name=name) for image in images])

    size = len(images) * len(names)
    options = {"scale": 1e3 / size, "traffic": 2.0 * images.nbytes * len(names)}
    return Work(lambda: [corrupt(images, name, 3) for name in names], reference, **options)


for names in (tuple(CORRUPTIONS), *((name,) for name in CORRUPTIONS)):
    title, options = names[0] if len(names) == 1 else "all", {"needs": ("imagecorruptions",), "unit": "ms an image"}
    row(f"corruption: {title}", "imagecorruptions-imaug", 1.0, seconds=2 * len(names) + 2, **options)(
        lambda setup, names=names: corrupted(setup, names)
    )

# What a reader waits for, in fresh processes


@row("import of load_vit", "import timm", 1.05, seconds=30, unit="CPU s")
def imports(setup: Setup) -> Work:
    ours, timm = ((sys.executable, "-c", f"import {module}") for module in ("nullpaper.models.vit", "timm"))
    return Work(lambda: process(*ours), lambda: process(*timm), values=True)


def command(bound: float, *arguments: str, unit: str = "CPU s", **options: Any) -> None:
    @row(" ".join(("nullpaper", *arguments)), "", bound, of="value", unit=unit, **options)
    def make(setup: Setup) -> Work:
        if "smoke" in arguments and not (ROOT / "build" / "smoke").exists():
            raise Skip("it is timed on finished runs: make paper PROFILE=smoke")
        return Work(lambda: process(*nullpaper(*arguments), codes=(0, 1)), values=True)


command(0.3, "--help", seconds=3)
command(1.0, "verify", seconds=10)
command(1.0, "paper", "--profile", "smoke", seconds=10)


def wall(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@row("nullpaper paper --profile cpu --force", "", 15, of="value", seconds=7_500, unit="min", on_request=True)
def paper(setup: Setup) -> Work:
    run = nullpaper("paper", "--profile", "cpu", "--force")
    return Work(lambda: wall(lambda: process("env", "-u", "OMP_NUM_THREADS", *run)) / 60, values=True)


@row("sweep, of 4 trivial jobs and one worker", "papermill", seconds=120, unit="s a job")
def sweep_job(setup: Setup) -> Work:
    """Papermill executes the same notebooks one after the other, and keeps no more than what it executed."""
    import jupytext
    import papermill

    root, jobs, runs = Path(tempfile.mkdtemp(prefix="nullpaper-bench-")), setup.size(4, 1), count()
    (root / "notebooks").mkdir()
    notebook = root / "notebooks" / "trivial.py"
    notebook.write_text('# %% tags=["parameters"]\nseed: int = 0\n\n# %%\nvalue = seed\n')
    jupytext.write(jupytext.read(notebook), root / "trivial.ipynb")

    def ours() -> None:
        grid = root / f"run{next(runs)}.yaml"
        grid.write_text(yaml.safe_dump({"notebook": "trivial", "grid": {"seed": [*range(jobs)]}}))
        process(*nullpaper("sweep", str(grid), "--profile", "smoke", "--workers", "1", NULLPAPER_ROOT=str(root)))

    def theirs() -> None:
        for seed in range(jobs):
            files, given = (root / "trivial.ipynb", root / "done.ipynb"), {"seed": seed}
            papermill.execute_notebook(*files, given, kernel_name="python3", progress_bar=False)

    return Work(lambda: wall(ours) / jobs, lambda: wall(theirs) / jobs, values=True)
