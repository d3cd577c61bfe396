"""Adversarial attacks by name in one call, ours and those of torchattacks, an optional extra, behind one contract.

What torchattacks 3.5.1 does not do is done here: modes of all modules, flags and random states come back as they were,
results lie in the ball and the box, only still-correct images are attacked, and the best attempt is kept. Its own
AutoAttack gives APGD and FAB 10 iterations, and as many targets as there are wrong classes; here its four parts run as
published, with 100 and 9.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from nullpaper.errors import InputError, check_count, nearest
from nullpaper.models.predict import answers
from nullpaper.models.vit import ViT, check_images, evaluating, norms, per_image
from nullpaper.robustness.patch_attack import patch_attack
from nullpaper.robustness.pgd import check_eps, frozen, margin, pgd

Stage = Callable[[nn.Module, Tensor, Tensor, float, int, int], Tensor]
"""(model, images, labels, eps, steps, seed) -> images that may leave ball and box by rounding."""

TARGETS = 9  # of APGD-T and FAB-T in the standard AutoAttack
QUERIES = 50  # of Square for each iteration of AutoAttack's other parts: 5,000 for 100
EDGE = 1e-4  # kept from the ends of the box where atanh is infinite


@dataclass(frozen=True)
class Attack:
    """What an attack does, in which ball, for how long, and who published it.

    Attributes:
        stages: run one after the other, each on the images that are still correct.
        norm: "Linf", "L2", or "patch": one patch differs, in each pixel by at most eps.
        steps: the default; for "square" queries, for "autoattack" iterations of APGD and FAB (Square: 50 times that).
        draws: whether it draws random numbers, so that a restart is another attempt.
        library: whether torchattacks computes it.
    """

    stages: tuple[Stage, ...]
    label: str
    norm: str
    steps: int
    source: str
    draws: bool = True
    library: bool = False


def attack(
    vit: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    eps: float,
    steps: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int = 250,
) -> Tensor:
    """Adversarial images of the shape of ``images`` (B, C, H, W), in [0, 1] and within eps of them.

    The model is attacked in evaluation mode. An image that it gets wrong anyway is returned as it is. Of all attempts
    on an image the one with the largest margin of a wrong class is kept, the clean image included, so that no restart
    makes the attack weaker; attempts end when the image is fooled.

    Args:
        vit: a `ViT`, or another classifier with ``image_size`` and ``num_classes`` that takes images in [0, 1].
        images: (B, C, H, W) in [0, 1], on the model's device.
        labels: (B,) whole numbers.
        name: one of `ATTACKS`; a suffix sets the steps, as in "pgd-100".
        eps: radius in pixel units, of the attack's norm; 0 gives the images back.
        steps: None: the attack's default.
        restarts: attempts on an image; an attack that draws nothing runs once.
        seed: of all draws. The batches share no draws, so that ``batch_size`` changes the numbers slightly.

    Raises:
        InputError: unknown attack, eps that is no radius in pixel units, labels or images that do not fit the model,
            steps, restarts or batch size below 1, a negative seed, or an attack that the model does not admit.
    """
    method, steps = check_attack(vit, name, eps=eps, steps=steps, restarts=restarts)
    check_labelled(vit, images, labels)
    check_count("batch_size", batch_size)
    check_count("seed", seed, least=0)
    labels = labels.to(images.device).long()
    if eps == 0:
        return images.detach().clone()
    result = []
    pairs = list(zip(images.detach().split(batch_size), labels.split(batch_size), strict=True))
    with torch.inference_mode(False), forked_rng(), evaluating(vit), frozen(vit):
        for number, pair in enumerate(pairs):
            seeds = np.random.SeedSequence([seed, number])
            result.append(_strongest(vit, *pair, method, eps, steps, restarts if method.draws else 1, seeds))
    return torch.cat(result)


@contextmanager
def forked_rng() -> Iterator[None]:
    """Inside, the global generators may be seeded; after, they go on as if nothing had been drawn, on every device."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


