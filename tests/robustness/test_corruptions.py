"""The corruptions have the closed forms of their definitions, on real CIFAR-10 images."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2hsv

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.robustness import distortions
from nullpaper.robustness.corruptions import CHUNK, CORRUPTIONS, SEVERITIES, corrupt, corrupted

FAMILIES = {"noise": 3, "blur": 4, "weather": 4, "digital": 4}
# the others' constants do not grow one by one: less blur with more rounds, less jitter with more waves, darker frost
MONOTONE = sorted(set(CORRUPTIONS) - {"glass_blur", "elastic_transform", "frost"})


@cache
def images() -> np.ndarray:
    return load_data("cifar10").test.subset(40).images


def pixels() -> np.ndarray:
    return images() / 255


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def error(name: str, severity: int) -> float:
    """Mean squared, in levels; its PSNR falls as this grows."""
    return float(((corrupt(images(), name, severity).astype(float) - images()) ** 2).mean())


def constant(name: str, severity: int) -> tuple[float, ...]:
    return CORRUPTIONS[name].constants[severity - 1]


def test_there_are_fifteen_in_four_families_with_five_severities() -> None:
    families = [corruption.family for corruption in CORRUPTIONS.values()]
    assert {family: families.count(family) for family in families} == FAMILIES
    assert all(len(corruption.constants) == len(SEVERITIES) for corruption in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_images_by_its_seed_alone(name: str) -> None:
    given = images().copy()
    first, second = (corrupt(given, name, 3, seed=1) for _ in range(2))
    assert first.shape == given.shape and first.dtype == np.uint8
    assert np.array_equal(first, second) and np.array_equal(given, images())
    assert (first != given).mean() > 0.02
    drawn = name not in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert np.array_equal(first, corrupt(given, name, 3, seed=2)) is not drawn
    assert len(corrupt(given[:0], name, 3)) == 0


@pytest.mark.parametrize("name", MONOTONE)
def test_higher_severities_are_farther_from_the_image(name: str) -> None:
    errors = [error(name, severity) for severity in (1, 3, 5)]
    assert errors == sorted(errors) and errors[2] > 1.5 * errors[0] > 0


def test_more_images_than_a_chunk_are_each_corrupted() -> None:
    many = np.concatenate([np.tile(images()[:1], (CHUNK, 1, 1, 1)), images()[:5]])
    assert np.array_equal(corrupt(many, "contrast", 5)[CHUNK:], corrupt(images()[:5], "contrast", 5))
    noisy = corrupt(many, "gaussian_noise", 5)
    assert len(np.unique(noisy.reshape(len(noisy), -1), axis=0)) == len(noisy)


@pytest.mark.parametrize("severity", (1, 5))
def test_noises_have_the_moments_of_their_distributions(severity: int) -> None:
    grey = np.full((40, 32, 32, 3), 0.5)
    (scale,) = constant("gaussian_noise", severity)
    assert (distortions.gaussian_noise(grey, rng(), scale) - grey).std() == pytest.approx(scale, rel=0.02)
    (photons,) = constant("shot_noise", severity)
    shot = distortions.shot_noise(grey, rng(), photons)
    assert shot.mean() == pytest.approx(0.5, rel=0.01) and shot.var() == pytest.approx(0.5 / photons, rel=0.05)
    (amount,) = constant("impulse_noise", severity)
    impulse = distortions.impulse_noise(grey, rng(), amount)
    salt, pepper = (impulse == 1).mean(), (impulse == 0).mean()
    assert salt + pepper == pytest.approx(amount, rel=0.1) and salt == pytest.approx(pepper, rel=0.15)
    assert ((impulse == 0.5) | (impulse == 1) | (impulse == 0)).all()


@pytest.mark.parametrize("severity", (1, 5))
def test_defocus_is_a_convolution_with_a_kernel_of_sum_one(severity: int) -> None:
    kernel = distortions.disk_kernel(*constant("defocus_blur", severity))
    assert kernel.sum() == pytest.approx(1) and (kernel >= 0).all() and np.allclose(kernel, kernel.T)
    point = np.zeros((1, 32, 32, 3))
    point[0, 16, 16] = 1
    spread = distortions.defocus_blur(point, rng(), *constant("defocus_blur", severity))[0, :, :, 0]
    reach = len(kernel) // 2
    assert np.allclose(spread[16 - reach : 17 + reach, 16 - reach : 17 + reach], kernel)
    assert spread.sum() == pytest.approx(1)


def test_blurs_and_maps_leave_a_flat_image_flat() -> None:
    flat = np.full((6, 32, 32, 3), 0.6)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate"):
        for severity in (1, 5):
            result = CORRUPTIONS[name].function(flat, rng(), *constant(name, severity))
            assert np.allclose(result, 0.6, atol=1e-6), name


def test_a_streak_is_half_a_gaussian_along_its_angle() -> None:
    point = np.zeros((3, 64, 64, 1))
    point[:, 32, 32] = 1
    streak = distortions._streak(point, np.array([0.0, 90.0, 45.0]), 6, 2.0)[..., 0]
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    weights /= weights.sum()
    assert np.allclose(streak[0, 32, 20:33], weights[::-1]) and np.allclose(streak[1, 20:33, 32], weights[::-1])
    assert np.allclose(streak.sum((1, 2)), 1)
    rows, columns = streak[2].nonzero()
    assert (np.abs(rows - columns) <= 1).all() and rows.max() == 32 and rows.min() < 25


def test_glass_takes_every_pixel_from_above_or_left_of_it() -> None:
    places = np.repeat(np.mgrid[:32, :32].transpose(1, 2, 0)[None] / 255, 8, axis=0)
    moved = np.rint(distortions.glass_blur(places, rng(), 0.05, 1) * 255).astype(int)
    shift = moved - np.rint(places * 255).astype(int)
    assert set(np.unique(shift)) == {-1, 0} and (shift[:, :2] == 0).all() and (shift[:, :, :2] == 0).all()
    assert shift[:, 2:, 2:].mean() == pytest.approx(-0.5, abs=0.03)
    twice = np.rint(distortions.glass_blur(places, rng(), 0.05, 2) * 255).astype(int) - np.rint(places * 255).astype(
        int
    )
    assert set(np.unique(twice)) == {-2, -1, 0}


def test_zoom_enlarges_about_the_middle() -> None:
    ramp = np.linspace(-1, 1, 32)
    zoomed = distortions._zoom(32, 1.25) @ ramp
    inner = np.polyfit(np.arange(32), zoomed, 1)
    assert np.allclose(zoomed, np.polyval(inner, np.arange(32)), atol=1e-12)
    assert inner[0] == pytest.approx(2 / 31 / 1.25, rel=0.03) and abs(zoomed.mean()) < 0.03
    assert np.allclose(distortions._zoom(32, 1.0), np.eye(32))
    assert np.allclose(distortions._zoom(32, 1.75).sum(1), 1)


def test_snow_whitens_and_its_flakes_are_bright() -> None:
    black = np.zeros((20, 32, 32, 3))
    snowed = distortions.snow(black, rng(), *constant("snow", 3))
    floor = 0.1 * 0.5
    assert snowed.min() == pytest.approx(floor) and np.allclose(snowed, snowed[..., :1])
    assert 0.05 < (snowed > floor + 0.05).mean() < 0.9


def test_frost_is_the_published_blend_of_an_image_with_frost() -> None:
    keep, amount = constant("frost", 3)
    frosted = distortions.frost(pixels(), rng(), keep, amount)
    layer = (frosted - keep * pixels()) / amount
    assert layer.min() >= -1e-9 and layer.max() <= 1 + 1e-9
    assert np.allclose(layer, distortions.frost(np.zeros_like(pixels()), rng(), 0, 1))
    assert (np.ptp(layer.mean((1, 2)), axis=0) > 0.2).all() and 0.03 < layer.std((1, 2)).mean() < 0.15


def test_plasma_fills_the_unit_interval_and_is_smoother_for_a_faster_decay() -> None:
    rough, smooth = (distortions.plasma(30, 32, decay, rng()) for decay in (1.75, 3))
    for heights in (rough, smooth):
        assert np.allclose(heights.min((1, 2)), 0) and np.allclose(heights.max((1, 2)), 1)
    assert np.abs(np.diff(smooth)).mean() < 0.85 * np.abs(np.diff(rough)).mean()


def test_fog_adds_light_and_keeps_the_brightest_value_as_a_bound() -> None:
    fogged = distortions.fog(pixels(), rng(), *constant("fog", 4))
    assert (fogged.max((1, 2, 3)) <= pixels().max((1, 2, 3)) + 1e-12).all()
    assert (fogged.std((1, 2)) < pixels().std((1, 2)) + 0.15).all() and fogged.std() < pixels().std()


@pytest.mark.parametrize("severity", (1, 5))
def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation(severity: int) -> None:
    (amount,) = constant("brightness", severity)
    bright = distortions.brightness(pixels(), rng(), amount)
    before, after = rgb2hsv(pixels()), rgb2hsv(bright)
    assert np.allclose(after[..., 2], np.minimum(before[..., 2] + amount, 1))
    assert np.allclose(after[..., :2], before[..., :2], atol=1e-9)
    assert np.allclose(distortions.brightness(np.zeros((1, 32, 32, 3)), rng(), amount), amount)


def test_contrast_keeps_channel_means_and_shrinks_deviations() -> None:
    (share,) = constant("contrast", 4)
    faded = distortions.contrast(pixels(), rng(), share)
    assert np.allclose(faded.mean((1, 2)), pixels().mean((1, 2)))
    assert np.allclose(faded.std((1, 2)), share * pixels().std((1, 2)))


def test_an_elastic_map_without_amounts_is_the_identity() -> None:
    assert np.allclose(distortions.elastic_transform(pixels(), rng(), 0, 0, 0), pixels())
    moved = distortions.elastic_transform(pixels(), rng(), 0, 0, 2.56)
    assert moved.min() >= -1e-12 and moved.max() <= 1 + 1e-12 and np.abs(moved - pixels()).mean() > 0.02


@pytest.mark.parametrize("severity", (1, 5))
def test_jpeg_and_pixelation_are_pillows(severity: int) -> None:
    image, (quality,), (share,) = images()[7], constant("jpeg_compression", severity), constant("pixelate", severity)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    assert np.array_equal(corrupt(images()[7:8], "jpeg_compression", severity)[0], np.asarray(Image.open(file)))
    small = Image.fromarray(image).resize([int(32 * share)] * 2, Image.Resampling.BOX)
    large = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    assert np.array_equal(corrupt(images()[7:8], "pixelate", severity)[0], large)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "gausian_noise"}, "Did you mean 'gaussian_noise'"),
        ({"severity": 0}, "severity=0 must be a whole number from 1 to 5"),
        ({"severity": 2.5}, "severity=2.5 must be"),
        ({"images": np.zeros((2, 48, 32, 3), np.uint8)}, r"square.*not uint8 \(2, 48, 32, 3\): crop them"),
        ({"images": np.zeros((2, 32, 32, 3))}, "not float64"),
        ({"images": np.zeros((2, 32, 32, 1), np.uint8)}, r"\(2, 32, 32, 1\)"),
    ],
)
def test_bad_requests_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        corrupt(**{"images": images(), "name": "fog", "severity": 1, **change})


@cache
def large() -> np.ndarray:
    return to_pixels(images()[:2], 224).mul(255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_large_images_are_corrupted_as_in_imagenet_c(name: str) -> None:
    assert len(CORRUPTIONS[name].large) == len(SEVERITIES)
    errors = [((corrupt(large(), name, severity).astype(float) - large()) ** 2).mean() for severity in (1, 5)]
    assert min(errors) > 1
    if name in MONOTONE:
        assert errors[1] > 1.5 * errors[0]
    assert np.array_equal(corrupt(large()[1:], name, 2, places=[1]), corrupt(large(), name, 2)[1:])


def test_constants_change_at_a_side_of_128() -> None:
    fog = CORRUPTIONS["fog"]
    assert fog.at(1, 127) == (0.2, 3) and fog.at(1, 128) == (1.5, 2)
    assert corrupt(large()[:, :150, :150], "fog", 1).shape == (2, 150, 150, 3)
    assert corrupt(large()[:, :48, :48], "elastic_transform", 1).shape == (2, 48, 48, 3)


def test_a_wide_disk_is_smoothed_by_the_wider_kernel_of_the_definition() -> None:
    for radius, side, total in ((6, 15, 1), (8, 17, 1.0130), (10, 21, 1.0108)):
        kernel = distortions.disk_kernel(radius, 0.5)
        assert kernel.shape == (side, side) and np.allclose(kernel, kernel.T)
        assert kernel.sum() == pytest.approx(total, abs=1e-4)
        assert kernel[side // 2, side // 2] == kernel.max()


def test_glass_of_longer_reach_is_what_one_pixel_after_the_other_gives() -> None:
    """The published loop, over rows and columns from the last on, with the same draws."""
    rng_, count, side, reach = np.random.default_rng(0), 2, 24, 3
    up, left = rng_.integers(-reach, reach, (2, count, side, side))
    rows, columns = np.arange(side)[:, None], np.arange(side)
    inner = (rows > reach) & (columns > reach) & (rows <= side - reach) & (columns <= side - reach)
    places = (rows + up * inner) * side + columns + left * inner
    expected = np.tile(np.arange(side * side), (count, 1))
    for image in range(count):
        for place in np.flatnonzero(inner)[::-1]:
            expected[image, place] = expected[image, places[image].flat[place]]
    assert np.array_equal(distortions._sources(places, inner.ravel()), expected)
    assert (expected > np.arange(side * side)).any()


def test_photographs_are_corrupted_as_they_are_read(tmp_path: Path) -> None:
    for number, image in enumerate(images()[:4]):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    split = load_data(tmp_path).train
    foggy = corrupted(split, "gaussian_noise", 5, seed=1)
    at_size = foggy.images.sized((160, 160))
    assert np.array_equal(at_size[:], corrupt(split.images.sized((160, 160))[:], "gaussian_noise", 5, 1))
    assert np.array_equal(foggy.take([2, 0]).images.sized((160, 160))[:], at_size[:][[2, 0]])
    small = foggy.images.sized((32, 32))[:]
    assert np.array_equal(small, corrupt(split.images.sized((32, 32))[:], "gaussian_noise", 5, 1, places=range(4)))
    batch, _ = next(iter(foggy.batches(4, image_size=32)))
    assert np.array_equal((batch * 255).round().byte().permute(0, 2, 3, 1), small)
