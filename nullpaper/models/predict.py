"""What a model answers: logits of images and of whole splits, and how far two answers are apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nullpaper.data.datasets import Data, Split
from nullpaper.data.photographs import imagenet
from nullpaper.errors import InputError, check_count, check_number
from nullpaper.models.gradients import chunks
from nullpaper.models.inputs import check_split
from nullpaper.models.vit import Classifier, ViT, check_classifier, evaluating


def answering(vit: ViT, data: Data) -> ViT:
    """The model with the classes of the data set: as it is, or a head of ImageNet's 1,000 with those that the set has.

    Raises:
        InputError: a head of other classes, or as `check_classifier`.
    """
    check_classifier(vit)
    view = restricted(vit, data)
    if view.num_classes != len(data.classes):
        raise InputError(
            f"{vit.name} answers with {vit.num_classes:,} classes, but {data.name} has {len(data.classes):,} others: "
            "pass weights that were trained for them."
        )
    return view


def restricted(vit: ViT, data: Data) -> ViT:
    """A head of ImageNet's 1,000 classes as one of those that the data set has, by the same weights; others as is."""
    whole = len(imagenet().classes)
    if data.imagenet is None or vit.num_classes != whole or len(data.classes) == whole:
        return vit
    return vit.restricted(data.imagenet)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K), without a graph; on a CPU in chunks, to the bit those of all images at once."""
    return torch.cat([model(part) for (part,) in chunks(images)])


@torch.inference_mode()
def predictions(vit: Classifier, split: Split, batch_size: int = 500) -> Tensor:
    """Logits (n, num_classes) on the CPU, in the order of the split; the model must be in evaluation mode.

    Raises:
        InputError: as `check_split`, or a batch size below 1.
    """
    check_split(vit, split, judged=False)
    batch_size = check_count("batch_size", batch_size)
    device = next(vit.parameters()).device
    batches = split.batches(batch_size, image_size=vit.image_size, device=device)
    return torch.cat([answers(vit, images).cpu() for images, _ in batches])


def correct(vit: Classifier, split: Split) -> Tensor:
    """Boolean (n,): which images of the split the model classifies correctly, in evaluation mode."""
    check_split(vit, split)
    with evaluating(vit):
        predicted = predictions(vit, split).argmax(1)
    return predicted == torch.from_numpy(split.labels)


def accuracy(vit: Classifier, split: Split) -> float:
    """Share of the split that the model classifies correctly."""
    return correct(vit, split).float().mean().item()


def feature_gap(noisy: Tensor, clean: Tensor) -> Tensor:
    """Squared L2 distance between two sets of features (B, D), over the squared norm of the clean ones, shape (B,)."""
    return (noisy - clean).square().sum(-1) / clean.square().sum(-1).clamp_min(torch.finfo(clean.dtype).tiny)


def check_influence(eps: float) -> None:
    """Refuse a bound on `probability_gap` that is not between 0 and 2, its largest value.

    Raises:
        InputError: it is not.
    """
    check_number("eps", eps, 0, 2, why=": it bounds a squared distance between softmax vectors")


def probability_gap(noisy: Tensor, clean: Tensor) -> Tensor:
    """Squared L2 distance between the softmax vectors of two sets of logits (B, K), shape (B,)."""
    return (noisy.softmax(-1) - clean.softmax(-1)).square().sum(-1)
