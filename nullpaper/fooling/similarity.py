"""How alike two images look: structural similarity (Wang et al. 2004) and peak signal-to-noise ratio, per image."""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from nullpaper.errors import InputError
from nullpaper.models.inputs import check_images

GAUSSIAN = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)  # the settings of the publication


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (B,), float64 on the CPU, of images (B, C, H, W) in [0, 1]; 1 for equal images.

    Raises:
        InputError: batches of different shapes, and as `check_images`.
    """
    pairs = zip(*(batch.double().cpu().numpy() for batch in _pair(first, second)), strict=True)
    values = [structural_similarity(a, b, channel_axis=0, data_range=1.0, **GAUSSIAN) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB, float64 on the CPU, for images in [0, 1]; infinite for equal images.

    Raises:
        InputError: as `ssim`.
    """
    first, second = _pair(first, second)
    return -10 * (first.double() - second.double()).square().flatten(1).mean(1).log10().cpu()


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = check_images(None, first), check_images(None, second)
    if first.shape != second.shape:
        raise InputError(f"the images have shapes {tuple(first.shape)} and {tuple(second.shape)}; match them.")
    return first, second.to(first.device)
