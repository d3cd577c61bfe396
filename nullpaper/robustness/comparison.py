"""What tables of `evaluation.evaluate` say: families, mean corruption error, averages, and paired differences.

All intervals are at 95 %. Those over images are percentile bootstraps of whole images: an image is drawn together with
its answers under all conditions, by all models compared, so that what is paired stays paired. The same number of images
and seed give the same draws in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from nullpaper.errors import InputError
from nullpaper.statistics import RESAMPLES, Interval, over_seeds

BATCH = 100  # resamples at a time, which bounds the memory

Reference = pd.DataFrame | Mapping[str, float]
Tables = pd.DataFrame | Sequence[pd.DataFrame]


def summary(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy by name: clean, each attack, each family of corruptions, and ``corruptions`` for all of them.

    A family's is the mean over its conditions in the table. Columns: name, accuracy, accuracy_low, accuracy_high, n.
    """
    names, right = by_family(frame)
    accuracies = zip(names, bootstrap(right, seed=seed), strict=True)
    return pd.DataFrame([{"name": name, **accuracy.columns("accuracy")} for name, accuracy in accuracies])


def mean_corruption_error(frame: pd.DataFrame, reference: Reference, seed: int = 0) -> Interval:
    """mCE in percent (Hendrycks & Dietterich 2019): the mean over corruptions of 100 * sum_s E / sum_s E_reference.

    Args:
        reference: the reference net's table for the same images, which are then drawn together; or its mean error by
            corruption, a share, taken as exact, such as AlexNet's published ones on ImageNet-C.

    Raises:
        InputError: no corruptions; a reference that lacks one of them, has other images, or makes no error.
    """
    return bootstrap(_errors(frame, reference), lambda means: _ratio(means)[..., None], seed)[0]


def average(frame: pd.DataFrame, reference: Reference | None = None, seed: int = 0) -> Interval:
    """The "Average" of paper A, in percent: the mean of clean accuracy, that under each attack, and 100 - mCE.

    A table without corruptions has no such column and needs no reference.

    Raises:
        InputError: corruptions without a reference, and as `mean_corruption_error`.
    """
    others = frame[frame["kind"] != "corruption"]
    right = _matrix(others)
    if len(others) == len(frame):
        return bootstrap(right, lambda means: 100 * means.mean(-1, keepdims=True), seed)[0]
    if reference is None:
        raise InputError("the table has corruptions, so its average needs a reference net's table, for mCE.")

    def of_columns(means: np.ndarray) -> np.ndarray:
        plain, errors = np.split(means, [len(others)], axis=-1)
        return (100 * plain.sum(-1, keepdims=True) + 100 - _ratio(errors)[..., None]) / (len(others) + 1)

    return bootstrap(np.hstack([right, _errors(frame, reference)]), of_columns, seed)[0]


