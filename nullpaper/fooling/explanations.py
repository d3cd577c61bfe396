"""Attribution maps of a ViT: which patches or pixels does a prediction rest on? One call, five methods by name.

Attention rollout (Abnar & Zuidema 2020) and Grad-CAM (Selvaraju et al. 2017) give one value a patch; saliency (Simonyan
et al. 2014), gradient x input and integrated gradients (Sundararajan et al. 2017) give one a pixel. All but rollout
explain the logit of a class, and each can be differentiated once more where ``create_graph`` asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nullpaper.errors import InputError, nearest
from nullpaper.models.attention import attention_weights
from nullpaper.models.vit import ViT, check_evaluating, check_images, patchify

ROW_SUM = 1e-3  # how far from 1 the attention of a token may sum, by rounding
IG_STEPS = 16  # Gauss-Legendre nodes
IG_CHUNK = 128  # images on the path that go through the model at once


@dataclass(frozen=True)
class Attribution:
    """How to compute a map, ``compute(vit, images, target, create_graph)``, and what its values belong to.

    ``level`` is "patch" for maps (B, rows, columns) of the patch grid and "pixel" for maps (B, H, W).
    """

    compute: Callable[[ViT, Tensor, Tensor, bool], Tensor]
    level: str
    label: str


def attribute(
    vit: ViT, images: Tensor, name: str, *, target: int | Tensor | None = None, batch_size: int = 128
) -> Tensor:
    """The map of a method in `ATTRIBUTIONS` for images (B, C, H, W) in [0, 1].

    Args:
        vit: in evaluation mode; its flags, hooks and gradients are left as they were.
        target: the class to explain, one or (B,); None: the class that the model predicts for each image.
        batch_size: images at once; it changes memory and time only.

    Returns:
        (B, rows, columns) of the patch grid for methods of level "patch", (B, H, W) for "pixel"; `patch_values` makes
        both comparable. Values are signed, but for rollout and saliency, and are not rescaled.

    Raises:
        InputError: unknown method, no `ViT`, training mode, images that the model would misread, a target that is no
            class, or an architecture that the method does not cover.
    """
    compute = attribution(name).compute
    with torch.inference_mode(False), torch.enable_grad():
        images, target = check_explained(vit, images, target)
        batches = zip(images.split(batch_size), target.split(batch_size), strict=True)
        return torch.cat([compute(vit, part.requires_grad_(), classes, False).detach() for part, classes in batches])


def patch_values(maps: Tensor, vit: ViT) -> Tensor:
    """Maps of either level as one value a patch, (B, N): pixels (B, H, W) are summed over each patch.

    Raises:
        InputError: the maps fit neither the patch grid nor the image.
    """
    if maps.ndim == 3 and tuple(maps.shape[1:]) == vit.grid_size:
        return maps.flatten(1)
    if maps.ndim == 3 and tuple(maps.shape[1:]) == vit.image_size:
        return patchify(maps.unsqueeze(1), vit.patch_size).sum(-1)
    raise InputError(
        f"maps have shape {tuple(maps.shape)}, but {vit.name} needs (B, *{vit.grid_size}) or (B, *{vit.image_size})."
    )


def rollout(vit: ViT, images: Tensor, target: Tensor | None = None, create_graph: bool = False) -> Tensor:
    """Attention rollout (B, rows, columns): the product over blocks of (A + I) / 2, A averaged over the heads.

    Read from the class token, or averaged over the patches where the head averages them. It explains no class in
    particular, so that ``target`` is ignored. Abnar & Zuidema 2020, section 3.
    """
    pooling = getattr(vit.net, "global_pool", "token")
    if pooling not in ("token", "avg") or getattr(vit.net, "attn_pool", None) is not None:
        raise InputError(f"rollout needs a head on the class token or on averaged tokens; {vit.name} has another.")
    weights = attention_weights(vit, images)
    prefix = _prefix_tokens(vit)
    tokens = prefix + math.prod(vit.grid_size)
    fits = len(weights) == len(vit.net.blocks) and all(tuple(w.shape[-2:]) == (tokens, tokens) for w in weights)
    if not fits or any((w.sum(-1) - 1).abs().max() > ROW_SUM for w in weights):
        raise InputError(f"the blocks of {vit.name} do not mix all tokens by one softmax each; take a plain ViT.")
    mixed = torch.eye(tokens).to(weights[0])
    for attention in weights:
        mixed = (attention.mean(1) @ mixed + mixed) / 2
    readers = mixed[:, 0] if pooling == "token" else mixed[:, prefix:].mean(1)
    return readers[:, prefix:].unflatten(1, vit.grid_size)


def grad_cam(vit: ViT, images: Tensor, target: Tensor, create_graph: bool = False) -> Tensor:
    """Grad-CAM (B, rows, columns) on the patch tokens A (N, d) that enter the last block's attention, after its norm.

    alpha_k is the gradient of the target's logit averaged over the patches, the map sum_k alpha_k A_nk. The block's
    output cannot be used: behind it the head reads the class token alone. Signed, without the ReLU that Selvaraju et
    al. 2017 put behind it, so that every patch has a rank; clamp at 0 for theirs.
    """
    norm = getattr(vit.net.blocks[-1], "norm1", None)
    if not isinstance(norm, nn.Module):
        raise InputError(f"the last block of {vit.name} has no norm in front of its attention; take a plain ViT.")
    outputs: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        logits = vit(images)
    finally:
        handle.remove()
    (tokens,) = outputs
    (gradient,) = torch.autograd.grad(_class_score(logits, target), tokens, create_graph=create_graph)
    patches = slice(_prefix_tokens(vit), None)
    importance = gradient[:, patches].mean(1, keepdim=True)
    return (importance * tokens[:, patches]).sum(-1).unflatten(1, vit.grid_size)


def saliency(vit: ViT, images: Tensor, target: Tensor, create_graph: bool = False) -> Tensor:
    """|gradient| of the target's logit (B, H, W), summed over channels (Simonyan et al. 2014 take their maximum)."""
    return _pixel_gradient(vit, images, target, create_graph).abs().sum(1)


