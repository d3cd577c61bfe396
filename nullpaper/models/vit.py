"""A timm Vision Transformer as the papers see it: pixels in [0, 1] -> normalise -> embed -> encode -> logits.

Everything outside this module works in pixel units. The mean and standard deviation that a checkpoint was trained with
live inside `ViT`, so that a perturbation budget means the same for every model (paper A's pipeline put ImageNet
statistics in front of all of them).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nullpaper.errors import InputError, first_line, nearest
from nullpaper.files import write_atomic
from nullpaper.models.weights import load_weights, skeleton

torch.backends.cudnn.allow_tf32 = False  # a GPU would round the patch embedding to 10 bits, and what it ignores with it

SHIPPED = "nullpaper_vit_cifar10"
build_shipped = partial(
    VisionTransformer, img_size=48, patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=10
)
"""The shipped architecture with fresh weights: 36 tokens of width 96, so 96 invisible dimensions a patch."""
HALF = (torch.float16, torch.bfloat16)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class TokenPatchEmbed(PatchEmbed):
    """timm's patch embedding that lets patch tokens (B, N, d) pass, so that a model can be entered behind it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return x if self.flatten else x.unflatten(1, self.grid_size)  # models of dynamic size keep the grid
        return super().forward(x)


class Classifier(nn.Module):
    """Any timm model with its normalisation inside: images (B, C, H, W) in [0, 1] -> logits (B, num_classes).

    Images of any floating type become that of the weights behind the normalisation, and what comes out in half
    precision becomes float32: a perturbation is never rounded to the weights' type before the model reads it.

    Args:
        net: the timm model.
        mean, std: per-channel statistics, in pixel units, that the checkpoint was trained with.
        name: what to call the model in results.
    """

    image_size = (48, 48)  # (height, width) in pixels, of the classifiers that travel with the package

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], name: str = "vit") -> None:
        super().__init__()
        self.net, self.name = net, name
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.channels = self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        return full(self.net(self._normalised(images)))

    def _normalised(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type that the weights compute in."""
        return next(self.net.parameters()).dtype

    @property
    def num_classes(self) -> int:
        return self.net.num_classes


class ViT(Classifier):
    """A timm ViT with a door behind its patch embedding: ``vit(x)`` is ``vit.encode(vit.embed(x))``, bit for bit.

    Attributes:
        image_size, patch_size: (height, width) in pixels.
        grid_size: patches (down, across); their product is N.
        channels, embed_dim: C and d.

    Raises:
        InputError: ``net.patch_embed`` is not one linear, non-overlapping convolution; the sentence says why.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], name: str = "vit") -> None:
        super().__init__(net, mean, std, name)
        _require_linear_patch_embedding(net, name)
        stem = net.patch_embed
        stem.__class__ = TokenPatchEmbed  # keeps timm's parameter names, which a wrapper would change
        self.image_size, self.patch_size, self.grid_size = map(tuple, (stem.img_size, stem.patch_size, stem.grid_size))
        self.channels, self.embed_dim = stem.proj.in_channels, stem.proj.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        return self.encode(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Patch tokens (B, N, d), before class token and position embedding: ``u`` of paper A, section 3."""
        tokens = full(self.net.patch_embed(self._normalised(images)))
        return tokens if tokens.ndim == 3 else tokens.flatten(1, 2)

    def encode(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_classes) of patch tokens (B, N, d): position embedding, blocks, norm, head."""
        return full(self.net(tokens.to(self.dtype)))

    def features(self, tokens: Tensor) -> Tensor:
        """What the head reads, (B, d): the class token or the pooled tokens after the last norm."""
        return self.encode_both(tokens)[1]

    def encode_both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes) and `features` (B, d) of patch tokens (B, N, d), from one pass through the blocks."""
        states = self.net.forward_features(tokens.to(self.dtype))
        return full(self.net.forward_head(states)), full(self.net.forward_head(states, pre_logits=True))

    @property
    def patch_matrix(self) -> Tensor:
        """The patch embedding as a float64 matrix (d, C*p*p) that acts on pixels in [0, 1]: the std is folded in."""
        weight = self.net.patch_embed.proj.weight.detach().double()  # folding in float32 would round it once more
        return (weight / self.std.double()).flatten(1)


def full(values: Tensor) -> Tensor:
    """``values`` in float32 if they are in half precision, in which no statistics should be made."""
    return values.float() if values.dtype in HALF else values


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, C*p*p), in the order of the patch embedding's rows and columns."""
    return nn.functional.unfold(images, patch_size, stride=patch_size).transpose(1, 2)


