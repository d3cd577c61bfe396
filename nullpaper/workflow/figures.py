"""One style for all figures, and files that say where they come from.

`save_figure` and `save_table` write into figures/, results/ and latex/ of the folder of this run, never into the
project's own figures/ and results/, and enter each file with its checksum in the run's ``manifest.json``. A figure
carries notebook, parameters, data, weights and device inside itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn
from PIL import Image, PdfParser, UnidentifiedImageError

from nullpaper.errors import InputError
from nullpaper.files import write_atomic
from nullpaper.workflow.provenance import device_name, project_root, run_context
from nullpaper.workflow.reference import enter_files, entry_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.3
"""Width of every figure in inches: the text width of an A4 or letter page."""
KEYWORD = "nullpaper"
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
    """Set seaborn's and matplotlib's settings to those of the paper, whatever a matplotlibrc of the user's says.

    Colour-blind palette, small type, open axes; all else as matplotlib ships it.
    """
    plt.rcdefaults()
    seaborn.set_theme(context="paper", style="ticks", palette="colorblind", rc=STYLE)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def subplots(rows: int = 1, columns: int = 1, *, height: float | None = None, **options: Any) -> tuple[Figure, Any]:
    """``matplotlib.pyplot.subplots`` at the width of the paper; ``height`` in inches, by default 0.45 of it a row."""
    size = (WIDTH, height if height is not None else 0.45 * WIDTH * rows)
    return plt.subplots(rows, columns, figsize=size, **options)


def curve(axis: Axes, table: pd.DataFrame, x: str, y: str, **line: Any) -> None:
    """Draw column ``y`` against ``x`` with a band from ``<y>_low`` to ``<y>_high``, the names of `Interval.columns`."""
    (drawn,) = axis.plot(table[x], table[y], **{"marker": "o", "markersize": 3, **line})
    bounds = table[f"{y}_low"], table[f"{y}_high"]
    axis.fill_between(table[x], *bounds, color=drawn.get_color(), alpha=0.25, linewidth=0)


def intervals(
    axis: Axes,
    table: pd.DataFrame,
    *,
    places: Sequence[float] | None = None,
    value: str = "difference",
    thin: str | None = "images",
    vertical: bool = False,
    zero: float | None = 0.0,
    color: Any = None,
    label: str | None = None,
    **marker: Any,
) -> None:
    """Draw the estimate of each row as a point with its interval, or its two: over images (thin) and seeds (thick).

    Args:
        table: columns ``<value>``, ``<value>_low``, ``<value>_high``, ``n`` and ``<thin>_low``, ``<thin>_high``. The
            thick line is drawn where ``n``, the number of seeds, is above 1. Where the table has ``low`` and ``high``,
            for new seeds and new images at once, that is the one line of a row of several seeds. What is NaN is not
            drawn: no interval.
        places: of the rows on the other axis; None: 0, 1, 2, ...
        thin: None: there is one interval only, and it is drawn thick whatever ``n`` is.
        vertical: the values run along y.
        zero: where a grey line marks no effect; None: nowhere.
        color: of all rows, or a list with one a row; None: the first of the palette.
        marker: for ``axis.plot`` of the points.
    """
    places = range(len(table)) if places is None else places
    colors = color if isinstance(color, list) else [color or seaborn.color_palette()[0]] * len(table)
    for place, shade, (_, row) in zip(places, colors, table.iterrows(), strict=True):
        several = bool(thin is None or row["n"] > 1)
        both = thin is not None and several and "low" in row
        spans = [] if thin is None or both else [(f"{thin}_", 0.8, 1.0)]
        spans += [("" if both else f"{value}_", 2.6, 0.5)] * several
        for name, width, alpha in spans:
            _line(axis, [row[f"{name}low"], row[f"{name}high"]], place, vertical, shade, linewidth=width, alpha=alpha)
        _line(
            axis, [row[value]], place, vertical, shade, **{"marker": "o", "linestyle": "none", "label": label, **marker}
        )
        label = None  # one entry in the legend
    if zero is not None:
        (axis.axhline if vertical else axis.axvline)(zero, color="0.6", linewidth=0.8, zorder=0)


def _line(axis: Axes, values: list[float], place: float, vertical: bool, color: Any, **options: Any) -> None:
    ends = [values, [place] * len(values)]
    axis.plot(*(ends[::-1] if vertical else ends), color=color, solid_capstyle="butt", **options)


def short(name: str, letters: int) -> str:
    """A name of a class in at most so many letters."""
    return name if len(name) <= letters else f"{name[: max(1, letters - 1)].rstrip()}…"


def add_credits(fig: Figure, credits: Sequence[str]) -> None:
    """Say under a figure whose photographs it shows; nothing where there is nobody to name."""
    if credits:
        fig.supxlabel(
            textwrap.fill(f"Photographs: {'; '.join(credits)}.", 150, break_on_hyphens=False),
            fontsize=5,
            x=0.01,
            ha="left",
        )


def save_figure(fig: Figure, name: str) -> list[Path]:
    """Write ``figures/<name>.pdf`` and ``.png`` (200 dpi) into the folder of this run, stamped and in its manifest.

    The stamp has neither time, path nor commit, so that the same picture of the same inputs is the same file, to the
    byte.

    Raises:
        InputError: a name that is no file name, or a folder that cannot be written.
    """
    _check_name("figure", name)
    context = asdict(run_context())
    facts = {key: context[key] for key in ("notebook", "parameters", "data", "weights")} | {"device": device_name()}
    text, subject = json.dumps(facts, sort_keys=True, separators=(",", ":")), f"notebook {facts['notebook']}"
    pdf = {"Title": name, "Subject": subject, "Keywords": text, "CreationDate": None, "ModDate": None}
    png = {"Title": name, "Description": subject, KEYWORD: text}
    contents = {}
    for suffix, metadata in ((".pdf", pdf), (".png", png)):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix[1:], metadata=metadata, dpi=STYLE["savefig.dpi"])
        contents[f"figures/{name}{suffix}"] = buffer.getvalue()
    return _write(contents)


def save_table(frame: pd.DataFrame, name: str, *, caption: str = "", float_format: str = "%.3g") -> list[Path]:
    """Write ``results/<name>.csv`` (all digits) and ``latex/<name>.tex`` (booktabs, floats as ``float_format`` says).

    An index is written unless it is the plain row number.

    Raises:
        InputError: a name that is no file name, or a folder that cannot be written.
    """
    _check_name("table", name)
    index = not isinstance(frame.index, pd.RangeIndex)
    latex = frame.to_latex(
        index=index, escape=True, float_format=float_format, caption=caption or None, label=f"tab:{name}"
    )
    csv = frame.to_csv(index=index, lineterminator="\n")
    return _write({f"results/{name}.csv": csv.encode(), f"latex/{name}.tex": latex.encode()})


def read_stamp(path: Path) -> dict[str, Any]:
    """The facts that a PNG or PDF carries inside itself; those of the manifest for a table.

    Raises:
        InputError: no such file, or none that nullpaper wrote.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: name a figure or table that a run has made")
    facts = None
    with contextlib.suppress(UnidentifiedImageError, PdfParser.PdfFormatError, AttributeError, TypeError, ValueError):
        if path.suffix == ".png":
            with Image.open(path) as image:
                facts = json.loads(image.info.get(KEYWORD))
        elif path.suffix == ".pdf":
            with PdfParser.PdfParser(str(path)) as pdf:
                facts = json.loads(pdf.info.Keywords)
        else:
            facts = entry_of(path)
    if facts is None:
        raise InputError(f"{path} carries no stamp: it was not written by nullpaper, or was converted since")
    return facts


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"{kind} name {name!r} is no file name: use letters, digits, '_', '-' and '.'")


def _write(contents: dict[str, bytes]) -> list[Path]:
    folder = run_context().out
    out = project_root() / "build" / "interactive" if folder is None else Path(folder)
    paths = [out / name for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content)
    enter_files(out, paths)
    return paths
