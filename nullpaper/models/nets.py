"""The networks of timm below `vit.ViT`: by name or as they are, with their sizes and the statistics they expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nullpaper.data.folders import Transform
from nullpaper.errors import InputError, check_count, check_path, first_line, nearest, shown, warn
from nullpaper.models.weights import Checkpoint, Size, load_weights, read_checkpoint, skeleton

SHIPPED = "nullpaper_vit_cifar10"
build_shipped = partial(
    VisionTransformer, img_size=48, patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=10
)
"""The shipped architecture with fresh weights: 36 tokens of width 96, so 96 invisible dimensions a patch."""
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class TokenPatchEmbed(PatchEmbed):
    """timm's patch embedding that lets patch tokens (B, N, d) pass, so that a model can be entered behind it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return x if self.flatten else x.unflatten(1, self.grid_size)  # models of dynamic size keep the grid
        return super().forward(x)


def check_size(size: int | Size, patch: Size, name: str) -> Size:
    """The image size (height, width) in pixels, given as that or as one side.

    Raises:
        InputError: not one or two positive whole numbers, or no multiple of the patch (height, width).
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2:
        raise InputError(f"img_size={size} must be one side or (height, width).")
    for side, step in zip(sides, patch, strict=True):
        check_count("img_size", side)
        if side % step:
            below = side - side % step
            choice = f"{below} or {below + step}" if below else step
            raise InputError(f"img_size={size} is no multiple of the {step} px patch of {name}: take {choice}.")
    return sides


def check_classes(classes: Sequence[int], count: int) -> list[int]:
    """Class indices as Python's numbers.

    Raises:
        InputError: not at least two different ones of the ``count`` classes.
    """
    try:
        places = [check_count("class", place, 0, count - 1) for place in classes]
    except TypeError as error:
        raise InputError(f"classes={shown(classes)} are no class indices: pass `Data.imagenet` or a list.") from error
    if len(set(places)) != len(places) or len(places) < 2:
        raise InputError(f"classes={shown(classes)} must be at least two different ones.")
    return places


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel or torch.compile, or the model itself."""
    wraps = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = model.module if wraps else getattr(model, "_orig_mod", model)
    return model if inner is model else unwrapped(inner)


def shipped_weights(name: str = SHIPPED) -> Path:
    """Where the package keeps the weights of one of its models."""
    return Path(__file__).with_name("shipped") / f"{name}.safetensors"


def network_of(
    name: str | nn.Module,
    pretrained: bool,
    weights: str | Path | None,
    statistics: tuple[Sequence[float], Sequence[float]] | None,
    num_classes: int | None,
    img_size: int | Size | None,
) -> tuple[nn.Module, str, tuple[Sequence[float], Sequence[float], str], Transform]:
    """A timm model, what to call it, its mean and std with where they come from, and how it wants photographs; all as
    `vit.load_vit` says."""
    if num_classes is not None:
        check_count("num_classes", num_classes, least=0)
    title, plan = _plan(name)
    stem = plan.patch_embed
    size = check_size(stem.img_size if img_size is None else img_size, stem.patch_size, title)
    file = shipped_weights() if title == SHIPPED and pretrained and weights is None else weights
    if file is None:
        checkpoint, net = None, _built(name, pretrained, _changes(plan, num_classes, size))
    else:
        checkpoint = read_checkpoint(check_path("weights", file))
        trained = checkpoint.image_size(plan, None if img_size is None else size)
        net = _built(name, False, _changes(plan, checkpoint.num_classes, trained))
        load_weights(net, checkpoint, title)
        size = trained if img_size is None and checkpoint.grid else size
    _alter(net, title, **_changes(net, num_classes, size))
    transform = _transform(net) if checkpoint is None or checkpoint.transform is None else checkpoint.transform
    if statistics is not None:
        return net, title, (*statistics, "as given"), transform
    guess = weights is not None or isinstance(name, nn.Module)
    own = {"mean": CIFAR10_MEAN, "std": CIFAR10_STD} if title == SHIPPED else _config(net)
    return net, title, known_statistics(title, own, checkpoint, guess), transform


def _plan(name: str | nn.Module) -> tuple[str, nn.Module]:
    """What to call a model, and its structure; it is refused before anything is downloaded where it is no plain ViT."""
    if name == SHIPPED:
        with torch.device("meta"):
            return name, build_shipped()
    if isinstance(name, nn.Module):
        plan = unwrapped(name)
        title = _title(plan)
    else:
        title, plan = name, skeleton(_known(name))
    require_linear_patch_embedding(plan, title)
    return title, plan


