"""What happens to a noisy image on its way to a model, and noise to compare with: legal, and of a given norm."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nullpaper.errors import InputError
from nullpaper.vit import ViT

__all__ = ["TRANSPORTS", "in_box", "jpeg", "norms", "permuted_in_patches", "rounded", "transported_logits"]

DOUBLINGS, BISECTIONS = 40, 24  # float32 has 24 bits


def norms(noise: Tensor) -> Tensor:
    """L2 norm of each image's noise (B, ...), shape (B,), in pixel units."""
    return noise.flatten(1).norm(dim=1)


def in_box(images: Tensor, direction: Tensor, norm: Tensor, box: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Noise along ``direction``, clipped so that images + noise stay in the box, scaled to the L2 norm (B,) after that.

    The clipped norm grows with the scale, so bisection finds it; where the box is too tight for ``norm``, the noise is
    as long as the box allows in this direction's signs.
    """

    def clipped(scale: Tensor) -> Tensor:
        return (images + scale.view(-1, 1, 1, 1) * direction).clamp(*box) - images

    high = norm / norms(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    low = torch.zeros_like(high)
    for _ in range(DOUBLINGS):
        short = norms(clipped(high)) < norm
        if not short.any():
            break
        low, high = torch.where(short, high, low), torch.where(short, 2 * high, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        short = norms(clipped(middle)) < norm
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return clipped(high)


def permuted_in_patches(noise: Tensor, patch_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """The same values in every patch and channel, at other pixels: one permutation of the patch's pixels for all.

    The papers' control: norm and histogram stay, the direction is lost.
    """
    batch, channels, height, width = noise.shape
    (rows, columns) = patch_size
    tiles = noise.view(batch, channels, height // rows, rows, width // columns, columns).transpose(3, 4)
    order = torch.randperm(rows * columns, generator=generator).to(noise.device)
    shuffled = tiles.flatten(4)[..., order].unflatten(4, (rows, columns))
    return shuffled.transpose(3, 4).reshape(noise.shape)


def rounded(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as an 8-bit file keeps them."""
    return images.mul(255).round().div(255).clamp(0, 1)


def jpeg(images: Tensor, quality: int = 90) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] after JPEG at ``quality`` (1 to 95, Pillow's scale, 4:2:0 colour), and back.

    Raises:
        InputError: images that JPEG cannot hold, or a quality outside 1 to 95.
    """
    if images.shape[1] != 3 or not 1 <= quality <= 95:
        raise InputError(f"JPEG needs 3 channels and a quality of 1 to 95, not {images.shape[1]} and {quality}.")
    pixels = images.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    restored = np.stack([_jpeg_round_trip(image, quality) for image in pixels])
    return torch.from_numpy(restored).permute(0, 3, 1, 2).to(images).div(255)


def _jpeg_round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


TRANSPORTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda images: images,
    "8 bits": rounded,
    "JPEG 90": jpeg,
}
"""How a noisy image reaches the model."""


@torch.inference_mode()
def transported_logits(vit: ViT, images: Tensor, transport: str, batch_size: int = 500) -> Tensor:
    """Logits (B, num_classes) of images (B, C, H, W) after a transport named in `TRANSPORTS`."""
    return torch.cat([vit(TRANSPORTS[transport](batch)) for batch in images.split(batch_size)])
