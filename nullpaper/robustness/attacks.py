"""Adversarial attacks by name in one call, ours and those of torchattacks, an optional extra, behind one contract.

What torchattacks 3.5.1 does not do is done here: modes of all modules, flags and random states come back as they were,
results lie in the ball and the box, only still-correct images are attacked, and the best attempt is kept. AutoAttack's
four parts run as published (Croce & Hein 2020): APGD and FAB, which are ours, and Square with the library's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from nullpaper.errors import InputError, check_choice, check_count, check_seed
from nullpaper.models.gradients import chunks, fast_gradients, frozen
from nullpaper.models.graphs import by_rows
from nullpaper.models.inputs import check_labelled
from nullpaper.models.predict import answers
from nullpaper.models.vit import ViT, check_classifier, evaluating, norms, per_image
from nullpaper.robustness.autoattack import apgd, apgd_t, fab_t
from nullpaper.robustness.patch_attack import ATTENTION, patch_attack
from nullpaper.robustness.pgd import ascent, check_eps, margin, start

Stage = Callable[[nn.Module, Tensor, Tensor, float, int, int], Tensor]
"""(model, images, labels, eps, steps, seed) -> images that may leave ball and box by rounding."""

QUERIES = 50  # of Square for each iteration of AutoAttack's other parts: 5,000 for 100
EDGE = 1e-4  # kept from the ends of the box where atanh is infinite


@dataclass(frozen=True)
class Attack:
    """Stages that run one after the other, each on the images that are still correct.

    Attributes:
        steps: the default; for "square" queries, for "autoattack" iterations of APGD and FAB (Square: 50 times that).
        norm: "Linf", "L2", or "patch": one patch differs, in each pixel by at most eps.
        library: whether torchattacks computes it.
    """

    stages: tuple[Stage, ...]
    steps: int
    norm: str = "Linf"
    library: bool = False


def attack(
    vit: nn.Module, images: Tensor, labels: Tensor, name: str, *, eps: float, seed: int = 0, batch_size: int = 250
) -> Tensor:
    """Adversarial images of the shape of ``images`` (B, C, H, W), in [0, 1] and within eps of them.

    The model is attacked in evaluation mode. An image that it gets wrong anyway is returned as it is. Of what the
    stages find for an image, the one with the largest margin of a wrong class is kept, the clean image included.

    Args:
        vit: a `ViT`, or another classifier with ``image_size`` and ``num_classes`` that takes images in [0, 1].
        images: (B, C, H, W) in [0, 1].
        labels: (B,) whole numbers.
        name: one of `ATTACKS`; a suffix sets the steps, as in "pgd-100".
        eps: radius in pixel units, of the attack's norm; 0 gives the images back.
        seed: of all draws. The batches share no draws, so that ``batch_size`` changes the numbers slightly.

    Raises:
        InputError: a model of another kind, unknown attack, eps that is no radius in pixel units, labels or images that
            do not fit the model, steps or batch size below 1, a negative seed, or an attack that the model does not
            admit.
    """
    check_attack(vit, name, eps)
    images, labels = check_labelled(vit, images, labels)
    seed, batch_size = check_seed(seed), check_count("batch_size", batch_size)
    return attacked(vit, images, labels, name, eps=eps, seed=seed, batch_size=batch_size)[0]


def attacked(
    vit: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    eps: float,
    seed: int,
    batch_size: int,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`attack` without its checks, and which images (B,) bool the model still gets right.

    Args:
        logits: what the model answers to the images (B, K), if that is known.
    """
    method, steps = check_attack(vit, name, eps)
    result = []
    with torch.inference_mode(False), torch.random.fork_rng(), evaluating(vit), frozen(vit):
        logits = answers(vit, images) if logits is None else logits
        if eps == 0:
            return images.clone(), logits.argmax(1) == labels
        pairs = zip(*(part.split(batch_size) for part in (images, labels, logits)), strict=True)
        for number, pair in enumerate(pairs):
            draws = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            result.append(_strongest(vit, *pair, method, eps, steps, draws))
    best, right = zip(*result, strict=True)
    return torch.cat(best), torch.cat(right)


