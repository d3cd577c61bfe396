"""The reference changes only by a finished run, whole; and a reader's numbers are held against it one by one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nullpaper.errors import InputError
from nullpaper.workflow.agreement import agreement
from nullpaper.workflow.comparison import compare
from nullpaper.workflow.figures import save_table
from nullpaper.workflow.provenance import RunContext
from nullpaper.workflow.reference import MANIFEST, finished, promote, read_manifest, record

TABLE = pd.DataFrame(
    {"method": ["a", "b"], "norm": [1.0, 2.0], "norm_low": [0.5, 1.5], "norm_high": [1.5, 2.5], "n": [3, 3]}
).assign(seconds=[1.0, 9.0], share=[0.25, 0.5])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    return tmp_path


def run(root: Path, monkeypatch: pytest.MonkeyPatch, label: str, *, complete: bool = True, **tables: object) -> Path:
    """What a run of notebook 01_x leaves in build/<label>: tables by name, and its entry in the manifest."""
    out = root / "build" / label
    context = RunContext(f"01_x-{label}", "01_x", label, label, {"images": 5}, out=str(out))
    with monkeypatch.context() as patch:
        for name, value in context.environment().items():
            patch.setenv(name, value)
        for name, table in tables.items():
            save_table(table, f"01_{name}")
    if complete:
        record(out, context, code="c" * 16, seconds=2.5)
        assert finished(out, context)
    return out


def contents(root: Path) -> dict[str, bytes]:
    paths = [*root.glob("figures/*"), *root.glob("results/*")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_finished_run_becomes_the_reference_and_what_it_no_longer_makes_goes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(run(root, monkeypatch, "first", one=TABLE, two=TABLE), "01_x")
    assert set(contents(root)) == {"results/01_one.csv", "results/01_two.csv", f"results/{MANIFEST}"}
    promote(run(root, monkeypatch, "second", one=TABLE.assign(norm=7.0)), "01_x")
    assert set(contents(root)) == {"results/01_one.csv", f"results/{MANIFEST}"}
    entry = read_manifest(root / "results")["01_x"]
    assert entry["run"] == "01_x-second" and entry["seconds"] == 2.5 and entry["parameters"] == {"images": 5}
    assert list(entry["files"]) == ["results/01_one.csv"], "LaTeX stays in build"


def test_an_unfinished_or_altered_run_leaves_the_reference_as_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(run(root, monkeypatch, "first", one=TABLE), "01_x")
    before = contents(root)
    with pytest.raises(InputError, match="holds no finished run of 01_x: run it first"):
        promote(run(root, monkeypatch, "half", complete=False, one=TABLE.assign(norm=7.0)), "01_x")
    out = run(root, monkeypatch, "second", one=TABLE.assign(norm=7.0))
    (out / "results" / "01_one.csv").write_text("norm\n8\n")
    with pytest.raises(InputError, match="01_one.csv is edited: run 01_x again"):
        promote(out, "01_x")
    assert contents(root) == before


def test_a_damaged_manifest_is_named(root: Path) -> None:
    (root / "results").mkdir()
    (root / "results" / MANIFEST).write_text('{"01_x": 3}')
    with pytest.raises(InputError, match="is no manifest.*restore it from git"):
        read_manifest(root / "results")


@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({}, []),
        ({"norm": [1.4, 2.0]}, []),  # each in the other's interval
        ({"norm": [1.6, 2.0], "norm_high": [1.7, 2.5]}, [("a", "norm")]),
        ({"norm": [1.4, 2.0], "norm_low": [1.3, 1.5]}, [("a", "norm")]),  # the reference lies outside of ours
        ({"share": [0.2501, 0.5]}, []),  # three digits
        ({"share": [0.26, 0.5]}, [("a", "share")]),
        ({"seconds": [100.0, 1.0], "n": [5, 5]}, []),
    ],
    ids=["equal", "both intervals", "outside theirs", "outside ours", "three digits", "no interval", "times"],
)
def test_numbers_agree_within_both_intervals(changes: dict[str, list[float]], different: list[tuple[str, str]]) -> None:
    numbers = compare(TABLE.assign(**changes), TABLE)
    assert len(numbers) == 4
    assert [*numbers.loc[~numbers["agrees"], ["row", "column"]].itertuples(index=False, name=None)] == different


def test_what_does_not_agree_is_shown_with_both_values(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing could be held" in agreement(run(root, monkeypatch, "cpu", one=TABLE))
    promote(run(root, monkeypatch, "reference", one=TABLE), "01_x")
    told = agreement(run(root, monkeypatch, "cpu", one=TABLE.assign(share=[0.26, 0.5])))
    assert told.startswith("3 of 4 numbers agree with the reference in results/.\nThese do not:")
    assert told.split()[-6:] == ["01_x", "01_one", "a", "share", "0.26", "0.25"]
