"""How far a reader's numbers agree with the reference: computed once, as long as the tables are the same."""

from __future__ import annotations

from pathlib import Path

from nullpaper.files import sha256
from nullpaper.workflow.code_identity import identity
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.reference import kept_as, read_manifest, reference_folder
from nullpaper.workflow.store import stored


def agreement(out: Path, profile: str = "reference") -> str:
    """How many numbers in the tables of ``out``, made at ``profile``, agree with those of its reference; which do not.

    A number with an interval agrees with another when each lies in the other's interval; any two numbers agree when
    they are equal to three significant digits. Words and marks agree when they are equal. Measured times, sample sizes
    and the text of verdicts are left out; so are rows and columns that only one side has.

    Raises:
        InputError: a damaged manifest.
    """
    root = project_root()
    here, folder = read_manifest(out), reference_folder(profile)
    reference = read_manifest(folder)
    pairs = [
        (notebook, out / file, root / kept_as(file, profile))
        for notebook, entry in here.items()
        for file in entry["files"]
        if file.startswith("results/")
    ]
    tables = [(notebook, *paths) for notebook, *paths in pairs if all(path.is_file() for path in paths)]

    def compute() -> list[str]:
        from nullpaper.workflow.comparison import held_against  # loads pandas

        return held_against(tables, f"{folder.relative_to(root).as_posix()}/")

    code = sha256(Path(__file__).with_name("comparison.py"))  # which decides no other result
    sums = [(notebook, one.stem, sha256(one), sha256(other)) for notebook, one, other in tables]
    first, *rest = stored("agreement", {"tables": identity(sums, code)}, compute).metrics
    both = here.keys() & reference.keys()
    if others := sorted(name for name in both if here[name]["parameters"] != reference[name]["parameters"]):
        rest.insert(0, f"Run with other parameters than the reference: {', '.join(others)}.")
    return "\n".join([first, *rest])