def gradient_x_input(vit: ViT, images: Tensor, target: Tensor, create_graph: bool = False) -> Tensor:
    """Gradient of the target's logit times the pixel in [0, 1], (B, H, W), summed over channels: black counts none."""
    return (images * _pixel_gradient(vit, images, target, create_graph)).sum(1)


def integrated_gradients(
    vit: ViT,
    images: Tensor,
    target: Tensor,
    create_graph: bool = False,
    *,
    baseline: Tensor | None = None,
    steps: int = IG_STEPS,
) -> Tensor:
    """Integrated gradients (B, H, W), summed over channels, by Gauss-Legendre quadrature with ``steps`` nodes.

    (x - b) times the mean gradient on the segment from the baseline b to x (Sundararajan et al. 2017, equation 1).
    ``baseline`` is broadcast to the images; None: the model's mean pixel, which is zero after normalisation.
    """
    baseline = vit.mean if baseline is None else baseline.to(images)
    change, total = images - baseline, torch.zeros_like(images)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1], weights of sum 2
    at_once = max(1, IG_CHUNK // len(images))
    for start in range(0, steps, at_once):
        share, weight = (values[start : start + at_once].tolist() for values in ((1 + nodes) / 2, weights / 2))
        points = torch.cat([baseline + part * change for part in share]).requires_grad_()
        gradients = _pixel_gradient(vit, points, target.repeat(len(share)), create_graph)
        gradients = gradients.unflatten(0, (len(share), len(images)))
        mean = (gradients * torch.tensor(weight, device=images.device).view(-1, 1, 1, 1, 1)).sum(0)
        total = total + mean * change
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
    if name not in ATTRIBUTIONS:
        raise InputError(
            f"attribution method '{name}' is unknown.{nearest(name, ATTRIBUTIONS)} Choose from {[*ATTRIBUTIONS]}."
        )
    return ATTRIBUTIONS[name]


def check_explained(vit: ViT, images: Tensor, target: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fresh images on the model's device and in its dtype, and their target classes (B,), or an `InputError`."""
    if not isinstance(vit, ViT):
        raise InputError(f"attribution needs a ViT from load_vit, not {type(vit).__name__}.")
    check_evaluating(vit)
    if images.numel() == 0:
        raise InputError("there are no images to explain; pass at least one.")
    check_images(images, vit.channels, vit.image_size, vit.name)
    images = images.detach().to(vit.mean).clone()
    if target is None:
        with torch.no_grad():
            return images, vit(images).argmax(1)
    target = torch.as_tensor(target, device=images.device)
    if target.is_floating_point() or target.ndim > 1 or (target.ndim == 1 and len(target) != len(images)):
        raise InputError(f"target has shape {tuple(target.shape)} and dtype {target.dtype}; pass one class or (B,).")
    if target.min() < 0 or target.max() >= vit.num_classes:
        raise InputError(f"target leaves the classes 0 to {vit.num_classes - 1} of {vit.name}; pass one of them.")
    return images, target.expand(len(images)).long().clone()


def _pixel_gradient(vit: ViT, images: Tensor, target: Tensor, create_graph: bool) -> Tensor:
    """Gradient (B, C, H, W) of the target's logit at images that ask for one."""
    return torch.autograd.grad(_class_score(vit(images), target), images, create_graph=create_graph)[0]


def _class_score(logits: Tensor, target: Tensor) -> Tensor:
    """The logits (B, K) of the targets (B,), summed: every image's gradient is its own."""
    return logits.gather(1, target.unsqueeze(1)).sum()


def _prefix_tokens(vit: ViT) -> int:
    """Class and register tokens in front of the patches."""
    return int(getattr(vit.net, "num_prefix_tokens", 1))
