"""Controls have the norm they claim and stay legal; transports do what a file does."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from nullpaper.data import datasets as data
from nullpaper.errors import InputError
from nullpaper.robustness import perturbation


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return data.to_pixels(data.load_data("cifar10").test.images[:16], 48)


def test_clipped_noise_has_the_norm_it_was_asked_for_up_to_the_corner_of_the_box(images: torch.Tensor) -> None:
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for norm in (0.0, 0.5, 10.0):
        noise = perturbation.in_box(images, direction, torch.full((len(images),), norm))
        assert torch.allclose(perturbation.norms(noise), torch.tensor(norm), atol=1e-3)
        assert ((images + noise) >= -1e-6).all() and ((images + noise) <= 1 + 1e-6).all()
        assert (noise * direction >= -1e-6).all()
    corner = images + perturbation.in_box(images, direction, torch.full((len(images),), 1e4))
    assert torch.allclose(corner, (direction > 0).float(), atol=1e-5)


def test_permutation_keeps_every_value_within_its_patch(images: torch.Tensor) -> None:
    moved = perturbation.permuted_in_patches(images, (8, 8), torch.Generator().manual_seed(0))
    assert not torch.equal(moved, images)
    for i, j in ((0, 0), (8, 16), (40, 40)):
        before, after = (x[:, :, i : i + 8, j : j + 8].flatten(2).sort().values for x in (images, moved))
        assert torch.equal(before, after)


def test_transports(images: torch.Tensor) -> None:
    shifted = (images + 0.001).clamp(0, 1)
    assert torch.equal(perturbation.rounded(images), images)
    assert (perturbation.rounded(shifted) - shifted).abs().max() <= 0.5 / 255 + 1e-6
    coarse, fine = ((perturbation.jpeg(images, q) - images).square().mean() for q in (30, 95))
    assert 0 < fine < coarse


def test_png_keeps_what_eight_bits_keep(images: torch.Tensor) -> None:
    image, file = images[0] * 0.97 + 0.01, BytesIO()
    pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "PNG")
    read = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).div(255)
    assert torch.equal(read, perturbation.rounded(image))


def test_resizing_keeps_size_and_grey_and_loses_texture() -> None:
    board = (torch.arange(48)[:, None] + torch.arange(48)).remainder(2).float().expand(1, 3, 48, 48)
    grey = torch.full((1, 3, 48, 32), 0.3)
    assert torch.allclose(perturbation.resized(grey, 0.75), grey, atol=1e-6)
    assert perturbation.resized(board, 0.75).std() < 0.2 * board.std()
    with pytest.raises(InputError, match="share"):
        perturbation.resized(grey, 0)


def test_degradations_stay_in_range_and_repeat(images: torch.Tensor) -> None:
    for name in perturbation.DEGRADATIONS:
        first, second = perturbation.degraded(images, name, seed=1), perturbation.degraded(images, name, seed=1)
        assert torch.equal(first, second) and first.shape == images.shape
        assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(perturbation.degraded(images, "float32"), images)
    noisy = [perturbation.degraded(images, "noise 0.05", seed) for seed in (1, 2)]
    assert not torch.equal(*noisy)
    with pytest.raises(InputError, match="Did you mean 'JPEG 7?5"):
        perturbation.degraded(images, "JPEG75")


def test_noise_has_its_standard_deviation() -> None:
    grey = torch.full((8, 3, 48, 48), 0.5)
    noise = perturbation.noisy(grey, 0.02, torch.Generator().manual_seed(0)) - grey
    assert noise.std().item() == pytest.approx(0.02, rel=0.02)


def test_a_crop_can_be_undone_but_for_its_border(images: torch.Tensor) -> None:
    cropped = perturbation.crop_and_resize(images, 44)
    restored = perturbation.undo_crop(cropped, 44)
    inner = (slice(None), slice(None), slice(4, 44), slice(4, 44))
    assert (restored - images)[inner].abs().mean() < 0.5 * (cropped - images)[inner].abs().mean()
    assert torch.allclose(perturbation.crop_and_resize(images, 48), images, atol=1e-6)


def test_every_transport_keeps_shape_and_box_and_a_png_is_what_8_bits_are() -> None:
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for name, transport in perturbation.TRANSPORTS.items():
        arrived = transport(images)
        assert arrived.shape == images.shape and arrived.dtype == images.dtype, name
        assert arrived.min() >= 0 and arrived.max() <= 1, name
    assert torch.equal(perturbation.png(images), perturbation.rounded(images))
