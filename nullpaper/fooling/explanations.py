"""Attribution maps of a ViT: which patches or pixels does a prediction rest on? One call, five methods by name.

Attention rollout (Abnar & Zuidema 2020) and Grad-CAM (Selvaraju et al. 2017) give one value a patch; saliency (Simonyan
et al. 2014), gradient x input and integrated gradients (Sundararajan et al. 2017) give one a pixel. All but rollout
explain the logit of a class, and each can be differentiated once more where ``create_graph`` asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nullpaper.errors import InputError, check_choice
from nullpaper.models.attention import attention_weights
from nullpaper.models.inputs import check_images, check_labelled
from nullpaper.models.predict import answers
from nullpaper.models.vit import ViT, check_evaluating, check_vit, full, patchify

TOKENS = 4_608  # patches that go through the model at once where gradients are kept: 128 images of 48 px, 23 of 224 px
IG_STEPS = 16  # Gauss-Legendre nodes


@dataclass(frozen=True)
class Attribution:
    """How to compute a map, ``compute(vit, images, target, create_graph)``, and what its values belong to.

    ``level`` is "patch" for maps (B, rows, columns) of the patch grid and "pixel" for maps (B, H, W).
    """

    compute: Callable[[ViT, Tensor, Tensor, bool], Tensor]
    level: str
    label: str


def attribute(vit: ViT, images: Tensor, name: str, *, target: ArrayLike | Tensor | None = None) -> Tensor:
    """The map of a method in `ATTRIBUTIONS` for images (B, C, H, W) in [0, 1].

    Args:
        vit: in evaluation mode; its flags, hooks and gradients are left as they were.
        target: the class to explain for each image, (B,); None: the one that the model predicts.

    Returns:
        (B, rows, columns) of the patch grid for methods of level "patch", (B, H, W) for "pixel"; `patch_values` makes
        both comparable. Values are signed, but for rollout and saliency, and are not rescaled.

    Raises:
        InputError: unknown method, an architecture that it does not cover, and as `check_explained`.
    """
    compute = attribution(name).compute
    with torch.inference_mode(False):  # with gradients, whatever holds outside
        images, target = check_explained(vit, images, target)
        batches = in_batches(vit, images, target)
        maps = [compute(vit, part.requires_grad_(), classes, False).detach() for part, classes in batches]
        return full(torch.cat(maps))


def images_at_once(vit: ViT) -> int:
    """How many images of its size a model explains at once."""
    return max(1, TOKENS // math.prod(vit.grid_size))


def in_batches(vit: ViT, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (B, ...) in pieces of as many images as a model explains at once."""
    return zip(*(values.split(images_at_once(vit)) for values in tensors), strict=True)


def pixel_gradient(vit: ViT, images: Tensor, *, target: ArrayLike | Tensor | None = None) -> Tensor:
    """Gradient of the target's logit at the pixels of images (B, C, H, W), of which `saliency` and others are made.

    Raises:
        InputError: as `check_explained`.
    """
    with torch.inference_mode(False):
        images, target = check_explained(vit, images, target)
        batches = in_batches(vit, images, target)
        return torch.cat([_pixel_gradient(vit, part.requires_grad_(), classes, False) for part, classes in batches])


def patch_values(maps: Tensor, vit: ViT) -> Tensor:
    """Maps of either level as one value a patch, (B, N): pixels (B, H, W) are summed over each patch.

    Raises:
        InputError: the maps fit neither the patch grid nor the image.
    """
    check_vit(vit)
    if maps.shape[1:] == vit.grid_size:
        return maps.flatten(1)
    if maps.shape[1:] == vit.image_size:
        return patchify(maps.unsqueeze(1), vit.patch_size).sum(-1)
    raise InputError(
        f"maps have shape {tuple(maps.shape)}, but {vit.name} needs (B, *{vit.grid_size}) or (B, *{vit.image_size})."
    )


