"""What a model may be given: one rule for images and one for labels, through which every public function passes.

Each returns what is to be used: whatever type, device or mode the argument came in, the rest of the package sees plain
tensors. Anything that would be misread is refused in one sentence before any work is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from nullpaper.data.datasets import Split
from nullpaper.errors import InputError, first_line
from nullpaper.models.vit import HALF, Classifier, check_classifier, check_pixels

FULL = torch.float32


def check_images(model: Any, images: Tensor, *, what: str = "images", box: bool = True) -> Tensor:
    """Images (B, C, H, W) as ``model`` may be asked about them, detached, float32 or float64, fit for gradients.

    Half precision, in which a perturbation of a pixel would be lost, becomes float32. Where the model has parameters,
    the images come to their device; a `Classifier` reads images of any type, for another model they get its own.

    Args:
        model: what takes the images: their shape is checked as far as it has ``channels``, ``image_size`` (height,
            width) and ``name``, as a `ViT` and a `PatchNullspace` do; None: any shape.
        what: the noun for the sentence.
        box: values must lie in [0, 1]; False, for noise and targets: they must be finite.

    Raises:
        InputError: no tensor of floats (B, C, H, W), no image at all, channels or a size that the model does not take,
            NaN, values outside [0, 1], a foreign model in half precision.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"{what} are a {type(images).__name__}; pass a tensor (B, C, H, W), as `nullpaper.data.datasets.to_pixels` "
            "makes of an array."
        )
    name = getattr(model, "name", type(model).__name__)
    channels, size = getattr(model, "channels", None), getattr(model, "image_size", None)
    if images.ndim != 4 or channels not in (None, images.shape[1]):
        raise InputError(f"{what} have shape {tuple(images.shape)}, but {name} takes (B, {channels or 'C'}, H, W).")
    if size is not None and tuple(images.shape[-2:]) != tuple(size):
        raise InputError(
            f"{what} are {tuple(images.shape[-2:])} pixels, but {name} takes {tuple(size)}: resize them, as "
            "split.batches(..., image_size=vit.image_size) does."
        )
    if not images.is_floating_point():
        raise InputError(f"{what} are {images.dtype}; divide by 255 to get floats in [0, 1].")
    if images.numel() == 0:
        raise InputError(f"{what} have shape {tuple(images.shape)}, which is none at all; pass at least one.")
    low, high = torch.stack(images.detach().aminmax()).tolist()  # one look, for it waits for a GPU
    if low != low or (not box and max(-low, high) == torch.inf):
        raise InputError(f"{what} contain NaN{'' if box else ' or infinity'}; clean them first.")
    if box and (low < 0 or high > 1):
        raise InputError(f"{what} span [{low:.4g}, {high:.4g}], not [0, 1]: pass pixels, not normalised values.")
    return normal(images).to(**_place(model, images))


def check_labels(labels: ArrayLike | Tensor, count: int | None = None, classes: int | None = None) -> Tensor:
    """Class indices (count,) int64, from a tensor, an array or a list of whole numbers of any width.

    Args:
        count: how many there must be, an image each; None: any number.
        classes: how many the model has; None: unknown.

    Raises:
        InputError: other shapes or types, or indices that are no classes of the model.
    """
    try:
        given = torch.as_tensor(labels if isinstance(labels, Tensor) else np.array(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels cannot be read ({first_line(error)}); pass a class index an image.") from error
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.ndim != 1 or len(given) == 0 or count not in (None, len(given)) or not whole:
        raise InputError(
            f"labels have shape {tuple(given.shape)} and type {given.dtype}; pass one class index for each of the "
            f"{'' if count is None else f'{count} '}images."
        )
    given = normal(given).long()
    low, high = torch.stack(given.aminmax()).tolist()
    if low < 0 or (classes is not None and high >= classes):
        known = "class indices start at 0" if classes is None else f"the classes of the model are 0 to {classes - 1}"
        raise InputError(
            f"labels span {low} to {high}, but {known}: pass labels of the data that the model was trained for."
        )
    return given


def check_labelled(
    model: nn.Module | Callable[[Tensor], Tensor], images: Tensor, labels: ArrayLike | Tensor
) -> tuple[Tensor, Tensor]:
    """Images and labels (B,) that fit together and fit the model, both where its parameters are.

    Raises:
        InputError: as `check_classifier` (a function, or a module that names no classes, is taken at its word),
            `check_images` and `check_labels`.
    """
    if isinstance(model, nn.Module):
        (check_classifier if hasattr(model, "num_classes") else check_pixels)(model)
    images = check_images(model, images)
    return images, check_labels(labels, len(images), getattr(model, "num_classes", None)).to(images.device)


def check_split(model: nn.Module, split: Split, *, judged: bool = True) -> None:
    """Refuse a split that the model cannot be judged by, or not ``judged`` but asked about.

    Raises:
        InputError: as `check_classifier`; no split, no images, other channels than the model's, labels that are no
            classes of it; judged by: a data set of another number of classes.
    """
    check_classifier(model)
    if not isinstance(split, Split):
        raise InputError(f"a split is needed, but this is a {type(split).__name__}: pass one, such as data.test.")
    if judged and split.classes not in (None, model.num_classes):
        raise InputError(
            f"{getattr(model, 'name', 'the model')} has {model.num_classes:,} classes, but the data have "
            f"{split.classes:,}: pass load_vit(...).restricted(data.imagenet) for a set of ImageNet's classes, weights "
            "that were trained for it, or load_vit(..., num_classes=len(data.classes)), a new head to train."
        )
    if len(split) == 0:
        raise InputError("the split holds no images; pass at least one.")
    check_labels(split.labels, len(split), model.num_classes)
    shape, channels = split.images[:1].shape, getattr(model, "channels", None)
    if channels not in (None, shape[-1]):
        raise InputError(f"images have shape (n, {str(shape[1:])[1:]}, but the model takes (n, H, W, {channels}).")


def normal(values: Tensor) -> Tensor:
    """``values`` without a graph, and such that gradients may be taken at them, though inference mode made them."""
    values = values.detach()
    if not values.is_inference():
        return values
    with torch.inference_mode(False):
        return values.clone()


def _place(model: Any, images: Tensor) -> dict[str, Any]:
    """Device and type of the images, by the model's parameters: never less than float32."""
    own = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if own is None or isinstance(model, Classifier):  # which reads images of any type
        return {"device": (images if own is None else own).device, "dtype": torch.promote_types(images.dtype, FULL)}
    if own.dtype in HALF:
        raise InputError(f"{type(model).__name__} computes in {own.dtype}, too coarse for a pixel: call model.float().")
    return {"device": own.device, "dtype": torch.promote_types(own.dtype, FULL)}