def _strongest(
    model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, method: Attack, eps: float, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The best of all stages on one batch, by the margin; each only on what is right; and what is last."""
    images = images.clone(memory_format=torch.contiguous_format)  # FAB views the gradient, which has these strides
    best, score, right = images.clone(), margin(logits, labels), logits.argmax(1) == labels
    for stage in method.stages:
        standing = right.nonzero().squeeze(1)
        if len(standing) == 0:
            break
        torch.manual_seed(seed)
        with torch.enable_grad(), fast_gradients(model, exact=True):
            points = stage(model, images[standing], labels[standing], eps, steps, seed)
        points = _legal(points.detach().to(images), images[standing], eps, method.norm)
        logits = answers(model, points)
        gain, still_right = margin(logits, labels[standing]), logits.argmax(1) == labels[standing]
        better = (gain > score[standing]) | ~still_right
        best[standing[better]], score[standing[better]] = points[better], gain[better]
        right[standing] = still_right
    return best, right


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
        InputError: there is no such attack, or it ends in no steps.
    """
    stem, _, number = str(name).rpartition("-")
    stem, steps = (stem, int(number)) if stem and number.isdecimal() else (name, None)
    check_choice("attack", stem, ATTACKS)
    if steps is not None:
        steps = check_count("steps", steps)
    return stem, steps


def measure_of(name: str) -> str:
    """An attack as tables call it, without its steps: "pgd" for "pgd-20".

    AutoAttack is only so called at its standard budget (Croce & Hein 2020), and keeps other steps, as "autoattack-10".

    Raises:
        InputError: as `split_name`.
    """
    stem, steps = split_name(name)
    return stem if stem != "autoattack" or steps in (None, ATTACKS[stem].steps) else f"{stem}-{steps}"


def check_attack(model: nn.Module, name: str, eps: float) -> tuple[Attack, int]:
    """What `attack` would run on this model, and its steps.

    Raises:
        InputError: as `attack`, for the model, the name and eps; torchattacks is needed and not installed.
    """
    check_classifier(model)
    stem, steps = split_name(name)
    method = ATTACKS[stem]
    steps = method.steps if steps is None else steps
    values = getattr(model, "channels", 3) * math.prod(model.image_size)
    check_eps(eps, math.sqrt(values) if method.norm == "L2" else 1.0)
    if method.norm == "patch" and not isinstance(model, ViT):
        raise InputError(f"'{name}' chooses a patch by attention, so it needs a ViT, not {type(model).__name__}.")
    if apgd_t in method.stages and model.num_classes < 4:
        raise InputError(f"'{name}' needs 4 classes, as a loss reads 4 logits; take 'pgd' for {model.num_classes}.")
    if method.library:
        torchattacks()
    return method, steps


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


def _fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    return ascent(model, images, labels, images, eps=eps, steps=steps)


def _pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int, loss: str = "ce"
) -> Tensor:
    begin = start(images, eps, loss, torch.Generator().manual_seed(seed))
    return ascent(model, images, labels, begin, eps=eps, steps=steps, loss=loss, stop_when_fooled=True)


def _mim(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int, momentum: float = 1.0
) -> Tensor:
    options = {"eps": eps, "steps": steps, "reach": 1.0, "momentum": momentum, "stop_when_fooled": True}
    return ascent(model, images, labels, images, **options)


class _InChunks(nn.Module):
    """A model for a library that passes many images at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training = model, model.training  # a library that finds it training puts it back to that

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        parts = [part for (part,) in chunks(images)]
        if torch.is_grad_enabled():  # a replay leaves no graph to go back through
            return torch.cat([self.model(part) for part in parts])
        return torch.cat([by_rows(_logits, self.model, part)[0] for part in parts])


def _logits(model: nn.Module, images: Tensor) -> tuple[Tensor]:
    return (model(images),)


def _cw_l2(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    return torchattacks().CW(_InChunks(model), c=1, steps=steps, lr=0.01)(images.clamp(EDGE, 1 - EDGE), labels)


def _square(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int, queries: int = 1
) -> Tensor:
    return torchattacks().Square(_InChunks(model), eps=eps, n_queries=queries * steps, seed=seed)(images, labels)


PATCH_FOOL = partial(patch_attack, attention=ATTENTION)
AUTOATTACK = (apgd, apgd_t, fab_t, partial(_square, queries=QUERIES))

ATTACKS: dict[str, Attack] = {
    "fgsm": Attack((_fgsm,), 1),  # one sign step: Goodfellow et al. 2015
    "pgd": Attack((_pgd,), 20),  # sign steps on the cross-entropy: Madry et al. 2018
    "cw": Attack((partial(_pgd, loss="margin"),), 20),  # sign steps on the margin: Carlini & Wagner 2017, f_6
    "mim": Attack((_mim,), 10),  # sign steps with momentum 1 from the image itself: Dong et al. 2018
    "cw_l2": Attack((_cw_l2,), 50, "L2", library=True),  # short noise, cut to the ball: Carlini & Wagner 2017
    "apgd": Attack((apgd, apgd_t), 100),  # steps of adapted length: Croce & Hein 2020
    "square": Attack((_square,), 5000, library=True),  # random squares: Andriushchenko et al. 2020
    "autoattack": Attack(AUTOATTACK, 100, library=True),  # standard: Croce & Hein 2020
    "patch": Attack((patch_attack,), 40, "patch"),  # Adam on all pixels of the most attended patch
    "patch_fool": Attack((PATCH_FOOL,), 250, "patch"),  # which also gets more attention: Fu et al. 2022
}
"""By name; steps of "fgsm", "pgd" and "cw" are 2.5 eps / steps long, cut to the ball, those of "mim" eps / steps."""