def rollout(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """Attention rollout (B, rows, columns): the product over blocks of (A + I) / 2, A averaged over the heads.

    Read from the class token. It explains no class in particular, so that ``target`` is ignored. Abnar & Zuidema 2020,
    section 3.
    """
    if vit.net.global_pool != "token":
        raise InputError(f"rollout needs a head on the class token; {vit.name} has another.")
    weights = attention_weights(vit, images)
    mixed = torch.eye(weights[0].shape[-1]).to(weights[0])
    for attention in weights:
        mixed = (attention.mean(1) @ mixed + mixed) / 2
    return mixed[:, 0, vit.net.num_prefix_tokens :].unflatten(1, vit.grid_size)


def grad_cam(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """Grad-CAM (B, rows, columns) on the patch tokens A (N, d) that enter the last block's attention, after its norm.

    alpha_k is the gradient of the target's logit averaged over the patches, the map sum_k alpha_k A_nk. The block's
    output cannot be used: behind it the head reads the class token alone. Signed, without the ReLU that Selvaraju et
    al. 2017 put behind it, so that every patch has a rank; clamp at 0 for theirs.
    """
    if not hasattr(vit.net.blocks[-1], "norm1"):
        raise InputError(f"the last block of {vit.name} has no norm in front of its attention; take a plain ViT.")
    outputs: list[Tensor] = []
    handle = vit.net.blocks[-1].norm1.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        logits = vit(images)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(_class_score(logits, target), outputs, create_graph=create_graph)
    tokens, gradient = (values[:, vit.net.num_prefix_tokens :] for values in (outputs[0], gradient))
    return (gradient.mean(1, keepdim=True) * tokens).sum(-1).unflatten(1, vit.grid_size)


def saliency(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """|gradient| of the target's logit (B, H, W), summed over channels (Simonyan et al. 2014 take their maximum)."""
    return magnitude(_pixel_gradient(vit, images, target, create_graph))


def magnitude(gradient: Tensor) -> Tensor:
    """|gradient| (B, H, W) of gradients (B, C, H, W), summed over channels."""
    return gradient.abs().sum(1)


def gradient_x_input(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """Gradient of the target's logit times the pixel in [0, 1], (B, H, W), summed over channels: black counts none."""
    return times(_pixel_gradient(vit, images, target, create_graph), images)


def times(gradient: Tensor, factor: Tensor) -> Tensor:
    """Gradient times a factor such as the image, both (B, C, H, W), summed over channels: (B, H, W)."""
    return (factor * gradient).sum(1)


def integrated_gradients(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """Integrated gradients (B, H, W), summed over channels, by Gauss-Legendre quadrature with `IG_STEPS` nodes.

    (x - b) times the mean gradient on the segment from the baseline b to x (Sundararajan et al. 2017, equation 1). The
    baseline is the model's mean pixel, which is zero after normalisation.
    """
    change, total = images - vit.mean, torch.zeros_like(images)
    nodes, weights = np.polynomial.legendre.leggauss(IG_STEPS)  # on [-1, 1], weights of sum 2
    shares, weights = ((1 + nodes) / 2).tolist(), torch.from_numpy(weights / 2).to(images).view(-1, 1, 1, 1, 1)
    at_once = max(1, images_at_once(vit) // len(images))
    for part in (slice(start, start + at_once) for start in range(0, IG_STEPS, at_once)):
        points = torch.cat([vit.mean + share * change for share in shares[part]]).requires_grad_()
        gradients = _pixel_gradient(vit, points, target.repeat(len(shares[part])), create_graph)
        total = total + (gradients.view(-1, *images.shape) * weights[part]).sum(0) * change
    return total.sum(1)


ATTRIBUTIONS: dict[str, Attribution] = {
    "rollout": Attribution(rollout, "patch", "attention rollout"),
    "grad_cam": Attribution(grad_cam, "patch", "Grad-CAM"),
    "saliency": Attribution(saliency, "pixel", "saliency"),
    "gradient_x_input": Attribution(gradient_x_input, "pixel", "gradient × input"),
    "integrated_gradients": Attribution(integrated_gradients, "pixel", "integrated gradients"),
}
"""Attribution methods by name."""


def attribution(name: str) -> Attribution:
    """The method of this name, or an `InputError`."""
    check_choice("attribution method", name, ATTRIBUTIONS)
    return ATTRIBUTIONS[name]


def check_explained(vit: ViT, images: Tensor, target: ArrayLike | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fresh images on the model's device, and their target classes (B,), by default the predicted.

    Raises:
        InputError: training mode, images that the model would misread, a target that is no class.
    """
    check_vit(vit)
    check_evaluating(vit)
    images = check_images(vit, images).clone()
    return check_labelled(vit, images, answers(vit, images).argmax(1) if target is None else target)


def _pixel_gradient(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """Gradient (B, C, H, W) of the target's logit at images that ask for one."""
    return torch.autograd.grad(_class_score(vit(images), target), images, create_graph=create_graph)[0]


def _class_score(logits: Tensor, target: Tensor) -> Tensor:
    """The logits (B, K) of the targets (B,), summed: every image's gradient is its own."""
    return logits.gather(1, target.unsqueeze(1)).sum()
