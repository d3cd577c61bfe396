"""A timm Vision Transformer as the papers see it: pixels in [0, 1] -> normalise -> embed -> encode -> logits.

Everything outside this module works in pixel units. The mean and standard deviation that a checkpoint was trained with
live inside `ViT`, so that a perturbation budget means the same for every model (paper A's pipeline put ImageNet
statistics in front of all of them).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nullpaper.data.folders import Transform
from nullpaper.errors import InputError, check_path
from nullpaper.files import write_atomic
from nullpaper.models.classifier import HALF as HALF  # "as": to be had from here too
from nullpaper.models.classifier import Classifier, full
from nullpaper.models.nets import CIFAR10_MEAN as CIFAR10_MEAN
from nullpaper.models.nets import CIFAR10_STD as CIFAR10_STD
from nullpaper.models.nets import SHIPPED as SHIPPED
from nullpaper.models.nets import (
    TokenPatchEmbed,
    check_classes,
    check_size,
    network_of,
    require_linear_patch_embedding,
    unwrapped,
)
from nullpaper.models.nets import shipped_weights as shipped_weights
from nullpaper.models.weights import Size

torch.backends.cudnn.allow_tf32 = False  # a GPU would round the patch embedding to 10 bits, and what it ignores with it


class ViT(Classifier):
    """A timm ViT with a door behind its patch embedding: ``vit(x)`` is ``vit.encode(vit.embed(x))``, bit for bit.

    Attributes:
        image_size, patch_size: (height, width) in pixels.
        grid_size: patches (down, across); their product is N.
        channels, embed_dim: C and d.
        transform: how the weights want photographs, for ``load_data(..., transform=vit.transform)``.
        classes: which outputs of the head it answers with, (num_classes,); None: all.

    Raises:
        InputError: ``net.patch_embed`` is not one linear, non-overlapping convolution (the sentence says why), its
            image size is no multiple of its patch, or mean and std are not those of its channels.
    """

    transform = Transform()
    classes: Tensor | None

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], name: str = "vit") -> None:
        super().__init__(net, mean, std, name)
        self.register_buffer("classes", None, persistent=False)
        require_linear_patch_embedding(net, name)
        stem = net.patch_embed
        check_size(stem.img_size, stem.patch_size, name)
        if self.channels != stem.proj.in_channels:
            raise InputError(
                f"mean and std have {self.channels} numbers, but {name} has {stem.proj.in_channels} channels: pass "
                "mean=... and std=... with one for each."
            )
        stem.__class__ = TokenPatchEmbed  # keeps timm's parameter names, which a wrapper would change
        self.image_size, self.patch_size, self.grid_size = map(tuple, (stem.img_size, stem.patch_size, stem.grid_size))
        self.embed_dim = stem.proj.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        return self.encode(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Patch tokens (B, N, d), before class token and position embedding: ``u`` of paper A, section 3.

        Raises:
            InputError: images of another size.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            raise InputError(
                f"images are {tuple(images.shape[-2:])} pixels, but {self.name} takes {self.image_size}: resize them, "
                "as split.batches(..., image_size=vit.image_size) does."
            )
        tokens = full(self.net.patch_embed(self._normalised(images)))
        return tokens if tokens.ndim == 3 else tokens.flatten(1, 2)

    def encode(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_classes) of patch tokens (B, N, d): position embedding, blocks, norm, head."""
        return self._answered(self.net(tokens.to(self.dtype)))

    def features(self, tokens: Tensor) -> Tensor:
        """What the head reads, (B, d): the class token or the pooled tokens after the last norm."""
        return self.encode_both(tokens)[1]

    def encode_both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes) and `features` (B, d) of patch tokens (B, N, d), from one pass through the blocks."""
        states = self.net.forward_features(tokens.to(self.dtype))
        return self._answered(self.net.forward_head(states)), full(self.net.forward_head(states, pre_logits=True))

    @property
    def num_classes(self) -> int:
        return self.net.num_classes if self.classes is None else len(self.classes)

    @torch.inference_mode(False)
    def restricted(self, classes: Sequence[int]) -> ViT:
        """The same model that answers with the logits of these classes alone, in this order: ``data.imagenet``, say.

        Weights and mode are shared, not copied: what trains or moves one trains or moves the other. `save_vit` writes
        the whole head, so that a model that was finetuned so still serves all its classes.

        Raises:
            InputError: no sequence of at least two different classes of this model.
        """
        chosen = torch.tensor(check_classes(classes, self.num_classes), device=self.mean.device)
        return self._view(chosen if self.classes is None else self.classes[chosen])

    def unrestricted(self) -> ViT:
        """The same model, its weights shared, with all classes of its head."""
        return self._view(None)

    def _view(self, classes: Tensor | None) -> ViT:
        view = copy(self)
        vars(view).update({key: copy(value) for key, value in vars(self).items() if isinstance(value, dict)})
        view.classes = classes
        return view

    def _answered(self, logits: Tensor) -> Tensor:
        return full(logits if self.classes is None else logits.index_select(-1, self.classes))

    @property
    def patch_matrix(self) -> Tensor:
        """The patch embedding as a float64 matrix (d, C*p*p) that acts on pixels in [0, 1]: the std is folded in."""
        weight = self.net.patch_embed.proj.weight.detach().double()  # folding in float32 would round it once more
        return (weight / self.std.double()).flatten(1)


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


def check_vit(model: object, kind: type[Classifier] | None = None) -> None:
    """Refuse what is not a `ViT`, or not of another ``kind`` of this module.

    Raises:
        InputError: names what it is, and how to get the right thing.
    """
    kind = kind or ViT
    if not isinstance(model, kind):
        raise InputError(f"a {kind.__name__} is needed, but this is {_foreign(model, kind.__name__)}")


def check_pixels(model: object) -> None:
    """Refuse what does not take images in [0, 1]: no model, or a model of timm or torchvision without normalisation.

    Raises:
        InputError: names what it is, and how to get the right thing.
    """
    inner = unwrapped(model) if isinstance(model, nn.Module) else None
    if inner is None or type(inner).__module__.startswith(("timm.", "torchvision.")):
        raise InputError(f"a classifier of images in [0, 1] is needed, but this is {_foreign(model)}")


def check_classifier(model: object) -> None:
    """Refuse what has no classes, or does not take images in [0, 1] of a size that it names.

    Raises:
        InputError: names what it is, and how to get the right thing.
    """
    check_pixels(model)
    if not hasattr(model, "image_size") or not hasattr(model, "num_classes"):
        raise InputError(f"a model with image_size and num_classes is needed, but this is {_foreign(model)}")
    if model.num_classes < 2:
        name = getattr(model, "name", type(model).__name__)
        raise InputError(
            f"{name} has {model.num_classes} classes, so that it answers with features and no prediction: load it with "
            "num_classes=... and train its head, or take a model with a head."
        )


def _foreign(model: object, kind: str = "") -> str:
    """What a model that is not of this package is, and how to get one that is."""
    if not isinstance(model, nn.Module):
        return f"{model!r:.80}: pass load_vit(name)."
    inner = unwrapped(model)
    if inner is not model and isinstance(inner, Classifier):
        return f"{type(model).__name__} around one: pass the {type(inner).__name__} inside."
    if hasattr(inner, "patch_embed"):
        return f"a bare {type(inner).__name__} without normalisation: pass load_vit(model, mean=..., std=...)."
    if kind == "ViT":
        return f"{type(inner).__name__}: pass one of load_vit."
    return f"{type(inner).__name__}: wrap it in models.vit.Classifier(model, mean, std) and set its image_size."


def check_evaluating(model: nn.Module) -> None:
    """Raise an `InputError` if any part of the model is in training mode, or as `check_pixels`."""
    check_pixels(model)
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
    name: str | nn.Module,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_classes: int | None = None,
    img_size: int | Size | None = None,
    device: str | torch.device | None = None,
) -> ViT:
    """Load a plain timm ViT, or the checkpoint that ships with this package, in evaluation mode.

    Args:
        name: any timm model with a linear patch embedding, ``nullpaper_vit_cifar10``, or a model that timm built, of
            which a copy is taken.
        pretrained: take trained weights, from timm's hub or from the package.
        weights: a local ``.safetensors`` or ``.pth`` file with timm's parameter names; implies that no hub is asked.
        mean, std: per-channel statistics in pixel units that the weights were trained with; None: those in the file of
            weights, else those that timm has for ``name``. `Classifier.statistics` says which.
        num_classes: a fresh head of that many classes if it differs from the checkpoint's; 0: no head.
        img_size: side or (height, width) of the images in pixels, multiples of the patch; timm resamples position
            embeddings. None: of a file of `save_vit` its own, else that of ``name``.
        device: where to put the model.

    Warns:
        UserWarning: statistics or a grid that are a guess: of a file that lacks them, or of a model.

    Raises:
        InputError: unknown name, no linear patch embedding, a hub that cannot be reached, weights that do not fit,
            sizes or statistics that the model cannot have.
    """
    if isinstance(name, nn.Module) and isinstance(unwrapped(name), Classifier):
        raise InputError(f"{unwrapped(name).name} is loaded already: use it as it is.")
    if (mean is None) != (std is None):
        raise InputError("mean and std belong together: pass both, or neither.")
    given = None if mean is None else (mean, std)
    net, title, (mean, std, origin), transform = network_of(name, pretrained, weights, given, num_classes, img_size)
    vit = ViT(net, mean, std, title)
    vit.statistics, vit.transform = origin, replace(transform, size=vit.image_size)
    return vit.eval().to(device)


def save_vit(vit: ViT, path: str | Path) -> None:
    """Write the weights to ``path`` in one step: safetensors, timm's names; mean, std, grid, transform as metadata.

    Raises:
        InputError: a model that is not from this package.
    """
    check_vit(vit, Classifier)
    path = check_path("path", path)
    state = {key: value.detach().cpu().contiguous() for key, value in vit.net.state_dict().items()}
    facts = {"mean": vit.mean.flatten().tolist(), "std": vit.std.flatten().tolist()}
    facts |= {"grid": vit.grid_size} if isinstance(vit, ViT) else {}
    if vit.name != SHIPPED and isinstance(vit, ViT):  # which sees no photographs
        facts["transform"] = asdict(vit.transform)
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    write_atomic(path, save(state, metadata={"name": vit.name, **metadata}))


def fingerprint(vit: Classifier, without: Collection[str] = ()) -> str:
    """A short name for exactly these weights, this normalisation and adapter, for the identity of results.

    Modules of timm's model that are named in ``without`` do not count.
    """
    check_vit(vit, Classifier)
    digest = hashlib.sha256()
    classes = getattr(vit, "classes", None)
    told = {"mean": vit.mean, "std": vit.std} | ({} if classes is None else {"head.classes": classes})
    for key, value in {**vit.net.state_dict(), **told}.items():
        if key.partition(".")[0] not in without:
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    if adapter := getattr(vit, "adapter", None):  # its scale and the kind of its norm are in no tensor
        digest.update(repr(adapter).encode())
    return digest.hexdigest()[:16]
