"""The one exception that a user is meant to read, a sentence that names the bad input and the remedy, and the checks of
single values that raise it: names, counts, seeds, numbers, paths."""

from __future__ import annotations

import difflib
import os
import reprlib
import sys
import warnings
from collections.abc import Collection, Iterable
from numbers import Integral, Number, Real
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Bad input, found before any work was done. The command line prints the message without a traceback."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known word nearest to ``word``, or an empty string when none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def warn(text: str) -> None:
    """A `UserWarning` at the line, outside this package, whose call it is about."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("nullpaper", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def check_choice(what: str, value: object, known: Collection[str], remedy: str = "") -> None:
    """Raise an `InputError` unless ``value`` is one of the names ``known``; ``what`` is the noun for the sentence."""
    if not isinstance(value, str) or value not in known:
        raise InputError(
            f"{what} '{shown(value)}' is unknown.{nearest(str(value), known)} Choose from {', '.join(known)}.{remedy}"
        )


def first_line(error: Exception) -> str:
    """The first line of a foreign exception's message, without its full stop, to quote inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def shown(value: object) -> str:
    """A value in few words on one line, to quote inside a sentence."""
    return " ".join((str(value) if isinstance(value, str | Number) else reprlib.repr(value)).split())


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` as Python's number, since PyTorch does not take NumPy's everywhere.

    Raises:
        InputError: it is no whole number of at least ``least``, and of at most ``most``.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}={_given(value)} must be a whole number {limits}.")
    return int(value)


def check_seed(seed: object, name: str = "seed") -> int:
    """``seed`` as Python's number; an `InputError` unless it is one that every generator takes, from 0 to 2^63 - 1."""
    return check_count(name, seed, 0, 2**63 - 1)


def check_number(name: str, value: Any, low: float, high: float, ends: str = "()", why: str = "") -> None:
    """Raise an `InputError` unless ``value`` is a real number between ``low`` and ``high``.

    Args:
        ends: the brackets of the interval: "[" and "]" where the end itself is allowed.
        why: what the number means, for the end of the sentence.
    """
    scalar = isinstance(value, Real) or getattr(value, "ndim", None) == 0  # a tensor or array of one number too
    real = scalar and not isinstance(value, bool | str)
    inside = real and low <= value <= high and (value != low or ends[0] == "[") and (value != high or ends[1] == "]")
    if not inside:
        raise InputError(f"{name}={_given(value)} must be a number in {ends[0]}{low}, {high}{ends[1]}{why}.")


def check_path(name: str, value: object) -> Path:
    """``value`` as a path, ``~`` expanded; an `InputError` unless it is text or a path."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name}={_given(value)} must be a path: give it as text.")
    return Path(value).expanduser()


def _given(value: object) -> str:
    """A value as in a call: text with its quotes."""
    return repr(value) if isinstance(value, str) else shown(value)
