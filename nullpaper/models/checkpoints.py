"""Small CIFAR-10 classifiers of several architectures, trained by one recipe: who else sees the noise of a model?

Paper C carries noise from one architecture to others. Here they are timm models at the shipped ViT's image size and
about its number of parameters, so that architecture is what differs; their weights travel with the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from nullpaper.errors import check_choice
from nullpaper.models.nets import CIFAR10_MEAN, CIFAR10_STD, SHIPPED, build_shipped, known_statistics, shipped_weights
from nullpaper.models.vit import Classifier, ViT
from nullpaper.models.weights import load_weights, read_checkpoint

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    SHIPPED: build_shipped,
    "vit_wide": partial(VisionTransformer, img_size=48, patch_size=8, embed_dim=128, depth=4, num_heads=4),
    "resnet": partial(ResNet, BasicBlock, (1, 1, 1, 1), channels=(24, 48, 96, 192), stem_width=24),
    "convnext": partial(ConvNeXt, depths=(2, 2, 2, 2), dims=(32, 64, 96, 128)),
    "vit_robust": build_shipped,
}
"""Constructors of timm models for 48 px images; each takes ``num_classes``. ``vit_robust`` is the shipped ViT after PGD
adversarial training of all its weights at 8/255 (notebook 07)."""


@torch.inference_mode(False)
def load_classifier(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Classifier:
    """One of `ARCHITECTURES`, in evaluation mode: a `ViT` where it is one.

    Args:
        pretrained: take the weights that travel with the package.
        weights: a local ``.safetensors`` file instead, with timm's parameter names.

    Raises:
        InputError: unknown name, or weights that are missing or do not fit.
    """
    check_choice("classifier", name, ARCHITECTURES)
    net = ARCHITECTURES[name](num_classes=10)
    kind = ViT if isinstance(net, VisionTransformer) else Classifier
    mean, std, origin = CIFAR10_MEAN, CIFAR10_STD, "of CIFAR-10"
    if weights is not None or pretrained:
        checkpoint = read_checkpoint(Path(weights or shipped_weights(name)))
        load_weights(net, checkpoint, name)
        mean, std, origin = known_statistics(name, {"mean": mean, "std": std}, checkpoint, guess=True)
    model = kind(net, mean, std, name)
    model.statistics = origin
    return model.eval().to(device)
