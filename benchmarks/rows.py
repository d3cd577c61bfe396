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

from benchmarks.measure import ROOT, Call, Setup, Skip, Work, process, row
from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import load_data
from nullpaper.finetuning.methods import METHODS, Batch, FinetuneRecipe, loss_of
from nullpaper.finetuning.trainer import adamw, descend
from nullpaper.fooling.watermark import draw_logo, official_noise, watermark
from nullpaper.models.gradients import fast_gradients
from nullpaper.models.graphs import Replay
from nullpaper.models.predict import answers
from nullpaper.models.vit import SHIPPED, ViT, evaluating, load_vit, patchify
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace
from nullpaper.robustness.attacks import attack, torchattacks
from nullpaper.robustness.corruptions import CORRUPTIONS, corrupt
from nullpaper.robustness.pgd import REACH, pgd
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.noise import BATCH, FINE_RATE, encoder_noise, polar, rescaled
from nullpaper.synthesis.problem import pose

# Synthesis: the published loop, and one by hand


@row("encoder noise: norm at influence 0.03", "published loop, same time", 1.25, at_least=True, seconds=320, unit="")
def noise_norm(setup: Setup) -> Work:
    """Both begin with images and end with a verified noise; the loop, never stopped, gets images for the same time."""
    vit, data, seeds = setup.vit(), load_data("cifar10"), count()
    options = {"size": BATCH, "image_size": 48, "device": setup.device}
    dev, test = (split.subset(2_000).batches(**options) for split in (data.dev, data.test))
    asked = {"eps": 0.03, "held_out": read_pool(vit, test)}
    images, seconds, noises = 4_000, [1.0, 1.0], []

    def ours() -> float:
        seconds[0] = setup.timed(lambda: noises.append(encoder_noise(vit, dev, seed=next(seeds), **asked)))
        return noises[-1].norm

    def published() -> float:
        nonlocal images
        train, loop = data.train.subset(images).batches(**options), {"official": True, "early_stop": False}
        noise = lambda: encoder_noise(vit, train, **loop, seed=next(seeds), **asked)  # noqa: E731
        seconds[1] = setup.timed(lambda: noises.append(rescaled(vit, noise(), dev, **asked)))
        images = int(images * seconds[0] / seconds[1])
        return noises[-1].norm

    def note() -> str:
        reached = sum(noise.reached for noise in noises)
        return f"{seconds[0] / seconds[1]:.2f} x its time, {reached} of {len(noises)} verified"

    ours(), published()  # for the number of images
    return Work(ours, published, values=True, note=note)


@row("synthesis step, 64 images", "plain loop, frozen weights", 0.5, seconds=12)
def noise_step(setup: Setup) -> Work:
    """The loop computes clean and noisy answers from images in every step, as the published one does."""
    vit, (images, _) = setup.vit(), setup.batch(8 * BATCH)
    problem = pose(vit, [images], level="encoder", held_out=[images[:8]], eps=0.03)
    start = torch.rand(problem.fit.noise_shape, device=setup.device) * 2 - 1

    def plain() -> None:
        noise = start.clone().requires_grad_()
        adam = torch.optim.AdamW([noise], lr=0.1)
        for batch in images.split(BATCH):
            with torch.no_grad():
                clean = vit(batch)
            adam.zero_grad()
            (vit.encode(vit.embed(batch) + noise) - clean).square().sum(1).mean().backward()
            adam.step()

    return Work(lambda: polar(problem, start, 8, FINE_RATE), plain, counted=True)


# Steps of training: a plain loop, torchattacks inside one, PEFT

RECIPE = FinetuneRecipe()


def our_step(vit: ViT, method: str, images: Tensor, labels: Tensor) -> Call:
    """One step of `finetuning` as a call, on a copy of ``vit``."""
    vit = deepcopy(vit).train()
    begin = METHODS[method].begin(images, RECIPE, torch.Generator())
    inputs = images, labels, torch.randn(1, 36, vit.embed_dim).to(images), begin
    optimizer = adamw(vit, RECIPE, RECIPE.learning_rate)

    def advance(*tensors: Tensor) -> tuple[Tensor]:
        loss = loss_of(METHODS[method], vit, Batch(*tensors, RECIPE))
        descend(vit, optimizer, loss, RECIPE.clip_norm)
        return (loss.detach(),)

    replay = Replay(advance)

    def step() -> None:
        with fast_gradients(vit):
            replay(*inputs)

    return step


