"""How alike two images look: structural similarity (Wang et al. 2004) and peak signal-to-noise ratio, per image."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

GAUSSIAN = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)  # the settings of the publication


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (B,), float64 on the CPU, of images (B, C, H, W) in [0, 1]; 1 for equal images."""
    pairs = zip(_arrays(first), _arrays(second), strict=True)
    values = [structural_similarity(a, b, channel_axis=0, data_range=1.0, **GAUSSIAN) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB, float64 on the CPU, for images in [0, 1]; infinite for equal images."""
    return -10 * (first.double() - second.double()).square().flatten(1).mean(1).log10().cpu()


def _arrays(images: Tensor) -> np.ndarray:
    return images.detach().double().cpu().numpy()
