"""One style for all figures, and files that say where they come from.

`save_figure` and `save_table` write to ``figures/<label>/`` and ``results/<label>/`` and enter each file with its
checksum, run, commit and parameters in ``figures/manifest.json``. A figure carries the same facts inside itself.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, write_atomic
from nullpaper.identity import dumps, loads
from nullpaper.provenance import output_root, provenance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nullpaper.store import Result

__all__ = [
    "WIDTH",
    "curve",
    "files_of",
    "manifest",
    "read_stamp",
    "save_figure",
    "save_table",
    "subplots",
    "use_style",
]

WIDTH = 6.3
"""Width of every figure in inches: the text width of an A4 or letter page."""

KEYWORD = "nullpaper"
TEX_STAMP = "% nullpaper: "
STYLE = {
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so every machine draws the same glyphs
    "font.size": 9,
    "figure.figsize": (WIDTH, 0.45 * WIDTH),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Set seaborn's and matplotlib's defaults to those of the paper: colour-blind palette, small type, open axes."""
    import seaborn

    seaborn.set_theme(context="paper", style="ticks", palette="colorblind", rc=STYLE)
    seaborn.mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def subplots(rows: int = 1, columns: int = 1, *, height: float | None = None, **options: Any) -> tuple[Figure, Any]:
    """``matplotlib.pyplot.subplots`` at the width of the paper; ``height`` in inches, by default 0.45 of it a row."""
    import matplotlib.pyplot as plt

    size = (WIDTH, height if height is not None else 0.45 * WIDTH * rows)
    return plt.subplots(rows, columns, figsize=size, **options)


def curve(axis: Axes, table: pd.DataFrame, x: str, y: str, **line: Any) -> None:
    """Draw column ``y`` against ``x`` with a band from ``<y>_low`` to ``<y>_high``, the names of `Interval.columns`."""
    (drawn,) = axis.plot(table[x], table[y], **{"marker": "o", "markersize": 3, **line})
    bounds = table[f"{y}_low"], table[f"{y}_high"]
    axis.fill_between(table[x], *bounds, color=drawn.get_color(), alpha=0.25, linewidth=0)


def save_figure(fig: Figure, name: str, *, sources: Sequence[Result | str] = ()) -> list[Path]:
    """Write ``figures/<label>/<name>.pdf`` and ``.png`` (200 dpi), stamped and entered in the manifest.

    The same figure from the same run gives the same bytes. ``sources`` are the stored results, or keys, behind it.

    Raises:
        InputError: a name that is no file name, or a folder that cannot be written.
    """
    stamp = _stamp("figure", name, sources)
    text = json.dumps(stamp, sort_keys=True)
    subject = f"run {stamp['run']}, commit {stamp['commit'] or 'unknown'}{' with changes' if stamp['dirty'] else ''}"
    pdf = {"Title": name, "Subject": subject, "Keywords": text, "CreationDate": None, "ModDate": None}
    png = {"Title": name, "Description": subject, KEYWORD: text}
    contents = {}
    for suffix, metadata in ((".pdf", pdf), (".png", png)):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix[1:], metadata=metadata, dpi=STYLE["savefig.dpi"])
        contents[f"{name}{suffix}"] = buffer.getvalue()
    return _write(Path("figures") / stamp["label"], contents, stamp)


def save_table(
    frame: pd.DataFrame,
    name: str,
    *,
    caption: str = "",
    float_format: str = "%.3g",
    sources: Sequence[Result | str] = (),
) -> list[Path]:
    """Write ``results/<label>/<name>.csv`` (all digits) and ``.tex`` (booktabs, floats as ``float_format`` says).

    An index is written unless it is the plain row number.

    Raises:
        InputError: a name that is no file name, or a folder that cannot be written.
    """
    import pandas as pd

    stamp = _stamp("table", name, sources)
    index = not isinstance(frame.index, pd.RangeIndex)
    latex = frame.to_latex(
        index=index, escape=True, float_format=float_format, caption=caption or None, label=f"tab:{name}"
    )
    contents = {
        f"{name}.csv": frame.to_csv(index=index, lineterminator="\n").encode(),
        f"{name}.tex": f"{TEX_STAMP}{json.dumps(stamp, sort_keys=True)}\n{latex}".encode(),
    }
    return _write(Path("results") / stamp["label"], contents, stamp)


def read_stamp(path: Path) -> dict[str, Any]:
    """The facts that a figure or table was stamped with, read from the PNG, PDF or LaTeX file itself, or from the
    manifest for a CSV file.

    Raises:
        InputError: no such file, or none that nullpaper wrote.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: name a figure or table that a run has made")
    readers = {".png": _png_stamp, ".pdf": _pdf_stamp, ".tex": _tex_stamp, ".csv": _csv_stamp}
    text = readers[path.suffix](path) if path.suffix in readers else None
    try:
        return loads(text or "")
    except ValueError as error:
        raise InputError(f"{path} carries no stamp: it was not written by nullpaper, or was converted since") from error


def manifest(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """The entries of ``figures/manifest.json`` by file, relative to `output_root`; vanished files are left out."""
    root = root if root is not None else output_root()
    try:
        entries = loads((root / "figures" / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}  # absent or damaged: runs fill it again
    return {file: entry for file, entry in sorted(entries.items()) if (root / file).is_file()}


def files_of(run: str, root: Path | None = None) -> list[str]:
    """The files of the manifest that a run made, relative to `output_root`."""
    return [file for file, entry in manifest(root).items() if entry.get("run") == run]


def _stamp(kind: str, name: str, sources: Sequence[Result | str]) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"{kind} name {name!r} is no file name: use letters, digits, '_', '-' and '.'")
    keys = [source if isinstance(source, str) else source.key for source in sources]
    return loads(json.dumps(provenance() | {"kind": kind, "sources": keys}))


def _write(folder: Path, contents: dict[str, bytes], stamp: dict[str, Any]) -> list[Path]:
    root = output_root()
    with locked(root / "build" / ".manifest.lock"):
        entries = manifest(root)
        for name, content in contents.items():
            write_atomic(root / folder / name, content)
            entries[(folder / name).as_posix()] = stamp | {"sha256": sha256(content)}
        write_atomic(root / "figures" / "manifest.json", dumps(dict(sorted(entries.items()))))
    return [root / folder / name for name in contents]


def _png_stamp(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.info.get(KEYWORD)
    except UnidentifiedImageError:
        return None


def _pdf_stamp(path: Path) -> str | None:
    from PIL import PdfParser

    try:
        with PdfParser.PdfParser(str(path)) as pdf:
            return pdf.info.Keywords
    except (PdfParser.PdfFormatError, AttributeError):
        return None


def _tex_stamp(path: Path) -> str | None:
    first = path.read_text(errors="replace").partition("\n")[0]
    return first.removeprefix(TEX_STAMP) if first.startswith(TEX_STAMP) else None


def _csv_stamp(path: Path) -> str | None:
    digest = sha256(path)
    entries = [entry for entry in manifest().values() if entry["sha256"] == digest]
    return dumps(entries[0]) if entries else None
