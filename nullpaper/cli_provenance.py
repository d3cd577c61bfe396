"""The commands ``nullpaper show`` and ``nullpaper verify``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullpaper.errors import InputError

if TYPE_CHECKING:
    from nullpaper.workflow.verify import Finding

__all__ = ["show", "verify"]

FIRST = ("run", "notebook", "profile", "label", "commit", "device", "versions", "data", "parameters", "sources")
UNSHOWN = ("dirty", "files", "sizes", "recompute_before")
ROW = 5  # keys of stored results a line
RECORDS = ("job.json", "provenance.json", "error.json")
KINDS = {"file": "figures and tables", "result": "stored results", "job": "sweep jobs"}


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the facts by file.")
def show(files: Sequence[Path], as_json: bool) -> None:
    """Say which run, commit, parameters, device and data a FILE comes from.

    A figure (PNG, PDF) and a LaTeX table tell it themselves, wherever they are; a CSV table is looked up in the
    manifest. An executed notebook, a sweep's job and a stored result are told by the record beside them.
    """
    from nullpaper.workflow.code_identity import dumps

    told = {str(file): _facts(file) for file in files}
    if as_json:
        click.echo(dumps(told), nl=False)
        return
    for index, (file, facts) in enumerate(told.items()):
        if len(told) > 1:
            click.echo(("\n" if index else "") + file)
        for line in _told(facts):
            click.echo(line)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATHS]...")
@click.option("--profile", "label", metavar="NAME", help="Only what was made at this profile, or under this label.")
def verify(paths: Sequence[Path], label: str | None) -> None:
    """Name what was edited by hand, is missing, damaged, or stale against the code.

    Recomputes the checksums of all figures, tables, stored results and sweep jobs, or of those at PATHS, and compares
    each figure's run with the one that its notebook, code, parameters and data would make today. Exits with 1 if
    anything is amiss.
    """
    from tqdm import tqdm

    from nullpaper.workflow.staleness import UNJUDGED, WELL
    from nullpaper.workflow.verify import verify as look

    found = look(paths, label, bar=lambda items: tqdm(items, "verify", delay=3, leave=False, disable=None))
    amiss = [finding for finding in found if finding.word not in (WELL, UNJUDGED)]
    for finding in amiss:
        click.echo(f"{finding.word:<14} {finding.path}: {finding.reason}")
    unjudged = Counter(finding.reason for finding in found if finding.word == UNJUDGED)
    for reason, count in unjudged.items():
        first = next(finding.path for finding in found if finding.reason == reason)
        click.echo(f"{UNJUDGED:<14} {first}{f' and {count - 1} more' if count > 1 else ''}: {reason}")
    if remedies := dict.fromkeys(finding.remedy for finding in amiss if finding.remedy):
        click.echo("\nTo mend this:\n" + "\n".join(f"  {remedy}" for remedy in remedies))
    click.echo(("\n" if amiss or unjudged else "") + _counts(found))
    sys.exit(1 if amiss else 0)


def _counts(found: Sequence[Finding]) -> str:
    from nullpaper.workflow.verify import WORDS

    words = Counter(finding.word for finding in found)
    kinds = Counter(finding.kind for finding in found)
    looked = ", ".join(f"{kinds[kind]} {name}" for kind, name in KINDS.items())
    return f"{looked}: {', '.join(f'{words[word]} {word}' for word in WORDS if words[word]) or 'nothing to verify'}"


def _facts(path: Path) -> dict[str, Any]:
    """The stamp of a figure or table, with who confirmed it since; or the record that lies beside another file."""
    from nullpaper.workflow.code_identity import loads
    from nullpaper.workflow.outputs import confirmation, read_stamp

    record = _record(path)
    if record is None:
        facts = read_stamp(path)
        later = confirmation(path, facts)
        return facts | ({"confirmed": later} if later else {})
    try:
        facts = dict(loads(record.read_bytes()))
        beside = record.with_name("params.json")
        return facts | ({"parameters": loads(beside.read_bytes())} if record.name == "provenance.json" else {})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{record} is damaged: delete its folder, or make it again") from error


def _record(path: Path) -> Path | None:
    """The JSON file that tells of a job, a stored result or an executed notebook; None for anything else."""
    if path.suffix in (".png", ".pdf", ".tex", ".csv"):
        return None
    folder = path if path.is_dir() else path.parent
    named = path.with_name(f"{path.stem}.run.json") if path.suffix in (".ipynb", ".html") else path
    candidates = [*(folder / name for name in RECORDS), *([named] if named.name.endswith(".run.json") else [])]
    return next((candidate for candidate in candidates if path.exists() and candidate.is_file()), None)


def _told(facts: Mapping[str, Any]) -> list[str]:
    """One fact a line; parameters and data one name a line."""
    if "kind" in facts:  # a stamp, perhaps an old one
        facts = {**dict.fromkeys(("device", "data")), **facts}
    changed = " with changes" if facts.get("dirty") else ""
    facts = {**facts, "commit": f"{facts.get('commit') or 'unknown'}{changed}"}
    lines = []
    for name in [*FIRST, *(name for name in facts if name not in (*FIRST, *UNSHOWN))]:
        if name not in facts:
            continue
        value = facts[name]
        if name in ("parameters", "data", "code") and isinstance(value, Mapping) and value:
            lines += [name, *(f"  {key:<{_width(value)}} {_shown(item)}" for key, item in value.items())]
        elif name == "sources" and value:
            rows = (value[start : start + ROW] for start in range(0, len(value), ROW))
            lines += [f"{name:<12} {len(value)} stored result{'s' * (len(value) != 1)}"]
            lines += [f"  {' '.join(row)}" for row in rows]
        else:
            lines.append(f"{name:<12} {_shown(value, name)}")
    return lines


def _width(names: Mapping[str, Any]) -> int:
    return min(max(map(len, names)), 32)


def _shown(value: Any, name: str = "") -> str:
    if name in ("drawn", "confirmed"):
        commit = f"{value.get('commit') or 'unknown'}{' with changes' if value.get('dirty') else ''}"
        return f"by run {value.get('run')}, commit {commit}, on {value.get('device') or 'an unrecorded device'}"
    if value is None and name in ("device", "data"):
        return "not recorded"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    return "none" if value == [] else str(value)