def _strongest(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: Attack,
    eps: float,
    steps: int,
    restarts: int,
    seeds: np.random.SeedSequence,
) -> Tensor:
    """The best of all attempts on one batch, by the margin; each attempt only on what is still correct."""
    images = images.clone(memory_format=torch.contiguous_format)  # FAB views the gradient, which has these strides
    labels = labels.clone()  # from inference mode, as the images may be, it could not be kept for a gradient
    logits, best = answers(model, images), images.clone()
    score, right = margin(logits, labels), logits.argmax(1) == labels
    for seed in seeds.generate_state(restarts):
        for stage in method.stages:
            standing = right.nonzero().squeeze(1)
            if len(standing) == 0:
                return best
            torch.manual_seed(int(seed))
            with torch.enable_grad():
                points = stage(model, images[standing], labels[standing], eps, steps, int(seed))
            points = _legal(points.detach().to(images), images[standing], eps, method.norm)
            logits = answers(model, points)
            gain, still_right = margin(logits, labels[standing]), logits.argmax(1) == labels[standing]
            better = (gain > score[standing]) | ~still_right
            best[standing[better]], score[standing[better]] = points[better], gain[better]
            right[standing] = still_right
    return best


def _legal(points: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """Points in the ball and the box, to rounding."""
    noise = points - images
    if norm == "L2":
        noise = noise * per_image((eps / norms(noise).clamp_min(torch.finfo(noise.dtype).tiny)).clamp_max(1))
    else:
        noise = noise.clamp(-eps, eps)
    return (images + noise).clamp(0, 1)


def split_name(name: str) -> tuple[str, int | None]:
    """An attack in `ATTACKS` and the steps that its name ends in, as in "pgd-20", or None.

    Raises:
        InputError: there is no such attack.
    """
    stem, dash, number = str(name).rpartition("-")
    suffixed = bool(dash) and number.isascii() and number.isdigit()
    stem = stem if suffixed else str(name)
    if stem not in ATTACKS:
        raise InputError(f"attack '{name}' is unknown.{nearest(stem, ATTACKS)} Choose from {', '.join(ATTACKS)}.")
    return stem, int(number) if suffixed else None


def check_attack(
    model: nn.Module, name: str, *, eps: float, steps: int | None = None, restarts: int = 1
) -> tuple[Attack, int]:
    """What `attack` would run on this model, and its steps.

    Raises:
        InputError: as `attack`, for all but images and labels; torchattacks is needed and not installed.
    """
    stem, given = split_name(name)
    if given is not None and steps not in (None, given):
        raise InputError(f"attack '{name}' and steps={steps} contradict each other; give one of them.")
    method = ATTACKS[stem]
    steps = method.steps if (given, steps) == (None, None) else steps if given is None else given
    check_count("steps", steps)
    check_count("restarts", restarts)
    if stem == "fgsm" and steps != 1:
        raise InputError(f"'fgsm' takes one step, not {steps}; choose 'pgd' for more.")
    check_eps(eps, math.sqrt(_channels(model) * math.prod(model.image_size)) if method.norm == "L2" else 1.0)
    if method.norm == "patch" and not isinstance(model, ViT):
        raise InputError(f"'{name}' chooses a patch by attention, so it needs a ViT, not {type(model).__name__}.")
    if _apgd_t in method.stages and model.num_classes < 4:
        raise InputError(
            f"'{name}' needs 4 classes, as its targeted loss reads 4 logits; take 'pgd' for {model.num_classes}."
        )
    if method.library:
        torchattacks()
    return method, steps


def check_labelled(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse images (B, C, H, W) and labels (B,) that do not fit the model.

    Raises:
        InputError: there are none, or as `check_images`; labels that are no class indices, or not one an image.
    """
    if images.ndim == 0 or len(images) == 0:
        raise InputError("there are no images to attack; pass at least one.")
    check_images(images, _channels(model), model.image_size, getattr(model, "name", type(model).__name__))
    if labels.ndim != 1 or len(labels) != len(images):
        raise InputError(f"labels have shape {tuple(labels.shape)}; pass one for each of the {len(images)} images.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are {labels.dtype}; pass class indices as whole numbers.")
    low, high, classes = int(labels.min()), int(labels.max()), model.num_classes
    if low < 0 or high >= classes:
        raise InputError(f"labels span {low} to {high}, but the model's classes are 0 to {classes - 1}; relabel them.")


def torchattacks() -> ModuleType:
    """The library: an optional extra, and slow to load, so that it is imported where an attack needs it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        raise InputError(
            'torchattacks is not installed, and this attack needs it; run `pip install "nullpaper[attacks]"`.'
        ) from error


def _channels(model: nn.Module) -> int:
    return model.channels if isinstance(model, ViT) else 3


def _fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    return pgd(model, images, labels, eps=eps, steps=1, step_size=eps, start="zero")


def _pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int, loss: str = "ce"
) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return pgd(model, images, labels, eps=eps, steps=steps, loss=loss, generator=draws, stop_when_fooled=True)


def _patch(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return patch_attack(model, images, labels, eps=eps, steps=steps, generator=draws)


def _mim(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    return torchattacks().MIFGSM(model, eps=eps, alpha=eps / steps, steps=steps, decay=1.0)(images, labels)


def _cw_l2(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    return torchattacks().CW(model, c=1, steps=steps, lr=0.01)(images.clamp(EDGE, 1 - EDGE), labels)


def _apgd_ce(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    return torchattacks().APGD(model, eps=eps, steps=steps, seed=seed)(images, labels)


def _apgd_t(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    classes = min(model.num_classes, TARGETS + 1)
    return torchattacks().APGDT(model, eps=eps, steps=steps, seed=seed, n_classes=classes)(images, labels)


def _fab_t(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    options = dict(multi_targeted=True, n_classes=min(model.num_classes, TARGETS + 1))
    return torchattacks().FAB(model, eps=eps, steps=steps, seed=seed, **options)(images, labels)


def _square(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int, queries: int = 1
) -> Tensor:
    return torchattacks().Square(model, eps=eps, n_queries=queries * steps, seed=seed)(images, labels)


AUTOATTACK = (_apgd_ce, _apgd_t, _fab_t, partial(_square, queries=QUERIES))

ATTACKS: dict[str, Attack] = {
    "fgsm": Attack((_fgsm,), "one sign step", "Linf", 1, "Goodfellow et al. 2015", draws=False),
    "pgd": Attack((_pgd,), "sign steps on the cross-entropy", "Linf", 20, "Madry et al. 2018"),
    "cw": Attack((partial(_pgd, loss="margin"),), "sign steps on the margin", "Linf", 20, "Carlini & Wagner 2017, f_6"),
    "cw_l2": Attack(
        (_cw_l2,), "short L2 noise, cut to the ball", "L2", 50, "Carlini & Wagner 2017", draws=False, library=True
    ),
    "mim": Attack((_mim,), "sign steps with momentum", "Linf", 10, "Dong et al. 2018", draws=False, library=True),
    "apgd": Attack((_apgd_ce, _apgd_t), "steps of adapted length", "Linf", 100, "Croce & Hein 2020", library=True),
    "square": Attack((_square,), "random squares", "Linf", 5000, "Andriushchenko et al. 2020", library=True),
    "autoattack": Attack(
        AUTOATTACK, "APGD-CE, APGD-T, FAB-T, Square", "Linf", 100, "Croce & Hein 2020, standard", library=True
    ),
    "patch": Attack((_patch,), "all pixels of the most attended patch", "patch", 40, "Fu et al. 2022"),
}
"""The attacks by name. Where steps have one length it is 2.5 eps / steps for "pgd" and "cw", eps / steps for "mim"."""
