"""Figures and tables go to the folder of their run and say where they come from; the same picture is the same file."""

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
from nullpaper.workflow.figures import curve, intervals, read_stamp, save_figure, save_table
from nullpaper.workflow.provenance import RunContext
from nullpaper.workflow.reference import read_manifest

PARAMETERS = {"eps": 0.1, "names": ["a", 'quo"te', "(back\\slash) ü $HOME"], "limit": float("inf")}
CONTEXT = RunContext("01_x-abc", "01_x", "smoke", "smoke", PARAMETERS, {"cifar10": "12ab"}, {"w.safetensors": "34cd"})


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    enter(monkeypatch, replace(CONTEXT, out=str(tmp_path / "build" / "smoke")))
    return tmp_path / "build" / "smoke"


def enter(monkeypatch: pytest.MonkeyPatch, context: RunContext) -> None:
    for name, value in context.environment().items():
        monkeypatch.setenv(name, value)


def drawing() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 3, 2])
    return figure


def test_every_file_says_where_it_comes_from(out: Path) -> None:
    files = save_figure(drawing(), "line") + save_table(pd.DataFrame({"x": [1.5]}), "numbers")
    names = [file.relative_to(out).as_posix() for file in files]
    assert names == ["figures/line.pdf", "figures/line.png", "results/numbers.csv", "latex/numbers.tex"]
    for file in files:
        facts = read_stamp(file)
        assert (facts["notebook"], facts["parameters"]) == ("01_x", PARAMETERS)
        assert facts["data"] == CONTEXT.data and facts["weights"] == CONTEXT.weights and facts["device"]
    assert "commit" not in read_stamp(files[0])
    assert sorted(read_manifest(out)["01_x"]["files"]) == sorted(names)


def test_without_a_run_they_go_to_the_interactive_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    monkeypatch.delenv("NULLPAPER_RUN", raising=False)
    assert save_figure(drawing(), "line")[0] == tmp_path / "build" / "interactive" / "figures" / "line.pdf"


def test_the_same_picture_is_the_same_file_in_another_folder(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = [sha256(file) for file in save_figure(drawing(), "line")]
    enter(monkeypatch, replace(CONTEXT, run="01_x-def", label="mine", out=str(tmp_path / "elsewhere")))
    assert [sha256(file) for file in save_figure(drawing(), "line")] == first
    other = drawing()
    other.axes[0].plot([2, 2])
    assert [sha256(file) for file in save_figure(other, "line")] != first


def test_png_has_200_dots_an_inch(out: Path) -> None:
    with Image.open(save_figure(drawing(), "line")[1]) as image:
        assert image.size == (400, 200)


def test_many_writers_lose_no_entry(out: Path) -> None:
    tables = [(pd.DataFrame({"x": [i]}), f"table_{i}") for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda table: save_table(*table), tables))
    assert len(read_manifest(out)["01_x"]["files"]) == 24


def test_a_table_keeps_all_digits_and_a_named_index(out: Path) -> None:
    plain, indexed = pd.DataFrame({"x": [1 / 3]}), pd.DataFrame({"x": [1]}, index=pd.Index(["a"], name="kind"))
    csv, tex = save_table(plain, "plain", caption="A third.", float_format="%.2f")
    assert pd.read_csv(csv)["x"][0] == 1 / 3 and "0.33" in tex.read_text() and "A third." in tex.read_text()
    assert list(pd.read_csv(save_table(indexed, "indexed")[0]).columns) == ["kind", "x"]


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(out: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no file name: use letters"):
        save_figure(drawing(), name)
    with pytest.raises(InputError, match="is no file name: use letters"):
        save_table(pd.DataFrame(), name)


def test_a_file_of_others_has_no_stamp(tmp_path: Path) -> None:
    plain = tmp_path / "results" / "plain.png"
    plain.parent.mkdir()
    Image.new("RGB", (2, 2)).save(plain)
    with pytest.raises(InputError, match="carries no stamp"):
        read_stamp(plain)
    with pytest.raises(InputError, match="there is no file"):
        read_stamp(tmp_path / "absent.png")


def test_a_curve_has_a_band_and_an_interval_a_line_for_each_source_of_chance() -> None:
    axis = Figure().subplots()
    ends = {"y": [1.0, 2.0], "y_low": [0.5, 1.5], "y_high": [1.5, 2.5]}
    curve(axis, pd.DataFrame({"x": [0, 1], **ends}), "x", "y")
    assert axis.collections[0].get_paths()[0].get_extents().bounds == (0, 0.5, 1, 2)
    axis = Figure().subplots()
    rows = pd.DataFrame({**ends, "n": [3, 1], "images_low": [0.0, 1.0], "images_high": [2.0, 3.0]})
    intervals(axis, rows, value="y")
    spans = [tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2]
    assert spans.count((0.0, 2.0)) == 1 and spans.count((0.5, 1.5)) == 1, "both of three seeds"
    assert spans.count((1.0, 3.0)) == 1 and (1.5, 2.5) not in spans, "a single seed has no interval over seeds"
    axis = Figure().subplots()
    intervals(axis, rows.assign(low=[-1.0, 0.0], high=[4.0, 4.0]), value="y")
    spans = [tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2]
    assert spans[:2] == [(-1.0, 4.0), (1.0, 3.0)], "for new seeds and images at once, or of one model over images"
