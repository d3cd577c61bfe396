"""Results in one file, to carry from one machine to another: all of the store, and the finished runs of one profile.

The file is a tar archive of ``store/EXPERIMENT/KEY/`` and ``runs/PROFILE/NOTEBOOK/``, each run with a manifest of its
own. Its last member, ``SHA256SUMS``, has the checksums of the others as ``sha256sum -c`` reads them.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from gzip import BadGzipFile
from pathlib import Path
from tempfile import TemporaryDirectory

from nullpaper.errors import InputError, first_line
from nullpaper.files import locked, sha256, storable, temporary_sibling
from nullpaper.workflow.parameters import check_profile
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import MANIFEST, altered, put, read_manifest
from nullpaper.workflow.store import LEFT_OUT, PROVENANCE, TENSORS, adopt, load, store_root

SUMS = "SHA256SUMS"
PART = r"[^./\\\n][^/\\\n]*"
LAYOUT = re.compile(rf"{SUMS}|store/{PART}/{PART}/{PART}|runs/{PART}/{PART}/({PART}/)?{PART}")
"""Names of members: no hidden file, and none that leads elsewhere."""
DAMAGED = (tarfile.TarError, BadGzipFile, zlib.error, EOFError, ValueError, InputError)


def pack(file: Path, profile: str, largest: int | None = None) -> Counter[str]:
    """Write ``file``: every whole result of the store, and the finished runs in ``build/<profile>``.

    Args:
        largest: bytes of tensors above which a result travels without them; None: with all.

    Returns:
        How many ``results`` and ``runs`` it holds.

    Raises:
        InputError: there are none, or the file cannot be written; one that was there is then as it was.
    """
    counts: Counter[str] = Counter()
    with storable(file.parent):
        temporary = temporary_sibling(file)
        try:
            with tarfile.open(temporary, "w:gz", compresslevel=1) as archive:  # weights hardly shrink
                sums = []
                for name, content in _contents(profile, counts, math.inf if largest is None else largest):
                    _add(archive, name, content)
                    sums.append(f"{sha256(content)}  {name}\n")
                _add(archive, SUMS, "".join(sums).encode())
            if not counts:
                raise InputError(f"there is no stored result and no finished run of {profile} to pack")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    return counts


def _contents(profile: str, counts: Counter[str], largest: float) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members; ``counts`` is kept."""
    for folder in sorted(store_root().glob("[!.]*/[!.]*")):
        if (result := load(folder)) is not None:
            counts["results"] += 1
            place, names = f"store/{folder.parent.name}/{folder.name}", {*result.provenance["files"], PROVENANCE}
            path = folder / TENSORS
            if TENSORS in names and (not path.exists() or path.stat().st_size > largest):
                names.remove(TENSORS)
                yield f"{place}/{LEFT_OUT}", f"{TENSORS} was left out when this was packed.\n".encode()
            for name in sorted(names):
                yield f"{place}/{name}", (folder / name).read_bytes()
    out = project_root() / "build" / profile
    for notebook, entry in read_manifest(out).items():
        if "code" in entry and not altered(out, entry):
            counts["runs"] += 1
            yield f"runs/{profile}/{notebook}/{MANIFEST}", json.dumps({notebook: entry}, indent=1).encode()
            for name in entry["files"]:
                yield f"runs/{profile}/{notebook}/{name}", (out / name).read_bytes()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def unpack(file: Path) -> Counter[str]:
    """Put what `pack` wrote into the store and into ``build/``, once all of it is known to be whole.

    Each result and each run comes into place as a whole. What is there already stays, whatever the file says.

    Returns:
        How many results and runs are ``new``, how many were ``there``, and how many are ``different`` from what is
        there under the same name.

    Raises:
        InputError: no such file, or a damaged one, of which nothing is used; or a folder that cannot be written.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}: name one that nullpaper store pack has written")
    build = project_root() / "build"
    with storable(build):
        build.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=build, prefix=".unpacked-") as folder:
            try:
                results, runs = _extracted(file, Path(folder))
            except DAMAGED as error:
                raise InputError(
                    f"{file} is damaged or was not written by nullpaper store pack ({first_line(error)}), and nothing "
                    "of it was used: copy it anew, or pack it again"
                ) from error
            return Counter([*map(adopt, results), *map(_adopt_run, runs)])


def _extracted(file: Path, folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders of results and of runs, all of them whole. Contents alone are taken: no links, owners or modes."""
    sums = {}
    with tarfile.open(file) as archive:
        for member in archive:
            if not (member.isfile() and LAYOUT.fullmatch(member.name)):
                raise ValueError(f"it holds {member.name!r}")
            content = archive.extractfile(member).read()
            sums[member.name] = f"{sha256(content)}  {member.name}"
            (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / member.name).write_bytes(content)
    if sums.pop(SUMS, None) is None or (folder / SUMS).read_text().splitlines() != [*sums.values()]:
        raise ValueError("the checksums do not agree")
    results, runs = sorted(folder.glob("store/*/*")), sorted(folder.glob("runs/*/*"))
    for result in results:
        if load(result) is None:
            raise ValueError(f"{result.name} is no whole result")
    for run in runs:
        check_profile(run.parent.name)
        entry = read_manifest(run).get(run.name, {"files": {}})
        files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        if not {"run", "code"} <= entry.keys() or files != {*entry["files"], MANIFEST} or altered(run, entry):
            raise ValueError(f"{run.name} is no whole run")
    return results, runs


def _adopt_run(folder: Path) -> str:
    """Move a run into the folder of its profile, unless a finished one of this notebook is there."""
    notebook, out = folder.name, project_root() / "build" / folder.parent.name
    entry = read_manifest(folder)[notebook]
    with locked(out / f".{notebook}.lock"):
        there = read_manifest(out).get(notebook, {})
        if "code" in there and not altered(out, there):
            return "there" if (there["run"], there["files"]) == (entry["run"], entry["files"]) else "different"
        put(folder, out, notebook, entry)
        return "new"
