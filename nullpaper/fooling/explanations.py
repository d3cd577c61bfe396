"""Attribution maps of a ViT: which patches or pixels does a prediction rest on? One call, five methods by name.

Attention rollout (Abnar & Zuidema 2020) and Grad-CAM (Selvaraju et al. 2017) give one value a patch. Saliency (Simonyan
et al. 2014), gradient x input and integrated gradients (Sundararajan et al. 2017), all from Captum, give one a pixel.

Captum's LayerGradCam is not used: it takes axis 1 for channels and averages the gradient over all axes behind it, which
for tokens (B, N, d) means an average over the width and a sum over positions. Nor does Captum know rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nullpaper.errors import InputError, nearest
from nullpaper.models.attention import attention_weights
from nullpaper.models.vit import ViT, check_evaluating, check_images, patchify

__all__ = [
    "METHODS",
    "Method",
    "attribute",
    "check_request",
    "grad_cam",
    "gradient_x_input",
    "integrated_gradients",
    "patch_values",
    "rollout",
    "saliency",
]

IG_STEPS = 16  # Gauss-Legendre nodes
ROW_SUM = 1e-3  # how far from 1 the attention of a token may sum, by rounding
IG_CHUNK = 128  # images on the path that go through the model at once


@dataclass(frozen=True)
class Method:
    """How to compute a map, ``compute(vit, images, target, create_graph)``, and what its values belong to.

    ``level`` is "patch" for maps (B, rows, columns) of the patch grid and "pixel" for maps (B, H, W).
    """

    compute: Callable[[ViT, Tensor, Tensor, bool], Tensor]
    level: str
    label: str


def attribute(
    vit: ViT, images: Tensor, name: str, *, target: int | Tensor | None = None, batch_size: int = 128
) -> Tensor:
    """The map of a method in `METHODS` for images (B, C, H, W) in [0, 1].

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
    with torch.inference_mode(False), torch.enable_grad():
        images, target = check_request(vit, images, name, target)
        batches = zip(images.split(batch_size), target.split(batch_size), strict=True)
        compute = METHODS[name].compute
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
    prefix = _prefix(vit)
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
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = vit(images)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(_score(logits, target), seen, create_graph=create_graph)
    patches = slice(_prefix(vit), None)
    importance = gradient[:, patches].mean(1, keepdim=True)
    return (importance * seen[0][:, patches]).sum(-1).unflatten(1, vit.grid_size)


def saliency(vit: ViT, images: Tensor, target: Tensor, create_graph: bool = False) -> Tensor:
    """|gradient| of the target's logit (B, H, W), summed over channels (Simonyan et al. 2014 take their maximum)."""
    return _explained("Saliency", vit, images, target, create_graph)


def gradient_x_input(vit: ViT, images: Tensor, target: Tensor, create_graph: bool = False) -> Tensor:
    """Gradient of the target's logit times the pixel in [0, 1], (B, H, W), summed over channels: black counts none."""
    return _explained("InputXGradient", vit, images, target, create_graph)


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

    ``baseline`` is broadcast to the images; None: the model's mean pixel, which is zero after normalisation.
    """
    baseline = vit.mean if baseline is None else baseline.to(images)
    options = dict(baselines=baseline.expand_as(images), n_steps=steps, internal_batch_size=max(len(images), IG_CHUNK))
    return _explained("IntegratedGradients", vit, images, target, create_graph, **options)


METHODS: dict[str, Method] = {
    "rollout": Method(rollout, "patch", "attention rollout"),
    "grad_cam": Method(grad_cam, "patch", "Grad-CAM"),
    "saliency": Method(saliency, "pixel", "saliency"),
    "gradient_x_input": Method(gradient_x_input, "pixel", "gradient × input"),
    "integrated_gradients": Method(integrated_gradients, "pixel", "integrated gradients"),
}
"""Attribution methods by name."""


def check_request(vit: ViT, images: Tensor, name: str, target: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fresh images on the model's device and in its dtype, and their target classes (B,), or an `InputError`."""
    if name not in METHODS:
        raise InputError(f"attribution method '{name}' is unknown.{nearest(name, METHODS)} Choose from {[*METHODS]}.")
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


def _explained(
    kind: str,
    vit: ViT,
    images: Tensor,
    target: Tensor,
    create_graph: bool,
    **options: object,
) -> Tensor:
    """Captum's attribution summed over channels, with a gradient that can be differentiated again where asked for."""
    from captum import attr  # a second of imports that few need

    explainer = getattr(attr, kind)(vit)
    explainer.gradient_func = partial(_gradient, create_graph)
    return explainer.attribute(images, target=target, **options).sum(1)


def _gradient(
    create_graph: bool,
    forward_fn: Callable[[Tensor], Tensor],
    inputs: tuple[Tensor, ...],
    target_ind: Tensor,
    additional_forward_args: object = None,
) -> tuple[Tensor, ...]:
    """Captum's ``compute_gradients`` for one input, which has no ``create_graph``."""
    return torch.autograd.grad(_score(forward_fn(*inputs), target_ind), inputs, create_graph=create_graph)


def _score(logits: Tensor, target: Tensor) -> Tensor:
    classes = target.expand(len(logits))  # Captum passes the class of a single image on as one, whatever the steps
    return logits.gather(1, classes.unsqueeze(1)).sum()


def _prefix(vit: ViT) -> int:
    """Class and register tokens in front of the patches."""
    return int(getattr(vit.net, "num_prefix_tokens", 1))
