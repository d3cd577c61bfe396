"""Network fooling: pairs that look different and are the same to a network, and the reverse (paper C).

Exact nullspace noise moves an image towards another while the logits stay (`PatchNullspace.nearest`). `lookalike` goes
further at a stated influence, `adversarial` asks for the reverse: the shortest noise that changes the answer. The last
two are one problem, the image nearest to an anchor that the network answers in a given way (`descent.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import one_hot

from nullpaper.errors import InputError, check_count, check_seed, first_line
from nullpaper.fooling.descent import Feasible, bisect_segment, descend
from nullpaper.models.gradients import frozen
from nullpaper.models.inputs import check_images, check_labelled, check_labels
from nullpaper.models.predict import answers, check_influence, probability_gap
from nullpaper.models.vit import ViT, check_classifier, check_evaluating, check_vit, norms, per_image
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace
from nullpaper.robustness.attacks import torchattacks
from nullpaper.robustness.perturbation import in_box, permuted_in_patches
from nullpaper.robustness.pgd import check_eps

MARGIN = 1e-3  # of logits, so that rounding in float32 cannot undo a changed answer
SLACK = 1e-3  # relative, kept from eps for the same reason
REACHES = (2.0, 8.0, 32.0)  # how far random exact noise is asked to go until the legal part is long enough


@dataclass(frozen=True)
class Adversarial:
    """Noise (B, C, H, W), images + noise in [0, 1], and whether it changes the answer as asked, (B,) bool.

    Noise is 0 where it does not, and where the model gives the class already.
    """

    noise: Tensor
    success: Tensor


def other_class(labels: ArrayLike | Tensor, seed: int = 0) -> Tensor:
    """For each of the labels (B,) the index of a random one that differs from it, (B,) int64.

    Raises:
        InputError: all labels are the same, so that no pair exists, a negative seed, and as `check_labels`.
    """
    labels, seed = check_labels(labels), check_seed(seed)
    if len(labels.unique()) < 2:
        raise InputError("labels must be of at least two classes; pass more images.")
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(labels), len(labels), generator=generator).to(labels.device)
    return scores.masked_fill(labels[:, None] == labels, -1).argmax(1)


@torch.inference_mode(False)
def lookalike(
    vit: ViT,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    steps: int = 40,
    start: Tensor | None = None,
    exact: Tensor | None = None,
) -> Tensor:
    """Noise v that minimises |x + v - t| while |softmax f(x + v) - softmax f(x)|^2 <= eps and x + v stays in [0, 1].

    The constraint is the quantity that paper A's equation 7 bounds in the mean, here for every image by itself. The
    problem is not convex; the result is feasible and a local optimum at best. `descent.descend` goes from ``start``.
    Where it meets nothing feasible, or ends too far away, it goes from a feasible point on the segment from the exact
    solution, whose influence is 0, to the target; such a point always exists.

    Args:
        images, targets: (B, C, H, W) in [0, 1], of the model's size.
        eps: in (0, 2).
        steps: of the descent; each costs a forward and a backward pass.
        start: images (B, C, H, W) in [0, 1] to descend from, never left for worse if feasible; None: the targets.
        exact: noise (B, C, H, W) of the exact solution; None: `PatchNullspace.nearest` in W's nullspace.

    Raises:
        InputError: eps or steps out of range, another shape, images outside [0, 1], a model in training mode.
    """
    check_vit(vit)
    images, targets = check_images(vit, images), check_images(vit, targets, what="targets")
    start = targets if start is None else check_images(vit, start, what="starts")
    if not images.shape == targets.shape == start.shape:
        raise InputError(f"{len(images)} images, {len(targets)} targets, {len(start)} to start from; match them.")
    steps = check_count("steps", steps)
    feasible, clean = _within(vit, images, eps), answers(vit, images).softmax(1)
    if exact is None:
        exact = patch_nullspace(vit).nearest(images, targets)[0]
    exact = check_images(vit, exact, what="exact noises", box=False)
    inside = (images + exact).clamp(0, 1)
    if not feasible(answers(vit, inside)).all():
        raise InputError(
            f"exact changes the answer by more than eps={eps}: pass noise of the nullspace, or a larger eps."
        )
    straight = bisect_segment(vit, feasible, inside, targets)
    point, success = descend(vit, targets, start, clean, feasible, steps)
    late = ~success | (norms(point - targets) > norms(straight - targets))
    if late.any():
        again, success = descend(
            vit, targets[late], straight[late], clean[late], _within(vit, images[late], eps), steps
        )
        point[late] = torch.where(per_image(success), again, straight[late])
    return point - images


def farthest_along(vit: ViT, images: Tensor, begin: Tensor, end: Tensor, *, eps: float) -> Tensor:
    """Images on the segments from ``begin`` to ``end``, all (B, C, H, W): as far as influence eps was found to allow.

    The control of `lookalike` that optimises nothing. Bisection finds a crossing, not always the first or last one. The
    bound holds if it does at ``begin``.

    Raises:
        InputError: eps out of range, a model in training mode, and as `check_images`.
    """
    images, begin, end = (check_images(vit, batch) for batch in (images, begin, end))
    return bisect_segment(vit, _within(vit, images, eps), begin, end)


@torch.inference_mode(False)
def adversarial(vit: ViT, images: Tensor, classes: ArrayLike | Tensor, *, steps: int = 40) -> Adversarial:
    """Short L2 noise (B, C, H, W) that makes the model say ``classes`` (B,), with images + noise in [0, 1].

    The same descent as `lookalike`, from the image itself and towards the class alone. It finds an upper bound on the
    shortest such noise.

    Raises:
        InputError: classes that the head lacks or of another shape, steps below 1, bad images, training mode.
    """
    check_classifier(vit)
    check_evaluating(vit)
    images, classes = check_labelled(vit, images, classes)
    steps = check_count("steps", steps)
    wanted = one_hot(classes, vit.num_classes).to(images)

    def feasible(logits: Tensor) -> Tensor:
        own = (logits * wanted).sum(1)
        return own - logits.masked_fill(wanted.bool(), -torch.inf).amax(1) >= MARGIN

    point, success = descend(vit, images, images, wanted, feasible, steps)
    return Adversarial(torch.where(per_image(success), point - images, 0.0), success)


@torch.inference_mode(False)
def library_attack(vit: ViT, images: Tensor, classes: ArrayLike | Tensor, name: str, **options: float) -> Adversarial:
    """A targeted attack of torchattacks, e.g. ``"CW"`` (Carlini & Wagner 2017) or ``"PGD"``, as `adversarial`.

    The library's draws are seeded, and the global generator is left as it was.

    Raises:
        InputError: no such targeted attack, options that it does not take, and as `adversarial`.
    """
    check_classifier(vit)
    check_evaluating(vit)
    images, classes = check_labelled(vit, images, classes)
    if "steps" in options:
        check_count("steps", options["steps"])
    if "eps" in options:
        check_eps(options["eps"])
    try:
        attack = getattr(torchattacks(), name)(vit, **options)
        attack.set_mode_targeted_by_label(quiet=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} with {options} is no targeted attack of torchattacks: {first_line(error)}."
        ) from error
    inside = images.clamp(1e-4, 1 - 1e-4) if name == "CW" else images  # its atanh is infinite at the ends of the box
    with torch.random.fork_rng(), frozen(vit):  # it calls backward, which would leave gradients in the weights
        torch.manual_seed(0)
        points = attack(inside, classes).detach().clamp(0, 1)
    success = answers(vit, points).argmax(1) == classes
    return Adversarial(torch.where(per_image(success), points - images, 0.0), success)


def without_nullspace(space: PatchNullspace, images: Tensor, noise: Tensor) -> Tensor:
    """The shortest noise (B, C, H, W) that has the embedding of ``noise`` and keeps images + noise in [0, 1].

    Projecting ``noise`` on the complement would do if there were no box: what is left could leave [0, 1]. So the
    nearest legal image to ``images`` among those with the noisy image's embedding is taken.

    Raises:
        InputError: as `PatchNullspace.nearest`.
    """
    images = check_images(space, images)
    noisy = (images + check_images(space, noise, what="noise", box=False).to(images.device)).clamp(0, 1)
    return noisy + space.nearest(noisy, images)[0] - images


def equal_norm_controls(
    space: PatchNullspace, images: Tensor, targets: Tensor, noise: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Legal noise (B, C, H, W) by name, each with the L2 norm of ``noise``, image by image.

    ``straight step`` goes from images towards targets. ``random exact`` lies in the nullspace: the part of an isotropic
    draw that the box admits, shrunk (shorter only where the box admits no more). ``permuted`` is the noise with the
    pixels of each patch in another order, cut to the box and scaled.

    Raises:
        InputError: as `PatchNullspace.nearest`.
    """
    images, targets = check_images(space, images), check_images(space, targets, what="targets", box=False)
    targets, noise = targets.to(images.device), check_images(space, noise, what="noise", box=False).to(images.device)
    norm = norms(noise)
    draw = space.sample(images.shape, norm=norm.cpu(), generator=generator).to(images)
    random = torch.zeros_like(images)
    for reach in REACHES:
        short = norms(random) < norm
        if not short.any():
            break
        random[short] = space.nearest(images[short], images[short] + reach * draw[short])[0]
    shrink = norm / torch.maximum(norms(random), norm).clamp_min(torch.finfo(images.dtype).tiny)
    return {
        "straight step": in_box(images, targets - images, norm),
        "random exact": random * per_image(shrink),
        "permuted": in_box(images, permuted_in_patches(noise, space.patch_size, generator), norm),
    }


def _within(vit: ViT, images: Tensor, eps: float) -> Feasible:
    """Which logits (B, K) are within influence eps of those of the images."""
    check_classifier(vit)
    check_evaluating(vit)
    check_influence(eps)
    clean = answers(vit, images)
    return lambda logits: probability_gap(logits, clean) <= eps * (1 - SLACK)
