"""The manifest of a folder of figures and tables, and the reference that the repository keeps of them.

A run writes into a folder ``out`` of its own, whose ``manifest.json`` has one entry a notebook: its parameters, data,
weights, device, versions, commit and code, and a checksum of each file. The reference is ``figures/`` and ``results/``
of the project, with ``results/manifest.json``; runs at the profile ``photographs`` have one of their own beside it, in
``figures/photographs/`` and ``results/photographs/``. Only `promote` writes there, after a run has succeeded, with the
notebook's page of `rendered`, and then collects `VERDICTS` anew.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, write_atomic
from nullpaper.workflow.code_identity import code_identity
from nullpaper.workflow.provenance import RunContext, commit_of, device_name, project_root, run_context, versions

MANIFEST = "manifest.json"
KEPT = ("figures", "results")
"""Folders that the reference keeps; what else lies in the folder of a run, such as LaTeX, stays there."""
REFERENCES = {"reference": "", "photographs": "photographs"}
"""Profiles whose runs are kept, and the folder below each of `KEPT`; what other profiles make is held to the first."""
VERDICTS = "results/verdicts.csv"
"""The verdicts of all notebooks of the reference."""
DIGITS = 16
"""Hexadecimal digits of a checksum in a manifest."""


def checksum(content: bytes | Path) -> str:
    """The checksum of bytes, or of a file's content, as manifests hold it."""
    return sha256(content)[:DIGITS]


def code_of(notebook: Path) -> str:
    """A digest of a notebook's code and of all that it imports from the project; its prose does not count."""
    return code_identity(notebook)[:DIGITS]


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``folder/manifest.json`` by notebook; none if there is no such file.

    Raises:
        InputError: it is damaged.
    """
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_bytes())
        if not all(isinstance(entry["files"], dict) for entry in entries.values()):
            raise ValueError("an entry without files")
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no manifest ({error}): restore it from git, or delete it and run again") from error
    return entries


def reference_folder(profile: str) -> Path:
    """Where the manifest lies that runs at this profile are held against."""
    return project_root() / "results" / REFERENCES.get(profile, "")


def kept_as(file: str, profile: str) -> str:
    """The place in the project of ``results/NAME`` or ``figures/NAME`` that a run at this profile has made."""
    room, _, name = file.partition("/")
    return Path(room, REFERENCES.get(profile, ""), name).as_posix()


def enter_files(out: Path, paths: Iterable[Path]) -> None:
    """Enter files that this process has written below ``out`` under the notebook that it runs.

    Raises:
        InputError: the folder cannot be written, or its manifest is damaged.
    """
    context = run_context()
    with changed_manifest(out) as entries:
        entry = entries.get(context.notebook, {})
        files = entry.get("files", {}) | {path.relative_to(out).as_posix(): checksum(path) for path in paths}
        entries[context.notebook] = entry | _facts(context) | {"files": dict(sorted(files.items()))}


def record(out: Path, context: RunContext, *, code: str, seconds: float) -> dict[str, Any]:
    """Complete the entry of a run that has succeeded, and return it; an entry without ``code`` is unfinished.

    Args:
        code: what `code_of` said of the notebook before the run.
    """
    with changed_manifest(out) as entries:
        entry = _facts(context) | {"files": {}} | entries.get(context.notebook, {})
        entry |= {"commit": commit_of(project_root()), "code": code, "seconds": seconds}
        entries[context.notebook] = entry
    return entry


def _facts(context: RunContext) -> dict[str, Any]:
    facts = {name: getattr(context, name) for name in ("run", "profile", "parameters", "data", "weights")}
    return facts | {"device": device_name(), "versions": versions()}


def finished(out: Path, context: RunContext) -> dict[str, Any] | None:
    """The entry of this very run if it has finished in ``out`` and its files are as it left them."""
    entry = read_manifest(out).get(context.notebook, {})
    whole = entry.get("run") == context.run and "code" in entry and not altered(out, entry)
    return entry if whole else None


def altered(folder: Path, entry: Mapping[str, Any]) -> dict[str, str]:
    """The files of an entry that are not as it says: "missing" or "edited" by file."""
    words = {}
    for name, digest in entry["files"].items():
        path = folder / name
        if not path.is_file():
            words[name] = "missing"
        elif checksum(path) != digest:
            words[name] = "edited"
    return words


def put(folder: Path, out: Path, notebook: str, entry: Mapping[str, Any]) -> None:
    """Move a finished run from ``folder`` into ``out``, its entry last; files that it no longer makes vanish."""
    with changed_manifest(out) as entries:
        for name in entries.get(notebook, {"files": {}})["files"].keys() - entry["files"].keys():
            (out / name).unlink(missing_ok=True)
        for name in entry["files"]:
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(folder / name, out / name)
        entries[notebook] = dict(entry)


def promote(out: Path, notebook: str) -> None:
    """Make what a finished run left in ``out`` the reference of its notebook; figures it no longer makes vanish.

    Raises:
        InputError: the run has not finished, its files are not as it left them, or its cells are not those of the
            notebook; the reference is then as it was.
    """
    root, entry = project_root(), read_manifest(out).get(notebook, {})
    if "code" not in entry:
        raise InputError(f"{out} holds no finished run of {notebook}: run it first")
    if words := altered(out, entry):
        raise InputError(f"{out / next(iter(words))} is {next(iter(words.values()))}: run {notebook} again")
    kept = {kept_as(name, entry["profile"]): name for name in entry["files"] if name.partition("/")[0] in KEPT}
    contents = {place: (out / name).read_bytes() for place, name in kept.items()}
    if f"{notebook}.ipynb" in entry["files"] and not REFERENCES.get(entry["profile"]):
        from nullpaper.workflow import rendered  # loads jupytext

        outputs = rendered.outputs_of(out / f"{notebook}.ipynb", contents)
        page = rendered.page(root / "notebooks" / f"{notebook}.py", outputs, entry)
        contents[rendered.place(notebook)] = page.encode()
    files = {place: checksum(content) for place, content in contents.items()}
    with changed_manifest(reference_folder(entry["profile"])) as entries:
        for place, content in contents.items():
            write_atomic(root / place, content)
        for name in entries.get(notebook, {"files": {}})["files"].keys() - files.keys():
            (root / name).unlink(missing_ok=True)
        entries[notebook] = entry | {"files": files}
    write_verdicts()


def write_verdicts() -> None:
    """Collect `VERDICTS` anew from the notebooks' tables of the reference."""
    if (text := collected_verdicts()) is not None:
        write_atomic(project_root() / VERDICTS, text)


