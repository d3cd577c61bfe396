"""Whether what lies on disk is what the runs left there, and what the code of today would leave.

Checksums of figures and tables are in ``figures/manifest.json``, those of a stored result in its ``provenance.json``,
those of a sweep's job in its ``job.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, nearest
from nullpaper.files import sha256
from nullpaper.workflow.code_identity import identity, loads
from nullpaper.workflow.collect import default_folder
from nullpaper.workflow.outputs import CODE, MANIFEST, read_entries
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.staleness import GONE, STALE, UNJUDGED, WELL, Runs, unfinished

__all__ = ["WORDS", "Finding", "to_redraw", "verify"]

EDITED, MISSING, STRAY, DAMAGED = "edited", "missing", "stray", "damaged"
WORDS = (EDITED, DAMAGED, MISSING, STRAY, GONE, STALE, UNJUDGED, WELL)
"""All that a finding may say; the last two are no fault."""
MADE = (".pdf", ".png", ".csv", ".tex")
VERDICTS = ("verdicts.csv", "verdicts.tex")


@dataclass(frozen=True)
class Finding:
    """What is to be said of one ``kind`` of thing ("file", "result" or "job") at ``path``, relative to the project."""

    path: str
    kind: str
    word: str
    reason: str = ""
    remedy: str = ""


def verify(
    paths: Sequence[Path] = (),
    label: str | None = None,
    *,
    bar: Callable[[list[Any]], Iterable[Any]] = lambda items: items,
) -> list[Finding]:
    """Look at every figure, table, stored result and sweep job of the project; the well ones are among the findings.

    Args:
        paths: only what is one of these files or lies in one of these folders; a folder with ``jobs/`` is taken for
            one of sweeps.
        label: only what was made under this label, which is the profile unless a run was given another.
        bar: wraps the list of things, to show progress.

    Raises:
        InputError: a path at which there is nothing to verify.
    """
    root, paths = project_root(), [path.resolve() for path in paths]
    checks = [*_files(root, label), *_results(root, label), *_jobs(root, paths, label)]
    wanted = [check for check in checks if not paths or any(_concerns(path, root / check[0]) for path in paths)]
    for path in paths:
        if not any(_concerns(path, root / check[0]) for check in wanted):
            known = nearest(path.name, {Path(check[0]).name for check in checks})
            raise InputError(f"there is nothing to verify at {path}: name a figure, table, result or folder.{known}")
    return [finding for _, check in bar(wanted) if (finding := check()) is not None]


def to_redraw(notebooks: Iterable[Path], label: str) -> list[Path]:
    """Those of the notebooks whose figures and tables under a label are stale, edited, missing or not all there."""
    root = project_root()
    try:
        entries = {file: entry for file, entry in read_entries(root).items() if entry.get("label") == label}
    except (OSError, ValueError):
        entries = {}  # damaged: nothing is known to be well
    judged = _Files(root, entries)
    words: dict[str, set[str]] = {}
    for file, entry in entries.items():
        there = (root / file).is_file() and not unfinished(root, entry, {str(entry.get("run"))})
        words.setdefault(str(entry.get("notebook")), set()).add(judged.known(file).word if there else MISSING)
    return [notebook for notebook in notebooks if not words.get(notebook.name, {MISSING}) <= {WELL, UNJUDGED, GONE}]


Check = tuple[str, Callable[[], Finding | None]]


def _concerns(path: Path, thing: Path) -> bool:
    return thing.is_relative_to(path) or path.is_relative_to(thing)


def _files(root: Path, label: str | None) -> Iterator[Check]:
    """Checks of the figures and tables that the manifest knows, and of the other files beside them."""
    try:
        entries = read_entries(root)
    except (OSError, ValueError):
        file, reason = MANIFEST.as_posix(), "is no manifest: nothing beside it can be judged"
        remedy = f"restore {file} from git, or draw all anew by nullpaper paper --redraw"
        yield file, lambda: Finding(file, "file", DAMAGED, reason, remedy)
        return
    judged = _Files(root, entries)
    for file, entry in sorted(entries.items()):
        if label is None or entry.get("label", entry.get("profile")) == label:
            yield file, lambda file=file: judged.known(file)
    for path in sorted(path for top in ("figures", "results") for path in (root / top).rglob("*") if path.is_file()):
        file, inner = path.relative_to(root).as_posix(), path.relative_to(root).parts[1:]
        hidden = any(part.startswith(".") for part in inner) or file in (MANIFEST.as_posix(), CODE.as_posix())
        if file not in entries and not hidden and label in (None, inner[0]):
            yield file, lambda path=path: judged.other(path)


class _Files:
    """The manifest's files; what several of them share is found out once."""

    def __init__(self, root: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.root, self.entries, self.runs = root, entries, Runs(root)
        self._verdicts: dict[Path, Mapping[str, bytes] | str] = {}
        self._groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
        for entry in entries.values():
            self._groups.setdefault((entry.get("notebook"), entry.get("label")), []).append(entry)

    def known(self, file: str) -> Finding:
        entry, path = self.entries[file], self.root / file
        if not path.is_file():
            gone = all((self.root / top / path.parent.name).is_dir() is False for top in ("figures", "results"))
            if gone:  # such as a profile whose figures git ignores, in a fresh clone
                return Finding(file, "file", UNJUDGED, f"no figures or tables of {path.parent.name} are here")
            return Finding(file, "file", MISSING, "in the manifest, but not on disk", self.runs.remedy(entry))
        if sha256(path) != entry.get("sha256"):
            reason = "differs from its checksum in the manifest: edited by hand, or damaged"
            return Finding(file, "file", EDITED, reason, self.runs.remedy(entry))
        judgement = self.runs.judge(entry)
        if judgement.word == STALE and self._left_behind(entry):
            return Finding(file, "file", GONE, f"{entry.get('notebook')} has run since without making it")
        return Finding(file, "file", *judgement)

    def _left_behind(self, entry: Mapping[str, Any]) -> bool:
        """Whether the notebook has finished as a current run under this label, which made other files only."""
        group = self._groups[entry.get("notebook"), entry.get("label")]
        current = {str(other.get("run")) for other in group if self.runs.judge(other).word == WELL}
        return bool(current) and not unfinished(self.root, entry, current)

    def other(self, path: Path) -> Finding:
        file = path.relative_to(self.root).as_posix()
        if path.name in VERDICTS and path.parent.parent == self.root / "results":
            return self._verdict(file, path)
        if path.suffix in MADE:
            return Finding(file, "file", STRAY, "not in the manifest: no run is known to have made it")
        return Finding(file, "file", UNJUDGED, "not a figure or table of a run")

    def _verdict(self, file: str, path: Path) -> Finding:
        """Compare a verdict table with the one that today's tables and claims give."""
        if path.parent not in self._verdicts:
            self._verdicts[path.parent] = _verdicts(path.parent)
        made = self._verdicts[path.parent]
        remedy = f"nullpaper report --profile {path.parent.name}"
        if isinstance(made, str):
            return Finding(file, "file", STALE, f"cannot be made any more ({made})", remedy)
        if made[path.name] != path.read_bytes():
            reason = "not what the tables beside it and the claims of today give"
            return Finding(file, "file", STALE, reason, remedy)
        return Finding(file, "file", WELL)


def _verdicts(folder: Path) -> dict[str, bytes] | str:
    """The verdict tables that belong beside the tables of a folder, or why there are none."""
    from nullpaper.studies.claims import CLAIMS
    from nullpaper.studies.judging import judge, save

    try:
        with tempfile.TemporaryDirectory() as temporary:
            return {path.name: path.read_bytes() for path in save(judge(folder, CLAIMS), Path(temporary))}
    except InputError as error:
        return str(error)


def _results(root: Path, label: str | None) -> Iterator[Check]:
    """Checks of the stored results; hidden folders are those of runs in progress or killed."""
    for folder in sorted(path for path in (root / "build" / "store").glob("[!.]*/[!.]*") if path.is_dir()):
        if label is None or _label(folder / "provenance.json") in (label, None):
            name = folder.relative_to(root).as_posix()
            yield name, lambda name=name, folder=folder: _result(name, folder)


def _result(name: str, folder: Path) -> Finding:
    reason = _fault(folder, "provenance.json")
    try:
        if not reason and _key(folder) != folder.name:
            reason = "its parameters, code and data do not give its name: edited by hand, or renamed"
    except (OSError, ValueError, KeyError, TypeError):
        reason = "its parameters or provenance.json cannot be read"
    remedy = f"delete {name}; the next run computes it again" if reason else ""
    return Finding(name, "result", DAMAGED if reason else WELL, reason, remedy)


def _key(folder: Path) -> str:
    """The name that a stored result must have; see `nullpaper.workflow.store.stored`."""
    origin = loads((folder / "provenance.json").read_bytes())
    parts = {name: origin[name] for name in ("experiment", "code", "data")}
    return identity({**parts, "params": loads((folder / "params.json").read_bytes())})[:20]


def _jobs(root: Path, paths: Sequence[Path], label: str | None) -> Iterator[Check]:
    """Checks of the finished jobs of sweeps, in the project and in the folders named."""
    folders = {path.resolve() for place in (default_folder(), *paths) for path in place.glob("jobs/[!.]*")}
    folders |= {path for path in paths if (path / "job.json").is_file()}
    for folder in sorted(path for path in folders if path.is_dir()):
        if label is None or _label(folder / "job.json") in (label, None):
            name = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
            yield name, lambda name=name, folder=folder: _job(name, folder)


def _job(name: str, folder: Path) -> Finding:
    reason = _fault(folder, "job.json")
    if not reason and not folder.name.endswith(f"-{loads((folder / 'job.json').read_bytes()).get('key')}"):
        reason = "its name is not that of the job inside: it was renamed, or job.json edited"
    remedy = f"delete {name} and run its sweep again" if reason else ""
    return Finding(name, "job", DAMAGED if reason else WELL, reason, remedy)


def _fault(folder: Path, record: str) -> str:
    """What is wrong with a folder whose ``record`` holds the checksums of its other files; empty if nothing is."""
    try:
        files = dict(loads((folder / record).read_bytes())["files"])
    except FileNotFoundError:
        return f"has no {record}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{record} is damaged"
    missing = [file for file in files if not (folder / file).is_file()]
    edited = [file for file in files if file not in missing and sha256(folder / file) != files[file]]
    there = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    added = [file for file in there if file not in files and file != record]
    faults = (f"{file} differs from its checksum: edited by hand, or damaged" for file in edited)
    return "; ".join([*faults, *(f"{file} is missing" for file in missing), *(f"{file} was added" for file in added)])


def _label(record: Path) -> str | None:
    """The label in a record of a run; None if it cannot be read, so that the fault is found whatever is asked for."""
    try:
        origin = loads(record.read_bytes())
        return str(origin.get("label") or origin["profile"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
