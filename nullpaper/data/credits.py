"""Who made the photographs that a figure shows: what their licence asks to be said, from a table beside them."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nullpaper.data.folders import LazyImages

TABLE = "attribution.csv"
ABOVE = 3  # folders: of the class, of the part, of the set
COLUMNS = {"file", "author", "license", "url"}


def credits(images: np.ndarray | LazyImages, places: Iterable[int]) -> list[str]:
    """Author, licence and page of the photographs at these places of a split's images, each once.

    They are read from the file ``attribution.csv`` in the folder of the data set, with columns file (a path from
    there), author, license and url. Without one there is nothing to say, nor of arrays in memory.
    """
    if not isinstance(images, LazyImages):
        return []
    rows = [row for place in places if (row := _row(Path(images.paths[place])))]
    return list(dict.fromkeys(f"{_name(row['author'])} ({_licence(row['license'])}), {row['url']}" for row in rows))


def _row(path: Path) -> dict[str, str]:
    for folder in path.parents[:ABOVE]:
        if row := _table(folder).get(path):
            return row
    return {}


def _table(folder: Path) -> dict[Path, dict[str, str]]:
    file = folder / TABLE
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        return {folder / row["file"]: row for row in csv.DictReader(lines) if row.keys() >= COLUMNS}


def _name(text: str) -> str:
    r"""A name without the escapes that tables taken from web pages have, such as ``\303\241`` for á."""
    octal = re.compile(r"(?:\\[0-3][0-7]{2})+")
    return html.unescape(octal.sub(_decoded, text))


def _decoded(escapes: re.Match[str]) -> str:
    return bytes(int(byte, 8) for byte in escapes[0].split("\\")[1:]).decode(errors="replace")


def _licence(page: str) -> str:
    """``https://creativecommons.org/licenses/by/2.0/`` is CC BY 2.0."""
    kind = re.fullmatch(r"https?://creativecommons.org/licenses/([a-z-]+)/([0-9.]+)/?", page)
    return f"CC {kind[1].upper()} {kind[2]}" if kind else page
