"""The one exception that a user is meant to read: a sentence that names the bad input and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from numbers import Integral


class InputError(ValueError):
    """Bad input, found before any work was done. The command line prints the message without a traceback."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known word nearest to ``word``, or an empty string when none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_choice(what: str, value: object, known: Collection[str]) -> None:
    """Raise an `InputError` unless ``value`` is one of ``known``; ``what`` is the noun for the sentence."""
    if value not in known:
        raise InputError(f"{what} '{value}' is unknown.{nearest(str(value), known)} Choose from {', '.join(known)}.")


def first_line(error: Exception) -> str:
    """The first line of a foreign exception's message, without its full stop, to quote inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise an `InputError` unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name}={value} must be a whole number of at least {least}.")