def plain_step(vit: ViT, labels: Tensor, *branches: Callable[[ViT], Tensor]) -> Call:
    """The same by hand: the mean loss of the logits that the branches make of the model, AdamW, clipped gradients."""
    vit = deepcopy(vit).train()
    weights = [weight for weight in vit.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RECIPE.learning_rate, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        losses = [cross_entropy(branch(vit), labels, label_smoothing=RECIPE.label_smoothing) for branch in branches]
        (sum(losses) / len(losses)).backward()
        nn.utils.clip_grad_norm_(weights, RECIPE.clip_norm)
        optimizer.step()

    return step


@row("training step, 128 images", "plain loop", 0.46, of="share", at_least=True, seconds=6)
def train(setup: Setup) -> Work:
    vit, (images, labels) = setup.vit(trains=True), setup.batch(128)
    plain = plain_step(vit, labels, lambda vit: vit(images))
    return Work(our_step(vit, "standard", images, labels), plain, counted=True)


@row("nullspace finetuning step, 128 images", "two passes", 0.9, seconds=12)
def train_nullspace(setup: Setup) -> Work:
    vit, (images, labels) = setup.vit(trains=True), setup.batch(128)
    noise = torch.randn(1, 36, vit.embed_dim, device=setup.device)
    passes = lambda vit: vit(images), lambda vit: vit.encode(vit.embed(images) + noise)
    return Work(our_step(vit, "nullspace", images, labels), plain_step(vit, labels, *passes), counted=True)


@row("PGD-10 training step, 64 images", "torchattacks inside", 0.87, seconds=20, needs=("torchattacks",))
def train_pgd(setup: Setup) -> Work:
    vit, (images, labels) = setup.vit(trains=True), setup.batch(64)
    radius = {"eps": RECIPE.attack_eps, "alpha": REACH * RECIPE.attack_eps / RECIPE.attack_steps}

    def attacked(vit: ViT) -> Tensor:
        with evaluating(vit):
            points = torchattacks().PGD(vit, steps=RECIPE.attack_steps, **radius)(images, labels)
        return vit(points)

    return Work(our_step(vit, "pgd_at", images, labels), plain_step(vit, labels, attacked), counted=True)


def adapter_step(setup: Setup, kind: str) -> Work:
    """Rank 16 in all linear layers, the patch embedding among them, and the head."""
    from peft import LoraConfig, get_peft_model

    vit, (images, labels) = setup.vit(), setup.batch(128)
    theirs, targets = deepcopy(vit), ["qkv", "proj", "fc1", "fc2"]  # "proj" is the patch embedding's too
    config = LoraConfig(r=16, lora_alpha=16, target_modules=targets, modules_to_save=["head"])
    theirs.net = get_peft_model(theirs.net, config).base_model.model
    plain = plain_step(theirs, labels, lambda vit: vit(images))
    return Work(our_step(adapted_copy(vit, kind), "standard", images, labels), plain, counted=True)


for kind, title, goal in (("lora", "LoRA", 0.9), ("lnlora", "LNLoRA", 1.0)):
    row(f"{title} training step, 128 images", "PEFT's LoRA", goal, seconds=8, needs=("peft",))(
        lambda setup, kind=kind: adapter_step(setup, kind)
    )

# Attacks: equal eps, steps and step lengths, weights frozen for all

STEPS = 20


def with_torchattacks(vit: ViT, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    return torchattacks().PGD(vit, eps=eps, alpha=REACH * eps / STEPS, steps=STEPS)(images, labels)


def with_foolbox(vit: ViT, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    import foolbox

    method = foolbox.attacks.LinfPGD(abs_stepsize=REACH * eps / STEPS, steps=STEPS)
    return method.run(foolbox.PyTorchModel(vit, bounds=(0, 1), device=images.device), images, labels, epsilon=eps)


def with_adv_lib(vit: ViT, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    from adv_lib.attacks import pgd_linf

    return pgd_linf(vit, images, labels, eps, steps=STEPS, absolute_step_size=REACH * eps / STEPS)


def pgd_and(setup: Setup, library: Callable, eps: float, name: str = SHIPPED, **options: Any) -> Work:
    vit, (images, labels) = setup.vit(name), setup.batch(128)
    ours = lambda: pgd(vit, images, labels, eps=eps, steps=STEPS, **options)  # noqa: E731
    theirs = lambda: library(vit, images, labels, eps)  # noqa: E731

    def note() -> str:
        shares = [(answers(vit, call()).argmax(1) == labels).float().mean() for call in (ours, theirs)]
        return "accuracy {:.1%} and {:.1%}".format(*shares)

    return Work(ours, theirs, counted=not options, note=note)


LIBRARIES = {"torchattacks": with_torchattacks, "foolbox": with_foolbox, "adv-lib": with_adv_lib}
for name, library in LIBRARIES.items():
    row("PGD-20, all steps, 128 images", name, 0.85, seconds=45, needs=(name.replace("-", "_"),))(
        lambda setup, library=library: pgd_and(setup, library, 1 / 255)
    )
for title, goal, net in (("standard", 0.45, (1 / 255, SHIPPED)), ("robust", 0.3, (8 / 255, "vit_robust"))):
    row(f"PGD-20, fooled images dropped, {title} net", "torchattacks", goal, seconds=35, needs=("torchattacks",))(
        lambda setup, net=net: pgd_and(setup, with_torchattacks, *net, stop_when_fooled=True)
    )


@row("standard AutoAttack, robust net", "pyautoattack", 0.8, seconds=320, needs=("torchattacks", "pyautoattack"))
def autoattack(setup: Setup) -> Work:
    from pyautoattack import AutoAttack

    vit, (images, labels), robust = setup.vit("vit_robust"), setup.batch(8), {}
    images = images.contiguous()  # FAB views its gradients
    reference = AutoAttack(vit, norm="Linf", eps=8 / 255, version="standard", seed=0, device=setup.device)

    def keep(name: str, points: Tensor) -> None:
        robust[name] = (answers(vit, points).argmax(1) == labels).tolist()

    def note() -> str:
        equal = "equal" if robust["ours"] == robust["theirs"] else "unequal"
        return f"{equal} robust sets, {sum(robust['ours'])} and {sum(robust['theirs'])} of {len(labels)}"

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

    calls = lambda: space.nearest(images, targets), lambda: daqp(space, x, t)
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


@row("watermark, L1", "SLSQP, exact gradient", seconds=25, unit="ms a patch")
def watermarked(setup: Setup) -> Work:
    (images, _), space, logo = setup.batch(20), space_of(setup, 48), draw_logo((48, 48)).to(setup.device)
    solved, total = 4, len(images) * space.image_dim // space.dim
    pairs = [*zip(*map(torch.from_numpy, some_patches(space, solved, images, logo.expand_as(images))), strict=True)]
    slsqp = lambda: [official_noise(space, *pair, norm="l1", gradient=True) for pair in pairs]  # noqa: E731
    return Work(lambda: watermark(space, images, logo, norm="l1"), slsqp, part=solved / total, scale=1e3 / total)


# Corruptions at 32 px: severity 3 of CIFAR-10-C here, of ImageNet-C there


def corrupted(setup: Setup, names: tuple[str, ...]) -> Work:
    from imagecorruptions import corrupt as theirs

    images = load_data("cifar10").test.images[:100]
    reference = lambda: [theirs(image, 3, name) for name in names for image in images]  # noqa: E731
    options = {"scale": 10 / len(names), "traffic": 2.0 * images.nbytes * len(names)}
    return Work(lambda: [corrupt(images, name, 3) for name in names], reference, **options)


for names in (tuple(CORRUPTIONS), *((name,) for name in CORRUPTIONS)):
    title, options = names[0] if len(names) == 1 else "all", {"needs": ("imagecorruptions",), "unit": "ms an image"}
    row(f"corruption: {title}", "imagecorruptions-imaug", 1.0, seconds=2 * len(names) + 2, **options)(
        lambda setup, names=names: corrupted(setup, names)
    )

# What a reader waits for, in fresh processes

COMMAND = (sys.executable, "-m", "nullpaper")


@row("import of load_vit", "import timm", 1.05, seconds=40, unit="CPU s")
def imports(setup: Setup) -> Work:
    ours, timm = ((sys.executable, "-c", f"import {module}") for module in ("nullpaper.models.vit", "timm"))
    return Work(lambda: process(*ours), lambda: process(*timm), values=True)


for bound, *arguments in ((0.3, "--help"), (1.0, "verify"), (1.0, "paper", "--profile", "smoke")):

    @row(f"nullpaper {' '.join(arguments)}", "", bound, of="value", seconds=10 * bound, unit="CPU s")
    def command(setup: Setup, arguments: list[str] = arguments) -> Work:
        if "smoke" in arguments and not (ROOT / "build" / "smoke").exists():
            raise Skip("it is timed on finished runs: make paper PROFILE=smoke")
        return Work(lambda: process(*COMMAND, *arguments, codes=(0, 1)), values=True)


def wall(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@row("nullpaper paper --profile cpu --force", "", 15, of="value", seconds=7_500, unit="min", on_request=True)
def paper(setup: Setup) -> Work:
    command = ("env", "-u", "OMP_NUM_THREADS", *COMMAND, "paper", "--profile", "cpu", "--force")
    return Work(lambda: wall(lambda: process(*command)) / 60, values=True)


@row("sweep, of 4 trivial jobs and one worker", "papermill", seconds=120, unit="s a job")
def sweep_job(setup: Setup) -> Work:
    """Papermill executes the same notebook as often, and keeps no more than what it executed."""
    import jupytext
    import papermill

    folder, runs = tempfile.TemporaryDirectory(), count()
    root = Path(folder.name)
    (root / "notebooks").mkdir()
    notebook, ipynb = root / "notebooks" / "trivial.py", root / "trivial.ipynb"
    notebook.write_text('# %% tags=["parameters"]\nseed: int = 0\n\n# %%\nvalue = seed\n')
    jupytext.write(jupytext.read(notebook), ipynb)

    def ours() -> None:
        grid = root / f"run{next(runs)}.yaml"
        grid.write_text(yaml.safe_dump({"notebook": "trivial", "profile": "smoke", "grid": {"seed": [0, 1, 2, 3]}}))
        process(*COMMAND, "sweep", str(grid), "--workers", "1", NULLPAPER_ROOT=folder.name)

    def theirs() -> None:
        for seed in range(4):
            options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
            papermill.execute_notebook(ipynb, root / "done.ipynb", {"seed": seed}, **options)

    return Work(lambda: wall(ours) / 4, lambda: wall(theirs) / 4, values=True)
