"""A network with its normalisation inside: what every model of this package is to those who ask it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nullpaper.errors import InputError

HALF = (torch.float16, torch.bfloat16)


class Classifier(nn.Module):
    """Any timm model with its normalisation inside: images (B, C, H, W) in [0, 1] -> logits (B, num_classes).

    Images of any floating type become that of the weights behind the normalisation, and what comes out in half
    precision becomes float32: a perturbation is never rounded to the weights' type before the model reads it.

    Args:
        net: the timm model.
        mean, std: per-channel statistics, in pixel units, that the checkpoint was trained with.
        name: what to call the model in results.

    Attributes:
        statistics: where mean and std come from, in words.

    Raises:
        InputError: mean and std of different lengths or outside [0, 1], or a std of 0.
    """

    image_size = (48, 48)  # (height, width) in pixels, of the classifiers that travel with the package
    statistics = "as given"

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], name: str = "vit") -> None:
        super().__init__()
        self.net, self.name = net, name
        for key, value in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.as_tensor(value, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        low, high = torch.cat([self.mean, self.std]).aminmax() if self.mean.shape == self.std.shape else (-1, -1)
        if not (low >= 0 and high <= 1 and self.std.min() > 0):
            raise InputError(
                f"mean={mean} and std={std} of {name} must be one number a channel, mean in [0, 1] and std in (0, 1]; "
                "divide those of pixels up to 255 by 255."
            )
        self.channels = self.mean.shape[1]

    def extra_repr(self) -> str:
        mean, std = ([round(value, 4) for value in part.flatten().tolist()] for part in (self.mean, self.std))
        return f"{self.name}, mean={mean}, std={std} ({self.statistics})"

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


def full(values: Tensor) -> Tensor:
    """``values`` in float32 if they are in half precision, in which no statistics should be made."""
    return values.float() if values.dtype in HALF else values
