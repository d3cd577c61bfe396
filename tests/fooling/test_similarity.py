"""Similarity of images: equal ones, symmetry, and what noise does to it."""

from __future__ import annotations

import pytest
import torch
from noises import batches

from nullpaper.fooling.similarity import psnr, ssim


def test_noise_lowers_both_and_the_order_of_the_pair_does_not_matter() -> None:
    images, _ = next(iter(batches()))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    weak, strong = ((images + level * noise).clamp(0, 1) for level in (0.02, 0.2))
    for measure in (ssim, psnr):
        assert (measure(images, weak) > measure(images, strong)).all()
        torch.testing.assert_close(measure(images, weak), measure(weak, images))
    assert ssim(images, images).tolist() == pytest.approx([1.0] * len(images)) and psnr(images, images).isinf().all()


def test_psnr_is_twenty_decibels_for_an_error_of_a_tenth() -> None:
    images = torch.full((1, 3, 48, 48), 0.5)
    assert psnr(images, images + 0.1).item() == pytest.approx(20, abs=1e-4)
