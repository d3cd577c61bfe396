"""Figures and tables say where they come from, and the manifest knows them all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.workflow.figures import curve, files_of, manifest, read_stamp, save_figure, save_table
from nullpaper.workflow.outputs import confirmation, read_code, read_entries, write_outputs
from nullpaper.workflow.provenance import RunContext

PARAMETERS = {"eps": 0.1, "images": None, "names": ["a", 'quo"te', "(back\\slash) ü $HOME"], "limit": float("inf")}
CONTEXT = RunContext("01_x-abc", "01_x.py", "smoke", PARAMETERS, commit="f" * 40, dirty=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    enter(monkeypatch, CONTEXT)
    return tmp_path


def enter(monkeypatch: pytest.MonkeyPatch, context: RunContext) -> None:
    for name, value in context.environment().items():
        monkeypatch.setenv(name, value)


def drawing() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 3, 2])
    return figure


def test_stamp_round_trips_in_every_file(root: Path) -> None:
    files = save_figure(drawing(), "curve", sources=["key1"])
    files += save_table(pd.DataFrame({"x": [1.5]}), "numbers")
    assert [file.relative_to(root).as_posix() for file in files] == [
        "figures/smoke/curve.pdf",
        "figures/smoke/curve.png",
        "results/smoke/numbers.csv",
        "results/smoke/numbers.tex",
    ]
    for file in files:
        stamp = read_stamp(file)
        assert (stamp["run"], stamp["notebook"], stamp["profile"]) == ("01_x-abc", "01_x.py", "smoke")
        assert stamp["commit"] == "f" * 40 and stamp["dirty"] is True
        assert stamp["parameters"] == PARAMETERS
        assert {"python", "torch", "timm", "nullpaper"} <= stamp["versions"].keys()
    assert read_stamp(files[0])["sources"] == ["key1"]


def test_same_inputs_give_the_same_bytes(root: Path) -> None:
    files = save_figure(drawing(), "curve")
    assert b"CreationDate" not in files[0].read_bytes()
    first = [sha256(file) for file in files]
    assert [sha256(file) for file in save_figure(drawing(), "curve")] == first


def test_png_has_200_dots_an_inch(root: Path) -> None:
    with Image.open(save_figure(drawing(), "curve")[1]) as image:
        assert image.size == (400, 200)


def test_manifest_lists_what_is_there(root: Path) -> None:
    kept, gone = save_figure(drawing(), "curve")
    gone.unlink()
    save_table(pd.DataFrame({"x": [1]}), "numbers")
    listed = manifest(root)
    assert list(listed) == ["figures/smoke/curve.pdf", "results/smoke/numbers.csv", "results/smoke/numbers.tex"]
    entry = listed["figures/smoke/curve.pdf"]
    assert entry["sha256"] == sha256(kept) and entry["run"] == "01_x-abc" and entry["kind"] == "figure"
    assert entry["parameters"]["names"] == PARAMETERS["names"]


def test_a_vanished_file_is_remembered_until_its_notebook_runs_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = save_figure(drawing(), "curve")[1]
    gone.unlink()
    for context, remembered in (
        (CONTEXT, True),
        (replace(CONTEXT, run="02_y-abc", notebook="02_y.py"), True),
        (replace(CONTEXT, run="01_x-def"), False),
    ):
        enter(monkeypatch, context)
        save_table(pd.DataFrame({"x": [1]}), context.run)
        assert ("figures/smoke/curve.png" in read_entries(root)) is remembered


def test_what_another_run_draws_just_so_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> list[Path]:
        return [*save_figure(drawing(), "curve"), *save_table(pd.DataFrame({"x": [1 / 3]}), "numbers")]

    def state() -> list[tuple[int, str]]:
        return [(file.stat().st_mtime_ns, sha256(file)) for file in files]

    files = make()
    names = [file.relative_to(root).as_posix() for file in files]
    before, later = state(), replace(CONTEXT, run="01_x-def", commit="e" * 40)
    enter(monkeypatch, later)
    make()
    assert state() == before and files_of(later.run, root) == names and files_of(CONTEXT.run, root) == []
    entry = manifest(root)[names[0]]
    assert entry["commit"] == "e" * 40 and entry["drawn"]["run"] == read_stamp(files[0])["run"] == CONTEXT.run
    later_still = replace(later, run="01_x-123")
    enter(monkeypatch, later_still)
    make()
    assert state() == before and confirmation(files[1], read_stamp(files[1]))["run"] == later_still.run
    enter(monkeypatch, CONTEXT)
    make()
    assert state() == before and not any("drawn" in entry for entry in manifest(root).values())
    assert confirmation(files[1], read_stamp(files[1])) is None
    for number, inputs in enumerate(({"parameters": {"eps": 0.2}}, {"data": {"cifar10": "0123"}})):
        enter(monkeypatch, replace(CONTEXT, run=f"01_x-{number}", **inputs))
        make()
        assert all(inputs.items() <= read_stamp(file).items() for file in files), "a stamp tells of these truly"
    assert state()[2] == before[2], "a CSV file has no stamp"


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_a_file_that_was_edited_or_looks_different_is_made_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, changed: int
) -> None:
    files = [*save_figure(drawing(), "curve"), *save_table(pd.DataFrame({"x": [1 / 3]}), "numbers")]
    before = [sha256(file) for file in files]
    files[changed].write_bytes(files[changed].read_bytes()[:-20])
    enter(monkeypatch, replace(CONTEXT, run="01_x-def"))
    figure = drawing()
    save_figure(figure, "curve")
    save_table(pd.DataFrame({"x": [1 / 3]}), "numbers")
    anew = [now != then for now, then in zip(map(sha256, files), before, strict=True)]
    assert anew == [index == changed and index != 2 for index in range(4)], "a CSV file has no stamp that could differ"
    assert manifest(root)[files[changed].relative_to(root).as_posix()]["sha256"] == sha256(files[changed])
    figure.axes[0].lines[0].set_linewidth(3)
    save_figure(figure, "curve")
    save_table(pd.DataFrame({"x": [1 / 3 + 1e-9]}), "numbers")
    now = [sha256(file) for file in files]
    assert all(one != other for one, other in zip(now[:3], before, strict=False)), "all but the rounded LaTeX"
    assert now[3] == before[3] or changed == 3


def test_code_of_the_runs_is_kept_beside_the_manifest(root: Path) -> None:
    for run in ("a", "b"):
        stamp = {"run": run, "notebook": "01_x.py", "label": "smoke"}
        for name in ("one.csv", "two.csv")[: 1 if run == "b" else 2]:
            write_outputs(Path("results/smoke"), {name: run.encode()}, stamp, {"module": run * 64})
    assert read_code(root) == {"a": {"module": "a" * 8}, "b": {"module": "b" * 8}}
    write_outputs(Path("results/smoke"), {"two.csv": b"b"}, stamp, {})
    assert list(read_code(root)) == ["b"], "of runs that made some file of the manifest"


def test_manifest_survives_concurrent_writers_and_damage(root: Path) -> None:
    (root / "figures").mkdir()
    (root / "figures" / "manifest.json").write_text("{ damaged")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: save_table(pd.DataFrame({"x": [index]}), f"table{index}"), range(8)))
    assert len(manifest(root)) == 16
    assert [path for path in root.rglob("*.tmp")] == []


def test_interactive_sessions_leave_the_paper_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NULLPAPER_RUN")
    file = save_table(pd.DataFrame({"x": [1]}), "numbers")[0]
    assert file == root / "results" / "interactive" / "numbers.csv" and read_stamp(file)["run"] == "interactive"


def test_table_keeps_digits_in_csv_and_escapes_latex(root: Path) -> None:
    frame = pd.DataFrame({"share_of_pixels": [1 / 3], "model": ["A & B"]}, index=pd.Index(["r_1"], name="row"))
    csv, tex = save_table(frame, "numbers", caption="Shares", float_format="%.2f")
    pd.testing.assert_frame_equal(pd.read_csv(csv, index_col="row"), frame)
    text = tex.read_text()
    assert all(part in text for part in (r"\toprule", r"share\_of\_pixels", r"A \& B", "0.33", r"\caption{Shares}"))


def test_files_without_a_stamp_are_refused(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root / "foreign.png")
    (root / "broken.pdf").write_bytes(b"%PDF-1.4 nothing else")
    (root / "broken.png").write_bytes(b"nothing")
    (root / "notes.txt").write_text("nothing")
    csv = save_table(pd.DataFrame({"x": [1]}), "numbers")[0]
    csv.write_text("x\n2\n")
    for file in (root / "foreign.png", root / "broken.pdf", root / "broken.png", root / "notes.txt", csv):
        with pytest.raises(InputError, match="carries no stamp"):
            read_stamp(file)
    with pytest.raises(InputError, match="no file"):
        read_stamp(root / "absent.png")


@pytest.mark.parametrize("name", ["", "a/b", "../up", "two words"])
def test_names_must_be_file_names(root: Path, name: str) -> None:
    with pytest.raises(InputError, match="no file name"):
        save_figure(drawing(), name)
    assert list(root.iterdir()) == []


def test_unwritable_folder_is_named(root: Path) -> None:
    (root / "figures").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to .*figures/smoke"):
        save_figure(drawing(), "curve")


def test_a_curve_shows_its_interval() -> None:
    axis = Figure().subplots()
    table = pd.DataFrame({"norm": [1.0, 2.0], "match": [0.9, 0.8], "match_low": [0.8, 0.7], "match_high": [1.0, 0.9]})
    curve(axis, table, "norm", "match", label="learned")
    (line,), (band,) = axis.lines, axis.collections
    assert line.get_xydata().tolist() == [[1.0, 0.9], [2.0, 0.8]] and line.get_label() == "learned"
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 0.8), (1.0, 1.0), (2.0, 0.7), (2.0, 0.9)} <= corners
