"""What tables of `evaluation.evaluate` say: families of corruptions, mean corruption error, and paired differences.

Intervals are at 95 %, percentile bootstraps of whole images: an image is drawn together with its answers under all
conditions, by both models compared, so that what is paired stays paired. The same number of images and seed give the
same draws in every call.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nullpaper.errors import InputError, check_seed
from nullpaper.robustness.corruptions import SEVERITIES
from nullpaper.statistics import RESAMPLES, Interval

BATCH = 100  # resamples at a time, which bounds the memory

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C, the mean over five severities (Hendrycks & Dietterich 2019; repository robustness)."""


def mean_corruption_error(frame: pd.DataFrame, reference: pd.DataFrame | Mapping[str, float]) -> float:
    """mCE in percent (Hendrycks & Dietterich 2019): the mean over corruptions of 100 * sum_s E / sum_s E_reference.

    Args:
        reference: the reference net's table for the same images; or its errors by corruption, means over all severities
            such as `ALEXNET`.

    Raises:
        InputError: no corruptions; a reference with other ones or other images, or that makes no error under one;
            errors by corruption for a table that lacks a severity.
    """
    wrong, other = _wrong_and_reference(frame, reference)
    return float(100 * (np.array([each.mean() for each in wrong]) / other).mean())


def corruption_errors(frame: pd.DataFrame, reference: pd.DataFrame | Mapping[str, float]) -> np.ndarray:
    """What each image (n,) adds to `mean_corruption_error` as a share: that is 100 times their mean.

    Raises:
        InputError: as there.
    """
    wrong, other = _wrong_and_reference(frame, reference)
    return (np.stack(wrong, axis=1) / other).mean(1)


def _wrong_and_reference(
    frame: pd.DataFrame, reference: pd.DataFrame | Mapping[str, float]
) -> tuple[list[np.ndarray], np.ndarray]:
    """By corruption, the share of severities at which each image is wrong, (n,), and the reference's error."""
    table = frame[frame["kind"] == "corruption"]
    if isinstance(reference, Mapping):
        names, expected = list(dict.fromkeys(table["name"])), [(name, s) for name in reference for s in SEVERITIES]
        if sorted(zip(table["name"], table["severity"], strict=True)) != sorted(expected):
            raise InputError(
                f"mCE by published errors needs the {len(reference)} corruptions at severities 1 to 5, and no others; "
                "evaluate all of them, or take a reference net's own table."
            )
        other = np.array([reference[name] for name in names])
    else:
        against = reference[reference["kind"] == "corruption"]
        conditions = [one[["name", "severity", "n"]].to_numpy() for one in (table, against)]
        if not len(table) or not np.array_equal(*conditions):
            raise InputError(
                "mCE needs the same corruptions, severities and images in both tables; evaluate both alike."
            )
        other = np.array([each.mean() for each in _wrong(against)])
    if not other.all():
        raise InputError("the reference makes no error under a corruption, so mCE has no value; take a weaker one.")
    return _wrong(table), other


def _wrong(table: pd.DataFrame) -> list[np.ndarray]:
    return [1 - _matrix(group).mean(1) for _, group in table.groupby("name", sort=False)]


def compare(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Paired differences in accuracy, ``first - second``: clean, under each attack, each family of corruptions and all.

    Returns:
        Columns: name; difference with difference_low and difference_high, a bootstrap over the n images; n. It is about
        other images for these models; `studies.contrasts` compares methods over several training seeds.

    Raises:
        InputError: tables of other conditions or of another number of images.
    """
    (names, own), (others, other) = by_family(first), by_family(second)
    if names != others or len(own) != len(other):
        raise InputError("the tables have other conditions or images, so nothing pairs them; evaluate both alike.")
    differences = zip(names, bootstrap(own - other, seed), strict=True)
    return pd.DataFrame([{"name": name, **difference.columns("difference")} for name, difference in differences])


def bootstrap(values: np.ndarray, seed: int = 0) -> list[Interval]:
    """The means (K,) of values (n, K), each with its percentile bootstrap interval; rows are images."""
    lows, highs = np.quantile(resampled(values, seed), (0.025, 0.975), axis=0)
    estimates = zip(values.mean(0), lows, highs, strict=True)
    return [Interval(float(value), float(low), float(high), len(values)) for value, low, high in estimates]


def resampled(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means (`RESAMPLES`, K) of values (n, K) over images drawn with replacement."""
    seed = check_seed(seed)
    count, rng = len(values), np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // BATCH):
        drawn = rng.integers(count, size=(BATCH, count)) + count * np.arange(BATCH)[:, None]
        means.append(np.bincount(drawn.ravel(), minlength=BATCH * count).reshape(BATCH, count) @ values / count)
    return np.concatenate(means)


def by_family(frame: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Names, and the share of each one's conditions in which an image is right, (n, names).

    Names are clean, each attack, each family of corruptions, and ``corruptions`` for all of them.
    """
    families, corrupted = frame["family"].to_numpy(), (frame["kind"] == "corruption").to_numpy()
    right = _matrix(frame)
    names = [*frame.loc[~corrupted, "condition"]]
    columns = [right[:, ~corrupted]]
    for family in dict.fromkeys(families[corrupted]):
        names.append(family)
        columns.append(right[:, corrupted & (families == family)].mean(1, keepdims=True))
    if corrupted.any():
        names.append("corruptions")
        columns.append(right[:, corrupted].mean(1, keepdims=True))
    return names, np.hstack(columns)


def _matrix(frame: pd.DataFrame) -> np.ndarray:
    """Which image is right under which condition, (n, conditions), as floats."""
    return np.stack([*frame["correct"]], axis=1).astype(float)
