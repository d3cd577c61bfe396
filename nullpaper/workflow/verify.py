"""Whether figures/ and results/ are as their runs left them, and as the code of today would make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.workflow.canonical import plain
from nullpaper.workflow.plan import Plan, paper_notebooks, plan_run
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import DIGITS, KEPT, MANIFEST, altered, change_reference, checksum, read_manifest

PROFILE = "reference"
EDITED, MISSING, STALE = "edited", "missing", "stale"
SHOWN = 4  # differences that one line names


@dataclass(frozen=True)
class Finding:
    """What is amiss at ``path``, relative to the project: edited, missing or stale, why, and what mends it."""

    path: str
    word: str
    reason: str
    remedy: str


def verify(root: Path | None = None) -> list[Finding]:
    """What of the reference was edited or is missing, and which notebooks would be run otherwise today.

    Raises:
        InputError: the project has no numbered notebook.
    """
    root = project_root() if root is None else root
    try:
        entries = read_manifest(root / "results")
    except InputError as error:
        return [Finding(f"results/{MANIFEST}", EDITED, str(error), f"git checkout results/{MANIFEST}")]
    notebooks = {path.stem: path for path in paper_notebooks()}
    findings = []
    for name, entry in entries.items():
        for file, word in altered(root, entry).items():
            reason = "is not on disk" if word == MISSING else "differs from its checksum in the manifest"
            findings.append(Finding(file, word, reason, f"git checkout {file}"))
        if name not in notebooks:
            remedy = f"delete its entry in results/{MANIFEST} and its files"
            findings.append(Finding(f"notebooks/{name}.py", MISSING, "the notebook of these figures is gone", remedy))
    for name, path in notebooks.items():
        findings += _of_notebook(path, entries.get(name))
    return findings


def to_redraw() -> list[Path]:
    """The notebooks whose figures and tables `verify` finds fault with."""
    root = project_root()
    try:
        entries = read_manifest(root / "results")
    except InputError:
        entries = {}  # damaged: nothing is known to be well
    return [
        path
        for path in paper_notebooks()
        if path.stem not in entries or altered(root, entries[path.stem]) or [*_of_notebook(path, entries[path.stem])]
    ]


def adopt(notebook: str, note: str = "") -> dict[str, Any]:
    """Say of a notebook whose figures and tables are in place that its run of today would make them.

    For what a longer run made earlier, once a rerun of a part has shown that today's code gives the same numbers.
    Parameters, data, weights and code become today's; device, versions, commit and time stay those of the run.

    Args:
        notebook: its name without suffix.
        note: one sentence on where the files are from; empty: the one that is there.

    Raises:
        InputError: there is no such notebook, or it has no figure or table in place.
    """
    root = project_root()
    plan = plan_run(root / "notebooks" / f"{notebook}.py", profile=PROFILE)
    number = notebook.partition("_")[0]
    paths = sorted(path for folder in KEPT for path in (root / folder).glob(f"{number}_*.*"))
    if not paths:
        raise InputError(f"figures/ and results/ hold nothing of {notebook}: run it at the profile {PROFILE} instead")
    with change_reference() as entries:
        entry = {name: value for name, value in entries.get(notebook, {}).items() if name != "files"}
        entry |= {"run": plan.context.run, "profile": PROFILE} | _decisive(plan) | ({"note": note} if note else {})
        entries[notebook] = entry | {"files": {path.relative_to(root).as_posix(): checksum(path) for path in paths}}
    return entries[notebook]


def _decisive(plan: Plan) -> dict[str, Any]:
    context = plan.context
    return {"parameters": context.parameters, "data": context.data, "weights": context.weights, "code": plan.code}


def _of_notebook(path: Path, entry: Mapping[str, Any] | None) -> Iterator[Finding]:
    file, remedy = f"notebooks/{path.name}", f"make figures, or nullpaper figures {path.stem}"
    if entry is None:
        yield Finding(file, MISSING, "has no figures and tables in the reference", remedy)
        return
    try:
        differences = [*_differences(entry, _decisive(plan_run(path, profile=PROFILE)))]
    except InputError as error:
        differences = [f"its run cannot be made any more ({error})"]
    if differences:
        more = [f"and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
        yield Finding(file, STALE, "; ".join([*differences[:SHOWN], *more]), remedy)


def _differences(entry: Mapping[str, Any], today: Mapping[str, Any]) -> Iterator[str]:
    """What decides a run and is not what it was; a file that is not on this machine cannot be told."""
    before, now = plain(entry.get("parameters", {})), plain(dict(today["parameters"]))
    for name in sorted({*before, *now}):
        if name not in before or name not in now:
            yield f"parameter {name} is {'new' if name in now else 'gone'}"
        elif before[name] != now[name]:
            yield f"parameter {name} was {before[name]!r}, is {now[name]!r}"
    for kind in ("data", "weights"):
        for name, digest in today[kind].items():
            if entry.get(kind, {}).get(name) != digest:
                yield f"{kind} {name} changed"
    if entry.get("code") != today["code"][:DIGITS]:
        yield "its code, or code that it imports, changed"
