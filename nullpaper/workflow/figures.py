"""One style for all figures, and files that say where they come from.

`save_figure` and `save_table` write to ``figures/<label>/`` and ``results/<label>/`` and enter each file with its
checksum, run, commit and parameters in ``figures/manifest.json``. A figure carries the same facts inside itself. What a
new run would draw just as it is stays untouched (see `nullpaper.workflow.outputs`).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullpaper.errors import InputError
from nullpaper.workflow.code_identity import loads
from nullpaper.workflow.outputs import KEYWORD, TEX_STAMP, files_of, manifest, read_stamp, write_outputs
from nullpaper.workflow.provenance import provenance, run_context

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nullpaper.workflow.store import Result

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

    The same figure from the same run gives the same bytes; if other code draws it just so, it stays as it is.
    ``sources`` are the stored results, or keys, behind it.

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


def _stamp(kind: str, name: str, sources: Sequence[Result | str]) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"{kind} name {name!r} is no file name: use letters, digits, '_', '-' and '.'")
    keys = [source if isinstance(source, str) else source.key for source in sources]
    return loads(json.dumps(provenance() | {"kind": kind, "sources": keys}))


def _write(folder: Path, contents: dict[str, bytes], stamp: dict[str, Any]) -> list[Path]:
    return write_outputs(folder, contents, stamp, run_context().code)