def compare(first: Tables, second: Tables, *, families: bool = False, seed: int = 0) -> pd.DataFrame:
    """Paired differences in accuracy, ``first - second``, condition by condition or as `summary` groups them.

    Two methods are compared over several training seeds by giving a list of tables for each, in one order of seeds.

    Returns:
        Columns: name; difference with difference_low and difference_high, a bootstrap over the n images of the mean
        over seeds; seeds_low and seeds_high, Student's t over seeds of the mean over images; n; seeds. The first
        interval is about other images for these trained models, the second about other trainings on these images.

    Raises:
        InputError: tables of other conditions or of another number of images, or other numbers of seeds.
    """
    pairs = [[tables] if isinstance(tables, pd.DataFrame) else list(tables) for tables in (first, second)]
    if len(pairs[0]) != len(pairs[1]) or not pairs[0]:
        raise InputError(
            f"the methods have {len(pairs[0])} and {len(pairs[1])} tables; give one for each seed, to both."
        )
    read = [[(by_family if families else _by_condition)(table) for table in tables] for tables in pairs]
    names = read[0][0][0]
    if any(other != names for tables in read for other, _ in tables):
        raise InputError("the tables have other conditions, so nothing pairs them; evaluate all under the same.")
    counts = sorted({len(right) for tables in read for _, right in tables})
    if len(counts) > 1:
        raise InputError(f"the tables have {counts} images, so nothing pairs them; evaluate all on the same split.")
    differences = np.stack([own - other for (_, own), (_, other) in zip(*read, strict=True)])
    over_images = bootstrap(differences.mean(0), seed=seed)
    rows = []
    for name, images, by_seed in zip(names, over_images, differences.mean(1).T, strict=True):
        trained = over_seeds(by_seed)
        row = {"name": name, **images.columns("difference"), "seeds_low": trained.low, "seeds_high": trained.high}
        rows.append({**row, "seeds": trained.n})
    return pd.DataFrame(rows)


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means, seed: int = 0
) -> list[Interval]:
    """A statistic of the means over n images, each of its entries with its percentile bootstrap interval.

    Args:
        values: (n, K), one row an image, which is drawn as a whole.
        statistic: of means (..., K), vectorised over the leading axes, to (..., L); by default the means themselves.

    Returns:
        L intervals.
    """
    count, rng = len(values), np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // BATCH):
        drawn = rng.integers(count, size=(BATCH, count)) + count * np.arange(BATCH)[:, None]
        means.append(np.bincount(drawn.ravel(), minlength=BATCH * count).reshape(BATCH, count) @ values / count)
    lows, highs = np.quantile(statistic(np.concatenate(means)), (0.025, 0.975), axis=0)
    estimates = zip(statistic(values.mean(0)), lows, highs, strict=True)
    return [Interval(float(value), float(low), float(high), count) for value, low, high in estimates]


def _matrix(frame: pd.DataFrame) -> np.ndarray:
    """Which image is right under which condition, (n, conditions), as floats."""
    return np.stack([*frame["correct"]], axis=1).astype(float)


def _by_condition(frame: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    return [*frame["condition"]], _matrix(frame)


def by_family(frame: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Names, and the share of each one's conditions in which an image is right, (n, names)."""
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


def _errors(frame: pd.DataFrame, reference: Reference) -> np.ndarray:
    """Each image's share of errors by corruption, (n, 2 C): the model's, then the reference net's."""
    names, own = _by_corruption(frame)
    if isinstance(reference, pd.DataFrame):
        conditions = ["name", "severity", "n"]
        ours, theirs = (table.loc[table["kind"] == "corruption", conditions] for table in (frame, reference))
        if not np.array_equal(ours.to_numpy(), theirs.to_numpy()):
            raise InputError("the reference has other corruptions, severities or images; evaluate both on the same.")
        other = _by_corruption(reference)[1]
    else:
        if missing := [name for name in names if not 0 <= reference.get(name, -1) <= 1]:
            raise InputError(
                f"the reference gives no error between 0 and 1 under {missing[0]}; divide percents by 100."
            )
        other = np.broadcast_to([reference[name] for name in names], own.shape)
    if len(perfect := np.flatnonzero(~other.any(0))):
        raise InputError(
            f"the reference makes no error under {names[perfect[0]]}, so mCE has no value; take a weaker one."
        )
    return np.hstack([own, other])


def _by_corruption(frame: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    corrupted = frame[frame["kind"] == "corruption"]
    if corrupted.empty:
        raise InputError("the table has no corruptions; pass corruptions to evaluate.")
    groups = corrupted.groupby("name", sort=False)
    return list(groups.groups), np.stack([1 - _matrix(group).mean(1) for _, group in groups], axis=1)


def _ratio(means: np.ndarray) -> np.ndarray:
    """mCE in percent of mean errors (..., 2 C)."""
    own, other = np.split(means, 2, axis=-1)
    return 100 * (own / other.clip(np.finfo(float).tiny)).mean(-1)
