"""Paired differences between methods, read from tables of results, as answers for claims.

``07_paired`` and its like hold differences of accuracies between methods trained alike, with two intervals: over seeds
(Student's t) and over images (bootstrap).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nullpaper.statistics import Interval
from nullpaper.studies.evidence import Answer, Missing, Tables, above, every, points, some, word

__all__ = ["ALSO", "ASKED", "BETTER", "NAMES", "WORSE", "better", "compare", "difference", "grade", "over_images"]

ASKED = ("clean", "fgsm", "corruptions")
"""Measures of table 1 that a comparison needs; ``ALSO`` those that it takes if they are there."""
ALSO = ("cw", "patch")
NAMES = {
    "average": "average",
    "clean": "clean",
    "fgsm": "FGSM",
    "cw": "CW",
    "patch": "patch attack",
    "pgd": "PGD",
    "pgd 8/255": "PGD 8/255",
    "corruptions": "corruptions",
}
BETTER = "better: the intervals over seeds and over images both exclude 0. "
WORSE = ", no if worse on one and better on none"


def difference(
    tables: Tables, method: str, against: str, measure: str, table: str, **where: Any
) -> tuple[Interval, Interval, str]:
    """Accuracy of a method minus that of another, with the intervals over seeds and over images, and over how long.

    Args:
        where: values of other columns of the table.
    """
    try:
        row, sign = tables.row(table, method=method, against=against, measure=measure, **where), 1
    except Missing:
        row, sign = tables.row(table, method=against, against=method, measure=measure, **where), -1
    value, *ends = (sign * float(row[name]) for name in ("difference", "difference_low", "difference_high"))
    pictures = [sign * float(row[name]) for name in ("images_low", "images_high")]
    if any(end != end for end in (value, *ends, *pictures)):
        raise Missing(f"{table}: {method} against {against}, {measure}")
    count = int(row["n"])
    length = f", {int(row['steps'])} steps" if "steps" in row else ""
    return Interval(value, min(ends), max(ends), count), Interval(value, min(pictures), max(pictures), count), length


def over_images(tables: Tables, method: str, against: str, measure: str, table: str) -> Interval:
    """Accuracy of a single run minus that of another, with the interval over images and their number."""
    row = tables.row(table, method=method, against=against, measure=measure)
    ends = (float(row[name]) for name in ("difference", "images_low", "images_high"))
    return Interval(*ends, int(row["images"]))


def better(seeds: Interval, images: Interval) -> Answer:
    """Yes or no if both intervals of a difference exclude zero on one side."""
    if seeds.n < 2:
        return None  # a single run has no interval over seeds
    zero = Interval(0, 0, 0, 1)
    first, second = above(seeds, zero), above(images, zero)
    return first if first == second else None


def compare(
    tables: Tables, method: str, against: str, measures: Iterable[str], table: str = "07_paired", **where: Any
) -> tuple[str, dict[str, Answer]]:
    """Differences in words, and by measure whether the method is better; measures outside `ASKED` may lack."""
    shown, answers = [], {}
    for measure in measures:
        try:
            seeds, images, length = difference(tables, method, against, measure, table, **where)
        except Missing:
            if measure in ALSO:
                continue
            raise
        answers[measure] = better(seeds, images)
        over = f"[{100 * images.low:+.1f}, {100 * images.high:+.1f}]"
        shown.append(f"{NAMES[measure]} {points(seeds, None).removesuffix(' points')} / {over}")
    return f"{', '.join(shown)} points over {seeds.n} seed{'s' * (seeds.n > 1)} / images{length}", answers


def grade(answers: Iterable[Answer]) -> str:
    """``no`` also if it is worse on a measure and better on none, whatever the others would say with more seeds."""
    answers = list(answers)
    return "no" if False in answers and True not in answers else word(every(answers), some(answers))