def unpatchify(patches: Tensor, image_size: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Put patches (B, N, C*p*p) back into images (B, C, H, W); the inverse of `patchify`."""
    return nn.functional.fold(patches.transpose(1, 2), image_size, patch_size, stride=patch_size)


def norms(noise: Tensor) -> Tensor:
    """L2 norm of each image's noise (B, ...), shape (B,), in pixel units."""
    return noise.flatten(1).norm(dim=1)


def per_image(values: Tensor) -> Tensor:
    """Values (B,) that act on images (B, C, H, W)."""
    return values.view(-1, 1, 1, 1)


def check_evaluating(model: nn.Module) -> None:
    """Raise an `InputError` if any part of the model is in training mode."""
    if any(module.training for module in model.modules()):
        raise InputError("the model is in training mode, so its answers may be random; call model.eval() first.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; after, every module has its own mode again, whatever happened."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.inference_mode(False)  # or the weights could not be trained, nor attacked, later
def load_vit(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    device: str | torch.device | None = None,
) -> ViT:
    """Load a plain timm ViT, or the checkpoint that ships with this package, in evaluation mode.

    Args:
        name: any timm model with a linear patch embedding, or ``nullpaper_vit_cifar10``.
        pretrained: take trained weights, from timm's hub or from the package.
        weights: a local ``.safetensors`` file with timm's parameter names; implies that no hub is asked.
        num_classes: a fresh head of that many classes if it differs from the checkpoint's.
        img_size: side of the images in pixels; position embeddings are resampled by timm.
        device: where to put the model.

    Raises:
        InputError: unknown name, no linear patch embedding, a hub that cannot be reached, weights that do not fit.
    """
    pretrained = pretrained and weights is None
    if name == SHIPPED:
        net, mean, std = build_shipped(), CIFAR10_MEAN, CIFAR10_STD
        if pretrained:
            load_weights(net, shipped_weights(), name)
        if num_classes not in (None, net.num_classes):
            net.reset_classifier(num_classes)
        if img_size is not None:
            net.set_input_size(img_size)
    else:
        sizes = {"num_classes": num_classes, "img_size": img_size}
        net = _timm_net(name, pretrained, {key: value for key, value in sizes.items() if value is not None})
        mean, std = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    vit = ViT(net, mean, std, name)
    if weights is not None:
        load_weights(net, Path(weights), name)
    return vit.eval().to(device)


def save_vit(vit: ViT, path: str | Path) -> None:
    """Write the weights to ``path`` in one step: safetensors, timm's parameter names, mean and std as metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in vit.net.state_dict().items()}
    statistics = {"mean": json.dumps(vit.mean.flatten().tolist()), "std": json.dumps(vit.std.flatten().tolist())}
    write_atomic(Path(path), save(state, metadata={"name": vit.name, **statistics}))


def fingerprint(vit: Classifier, without: Collection[str] = ()) -> str:
    """A short name for exactly these weights, this normalisation and adapter, for the identity of results.

    Modules of timm's model that are named in ``without`` do not count.
    """
    digest = hashlib.sha256()
    for key, value in {**vit.net.state_dict(), "mean": vit.mean, "std": vit.std}.items():
        if key.partition(".")[0] not in without:
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    if adapter := getattr(vit, "adapter", None):  # its scale and the kind of its norm are in no tensor
        digest.update(repr(adapter).encode())
    return digest.hexdigest()[:16]


def shipped_weights(name: str = SHIPPED) -> Path:
    """Where the package keeps the weights of one of its models."""
    return Path(__file__).with_name("shipped") / f"{name}.safetensors"


def _timm_net(name: str, pretrained: bool, sizes: dict[str, int]) -> nn.Module:
    """The model that timm builds, refused before anything is downloaded where it is no plain ViT."""
    if not timm.is_model(name):
        known = [SHIPPED, *timm.list_models()]
        raise InputError(f"'{name}' is no model of timm {timm.__version__} nor '{SHIPPED}'.{nearest(name, known)}")
    _require_linear_patch_embedding(skeleton(name), name)
    try:
        return timm.create_model(name, pretrained=pretrained, **sizes)
    except Exception as error:  # timm, the hub's client and the network each raise their own kinds
        raise InputError(
            f"'{name}' with {sizes or 'its own sizes'} could not be had from timm or its hub ({first_line(error)}); "
            "give other sizes, a local file as weights=..., or pretrained=False for random weights."
        ) from error


def _require_linear_patch_embedding(net: nn.Module, name: str) -> None:
    """Refuse what paper A's section on the exact nullspace does not cover."""
    stem = getattr(net, "patch_embed", None)
    if not isinstance(stem, PatchEmbed):
        raise InputError(f"{name} has no plain patch embedding (its stem is {type(stem).__name__}); take a plain ViT.")
    if not isinstance(stem.proj, nn.Conv2d) or stem.proj.kernel_size != stem.proj.stride or any(stem.proj.padding):
        raise InputError(f"{name} embeds overlapping patches or not by one convolution; take a plain ViT.")
    if not isinstance(stem.norm, nn.Identity):
        raise InputError(f"{name} normalises inside its patch embedding, which is then not linear; take a plain ViT.")
    if not hasattr(net, "forward_head") or not hasattr(net, "cls_token"):
        raise InputError(f"{name} ({type(net).__name__}) is not a ViT with one sequence of tokens; take a plain ViT.")
