"""Whether figures/ and results/ are as their runs left them, and as the code of today would make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.workflow.plan import Plan, paper_notebooks, plan_run
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import KEPT, altered, changed_manifest, checksum, read_manifest

PROFILE = "reference"


@dataclass(frozen=True)
class Finding:
    """What is amiss at ``path``, relative to the project: edited, missing or stale, and why."""

    path: str
    word: str
    reason: str
    notebook: str


def verify() -> list[Finding]:
    """What of the reference was edited or is missing, and which notebooks would be run otherwise today.

    Raises:
        InputError: the project has no numbered notebook, one of them cannot be run, or the manifest is damaged.
    """
    root = project_root()
    entries, notebooks = read_manifest(root / "results"), {path.stem: path for path in paper_notebooks()}
    findings = [
        Finding(file, word, "is not on disk" if word == "missing" else "differs from its checksum", name)
        for name, entry in entries.items()
        for file, word in altered(root, entry).items()
    ]
    for name in sorted({*entries, *notebooks}):
        if name not in notebooks:
            word, reasons = "missing", ["the notebook of figures and tables in the reference is gone"]
        elif name not in entries:
            word, reasons = "missing", ["has no figures and tables in the reference"]
        else:
            word, reasons = "stale", _changes(entries[name], plan_run(notebooks[name], profile=PROFILE))
        if reasons:
            findings.append(Finding(f"notebooks/{name}.py", word, "; ".join(reasons), name))
    return findings


def to_redraw() -> list[Path]:
    """The notebooks whose figures and tables `verify` finds fault with."""
    amiss = {finding.notebook for finding in verify()}
    return [path for path in paper_notebooks() if path.stem in amiss]


def _changes(entry: Mapping[str, Any], plan: Plan) -> list[str]:
    """What decides a run and is not what it was; a file that is not on this machine cannot be told."""
    today = _decisive(plan)
    changes = [
        f"{kind.rstrip('s')} {name} was {entry[kind].get(name)!r}, is {value!r}"
        for kind in ("parameters", "data", "weights")
        for name, value in today[kind].items()
        if entry[kind].get(name) != value
    ]
    return changes + ["its code, or code that it imports, changed"] * (entry["code"] != plan.code)


def _decisive(plan: Plan) -> dict[str, Any]:
    context = plan.context
    return {"parameters": context.parameters, "data": context.data, "weights": context.weights, "code": plan.code}


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
    paths = sorted(path for folder in KEPT for path in (root / folder).glob(f"{notebook.partition('_')[0]}_*.*"))
    if not paths:
        raise InputError(f"figures/ and results/ hold nothing of {notebook}: run it at the profile {PROFILE} instead")
    files = {path.relative_to(root).as_posix(): checksum(path) for path in paths}
    with changed_manifest(root / "results") as entries:
        entry = entries.get(notebook, {}) | {"run": plan.context.run, "profile": PROFILE} | _decisive(plan)
        entries[notebook] = entry | ({"note": note} if note else {}) | {"files": files}
    return entries[notebook]
