"""What a run will be, before it begins: checked parameters, and an identity made of all that decides it.

A run is named by the digest of the notebook's text, its parameters, its profile, the code that it imports, the data and
the weights. Two runs of one name are the same run, whoever starts them and wherever.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullpaper.errors import InputError
from nullpaper.workflow.code_identity import code_identity, identity
from nullpaper.workflow.inputs import Inputs
from nullpaper.workflow.parameters import Parameter, check_parameters, parameters, read_notebook
from nullpaper.workflow.profiles import check_profile
from nullpaper.workflow.provenance import RunContext, commit_of, device_name, project_root, versions

__all__ = ["Plan", "Source", "paper_notebooks", "plan_run", "read_source"]

LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Source:
    """A notebook as it stands now: text, parameters, a digest for each module that it imports, and the commit."""

    notebook: Path
    text: str
    inputs: Inputs
    known: Mapping[str, Parameter]
    code: Mapping[str, str]
    root: Path
    commit: str | None
    dirty: bool

    @property
    def version(self) -> str:
        """16 digits for the notebook's code and all that it imports."""
        return identity(self.code)[:16]


@dataclass(frozen=True)
class Plan:
    """A checked run that has not begun. ``digest``: its identity; ``injected``: what papermill is given."""

    source: Source
    context: RunContext
    digest: str
    injected: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The digits of the identity that name a job's folder."""
        return self.digest[:20]

    @property
    def notebook(self) -> Path:
        return self.source.notebook

    @property
    def root(self) -> Path:
        return self.source.root

    def output(self, suffix: str) -> Path:
        """Where ``nullpaper run`` keeps a file of this run: ``build/<label>/<notebook><suffix>``."""
        return self.root / "build" / str(self.context.label) / f"{self.notebook.stem}{suffix}"

    def record(self, begun: float, seconds: float) -> dict[str, Any]:
        """What is kept of this run beside its files; ``begun`` is a Unix time."""
        context = self.context
        names = ("run", "notebook", "profile", "label", "parameters", "commit", "dirty", "data")
        facts = {name: getattr(context, name) for name in names}
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun))
        return facts | {"versions": versions(), "device": device_name(), "seconds": seconds, "started": started}

    def into(self, folder: Path) -> Plan:
        """The same run with its figures and tables in ``folder``."""
        return replace(self, context=replace(self.context, out=str(folder)))


def paper_notebooks() -> list[Path]:
    """The numbered notebooks of the project, in order: those that make the paper.

    Raises:
        InputError: there are none.
    """
    folder = project_root() / "notebooks"
    if not (notebooks := sorted(folder.glob("[0-9]*.py"))):
        raise InputError(f"{folder} holds no numbered notebook: run this inside the repository, or set NULLPAPER_ROOT")
    return notebooks


def read_source(notebook: Path) -> Source:
    """Read a notebook once for any number of plans.

    Raises:
        InputError: an unreadable notebook, or a parameter whose default is not a constant.
    """
    root, text = project_root(), read_notebook(notebook)
    code = code_identity([notebook])
    return Source(notebook, text, Inputs(text, root), parameters(notebook), code, root, *commit_of(root))


def plan_run(
    source: Source | Path,
    given: Mapping[str, Any],
    *,
    profile: str,
    label: str | None = None,
    recompute_before: float | None = None,
) -> Plan:
    """The run of a notebook with these parameters; nothing is executed.

    Args:
        given: parameters by name; strings are converted to the type that the notebook declares.
        label: names the folders of figures and tables; None: the profile.
        recompute_before: a Unix time: stored results begun earlier are computed anew.

    Raises:
        InputError: unknown or mistyped parameters, profile or label, or an unreadable notebook.
    """
    source = source if isinstance(source, Source) else read_source(source)
    check_profile(profile)
    label = label or profile
    if not LABEL.fullmatch(label):
        raise InputError(f"label {label!r} is no folder name: use letters, digits, '_', '-' and '.'")
    checked = check_parameters(source.notebook, given, source.known)
    if (other := checked.get("profile", profile)) != profile:
        raise InputError(f"the parameter profile is '{other}' but the run's profile is '{profile}': give one of them")
    injected = checked | ({"profile": profile} if "profile" in source.known else {})
    values = {name: parameter.default for name, parameter in source.known.items()} | injected
    data = source.inputs.digests(values)
    digest = identity(source.text, values, profile, label, source.code, data)
    run = f"{source.notebook.stem}-{digest[:12]}"
    code = {module: digest[:16] for module, digest in source.code.items()}
    context = RunContext(
        run,
        source.notebook.name,
        profile,
        values,
        source.commit,
        source.dirty,
        recompute_before,
        label,
        data,
        code=code,
    )
    return Plan(source, context, digest, injected)
