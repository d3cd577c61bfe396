"""Plain values as canonical JSON, so that equal values are equal text and equal digests wherever they were made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import sha256

NONFINITE = "__float__"


def plain(value: Any, where: str = "value") -> Any:
    """``value`` as JSON data: tuples become lists, paths strings, NumPy and torch scalars numbers, NaN and infinities
    a tagged string (so that the file stays valid JSON and `loads` gives the same number back).

    Raises:
        InputError: something that JSON cannot hold, named by its place under ``where``.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {NONFINITE: repr(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}, but keys must be strings: write '{key}'")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InputError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: give numbers, strings, lists or dicts, a table "
        "through store.records(), and arrays as the second value that compute returns"
    )


def dumps(value: Any, *, canonical: bool = False) -> str:
    """``plain(value)`` as JSON text; ``canonical`` sorts the keys and drops the layout."""
    if canonical:
        return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


def loads(text: str | bytes) -> Any:
    """The inverse of `dumps`."""

    def untag(item: dict[str, Any]) -> Any:
        return float(item[NONFINITE]) if item.keys() == {NONFINITE} else item

    return json.loads(text, object_hook=untag)


def identity(*parts: Any) -> str:
    """A digest of 64 hexadecimal digits of JSON-like ``parts``, independent of the order of keys."""
    return sha256(dumps(parts, canonical=True).encode())


def placeless(value: Any, where: str = "") -> Any:
    """JSON data in which an absolute path gives way to the digest of its file, so that no place decides an identity.

    Args:
        where: names the value in the refusal of a folder; empty: the path of a folder, or of nothing, decides nothing.

    Raises:
        InputError: ``where`` is given and the value holds the absolute path of what is no file.
    """
    if isinstance(value, dict):
        return {key: placeless(item, where and f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list):
        return [placeless(item, where and f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str) or not os.path.isabs(value) or len(Path(value).parts) < 3:
        return value
    if os.path.isfile(value):
        return sha256(Path(value))
    if where:
        raise InputError(
            f"{where} is the path {value}: a result must not depend on where a folder lies. Give a path "
            "relative to the project, or leave it out and name the content with its checksum in data"
        )
    return None
