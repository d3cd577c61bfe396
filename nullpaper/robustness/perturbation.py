"""What happens to a noisy image on its way to a model, and noise to compare with: legal, and of a given norm."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nullpaper.errors import InputError, nearest
from nullpaper.models.vit import ViT, norms

DOUBLINGS, BISECTIONS = 40, 24  # float32 has 24 bits


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


def crop_and_resize(images: Tensor, kept: int) -> Tensor:
    """The central ``kept`` x ``kept`` pixels of images (B, C, H, W), bicubically back to H x W, in [0, 1].

    Raises:
        InputError: ``kept`` is not a number of pixels that the images have.
    """
    height, width = images.shape[-2:]
    if not 1 <= kept <= min(height, width):
        raise InputError(f"kept={kept} must be 1 to {min(height, width)} pixels, the side of the images.")
    top, left = (height - kept) // 2, (width - kept) // 2
    cropped = images[..., top : top + kept, left : left + kept]
    return interpolate(cropped, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


def undo_crop(images: Tensor, kept: int) -> Tensor:
    """Put the content of `crop_and_resize` back where it was; the lost border repeats the nearest pixel."""
    height, width = images.shape[-2:]
    small = interpolate(images, size=(kept, kept), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (height - kept) // 2, (width - kept) // 2
    return pad(small, (left, width - kept - left, top, height - kept - top), mode="replicate")


def noisy(images: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Images in [0, 1] plus Gaussian noise of standard deviation ``sd``, clipped; drawn on the generator's device.

    Raises:
        InputError: a negative ``sd``.
    """
    if not sd >= 0:
        raise InputError(f"sd={sd} must not be negative.")
    noise = torch.randn(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
    return (images + sd * noise.to(images.device)).clamp(0, 1)


DEGRADATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "float32": lambda images, generator: images,
    "8 bits": lambda images, generator: rounded(images),
    "JPEG 95": lambda images, generator: jpeg(images, 95),
    "JPEG 75": lambda images, generator: jpeg(images, 75),
    "JPEG 50": lambda images, generator: jpeg(images, 50),
    "crop 44/48": lambda images, generator: crop_and_resize(images, round(images.shape[-1] * 44 / 48)),
    "noise 0.02": lambda images, generator: noisy(images, 0.02, generator),
    "noise 0.05": lambda images, generator: noisy(images, 0.05, generator),
}
"""What a mark has to survive; `degraded` applies one by name."""


def degraded(images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Images (B, C, H, W) in [0, 1] after one of `DEGRADATIONS`; the same noise for the same seed and shape.

    Raises:
        InputError: an unknown name.
    """
    if name not in DEGRADATIONS:
        raise InputError(f"degradation {name!r} is unknown: one of {list(DEGRADATIONS)}.{nearest(name, DEGRADATIONS)}")
    return DEGRADATIONS[name](images, torch.Generator().manual_seed(seed))


@torch.inference_mode()
def transported_logits(vit: ViT, images: Tensor, transport: str, batch_size: int = 500) -> Tensor:
    """Logits (B, num_classes) of images (B, C, H, W) after a transport named in `TRANSPORTS`."""
    return torch.cat([vit(TRANSPORTS[transport](batch)) for batch in images.split(batch_size)])
