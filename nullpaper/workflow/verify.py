"""Whether figures/, results/ and the pages of notebooks are as their runs left them, and as today would make them.

Photographs and weights that their reader brings are mostly not at hand: what the manifest says of them then stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError, check_choice
from nullpaper.files import write_atomic
from nullpaper.workflow.code_identity import identity, uncollected
from nullpaper.workflow.parameters import PARTIAL, profile_parameters
from nullpaper.workflow.plan import OPEN, Plan, paper_notebooks, plan_run, run_name
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import (
    KEPT,
    REFERENCES,
    VERDICTS,
    altered,
    changed_manifest,
    checksum,
    collected_verdicts,
    kept_as,
    read_manifest,
    reference_folder,
    write_verdicts,
)
from nullpaper.workflow.rendered import page_anew, place


@dataclass(frozen=True)
class Finding:
    """What is amiss at ``path``, relative to the project: edited, missing or stale, and why; in whose reference."""

    path: str
    word: str
    reason: str
    notebook: str
    profile: str


@uncollected()
def verify() -> list[Finding]:
    """What of the references was edited or is missing, and which notebooks would be run otherwise today.

    What needs a reader's own photographs and was never drawn is no fault: `make figures` names it.

    Raises:
        InputError: the project has no numbered notebook, one of them cannot be run, or a manifest is damaged.
    """
    drawn = {profile: read_manifest(reference_folder(profile)) for profile in REFERENCES}
    findings = [finding for profile in REFERENCES for finding in _findings(profile)]
    reason = "has not the text of its notebook; `nullpaper figures` writes it anew, without a run"
    pages = [Finding(place(name), "stale", reason, "", "reference") for name in _stale_pages(findings)]
    findings = [one for one in findings if one.profile not in PARTIAL or one.notebook in drawn[one.profile]]
    return findings + pages + _verdicts_amiss()


def _verdicts_amiss() -> list[Finding]:
    """The one table that no run makes, where it is not what the notebooks' own say."""
    path, expected = project_root() / VERDICTS, collected_verdicts()
    if expected is None or (path.is_file() and path.read_bytes() == expected.encode()):
        return []
    word = "edited" if path.is_file() else "missing"
    reason = "is not what the notebooks' own tables say; `nullpaper figures` collects it anew"
    return [Finding(VERDICTS, word, reason, "", "reference")]


def _stale_pages(findings: Sequence[Finding]) -> dict[str, str]:
    """The pages, by notebook, that are others with today's text; none of those with a fault that needs a run."""
    amiss = {finding.notebook for finding in findings if finding.profile == "reference"}
    entries = read_manifest(reference_folder("reference"))
    pages = {name: page_anew(project_root(), name, entries[name]) for name in sorted(entries.keys() - amiss)}
    sums = {name: entries[name]["files"].get(place(name)) for name in pages}
    return {name: page for name, page in pages.items() if checksum(page.encode()) != sums[name]}


def write_pages() -> None:
    """Write those pages of the reference anew whose notebooks have other text than they, from the outputs in them."""
    with changed_manifest(reference_folder("reference")) as entries:
        for name, page in _stale_pages(_findings("reference")).items():
            write_atomic(project_root() / place(name), page)
            entries[name]["files"][place(name)] = checksum(page.encode())


def _findings(profile: str) -> list[Finding]:
    root, aside = project_root(), f" at {profile}" * (profile in PARTIAL)
    entries = read_manifest(reference_folder(profile))
    notebooks = {path.stem: path for path in paper_notebooks(profile)}
    findings = [
        Finding(file, word, "is not on disk" if word == "missing" else "differs from its checksum", name, profile)
        for name, entry in entries.items()
        for file, word in altered(root, entry).items()
    ]
    for name in sorted({*entries, *notebooks}):
        if name not in notebooks:
            word, reasons = "missing", [f"the notebook of figures and tables in the reference{aside} is gone"]
        elif name not in entries:
            word, reasons = "missing", [f"has no figures and tables in the reference{aside}"]
        else:
            changes = _changes(entries[name], plan_run(notebooks[name], profile=profile))
            if not changes and profile not in PARTIAL and page_anew(root, name, entries[name]) is None:
                changes = [f"{place(name)} has not the outputs of its cells"]
            word, reasons = "stale", [change + aside for change in changes]
        if reasons:
            findings.append(Finding(f"notebooks/{name}.py", word, "; ".join(reasons), name, profile))
    return findings


