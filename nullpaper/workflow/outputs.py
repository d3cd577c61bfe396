"""Figures and tables on disk: the stamp that each carries, the manifest of all, and when one is left as it is.

A run that draws exactly what is there already, from the same parameters and data by other code, leaves the file
untouched; only its manifest entry names the new run, and keeps under ``drawn`` the facts of the run that wrote the
file. ``figures/code.json`` holds, for the runs of the manifest, short digests of the modules behind them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, write_atomic
from nullpaper.workflow.code_identity import dumps, loads
from nullpaper.workflow.provenance import output_root, project_root

__all__ = [
    "CODE",
    "KEYWORD",
    "MANIFEST",
    "SHORT",
    "TEX_STAMP",
    "confirmation",
    "files_of",
    "manifest",
    "read_code",
    "read_entries",
    "read_stamp",
    "write_outputs",
]

MANIFEST, CODE = Path("figures") / "manifest.json", Path("figures") / "code.json"
KEYWORD = "nullpaper"
TEX_STAMP = "% nullpaper: "
ORIGIN = ("run", "commit", "dirty", "device")
INPUTS = ("kind", "notebook", "profile", "parameters", "data")  # what a file says of these must be true of it now
SHORT = 8  # hexadecimal digits of a module's digest: enough to tell two states of one file apart


def read_entries(root: Path) -> dict[str, dict[str, Any]]:
    """All entries of ``figures/manifest.json`` by file, vanished files too; none if there is no manifest.

    Raises:
        ValueError: it is damaged.
    """
    try:
        entries = loads((root / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError("not a manifest")
    return entries


def manifest(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """The entries of ``figures/manifest.json`` by file, relative to `output_root`; vanished files are left out."""
    root = root if root is not None else output_root()
    return {file: entry for file, entry in sorted(_entries(root).items()) if (root / file).is_file()}


def files_of(run: str, root: Path | None = None) -> list[str]:
    """The files of the manifest that a run made, or would have made just so, relative to `output_root`."""
    return [file for file, entry in manifest(root).items() if entry.get("run") == run]


def read_code(root: Path) -> dict[str, dict[str, str]]:
    """Short digests of code by run and module, as far as they were recorded."""
    try:
        code = loads((root / CODE).read_bytes())
    except (OSError, ValueError):
        return {}
    return code if isinstance(code, dict) else {}


def write_outputs(
    folder: Path, contents: Mapping[str, bytes], stamp: Mapping[str, Any], code: Mapping[str, str]
) -> list[Path]:
    """Put files into ``folder`` of `output_root` and enter them in the manifest under their stamp.

    A file that matches its checksum and differs from the new one in nothing but its stamp is not touched, unless its
    parameters or data are others.

    Raises:
        InputError: a folder that cannot be written.
    """
    root = output_root()
    with locked(root / "build" / ".manifest.lock"):
        known = _entries(root)
        entries = {file: entry for file, entry in known.items() if not _forgotten(root, file, entry, stamp)}
        for name, content in contents.items():
            file = (folder / name).as_posix()
            entries[file] = _placed(root / file, content, stamp, known.get(file))
        _keep_code(root, entries, str(stamp["run"]), code)
        write_atomic(root / MANIFEST, dumps(dict(sorted(entries.items()))))
    return [root / folder / name for name in contents]


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


def confirmation(path: Path, stamp: Mapping[str, Any]) -> dict[str, Any] | None:
    """Run, commit and device of a later run that drew the same as the file holds; None if the manifest knows none."""
    entry = _entry_of(path)
    later = {name: entry.get(name) for name in ORIGIN} if entry else None
    return later if later != {name: stamp.get(name) for name in ORIGIN} else None


def _entries(root: Path) -> dict[str, dict[str, Any]]:
    try:
        return read_entries(root)
    except (OSError, ValueError):
        return {}  # damaged: runs fill it again


def _forgotten(root: Path, file: str, entry: Mapping[str, Any], stamp: Mapping[str, Any]) -> bool:
    """Whether a vanished file is wanted no more: its notebook runs anew, or all folders of its label were removed."""
    if (root / file).is_file():
        return False
    anew = all(entry.get(name) == stamp[name] for name in ("notebook", "label")) and entry.get("run") != stamp["run"]
    return anew or not any((root / top / Path(file).parent.name).is_dir() for top in ("figures", "results"))


def _placed(path: Path, content: bytes, stamp: Mapping[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write a file unless the one there says the same; its entry for the manifest."""
    if known is not None and path.is_file() and sha256(there := path.read_bytes()) == known.get("sha256"):
        alike = all(known.get(name) == stamp.get(name) for name in INPUTS)
        if there == content or (alike and _same(there, content, path.suffix)):
            drawn = known.get("drawn") or {name: known.get(name) for name in ORIGIN}
            kept = {} if drawn == {name: stamp.get(name) for name in ORIGIN} else {"drawn": drawn}
            return {**stamp, "sha256": known["sha256"], **kept}
    write_atomic(path, content)
    return {**stamp, "sha256": sha256(content)}


def _same(one: bytes, other: bytes, suffix: str) -> bool:
    """Whether two files show the same: pixels of a PNG, anything but the stamp of a PDF or LaTeX file."""
    views = {".png": _pixels, ".pdf": _drawing, ".tex": _below_stamp}
    return suffix in views and views[suffix](one) == views[suffix](other)


def _pixels(content: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return image.mode, image.size, image.info.get("dpi"), image.tobytes()


def _drawing(content: bytes) -> bytes:
    """A PDF up to its document information, if that comes last as matplotlib writes it; else all of it."""
    number = re.search(rb"/Info (\d+) 0 R[^/]*\Z", content)
    start = content.rfind(b"\n%b 0 obj\n" % number[1]) if number else -1
    return content[:start] if start >= 0 and content.count(b" 0 obj\n", start) == 1 else content


def _below_stamp(content: bytes) -> bytes:
    return content.partition(b"\n")[2] if content.startswith(TEX_STAMP.encode()) else content


def _keep_code(root: Path, entries: Mapping[str, Mapping[str, Any]], run: str, code: Mapping[str, str]) -> None:
    """Record a run's code; runs that the manifest names no more are dropped."""
    known = read_code(root)
    named = {entry.get("run") for entry in entries.values()}
    kept = {name: modules for name, modules in known.items() if name in named}
    if code:
        kept[run] = {module: digest[:SHORT] for module, digest in sorted(code.items())}
    if kept != known:
        write_atomic(root / CODE, dumps(dict(sorted(kept.items()))))


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
    entry = _entry_of(path)
    return dumps({name: value for name, value in entry.items() if name != "sha256"}) if entry else None


def _entry_of(path: Path) -> dict[str, Any] | None:
    """The manifest entry of a file with this content: its own, else that of a file of its name, else of any."""
    digest, path = sha256(path), path.resolve()
    for root in _roots(path):
        same = {file: entry for file, entry in manifest(root).items() if entry.get("sha256") == digest}
        if same:
            nearest = min(same, key=lambda file: ((root / file).resolve() != path, Path(file).name != path.name, file))
            return same[nearest]
    return None


def _roots(path: Path) -> Iterator[Path]:
    """Folders whose manifest may know a file: its own project or sweep job, then the project at hand."""
    if len(path.parents) > 2 and path.parents[1].name in ("figures", "results"):
        yield path.parents[2]
    yield project_root()