def _known(name: object) -> str:
    """The name, if timm has the model and the tag behind its point."""
    stem, _, tag = str(name).partition(".")
    if not isinstance(name, str) or not timm.is_model(stem):
        known = [SHIPPED, *timm.list_models()]
        raise InputError(f"'{name}' is no model of timm {timm.__version__} nor '{SHIPPED}'.{nearest(stem, known)}")
    tags = timm.list_models(f"{stem}.*", include_tags=True)
    if tag and name not in tags:
        choice = f" Choose from {', '.join(tags)}." if tags else " It has none; leave the tag out."
        raise InputError(f"'{name}': timm has no weights '{tag}' of {stem}.{nearest(name, tags)}{choice}")
    return name


def _built(name: str | nn.Module, pretrained: bool, sizes: dict[str, Any]) -> nn.Module:
    """The model itself, of a model a copy, with what of ``num_classes`` and ``img_size`` is not its own."""
    if name == SHIPPED:
        return build_shipped(**sizes)
    if isinstance(name, nn.Module):
        net = deepcopy(unwrapped(name))
        _alter(net, _title(net), **sizes)
        return net
    try:
        return timm.create_model(name, pretrained=pretrained, **sizes)
    except Exception as error:  # timm, the hub's client and the network each raise their own kinds
        raise InputError(
            f"'{name}' with {sizes or 'its own sizes'} could not be had from timm or its hub ({first_line(error)}); "
            "give other sizes, a local file as weights=..., or pretrained=False for random weights."
        ) from error


def _changes(net: nn.Module, num_classes: int | None, size: Size) -> dict[str, int | Size]:
    """What of the sizes is not the model's own."""
    changes = {} if num_classes in (None, net.num_classes) else {"num_classes": int(num_classes)}
    return changes if size == tuple(net.patch_embed.img_size) else changes | {"img_size": size}


def _alter(net: nn.Module, title: str, num_classes: int | None = None, img_size: Size | None = None) -> None:
    """Give a model a fresh head and other positions, resampled by timm from its own grid."""
    if num_classes is not None:
        net.reset_classifier(num_classes)
    if img_size is not None:
        if not hasattr(net, "set_input_size"):
            own = tuple(net.patch_embed.img_size)
            raise InputError(f"timm cannot resample the positions of {title}, which are for {own}: pass that img_size.")
        net.set_input_size(img_size)


def known_statistics(
    title: str, own: Mapping[str, Any], checkpoint: Checkpoint | None, guess: bool
) -> tuple[Sequence[float], Sequence[float], str]:
    """Mean, std and where they come from: the file of weights, else timm, with a warning where that is a guess."""
    if checkpoint is not None and checkpoint.mean and checkpoint.std:
        return checkpoint.mean, checkpoint.std, f"from {checkpoint.path.name}"
    silent = f"{title if checkpoint is None else checkpoint.path.name} does not say its mean and std"
    if not (own.get("mean") and own.get("std")):
        raise InputError(f"{silent}: pass those that it was trained with as mean=... and std=....")
    if guess:
        warn(
            f"{silent}; {own['mean']} and {own['std']}, as usual for {title}, are a guess: pass those that it was "
            "trained with as mean=... and std=...."
        )
    return own["mean"], own["std"], f"of {title}{', a guess' if guess else ''}"


def _transform(net: nn.Module) -> Transform:
    """How timm says that the model wants photographs; of a model that says nothing, as most."""
    if not (config := _config(net)):
        return Transform()
    asked = resolve_data_config({}, pretrained_cfg=config)
    return Transform(asked["crop_pct"], asked["interpolation"], asked["crop_mode"])


def _title(net: nn.Module) -> str:
    return _config(net).get("architecture") or type(net).__name__


def _config(net: nn.Module) -> dict[str, Any]:
    return getattr(net, "pretrained_cfg", None) or {}


def require_linear_patch_embedding(net: nn.Module, name: str) -> None:
    """Refuse what paper A's section on the exact nullspace does not cover."""
    stem = getattr(net, "patch_embed", None)
    if not isinstance(stem, PatchEmbed):
        raise InputError(f"{name} has no plain patch embedding (its stem is {type(stem).__name__}); take a plain ViT.")
    if not isinstance(stem.proj, nn.Conv2d) or stem.proj.kernel_size != stem.proj.stride or any(stem.proj.padding):
        raise InputError(f"{name} embeds overlapping patches or not by one convolution; take a plain ViT.")
    if not isinstance(stem.norm, nn.Identity):
        raise InputError(f"{name} normalises inside its patch embedding, which is then not linear; take a plain ViT.")
    if stem.img_size is None:
        raise InputError(f"{name} has no image size of its own; build it with img_size=....")
    if not hasattr(net, "forward_head") or not hasattr(net, "cls_token"):
        raise InputError(f"{name} ({type(net).__name__}) is not a ViT with one sequence of tokens; take a plain ViT.")
