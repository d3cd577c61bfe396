"""What happens to a noisy image on its way to a model, and noise to compare with: legal, and of a given norm."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nullpaper.errors import check_choice, check_count, check_number, check_seed
from nullpaper.models.inputs import check_images
from nullpaper.models.vit import ViT, check_pixels, norms
from nullpaper.robustness import distortions

DOUBLINGS, BISECTIONS = 40, 24  # float32 has 24 bits


def in_box(images: Tensor, direction: Tensor, norm: Tensor) -> Tensor:
    """Noise along ``direction``, clipped so that images + noise stay in [0, 1], scaled to the L2 norm (B,) after that.

    The clipped norm grows with the scale, so bisection finds it; where the box is too tight for ``norm``, the noise is
    as long as the box allows in this direction's signs.

    Raises:
        InputError: as `check_images`.
    """
    images, direction = check_images(None, images), check_images(None, direction, what="directions", box=False)
    direction, norm = direction.to(images.device), norm.to(images.device)

    def clipped(scale: Tensor) -> Tensor:
        return (images + scale.view(-1, 1, 1, 1) * direction).clamp(0, 1) - images

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
        InputError: another quality.
    """
    quality = check_count("quality", quality, 1, 95)
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(distortions.jpeg(pixels, quality)).permute(0, 3, 1, 2).to(images)


TRANSPORTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda images: images,
    "8 bits": rounded,
    "PNG": lambda images: png(images),
    "JPEG 95": lambda images: jpeg(images, 95),
    "JPEG 90": jpeg,
    "JPEG 75": lambda images: jpeg(images, 75),
    "JPEG 50": lambda images: jpeg(images, 50),
    "resize 3/4": lambda images: resized(images, 3 / 4),
}
"""How a noisy image reaches the model."""


def png(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] written as PNG files and read again: what `rounded` leaves, to the bit."""
    pixels = images.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().contiguous().numpy()
    read = np.stack([_through_png(image) for image in pixels])
    return torch.from_numpy(read).permute(0, 3, 1, 2).to(images).div(255)


def _through_png(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    return np.array(Image.open(file))


def resized(images: Tensor, share: float) -> Tensor:
    """Images (B, C, H, W) in [0, 1], bicubically at a share of their sides, to the nearest pixel, and back.

    Raises:
        InputError: a share of 0 or less, or above 1.
    """
    check_number("share", share, 0, 1, "(]")
    size = images.shape[-2:]
    small = interpolate(images, size=[max(1, round(share * side)) for side in size], mode="bicubic", antialias=True)
    return interpolate(small.clamp(0, 1), size=tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def crop_and_resize(images: Tensor, kept: int) -> Tensor:
    """The central ``kept`` x ``kept`` pixels of images (B, C, H, W), bicubically back to H x W, in [0, 1].

    Raises:
        InputError: more than there are, or none.
    """
    height, width = images.shape[-2:]
    kept = check_count("kept", kept, 1, min(height, width))
    top, left = (height - kept) // 2, (width - kept) // 2
    cropped = images[..., top : top + kept, left : left + kept]
    return interpolate(cropped, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


def undo_crop(images: Tensor, kept: int) -> Tensor:
    """Put the content of `crop_and_resize`, which has the same limits, back; the lost border repeats the next pixel."""
    height, width = images.shape[-2:]
    kept = check_count("kept", kept, 1, min(height, width))
    small = interpolate(images, size=(kept, kept), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (height - kept) // 2, (width - kept) // 2
    return pad(small, (left, width - kept - left, top, height - kept - top), mode="replicate")


def noisy(images: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Images in [0, 1] plus Gaussian noise of standard deviation ``sd``, clipped; the generator is on the CPU.

    Raises:
        InputError: ``sd`` is negative or not finite.
    """
    check_number("sd", sd, 0, math.inf, "[)")
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return (images + sd * noise.to(images.device)).clamp(0, 1)


DEGRADATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "float32": lambda images, generator: images,
    "8 bits": lambda images, generator: rounded(images),
    "JPEG 95": lambda images, generator: jpeg(images, 95),
    "JPEG 75": lambda images, generator: jpeg(images, 75),
    "JPEG 50": lambda images, generator: jpeg(images, 50),
    "resize 3/4": lambda images, generator: resized(images, 3 / 4),
    "crop 44/48": lambda images, generator: crop_and_resize(images, round(images.shape[-1] * 44 / 48)),
    "noise 0.02": lambda images, generator: noisy(images, 0.02, generator),
    "noise 0.05": lambda images, generator: noisy(images, 0.05, generator),
}
"""What a mark has to survive; `degraded` applies one by name."""


def degraded(images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Images (B, C, H, W) in [0, 1] after one of `DEGRADATIONS`; the same noise for the same seed and shape.

    Raises:
        InputError: an unknown name, a negative seed, and as `check_images`.
    """
    check_choice("degradation", name, DEGRADATIONS)
    seed = check_seed(seed)
    return DEGRADATIONS[name](check_images(None, images), torch.Generator().manual_seed(seed))


@torch.inference_mode()
def transported_logits(vit: ViT, images: Tensor, transport: str, batch_size: int = 500) -> Tensor:
    """Logits (B, num_classes) of images (B, C, H, W) after a transport named in `TRANSPORTS`.

    Raises:
        InputError: an unknown transport, a batch size below 1, and as `check_images`.
    """
    check_choice("transport", transport, TRANSPORTS)
    check_pixels(vit)
    batch_size, images = check_count("batch_size", batch_size), check_images(vit, images)
    return torch.cat([vit(TRANSPORTS[transport](batch)) for batch in images.split(batch_size)])
