"""Arrays of images as the pixels that a model receives: float tensors in [0, 1], at its size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nullpaper.errors import InputError, check_count

PADDING = 4  # pixels, of the random crops


def height_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """A side, or (height, width), in pixels, as (height, width); None stays None.

    Raises:
        InputError: neither of these, or a side below 1.
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    for side in pair:
        check_count("image_size", side)
    return pair


def to_pixels(
    images: np.ndarray, size: int | tuple[int, int] | None = None, device: str | torch.device = "cpu"
) -> Tensor:
    """Images as a model receives them: (B, H, W, C) to float32 (B, C, size, size) in [0, 1].

    Resized bicubically. What comes as uint8 is rounded to multiples of 1/255, so that every image is one that an 8-bit
    file can hold and rounding acts on a perturbation alone; floats in [0, 1] are right as they are.

    Raises:
        InputError: as `check_array`, no images, or a size below 1.
    """
    check_array(images)
    if len(images) == 0:
        raise InputError("there are no images; pass at least one.")
    pair = height_width(size)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    eight_bits, pixels = pixels.dtype == torch.uint8, pixels.float()
    if pair is not None and tuple(pixels.shape[-2:]) != pair:
        pixels = interpolate(pixels, size=pair, mode="bicubic", antialias=True)
    return pixels.round_().clamp_(0, 255).div_(255) if eight_bits else pixels.clamp(0, 1)


def check_array(images: np.ndarray) -> None:
    """Refuse an array that is not images (n, H, W, C) in uint8, or in floats in [0, 1].

    Raises:
        InputError: it is another.
    """
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        shape = tuple(getattr(images, "shape", ()))
        raise InputError(f"images are a {type(images).__name__} {shape}; pass a NumPy array (n, H, W, C).")
    if images.dtype == np.uint8 or images.size == 0:
        return
    if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
        span = f", from {images.min():.4g} to {images.max():.4g}"
        raise InputError(f"images are {images.dtype}{span}; pass uint8, or floats in [0, 1] without NaN.")


def augmented(images: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random crop after reflective padding, and random horizontal flip, of images (B, C, H, W), where they live.

    They are uint8, or floats in [0, 1]. The result is resized bicubically: float (B, C, *size) in [0, 1], not rounded.
    The draws are made on the CPU from ``generator``, so that every device sees the same batches.
    """
    count, _, height, width = images.shape
    shifts = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    flips = torch.rand(1, count, 1, generator=generator) < 0.5
    down, across, flipped = torch.cat([shifts, flips]).to(images.device)
    image, row, column = (torch.arange(length, device=images.device) for length in (count, height, width))
    rows, columns = down + row, across + torch.where(flipped > 0, width - 1 - column, column)
    pixels = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    padded = pad(pixels, [PADDING] * 4, mode="reflect")
    cropped = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return interpolate(cropped, size=size, mode="bicubic", antialias=True).clamp_(0, 1)
