"""Whether the run behind a figure or table is the one that its notebook, code, parameters and data would make today."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nullpaper.errors import InputError
from nullpaper.workflow.code_identity import loads, plain
from nullpaper.workflow.outputs import SHORT, read_code
from nullpaper.workflow.planning import Plan, Source, plan_run, read_source

__all__ = ["GONE", "STALE", "UNJUDGED", "WELL", "Judgement", "Runs", "unfinished"]

WELL, STALE, GONE, UNJUDGED = "well", "stale", "no longer made", "not judged"
SHOWN = 4  # changed modules or parameters that one line names


class Judgement(NamedTuple):
    """One of the four words above, why, and the command that mends it (empty if there is none)."""

    word: str
    reason: str = ""
    remedy: str = ""


@dataclass
class Runs:
    """Judges entries of a manifest; each notebook is read once, each run planned once."""

    root: Path
    _code: dict[str, dict[str, str]] = field(init=False, repr=False)
    _sources: dict[str, Source | InputError | None] = field(init=False, repr=False, default_factory=dict)
    _judged: dict[tuple[Any, ...], Judgement] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._code = read_code(self.root)

    def judge(self, entry: Mapping[str, Any]) -> Judgement:
        """Whether an entry's run is current, by the run alone."""
        key = (entry.get("notebook"), entry.get("label"), entry.get("profile"), entry.get("run"))
        if key not in self._judged:
            self._judged[key] = self._judge(entry)
        return self._judged[key]

    def remedy(self, entry: Mapping[str, Any]) -> str:
        """The command that makes the files of an entry anew."""
        name, profile = str(entry.get("notebook")), entry.get("profile")
        if self._is_of_paper(entry):
            return f"make figures PROFILE={profile}"
        source = self._source(name)
        defaults = {key: known.default for key, known in source.known.items()} if isinstance(source, Source) else {}
        given = {key: value for key, value in entry.get("parameters", {}).items() if _differs(key, value, defaults)}
        words = ["nullpaper", "run", Path(name).stem, "--profile", str(profile)]
        words += ["--label", str(entry["label"])] if entry.get("label", profile) != profile else []
        words += [word for key, value in given.items() if key != "profile" for word in ("-p", key, _as_typed(value))]
        return shlex.join(words)

    def _judge(self, entry: Mapping[str, Any]) -> Judgement:
        name, made = entry.get("notebook"), str(entry.get("versions", {}).get("python", "an unknown version"))
        here = platform.python_version()
        if name is None:
            return Judgement(UNJUDGED, "drawn in an interactive session")
        if made.split(".")[:2] != here.split(".")[:2]:  # syntax trees, and so identities, differ between them
            return Judgement(UNJUDGED, f"made under Python {made}, this is {here}")
        source = self._source(name)
        if source is None and self._is_of_paper(entry):
            return Judgement(GONE, f"there is no notebooks/{name} any more")
        if source is None:
            return Judgement(UNJUDGED, f"its notebook {name} is not in notebooks/")
        try:
            if isinstance(source, InputError):
                raise source
            plan = self._plan(source, entry)
        except InputError as error:
            return Judgement(STALE, f"its run cannot be made any more ({error})", self.remedy(entry))
        if plan.context.run == entry.get("run"):
            return Judgement(WELL)
        if absent := self._only_absent_data(plan, entry):
            return Judgement(UNJUDGED, f"its data {', '.join(absent)} is not on this machine")
        return Judgement(STALE, self._reason(plan, entry), self.remedy(entry))

    def _source(self, name: str) -> Source | InputError | None:
        """The notebook as it stands; what is wrong with it; or None if the project has none of this name."""
        if name not in self._sources:
            path = self.root / "notebooks" / name
            try:
                self._sources[name] = read_source(path) if path.is_file() else None
            except InputError as error:
                self._sources[name] = error
        return self._sources[name]

    def _is_of_paper(self, entry: Mapping[str, Any]) -> bool:
        """Whether ``nullpaper paper`` makes it: a numbered notebook under the label of its profile."""
        numbered = str(entry.get("notebook"))[:1].isdigit()
        return numbered and entry.get("label", entry.get("profile")) == entry.get("profile")

    def _plan(self, source: Source, entry: Mapping[str, Any]) -> Plan:
        """The run that should have made an entry: with the notebook's own parameters under a profile's name."""
        given = {} if self._is_of_paper(entry) else entry.get("parameters", {})
        return plan_run(source, given, profile=str(entry.get("profile")), label=entry.get("label"))

    def _only_absent_data(self, plan: Plan, entry: Mapping[str, Any]) -> list[str]:
        """The data of a run that are not on this machine, if nothing else is known to differ."""
        before, now = entry.get("data", {}), plan.context
        absent = [name for name in before if name not in now.data]
        changed = _changes({name: before[name] for name in before if name not in absent}, now.data)
        changed += _changes(entry.get("parameters", {}), now.parameters)
        same = not changed and self._code.get(str(entry.get("run"))) == _short(plan.source.code)
        return absent if same else []

    def _reason(self, plan: Plan, entry: Mapping[str, Any]) -> str:
        """What differs between a run and the one of today, as far as its stamp and figures/code.json say."""
        now, code = plan.context, self._code.get(str(entry.get("run")))
        before = plain(entry.get("parameters", {}))
        parts = [_parameter(name, before, plain(now.parameters)) for name in _changes(before, now.parameters)]
        modules = _changes(code, _short(plan.source.code)) if code is not None else []
        parts += [f"{name} changed" for name in modules]
        parts += [f"data {name} changed" for name in _changes(entry.get("data", now.data), now.data)]
        if len(parts) > SHOWN:
            parts = [*parts[:SHOWN], f"and {len(parts) - SHOWN} more"]
        if not parts:
            what = f"the text of {now.notebook}" if code is not None else f"{now.notebook}, or code or data behind it,"
            parts = [f"{what} changed"]
        return "; ".join(parts)


def _short(code: Mapping[str, str]) -> dict[str, str]:
    return {module: digest[:SHORT] for module, digest in code.items()}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names whose values differ, or that only one side has."""
    return sorted(name for name in {*before, *now} if _differs(name, before.get(name), now) or name not in before)


def _differs(name: str, value: Any, others: Mapping[str, Any]) -> bool:
    return name not in others or plain(others[name]) != plain(value)


def _parameter(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name not in before or name not in now:
        return f"parameter {name} {'is new' if name in now else 'is gone'}"
    return f"parameter {name} was {_as_typed(before[name])}, is {_as_typed(now[name])}"


def _as_typed(value: Any) -> str:
    """A parameter's value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value) if value is not None else "None"


def unfinished(root: Path, entry: Mapping[str, Any], current: set[str]) -> bool:
    """Whether the notebook was begun here but has not finished as one of the ``current`` runs since."""
    stem, folder = Path(str(entry.get("notebook"))).stem, root / "build" / str(entry.get("label"))
    if not (folder / f".{stem}.lock").is_file():
        return False  # run elsewhere, or in a fresh clone: the manifest is all there is to go by
    try:
        return loads((folder / f"{stem}.run.json").read_bytes())["run"] not in current
    except (OSError, ValueError, KeyError, TypeError):
        return True
