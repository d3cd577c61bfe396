"""`nullpaper verify` is silent on what is as it was made, and names what is edited, missing or stale."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from nullpaper.cli import main
from nullpaper.workflow.agreement import agreement
from nullpaper.workflow.figures import save_table
from nullpaper.workflow.plan import plan_run
from nullpaper.workflow.reference import promote, read_manifest, record
from nullpaper.workflow.runs import run_notebooks
from nullpaper.workflow.verify import left_to_readers, to_redraw, verify

NOTEBOOK = """# %% [markdown]
# # 01 · A line

# %% tags=["parameters"]
slope: int = 2

# %%
import pandas as pd

from nullpaper.workflow import figures

figure, axis = figures.subplots()
axis.plot([0, slope])
_ = figures.save_figure(figure, "01_line")
_ = figures.save_table(pd.DataFrame({"x": [0, slope]}), "01_points")
rises = {"name": "rises", "papers": "A", "said": "it rises", "where": "01", "value": slope, "p": 0.01, "measured": ""}
_ = figures.save_table(pd.DataFrame([rises | {"holds": "holds"}]), "01_verdicts")
print("it rises by", slope)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one notebook has been run, for real, and made the reference."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "01_line.py").write_text(NOTEBOOK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(root))
        (report,) = run_notebooks([root / "notebooks" / "01_line.py"], profile="reference")
        assert report.error is None
        promote(root / "build" / "reference", "01_line")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its files elsewhere, as a fresh clone is."""
    for path in (path for folder in ("notebooks", "figures", "results") for path in (made / folder).rglob("*.*")):
        copy = tmp_path / path.relative_to(made)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    return tmp_path


def words() -> dict[str, str]:
    return {finding.path: finding.word for finding in verify()}


def test_the_verdicts_of_all_notebooks_are_held_to_their_own_tables(root: Path) -> None:
    file = root / "results" / "verdicts.csv"
    verdict = pd.read_csv(file).iloc[0]
    assert (verdict["claim"], verdict["measured"], verdict["holm"], verdict["verdict"]) == (
        "it rises",
        2,
        0.01,
        "holds",
    )
    file.write_text(file.read_text().replace("holds", "does not hold"))
    assert words() == {"results/verdicts.csv": "edited"}
    file.unlink()
    assert words() == {"results/verdicts.csv": "missing"}
    assert CliRunner().invoke(main, ["figures"]).exit_code == 0 and verify() == []


def test_a_fresh_clone_is_clean(root: Path) -> None:
    assert verify() == [] and to_redraw() == []
    done = CliRunner().invoke(main, ["verify"])
    assert done.exit_code == 0 and "All is well." in done.output


def test_edited_missing_and_stale_have_a_remedy_and_an_exit_status(root: Path) -> None:
    (root / "results" / "01_points.csv").write_text("x\n0\n9\n")
    (root / "figures" / "01_line.png").unlink()
    notebook = root / "notebooks" / "01_line.py"
    assert words() == {"results/01_points.csv": "edited", "figures/01_line.png": "missing"}
    notebook.write_text(NOTEBOOK.replace("[0, slope])", "[1, slope])"))
    assert words()["notebooks/01_line.py"] == "stale" and to_redraw() == [notebook]
    done = CliRunner().invoke(main, ["verify"])
    assert done.exit_code == 1 and "git checkout FILE" in done.output


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("slope: int = 2", "slope: int = 3", "parameter slope was 2, is 3"),
        ("slope: int = 2", "slope: int = 2\nother: int = 1", "parameter other was None, is 1"),
        ("axis.plot", "axis.step", "its code, or code that it imports, changed"),
        ("figure, axis", "# %%\nfigure, axis", "01_line.md has not the outputs of its cells"),
    ],
    ids=["default", "new parameter", "code", "new cell"],
)
def test_what_makes_a_notebook_stale(root: Path, before: str, after: str, reason: str) -> None:
    notebook = root / "notebooks" / "01_line.py"
    notebook.write_text(NOTEBOOK.replace(before, after))
    (finding,) = verify()
    assert reason in finding.reason and to_redraw() == [notebook]


def test_a_page_takes_the_text_of_today_without_a_run_but_no_other_output(root: Path) -> None:
    notebook, page = root / "notebooks" / "01_line.py", root / "notebooks" / "rendered" / "01_line.md"
    before = page.read_text()
    assert "it rises by 2" in before and "(../../figures/01_line.png)" in before
    notebook.write_text(NOTEBOOK.replace("A line", "A straight line"))
    assert words() == {"notebooks/rendered/01_line.md": "stale"} and to_redraw() == []
    assert CliRunner().invoke(main, ["figures"]).exit_code == 0 and verify() == []
    assert page.read_text() == before.replace("A line", "A straight line")
    page.write_text(page.read_text().replace("it rises by 2", "it rises by 3"))
    assert words() == {"notebooks/rendered/01_line.md": "edited"} and to_redraw() == [notebook]


def test_a_notebook_without_a_reference_is_missing(root: Path) -> None:
    (root / "notebooks" / "02_new.py").write_text(NOTEBOOK)
    assert words() == {"notebooks/02_new.py": "missing"}


def test_what_an_earlier_run_made_can_be_adopted_with_a_note(root: Path) -> None:
    notebook = root / "notebooks" / "01_line.py"
    notebook.write_text(NOTEBOOK.replace("[0, slope])", "[0, 1 * slope])"))
    assert words() == {"notebooks/01_line.py": "stale"}
    device = read_manifest(root / "results")["01_line"]["device"]
    note = "From an earlier run; a rerun of a part gave equal numbers."
    assert CliRunner().invoke(main, ["verify", "--adopt", "01_line", "--note", note]).exit_code == 0
    entry = read_manifest(root / "results")["01_line"]
    assert verify() == [] and entry["device"] == device and entry["note"].startswith("From an earlier run")


PHOTOGRAPHS = NOTEBOOK.replace(
    "slope: int = 2", 'weights: str = ""\ndata: str = "cifar10"\nroot: str = ""\nslope: int = 2'
)


@pytest.fixture
def with_photographs(root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with a second notebook, whose figures and tables at `photographs` are from files that are gone."""
    notebook, brought = root / "notebooks" / "02_photos.py", tmp_path_factory.mktemp("elsewhere")
    notebook.write_text(PHOTOGRAPHS)
    profiles = "02_photos: {photographs: {data: imagenet, slope: 5}}"
    notebook.with_name("profiles.yaml").write_text(profiles)
    (brought / "photos" / "val").mkdir(parents=True)
    (brought / "net.safetensors").write_text("weights")
    given = {"weights": str(brought / "net.safetensors"), "root": str(brought / "photos")}
    plan = plan_run(notebook, given, profile="photographs")
    assert plan.out == root / "build" / "photographs", "what is left to the reader makes no other run"
    with monkeypatch.context() as patch:
        for name, value in plan.into(plan.out).context.environment().items():
            patch.setenv(name, value)
        save_table(pd.DataFrame({"point": ["a", "b"], "x": [0.0, 5.5]}), "02_points")
    record(plan.out, plan.context, code=plan.code, seconds=1.0)
    promote(plan.out, "02_photos")
    assert str(brought) not in (root / "results" / "photographs" / "manifest.json").read_text()
    (brought / "photos" / "val").rmdir()
    (brought / "net.safetensors").unlink()
    return root


