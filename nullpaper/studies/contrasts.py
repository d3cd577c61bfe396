"""Methods side by side: what each is worth over seeds, and what one is worth over another on the same images.

A measure is a number in [0, 1] for every image: right or wrong when clean and under an attack, the share of conditions
in which it is right under a family of corruptions, and the ``average`` over `AVERAGED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nullpaper.errors import InputError
from nullpaper.robustness.attacks import ATTACKS, measure_of
from nullpaper.robustness.comparison import bootstrap, by_family
from nullpaper.statistics import crossed, over_seeds, two_way
from nullpaper.studies.trials import TrialResult

AVERAGED = ("clean", "fgsm", "pgd", "cw", "patch", "corruptions")
"""The columns of paper A's "Average" that there are: corruptions as a mean accuracy, since 100 - mCE needs AlexNet."""

Groups = Mapping[str, Sequence[TrialResult]]
"""Finished trials by method, one a seed, in one order of seeds; a single one stands for all seeds."""


def measures(frame: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Measures (columns) of every image (rows) of a table of `evaluation.evaluate`.

    Args:
        eps: the radius of the attacks that go by their bare name; another radius is named, as in "pgd 8/255", and so
            are steps where two attacks differ in nothing else.
    """
    names, right = by_family(frame)
    rows = frame[frame["kind"] != "corruption"].to_dict("records")  # they come first
    plain = [_short(row, eps) for row in rows]
    plain = [_short(row, eps, steps=plain.count(name) > 1) for row, name in zip(rows, plain, strict=True)]
    table = pd.DataFrame(right, columns=[*plain, *names[len(plain) :]])
    return table.assign(average=table[[name for name in AVERAGED if name in table]].mean(axis=1))


def _short(row: Mapping[str, Any], eps: float, steps: bool = False) -> str:
    """An attack with its steps or without, as `measure_of`, and with its radius if that is another than ``eps``."""
    if row["kind"] == "clean":
        return row["name"]
    name = measure_of(row["name"])
    bare = ATTACKS[name.partition("-")[0]].norm == "patch" or abs(row["eps"] - eps) < 1e-9
    name = row["name"] if steps else name
    return name if bare else f"{name} {255 * row['eps']:.3g}/255"


def tabulate(groups: Groups, eps: float) -> pd.DataFrame:
    """Rows (method, measure): value, with its interval for new seeds and new images, and for either alone.

    Columns value; low, high (`statistics.two_way`); value_low, value_high (Student's t over the n seeds); images_low,
    images_high (bootstrap of the mean over seeds), images.
    """
    return pd.DataFrame(
        {"method": method, **row} for method, trials in groups.items() for row in _rows(*_stacked(trials, eps), "value")
    )


def ends(row: pd.Series) -> tuple[float, float]:
    """The interval of a row of `tabulate`, NaN if there is none; of a single model, a start or one run, over images."""
    return (row["low"], row["high"]) if row["n"] > 1 else (row["images_low"], row["images_high"])


def in_percent(row: pd.Series) -> str:
    """A row of `tabulate` as ``91.2 [90.1, 92.3]``, with the interval of `ends`."""
    low, high = ends(row)
    return f"{100 * row['value']:.1f} [" + ("no interval]" if np.isnan(low) else f"{100 * low:.1f}, {100 * high:.1f}]")


def contrast(groups: Groups, pairs: Sequence[tuple[str, str]], eps: float) -> pd.DataFrame:
    """Rows (method, against, measure): the paired difference in accuracy, method minus against.

    Columns difference; low, high, df, p (`statistics.crossed`: interval for new seeds and new images, its degrees of
    freedom, p value of no difference); difference_low, difference_high (Student's t over the n seeds); images_low,
    images_high (bootstrap over images of the mean over seeds), images; and ``resolved``: low to high excludes 0.

    Raises:
        InputError: the two were judged on other images or conditions, or have other numbers of seeds.
    """
    return pd.DataFrame(
        {"method": method, "against": against, **row}
        for method, against in pairs
        for row in _resolved(*_paired(groups, method, against, eps))
    )


def contrast_of(groups: Groups, first: tuple[str, str], second: tuple[str, str], eps: float) -> pd.DataFrame:
    """Rows (measure): the difference of the first pair minus that of the second, both paired as in `contrast`.

    Raises:
        InputError: as `contrast`; the pairs have other measures, images or numbers of seeds.
    """
    (names, one), (others, two) = (_paired(groups, *pair, eps) for pair in (first, second))
    if names != others or one.shape != two.shape:
        raise _unlike(first[0], second[0])
    return pd.DataFrame(_resolved(names, one - two))


def _paired(groups: Groups, method: str, against: str, eps: float) -> tuple[list[str], np.ndarray]:
    """Names of the measures, and the differences of two groups in them (seeds, images, measures)."""
    (names, first), (others, second) = (_stacked(groups[name], eps) for name in (method, against))
    seeds = {len(first), len(second)} - {1}  # a single trial stands for all seeds
    if names != others or first.shape[1:] != second.shape[1:] or len(seeds) > 1:
        raise _unlike(method, against)
    return names, first - second


def differences(groups: Groups, method: str, against: str, measure: str, eps: float) -> np.ndarray:
    """The paired differences (seeds, images) in one measure, such as the pilot of `verdicts.power`.

    Raises:
        InputError: as `contrast`.
        ValueError: no such measure.
    """
    names, values = _paired(groups, method, against, eps)
    return values[..., names.index(measure)]


def _unlike(first: str, second: str) -> InputError:
    return InputError(f"'{first}' and '{second}' were not judged alike, so nothing pairs them; judge them anew.")


def _resolved(names: Sequence[str], differences: np.ndarray) -> Iterator[dict[str, Any]]:
    """Rows of differences with a test of each, and whether its interval excludes 0."""
    for row, values in zip(_rows(names, differences, "difference"), np.moveaxis(differences, -1, 0), strict=True):
        estimate = crossed(values)
        yield {**row, "df": estimate.df, "p": estimate.p(), "resolved": row["low"] > 0 or row["high"] < 0}


def _rows(names: Sequence[str], stacked: np.ndarray, column: str) -> Iterator[dict[str, Any]]:
    """A measure's mean of values (seeds, images, measures), with its interval over both, over seeds and over images."""
    for name, values, images in zip(names, np.moveaxis(stacked, -1, 0), bootstrap(stacked.mean(0)), strict=True):
        both = two_way(values)
        bounds = {"images_low": images.low, "images_high": images.high, "images": images.n}
        yield {
            "measure": name,
            **over_seeds(values.mean(1)).columns(column),
            "low": both.low,
            "high": both.high,
            **bounds,
        }


def _stacked(trials: Sequence[TrialResult], eps: float) -> tuple[list[str], np.ndarray]:
    """Names of the measures, and their values (seeds, images, measures)."""
    tables = [measures(trial.frame, eps) for trial in trials]
    return list(tables[0].columns), np.stack([table.to_numpy() for table in tables])
