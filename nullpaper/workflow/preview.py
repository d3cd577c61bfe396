"""What a run would be, said before it begins: where it goes, what it reads, what it took before, and what it plans.

A notebook that knows its work before it does it has a cell tagged ``plan``, after which the name ``plan`` holds it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nullpaper.workflow.parameters import MARK, PARAMETERS, TAGGED, parameters, profile_parameters, read_notebook
from nullpaper.workflow.plan import Plan
from nullpaper.workflow.progress import duration
from nullpaper.workflow.reference import read_manifest, reference_folder
from nullpaper.workflow.runs import up_to_date

PLANNED = re.compile(TAGGED.format("plan"))


def listed(notebook: Path, profile: str) -> list[str]:
    """The parameters of a notebook with their types, their values at a profile, and what they are, a line each."""
    values = profile_parameters(notebook, profile)
    return [
        f"{name}: {one.type} = {values.get(name, one.default)!r}" + f"  # {one.help}" * bool(one.help)
        for name, one in parameters(notebook).items()
    ]


def facts(plan: Plan) -> list[str]:
    """What is known of a run without running anything of it, a line each."""
    name, context = plan.notebook.stem, plan.context
    where = plan.out.relative_to(plan.root)
    lines = [f"{name} would go to {where}" + ", where an equal run is finished" * (up_to_date(plan) is not None)]
    lines += [
        f"  {kind}: {', '.join(named) or 'none'}"
        for kind, named in (("data", context.data), ("weights", context.weights))
    ]
    for folder, word in ((plan.out, "there"), (reference_folder(context.profile), "as the reference")):
        if seconds := read_manifest(folder).get(name, {}).get("seconds"):
            lines.append(f"  it took {duration(seconds)} {word}")
    return lines


def planned(plan: Plan) -> dict[str, Any] | None:
    """The names after the cells up to the one tagged ``plan``, run here with the run's parameters; None without one.

    Raises:
        InputError: what those cells raise.
    """
    cells = MARK.split(read_notebook(plan.notebook))
    last = next((place for place, cell in enumerate(cells) if PLANNED.match(cell)), None)
    if last is None:
        return None
    names: dict[str, Any] = {"__name__": "__main__"}
    for place, cell in enumerate(cells[: last + 1]):
        exec(compile(cell, f"{plan.notebook.name}, cell {place}", "exec"), names)
        if PARAMETERS.match(cell):
            names |= plan.given
    return names
