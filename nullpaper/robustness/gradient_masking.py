"""When is a robust accuracy not to be believed? The checks of AutoAttack and of Carlini et al. 2019, as sentences.

AutoAttack (Croce & Hein 2020) flags random answers, probabilities in place of logits, vanishing gradients, and a
black-box attack that beats the white-box ones; Carlini et al. ("On Evaluating Adversarial Robustness", section 5) ask
that iterated attacks beat single steps, larger radii smaller ones, and that an unbounded attack always succeeds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nullpaper.errors import InputError, check_count, check_seed
from nullpaper.models.gradients import frozen
from nullpaper.models.inputs import check_labelled
from nullpaper.models.predict import answers
from nullpaper.models.vit import evaluating
from nullpaper.robustness.attacks import attack, check_attack

SHARE = 0.02  # of the images: what a check lets pass, since attacks draw
UNBOUNDED = 0.5  # the radius from which every image can be made plain grey
WIDER = 4  # times eps
BATCH = 250


def diagnose(
    vit: nn.Module, images: Tensor, labels: Tensor, *, eps: float, seed: int = 0, steps: int = 20, queries: int = 200
) -> list[str]:
    """Sentences that warn of what would fake robustness at eps on images (B, C, H, W) in [0, 1]; empty: none found.

    It costs about 3 runs of PGD with ``steps`` steps and one of Square with ``queries``, on the images that the model
    gets right. An empty list proves nothing: the checks see common faults, no defence made to pass them.

    Args:
        vit: as `attack` takes it; modes, flags and random states are left as they were.
        eps: above 0, in pixel units, L-infinity.

    Raises:
        InputError: as `attack`, eps = 0, steps or queries below 1.
    """
    for name, value in (("steps", steps), ("queries", queries)):
        check_count(name, value)
    seed = check_seed(seed)
    check_attack(vit, f"square-{queries}", eps)
    images, labels = check_labelled(vit, images, labels)
    if eps == 0:
        raise InputError("eps=0 leaves nothing to diagnose; pass the radius of the evaluation.")
    with torch.inference_mode(False), torch.random.fork_rng(), evaluating(vit), frozen(vit):
        torch.manual_seed(seed)
        first, second = (_answers(vit, images) for _ in range(2))
        right = first.argmax(1) == labels
        if not right.any():
            return ["The model gets none of these images right, so that there is nothing to attack."]
        warnings, images, labels = _answer_warnings(first, second), images[right], labels[right]
        zero = _without_gradient(vit, images, labels)
        if zero > SHARE:
            warnings.append(
                f"The gradient is zero at {zero:.0%} of the images, where such attacks are blind (masking)."
            )
        if zero == 1:
            return warnings  # no attack by gradients could add to this
        return warnings + _attack_warnings(vit, images, labels, eps, steps, queries, seed)


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([answers(model, part) for part in images.split(BATCH)])


def _answer_warnings(first: Tensor, second: Tensor) -> list[str]:
    """What two passes over the same images say about the answers (B, K)."""
    warnings = []
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        warnings.append("Two passes over the same images differ, so the model is random: average over its draws (EOT).")
    if (first >= 0).all() and ((first.sum(1) - 1).abs() < 1e-3).all():
        warnings.append("The answers look like probabilities, whose gradients vanish where it is sure: return logits.")
    return warnings


def _without_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images at which the cross-entropy has no gradient, or none that is finite."""
    flat = 0
    for part, classes in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        points = part.clone().requires_grad_()
        loss = cross_entropy(model(points), classes, reduction="sum")
        gradient = torch.autograd.grad(loss, points, allow_unused=True)[0] if loss.requires_grad else None
        size = torch.zeros(len(part)) if gradient is None else gradient.abs().flatten(1).sum(1)
        flat += int((~size.isfinite() | (size == 0)).sum())
    return flat / len(images)


def _attack_warnings(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, queries: int, seed: int
) -> list[str]:
    """What attacks that should be stronger, and are not, say about the gradients."""

    def robust(name: str, radius: float, images: Tensor = images, labels: Tensor = labels) -> Tensor:
        """Which images still get their class, (B,), as 0.0 or 1.0."""
        return (_answers(model, attack(model, images, labels, name, eps=radius, seed=seed)).argmax(1) == labels).float()

    pgd, unbounded = f"pgd-{steps}", max(UNBOUNDED, eps)
    single, within = robust("fgsm", eps).mean(), robust(pgd, eps)
    wider, free = (robust(pgd, radius).mean() for radius in (min(WIDER * eps, 1.0), unbounded))
    rate = within.mean()
    warnings = []
    if rate > single + SHARE:
        warnings.append(f"PGD leaves {rate:.0%} correct and FGSM {single:.0%}, though it takes more steps (masking).")
    if wider > rate - SHARE and rate > SHARE:
        warnings.append(f"At {WIDER} times the radius PGD leaves {wider:.0%} correct, at eps {rate:.0%} (masking).")
    if free > SHARE:
        warnings.append(f"PGD leaves {free:.0%} correct at radius {unbounded:g}, where every image can be made grey.")
    if rate > 0:
        survivors = robust(f"square-{queries}", eps, images[within > 0], labels[within > 0])
        fooled = (1 - survivors).sum().item() / len(images)
        if fooled > SHARE:
            warnings.append(f"Square, which sees no gradient, fools {fooled:.0%} that PGD left correct (masking).")
    return warnings
