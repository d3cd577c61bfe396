"""How far a reader's numbers agree with the reference: computed once, as long as the tables are the same."""

from __future__ import annotations

from pathlib import Path

from nullpaper.files import sha256
from nullpaper.workflow.code_identity import identity
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import read_manifest
from nullpaper.workflow.store import stored


def agreement(out: Path) -> str:
    """How many numbers in the tables of ``out`` agree with those of ``results/`` in the project, and which do not.

    A number with an interval agrees with another when each lies in the other's interval; any two numbers agree when
    they are equal to three significant digits. Words and marks agree when they are equal. Measured times, sample sizes
    and the text of verdicts are left out; so are rows and columns that only one side has.

    Raises:
        InputError: a damaged manifest.
    """
    root = project_root()
    here, reference = read_manifest(out), read_manifest(root / "results")
    tables = [
        (notebook, file)
        for notebook, entry in here.items()
        for file in entry["files"]
        if file.startswith("results/") and (out / file).is_file() and (root / file).is_file()
    ]

    def compute() -> list[str]:
        from nullpaper.workflow.comparison import held_against  # loads pandas

        return held_against(out, root, tables)

    code = sha256(Path(__file__).with_name("comparison.py"))  # which decides no other result
    sums = [(*table, *(sha256(folder / table[1]) for folder in (out, root))) for table in tables]
    first, *rest = stored("agreement", {"tables": identity(sums, code)}, compute).metrics
    both = here.keys() & reference.keys()
    if others := sorted(name for name in both if here[name]["parameters"] != reference[name]["parameters"]):
        rest.insert(0, f"Run with other parameters than the reference: {', '.join(others)}.")
    return "\n".join([first, *rest])