def collected_verdicts() -> str | None:
    """What `VERDICTS` has to say; None where no notebook of the reference has verdicts."""
    from nullpaper.workflow.verdicts import collected  # loads pandas

    entries = read_manifest(reference_folder("reference"))
    tables = [project_root() / file for entry in entries.values() for file in entry["files"]]
    tables = [path for path in tables if path.name.endswith("_verdicts.csv") and path.is_file()]
    return collected(tables) if tables else None


def entry_of(path: Path) -> dict[str, Any] | None:
    """What a manifest at hand says of the run that made this very file; None if it is in no manifest."""
    path, root = path.resolve(), project_root().resolve()
    places = [(folder, folder) for folder in path.parents[:2]]
    places += [(root, reference_folder(profile).resolve()) for profile in REFERENCES]
    for folder, manifest in places if path.is_file() else []:
        for notebook, entry in read_manifest(manifest).items():
            file = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
            if entry["files"].get(file) == checksum(path):
                return {"notebook": notebook} | {name: value for name, value in entry.items() if name != "files"}
    return None


@contextlib.contextmanager
def changed_manifest(folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """The entries of the manifest in ``folder``, written back at the end of the block; others wait meanwhile.

    Raises:
        InputError: the folder cannot be written, or its manifest is damaged.
    """
    root = project_root()
    is_kept = folder in map(reference_folder, REFERENCES)
    with locked((root / "build" if is_kept else folder) / ".manifest.lock"):
        entries = read_manifest(folder)
        yield entries
        write_atomic(folder / MANIFEST, json.dumps(dict(sorted(entries.items())), indent=1) + "\n")


def told(facts: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """What an entry says, one fact a line, what a mapping holds below it."""
    for name, value in facts.items():
        is_mapping = bool(value) and isinstance(value, Mapping)
        yield f"{'':{indent}}{name:<13} {'' if is_mapping else value}".rstrip()
        if is_mapping:
            yield from told(value, indent + 2)