def at_photographs() -> list[str]:
    return [f"{finding.path} {finding.reason}" for finding in verify() if finding.profile == "photographs"]


def test_a_reference_on_photographs_is_clean_without_them_and_stale_when_the_code_changed(
    with_photographs: Path,
) -> None:
    root = with_photographs
    assert words() == {"notebooks/02_photos.py": "missing"} and at_photographs() == [], "in the first reference alone"
    assert (root / "results" / "photographs" / "02_points.csv").is_file() and left_to_readers() == ""
    entry = read_manifest(root / "results" / "photographs")["02_photos"]
    assert entry["parameters"] == {"weights": "net.safetensors", "data": "imagenet", "root": "photos", "slope": 5}
    assert entry["data"].keys() == {"imagenet"} and entry["weights"].keys() == {"shipped", "weights"}
    notebook = root / "notebooks" / "02_photos.py"
    notebook.write_text(PHOTOGRAPHS.replace("axis.plot", "axis.step"))
    assert at_photographs() == ["notebooks/02_photos.py its code, or code that it imports, changed at photographs"]
    assert to_redraw("photographs") == [notebook]
    assert "`nullpaper figures --profile photographs -p weights FILE -p root FOLDER 02_photos`" in left_to_readers()
    done = CliRunner().invoke(main, ["verify", "--adopt", "02_photos", "--profile", "photographs"])
    adopted = read_manifest(root / "results" / "photographs")["02_photos"]
    assert done.exit_code == 1 and at_photographs() == [] and adopted["run"] != entry["run"]
    assert [adopted[part] for part in ("parameters", "data", "weights")] == [
        entry[part] for part in ("parameters", "data", "weights")
    ]
    notebook.write_text(PHOTOGRAPHS)
    assert CliRunner().invoke(main, ["verify", "--adopt", "02_photos", "--profile", "photographs"]).exit_code == 1
    assert read_manifest(root / "results" / "photographs")["02_photos"]["run"] == entry["run"], "the run of its files"
    (root / "results" / "photographs" / "manifest.json").unlink()
    assert at_photographs() == [] and to_redraw("photographs") == [notebook], "what was never drawn is no fault"


def test_a_readers_photographs_are_held_against_their_own_reference(with_photographs: Path) -> None:
    out = with_photographs / "build" / "photographs"
    told = agreement(out, "photographs")
    assert told.startswith("2 of 2 numbers agree with the reference in results/photographs/.")
    assert "No table here has a counterpart in results/:" in agreement(out)
    refused = CliRunner().invoke(main, ["figures", "--profile", "photographs", "-p", "slope", "3"])
    assert refused.exit_code == 2 and "slope" in refused.output
    assert CliRunner().invoke(main, ["figures", "--profile", "smoke"]).exit_code == 2