def to_redraw(profile: str = "reference") -> list[Path]:
    """The notebooks whose figures and tables `verify` finds fault with, in the reference of this profile."""
    amiss = {finding.notebook for finding in _findings(profile)}
    return [path for path in paper_notebooks(profile) if path.stem in amiss]


def left_to_readers() -> str:
    """A sentence on what of the reference needs photographs that are not the project's to have, or ""."""
    names: dict[str, list[str]] = {}
    for path in to_redraw("photographs"):
        names.setdefault(profile_parameters(path, "photographs").get("data", "photographs"), []).append(path.stem)
    command = "`nullpaper figures --profile photographs -p weights FILE -p root FOLDER {}` with a folder of {}"
    ways = " and ".join(command.format(" ".join(stems), data) for data, stems in names.items())
    return f"figures/photographs is not up to date and needs photographs, which you bring: {ways}." if ways else ""


def check_reference(profile: str, given: Mapping[str, Any]) -> None:
    """Refuse a profile whose runs are no reference, and parameters that would make them another run.

    Raises:
        InputError: names them.
    """
    check_choice("profile of a reference", profile, REFERENCES)
    for name in given:
        check_choice("parameter that figures/ and results/ leave open", name, OPEN)


def _changes(entry: Mapping[str, Any], plan: Plan) -> list[str]:
    """What decides a run and is not what it was; a file that is not on this machine cannot be told."""
    today = _decisive(plan, entry)
    changes = [
        f"{kind.rstrip('s')} {name} was {entry[kind].get(name)!r}, is {value!r}"
        for kind in ("parameters", "data", "weights")
        for name, value in today[kind].items()
        if entry[kind].get(name) != value
    ]
    return changes + ["its code, or code that it imports, changed"] * (entry["code"] != plan.code)


def _decisive(plan: Plan, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run of today; what its profile leaves to the reader is that of the ``entry``."""
    context = plan.context
    parameters, data, weights = dict(context.parameters), dict(context.data), dict(context.weights)
    if entry and context.profile in PARTIAL:
        parameters |= {name: value for name, value in entry["parameters"].items() if name in OPEN}
        brought = [parameters.get("data"), *parameters.get("others", [])]
        data |= {name: value for name, value in entry["data"].items() if name in brought}
        weights = entry["weights"] | weights
    return {"parameters": parameters, "data": data, "weights": weights, "code": plan.code}


def adopt(notebook: str, note: str = "", profile: str = "reference") -> dict[str, Any]:
    """Say of a notebook whose figures and tables are in place that its run of today would make them.

    For what a longer run made earlier, once a rerun of a part has shown that today's code gives the same numbers.
    Parameters, data, weights and code become today's; device, versions, commit and time stay those of the run.

    Args:
        notebook: its name without suffix.
        note: one sentence on where the files are from; empty: the one that is there.
        profile: of `REFERENCES`.

    Raises:
        InputError: there is no such notebook or profile, or it has no figure or table in place.
    """
    check_reference(profile, {})
    root = project_root()
    plan = plan_run(root / "notebooks" / f"{notebook}.py", profile=profile)
    places = [kept_as(f"{folder}/{notebook.partition('_')[0]}_*.*", profile) for folder in KEPT]
    paths = sorted(path for place in places for path in root.glob(place))
    if not paths:
        raise InputError(f"figures/ and results/ hold nothing of {notebook}: run it at the profile {profile} instead")
    files = {path.relative_to(root).as_posix(): checksum(path) for path in paths}
    with changed_manifest(reference_folder(profile)) as entries:
        entry = entries.get(notebook, {})
        decisive = _decisive(plan, entry)
        digest = identity(plan.code, *(decisive[part] for part in ("parameters", "data", "weights")))
        entry |= {"run": run_name(notebook, digest), "profile": profile} | decisive | ({"note": note} if note else {})
        if profile not in PARTIAL and (page := page_anew(root, notebook, entry)) is not None:
            write_atomic(root / place(notebook), page)
            files[place(notebook)] = checksum(page.encode())
        entries[notebook] = entry | {"files": files}
    write_verdicts()
    return entries[notebook]
