"""What the corruptions of CIFAR-10-C and ImageNet-C do to images, one function each (Hendrycks & Dietterich 2019).

Written from the published definitions, ``make_cifar_c.py`` and ``make_imagenet_c.py`` of the authors' repository
hendrycks/robustness. Each function takes square images (n, H, W, C) float in [0, 1], a generator and its constants, and
returns images of that shape, not yet cut to the box. `corruptions` has the constants and the deviations.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter, map_coordinates

ROUNDING = 1e-6  # of a level, so that rounding error in floats costs no level where values are truncated


def gaussian_noise(x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Normal noise of standard deviation ``scale``, on every value by itself."""
    return x + rng.normal(scale=scale, size=x.shape)


def shot_noise(x: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """Poisson counts, where white expects ``photons``."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """A share ``amount`` of the values becomes 0 or 1, at even odds."""
    hit, salt = rng.random((2, *x.shape)) <= np.array([amount, 0.5]).reshape(2, 1, 1, 1, 1)
    return np.where(hit, salt, x)


def disk_kernel(radius: float, alias: float) -> np.ndarray:
    """A disk on the pixel grid, smoothed by a Gaussian of standard deviation ``alias``; its sum is 1.

    The Gaussian is 3 x 3, and 5 x 5 beyond a radius of 8. From 8 on its edge is mirrored at the disk's, and the sum is
    1.01, as in the published files.
    """
    reach = int(radius) + (radius < 8)
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).astype(float)
    line = np.exp(-(np.arange(-1, 2) ** 2 if radius <= 8 else np.arange(-2, 3) ** 2) / (2 * alias**2))
    smoothed = convolve(disk, np.outer(line, line), mode="constant" if radius < 8 else "mirror")
    return smoothed / (smoothed.sum() if radius < 8 else disk.sum() * line.sum() ** 2)


def defocus_blur(x: np.ndarray, rng: np.random.Generator, radius: float, alias: float) -> np.ndarray:
    """Convolution with `disk_kernel`."""
    return convolve(x, disk_kernel(radius, alias)[None, :, :, None], mode="mirror")


def glass_blur(x: np.ndarray, rng: np.random.Generator, sigma: float, rounds: int, reach: int = 1) -> np.ndarray:
    """Gaussian blur; from the lower right on each pixel but those near the edge takes a near one; blur again.

    That lies up to ``reach`` rows and columns above or left, or one less below or right, where pixels have changed.
    """
    blurred = gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
    blurred = np.floor(blurred * 255 + ROUNDING) / 255
    count, height, width = x.shape[:3]
    down, right = np.arange(height)[:, None], np.arange(width)
    inner = (down > reach) & (right > reach) & (down <= height - reach) & (right <= width - reach)
    for _ in range(rounds):
        up, left = rng.integers(-reach, reach, (2, count, height, width)) * inner
        sources = _sources((down + up) * width + right + left, inner.ravel())
        blurred = np.take_along_axis(blurred.reshape(count, height * width, -1), sources[..., None], 1).reshape(x.shape)
    return gaussian_filter(blurred, (0, sigma, sigma, 0), mode="nearest")


def _sources(places: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Where each pixel's value comes from, (n, H*W), if one after the other, from the last on, takes that at its place.

    Args:
        places: (n, H, W), an index into the H*W pixels each.
        moved: (H*W,) bool, the pixels that take another's.
    """
    sources = places.reshape(len(places), -1)
    own = np.arange(sources.shape[1])
    later = moved[sources] & (sources > own)  # has been replaced before this one takes it
    while later.any():
        through = np.take_along_axis(sources, sources, 1)
        later, sources = later & np.take_along_axis(later, sources, 1), np.where(later, through, sources)
    return sources


def motion_blur(x: np.ndarray, rng: np.random.Generator, radius: int, sigma: float) -> np.ndarray:
    """A streak within 45 degrees of the horizontal."""
    return _to_8_bits(_streak(x, rng.uniform(-45, 45, len(x)), radius, sigma))


def zoom_blur(x: np.ndarray, rng: np.random.Generator, end: float, step: float = 0.01) -> np.ndarray:
    """Mean of the image and its enlargements by 1, 1 + ``step``, ... up to ``end``."""
    factors = np.arange(1, end, step)
    planes = x.transpose(0, 3, 1, 2)
    total = planes.copy()
    for factor in factors:
        zoom = _zoom(x.shape[1], factor)
        total += zoom @ planes @ zoom.T
    return total.transpose(0, 2, 3, 1) / (len(factors) + 1)


def snow(
    x: np.ndarray,
    rng: np.random.Generator,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
) -> np.ndarray:
    """Bright, enlarged, thresholded normal noise that falls as streaks, on a whitened image."""
    enlarge = _zoom(x.shape[1], zoom)
    flakes = enlarge @ rng.normal(mean, scale, x.shape[:3]) @ enlarge.T
    flakes = np.where(flakes < threshold, 0, np.floor(flakes.clip(0, 1) * 255) / 255)[..., None]
    flakes = _to_8_bits(_streak(flakes, rng.uniform(-135, -45, len(x)), radius, sigma))
    grey = x @ np.array([0.299, 0.587, 0.114])
    white = keep * x + (1 - keep) * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return white + flakes + flakes[:, ::-1, ::-1]


# measured on 32 px crops of the five photographs: mean colour, sd between and within crops, slope of the power spectrum
FROSTS = np.array(
    [
        (0.31, 0.58, 0.65, 0.045, 0.06, -1.2),
        (0.78, 0.79, 0.83, 0.034, 0.07, -0.8),
        (0.78, 0.79, 0.83, 0.034, 0.07, -0.8),
        (0.56, 0.62, 0.67, 0.042, 0.10, -0.4),
        (0.41, 0.45, 0.50, 0.066, 0.13, -1.1),
    ]
)


def frost(x: np.ndarray, rng: np.random.Generator, keep: float, amount: float) -> np.ndarray:
    """``keep * image + amount * frost``: the published blend, of procedural frost.

    The frost is a Gaussian field with the colour, contrast and spectrum (`FROSTS`) of one of the five photographs that
    the original crops, drawn for each image. On 2,000 test images it cost the shipped ViT as much as crops of the
    photographs at severities 1 and 2 and up to 2 points more at 4 and 5.
    """
    chosen = FROSTS[rng.integers(len(FROSTS), size=len(x))][:, None, None]
    ways = np.fft.fftfreq(x.shape[1]) * x.shape[1]
    frequency = np.hypot(ways[:, None], ways)
    frequency[0, 0] = np.inf
    white = np.fft.fft2(rng.normal(size=x.shape[:3]))
    field = np.fft.ifft2(white * frequency ** (chosen[..., 5] / 2)).real
    field /= field.std(axis=(1, 2), keepdims=True)
    level = rng.normal(size=(len(x), 1, 1)) * chosen[..., 3] + field * chosen[..., 4]
    return keep * x + amount * (chosen[..., :3] + level[..., None]).clip(0, 1)


def plasma(count: int, side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Height maps (count, side, side) from 0 to 1 by the diamond-square algorithm on a torus; side is a power of two.

    The displacement is uniform within the square of 100, and that 100 falls by ``decay`` from one scale to the next.
    """
    heights = np.zeros((count, side, side))
    step, reach = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        shape, swing = corners.shape, reach**2
        below = np.roll(corners, -1, 1)
        middles = (corners + below + np.roll(corners + below, -1, 2)) / 4 + rng.uniform(-swing, swing, shape)
        heights[:, half::step, half::step] = middles
        tops = corners + np.roll(corners, -1, 2) + middles + np.roll(middles, 1, 1)
        heights[:, ::step, half::step] = tops / 4 + rng.uniform(-swing, swing, shape)
        sides = corners + below + middles + np.roll(middles, 1, 2)
        heights[:, half::step, ::step] = sides / 4 + rng.uniform(-swing, swing, shape)
        step, reach = half, reach / decay
    heights -= heights.min((1, 2), keepdims=True)
    return heights / heights.max((1, 2), keepdims=True)


def fog(x: np.ndarray, rng: np.random.Generator, amount: float, decay: float) -> np.ndarray:
    """``amount`` times a height map, which `plasma` makes, on top; rescaled so that the brightest value could stay."""
    brightest = x.max((1, 2, 3), keepdims=True)
    side = x.shape[1]
    heights = plasma(len(x), 1 << (side - 1).bit_length(), decay, rng)[:, :side, :side]
    fogged = x + amount * heights[..., None]
    return fogged * brightest / (brightest + amount)


def brightness(x: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """``amount`` more of V in HSV, up to 1, at the same hue and saturation: R, G and B grow by one factor."""
    value = x.max(3, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def contrast(x: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """The deviations from each channel's mean, times ``share``."""
    means = x.mean((1, 2), keepdims=True)
    return (x - means) * share + means


def elastic_transform(
    x: np.ndarray, rng: np.random.Generator, amount: float, sigma: float, jitter: float
) -> np.ndarray:
    """An affine map that moves three points by up to ``jitter`` pixels, then smooth random displacements."""
    side = x.shape[1]
    middle, reach = side // 2, side // 3
    points = middle + reach * np.array([(1, 1), (1, -1), (-1, -1)])
    moved = points + rng.uniform(-jitter, jitter, (len(x), 3, 2))
    back = np.linalg.solve(np.concatenate([moved, np.ones((len(x), 3, 1))], 2), np.broadcast_to(points, moved.shape))
    rows, columns = np.mgrid[:side, :side]
    places = np.stack([columns, rows, np.ones_like(rows)], -1) @ back[:, None]
    moved = _interpolated(x, places[..., 1], places[..., 0], "mirror")
    fields = gaussian_filter(rng.uniform(-1, 1, (2, *x.shape[:3])), (0, 0, sigma, sigma), truncate=3) * amount
    return _interpolated(moved, rows + fields[0], columns + fields[1], "reflect")


def pixelate(x: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Shrunk to ``share`` of the side, and enlarged again, by boxes: of which there is one to enlarge, the nearest.

    As Pillow does it, first along the rows, then along the columns, but of all images at once, stacked or side by side.
    """
    count, side = x.shape[:2]
    small, long = int(side * share), count * side
    rows = Image.fromarray(np.rint(x * 255).astype(np.uint8).reshape(long, side, 3))
    rows = rows.resize((small, long), Image.Resampling.BOX).resize((side, long), Image.Resampling.NEAREST)
    beside = np.asarray(rows).reshape(x.shape).swapaxes(0, 1)
    columns = Image.fromarray(beside.reshape(side, long, 3))
    columns = columns.resize((long, small), Image.Resampling.BOX).resize((long, side), Image.Resampling.NEAREST)
    return np.asarray(columns).reshape(beside.shape).swapaxes(0, 1) / 255


def jpeg_compression(x: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """JPEG at Pillow's ``quality``, and back."""
    return jpeg(x, quality)


def jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    """What `jpeg_compression` does, which draws nothing."""

    def through_file(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file, formats=("JPEG",))

    return _each(x, through_file)


def _to_8_bits(x: np.ndarray) -> np.ndarray:
    return np.rint(x * 255) / 255


def _each(x: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """A function of 8-bit Pillow images in RGB, image by image, through buffers: `fromarray` takes longer."""
    levels, form = np.rint(x * 255).astype(np.uint8, order="C"), ("raw", "RGB", 0, 1)
    images = (Image.frombuffer("RGB", x.shape[2:0:-1], one, *form) for one in levels)
    values = b"".join([function(image).tobytes() for image in images])
    return np.frombuffer(values, np.uint8).reshape(x.shape) / 255


def _streak(x: np.ndarray, angles: np.ndarray, radius: int, sigma: float) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian over ``2 * radius + 1`` pixels along each image's angle in degrees."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    count, height, width = x.shape[:3]
    down, across = (np.ceil(taps * way(np.deg2rad(angles))[:, None] - 0.5).astype(int) for way in (np.sin, np.cos))
    streaked = np.zeros_like(x)
    for tap, weight in enumerate(weights / weights.sum()):
        rows = (np.arange(height) + down[:, tap, None]).clip(0, height - 1)[:, :, None]
        columns = (np.arange(width) + across[:, tap, None]).clip(0, width - 1)[:, None]
        streaked += weight * x[np.arange(count)[:, None, None], rows, columns]
    return streaked


def _zoom(side: int, factor: float) -> np.ndarray:
    """The matrix (side, side) that enlarges the middle of a line by ``factor``, linearly, and trims it to ``side``."""
    crop = int(np.ceil(side / factor))
    enlarged = round(crop * factor)
    places = np.linspace(0, crop - 1, enlarged)[(enlarged - side) // 2 :][:side] + (side - crop) // 2
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))


def _interpolated(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """Images at fractional places (n, H, W), bilinearly; ``mode`` beyond the edge as in `scipy.ndimage`."""
    moved = np.empty_like(x)
    for image, channel in np.ndindex(len(x), x.shape[3]):
        places = rows[image], columns[image]
        moved[image, ..., channel] = map_coordinates(x[image, ..., channel], places, order=1, mode=mode)
    return moved
