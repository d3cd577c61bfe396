"""What tables of `evaluation.evaluate` say: families of corruptions, mean corruption error, and paired differences.

Intervals are at 95 %, percentile bootstraps of whole images: an image is drawn together with its answers under all
conditions, by both models compared, so that what is paired stays paired. The same number of images and seed give the
same draws in every call.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nullpaper.errors import InputError, check_seed
from nullpaper.statistics import RESAMPLES, Interval

BATCH = 100  # resamples at a time, which bounds the memory


def mean_corruption_error(frame: pd.DataFrame, reference: pd.DataFrame) -> float:
    """mCE in percent (Hendrycks & Dietterich 2019): the mean over corruptions of 100 * sum_s E / sum_s E_reference.

    Args:
        reference: the reference net's table for the same images.

    Raises:
        InputError: no corruptions; a reference with other ones or other images, or that makes no error under one.
    """
    tables = [table[table["kind"] == "corruption"] for table in (frame, reference)]
    conditions = [table[["name", "severity", "n"]].to_numpy() for table in tables]
    if not len(conditions[0]) or not np.array_equal(*conditions):
        raise InputError("mCE needs the same corruptions, severities and images in both tables; evaluate both alike.")
    own, other = (np.array([_error(group) for _, group in table.groupby("name", sort=False)]) for table in tables)
    if not other.all():
        raise InputError("the reference makes no error under a corruption, so mCE has no value; take a weaker one.")
    return float(100 * (own / other).mean())


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
    seed = check_seed(seed)
    count, rng = len(values), np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // BATCH):
        drawn = rng.integers(count, size=(BATCH, count)) + count * np.arange(BATCH)[:, None]
        means.append(np.bincount(drawn.ravel(), minlength=BATCH * count).reshape(BATCH, count) @ values / count)
    lows, highs = np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)
    estimates = zip(values.mean(0), lows, highs, strict=True)
    return [Interval(float(value), float(low), float(high), count) for value, low, high in estimates]


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


def _error(frame: pd.DataFrame) -> float:
    return (1 - _matrix(frame).mean(1)).mean()
