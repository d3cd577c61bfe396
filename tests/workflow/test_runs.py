"""Running notebooks for real: parameters checked first, outputs in place, failures kept, nothing repeated in vain."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256
from nullpaper.workflow.figures import read_stamp
from nullpaper.workflow.parameters import check_parameters, parameters
from nullpaper.workflow.planning import plan_run
from nullpaper.workflow.runs import RunReport, paper, run_notebook, summary

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests" / "notebooks" / "00_tiny.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project of two notebooks, one of which fails."""
    root = tmp_path_factory.mktemp("pro ject")
    shutil.copytree(TINY.parent, root / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(root))
        patch.setenv("PYTHONPATH", path)
        patch.delenv("NULLPAPER_RUN", raising=False)
        yield root


@pytest.fixture(scope="module")
def reports(project: Path) -> list[RunReport]:
    return paper("smoke", progress=False)


def run_tiny(project: Path, **options: object) -> RunReport:
    return run_notebook(project / "notebooks" / "00_tiny.py", profile="smoke", progress=False, **options)


def test_parameters_are_read_from_the_tagged_cell() -> None:
    found = parameters(TINY)
    assert list(found) == ["profile", "count", "eps", "names", "label"]
    assert (found["count"].default, found["count"].type) == (None, "int | None")
    assert found["count"].help == "points drawn; None: the profile's"
    assert found["label"].type == "str"


def test_parameters_are_converted() -> None:
    given = {"count": "12", "eps": "1", "names": '["x", "y"]', "label": "7"}
    assert check_parameters(TINY, given) == {"count": 12, "eps": 1.0, "names": ["x", "y"], "label": "7"}
    assert check_parameters(TINY, {"count": "None", "eps": 2}) == {"count": None, "eps": 2.0}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("cuont", "1", "00_tiny.py has no parameter 'cuont'. Did you mean 'count'?.*profile, count, eps, names, label"),
        ("count", "1.5", r"'count' must be int \| None, but '1.5' is not"),
        ("count", True, r"'count' must be int \| None, but True is not"),
        ("eps", "much", "'eps' must be float, but 'much' is not"),
        ("eps", "nan", "'eps' must be float, but 'nan' is not"),
        ("names", "[1]", r"'names' must be list\[str\]"),
        ("names", "a", r"'names' must be list\[str\]"),
        ("label", 3, "'label' must be str, but 3 is not"),
        ("profile", "cpu", "the parameter profile is 'cpu' but the run's profile is 'smoke'"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, sentence: str
) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    with pytest.raises(InputError, match=sentence):
        run_notebook(TINY, {name: value}, profile="smoke")
    assert list(tmp_path.iterdir()) == []


def test_bad_notebooks_are_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no notebook .*00_tyni.py. Did you mean '00_tiny.py'?"):
        run_notebook(TINY.with_name("00_tyni.py"), profile="smoke")
    with pytest.raises(InputError, match="profile 'smok' is unknown. Did you mean 'smoke'?"):
        run_notebook(TINY, profile="smok")
    broken = tmp_path / "broken.py"
    broken.write_text('# %% tags=["parameters"]\nx = 1 +\n')
    with pytest.raises(InputError, match="not valid Python"):
        parameters(broken)
    broken.write_text('# %% tags=["parameters"]\nx = len("ab")\n')
    with pytest.raises(InputError, match="line 2: the default of x must be a constant"):
        parameters(broken)


def test_a_run_makes_notebook_page_figures_and_tables(project: Path, reports: list[RunReport]) -> None:
    report = reports[0]
    assert report.error is None and not report.reused
    assert report.ipynb == project / "build" / "smoke" / "00_tiny.ipynb"
    names = sorted(path.relative_to(project).as_posix() for path in (*report.figures, *report.tables))
    assert names == [
        "figures/smoke/squares.pdf",
        "figures/smoke/squares.png",
        "results/smoke/squares.csv",
        "results/smoke/squares.tex",
    ]
    assert f"seen: {sys.executable} | plain | reused False" in report.ipynb.read_text().replace("\\\\", "\\")
    page = report.html.read_text()
    assert "A tiny notebook" in page and "data:image/png;base64" in page and "require.min.js" not in page
    stamp = read_stamp(report.figures[0])
    assert stamp["run"] == report.run
    assert stamp["parameters"]["profile"] == "smoke" and stamp["parameters"]["eps"] == 0.5
    assert (project / "build" / "store" / "squares" / stamp["sources"][0] / "metrics.json").exists()


def test_a_failing_notebook_keeps_its_traceback_and_stops_nobody(project: Path, reports: list[RunReport]) -> None:
    good, bad = reports
    assert bad.error == "ValueError: a failure on purpose" and good.error is None
    assert bad.ipynb == project / "build" / "smoke" / "01_failing.failed.ipynb"
    assert "Traceback (most recent call last)" in bad.ipynb.read_text()
    left = {path.name for path in bad.ipynb.parent.glob("*01_failing*")} - {".01_failing.lock"}
    assert left == {"01_failing.failed.ipynb"}
    screen = summary(reports)
    assert "build/smoke/00_tiny.html" in screen and "ValueError: a failure on purpose" in screen
    assert "2 notebooks, 1 failed" in screen and "figures/smoke, results/smoke" in screen


def test_a_killed_kernel_is_reported(project: Path) -> None:
    notebook = project / "notebooks" / "01_failing.py"
    report = run_notebook(notebook, {"die": "True"}, profile="smoke", progress=False)
    assert "the kernel died" in report.error and report.ipynb.exists()


def test_an_equal_run_is_skipped_without_heavy_imports(project: Path, reports: list[RunReport]) -> None:
    script = (
        "import sys, pathlib; from nullpaper.workflow.runs import run_notebook\n"
        "report = run_notebook(pathlib.Path(sys.argv[1]), {'eps': '0.5'}, profile='smoke')\n"
        "assert report.reused and len(report.figures) == 2 and report.run == sys.argv[2], report\n"
        "print(sorted({'torch', 'papermill', 'matplotlib', 'pandas', 'jupytext'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(project / "notebooks" / "00_tiny.py"), reports[0].run]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_waiting_runs_say_so_and_reuse(project: Path, reports: list[RunReport]) -> None:
    said: list[str] = []
    found: list[RunReport] = []
    waiting = threading.Event()

    def say(message: str) -> None:
        said.append(message)
        waiting.set()

    thread = threading.Thread(target=lambda: found.append(run_tiny(project, say=say)))
    with locked(project / "build" / "smoke" / ".00_tiny.lock"):
        thread.start()
        assert waiting.wait(30)
    thread.join(30)
    assert said == ["waiting for another run of 00_tiny.py at profile smoke"] and found[0].reused


def test_changed_inputs_and_missing_outputs_are_noticed(
    project: Path, reports: list[RunReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reason for a new run, seen from the plan, so that no kernel has to start."""
    from nullpaper.workflow import runs as runner

    notebook = project / "notebooks" / "00_tiny.py"

    def up_to_date(**given: object) -> bool:
        return runner.up_to_date(plan_run(notebook, given, profile="smoke")) is not None

    assert up_to_date() and not up_to_date(eps=0.25)
    figure, record = project / "figures" / "smoke" / "squares.png", project / "build" / "smoke" / "00_tiny.run.json"
    for file in (figure, record):
        content = file.read_bytes()
        file.write_bytes(content[:-2])
        assert not up_to_date(), f"{file} is cut short"
        file.unlink()
        assert not up_to_date(), f"{file} is gone"
        file.write_bytes(content)
        assert up_to_date()
    text = notebook.read_text()
    notebook.write_text(f"{text}\n# %% [markdown]\n# Another word.\n")
    assert not up_to_date()
    notebook.write_text(text)
    assert up_to_date()


def test_a_label_names_the_folders_and_leaves_the_profiles_alone(project: Path, reports: list[RunReport]) -> None:
    before = {path: sha256(path) for path in (*reports[0].figures, *reports[0].tables)}
    report = run_tiny(project, label="long-1", given={"count": 3})
    assert {path.parent.name for path in (*report.figures, *report.tables, report.ipynb)} == {"long-1"}
    assert read_stamp(report.figures[0])["profile"] == "smoke" and read_stamp(report.figures[0])["label"] == "long-1"
    assert {path: sha256(path) for path in before} == before
    with pytest.raises(InputError, match="label 'a/b' is no folder name"):
        run_tiny(project, label="a/b")


def test_redraw_reuses_results(project: Path, reports: list[RunReport]) -> None:
    before = [sha256(path) for path in reports[0].figures]
    redrawn = run_tiny(project, redraw=True)
    assert not redrawn.reused and "reused True" in redrawn.ipynb.read_text()
    assert [sha256(path) for path in redrawn.figures] == before, "another kernel draws the same bytes"


def test_force_recomputes_and_odd_strings_arrive_unchanged(project: Path, reports: list[RunReport]) -> None:
    label = '$HOME ${PATH} "quoted" \\n ü {x}'
    report = run_tiny(project, given={"label": label}, force=True)
    assert report.error is None and report.run != reports[0].run
    cells = json.loads(report.ipynb.read_text())["cells"]
    printed = "".join(line for cell in cells for output in cell.get("outputs", []) for line in output.get("text", []))
    assert f"| {label} | reused False" in printed
    assert read_stamp(report.figures[0])["parameters"]["label"] == label
    record = json.loads((project / "build" / "smoke" / "00_tiny.run.json").read_text())
    assert record["parameters"]["names"] == ["a", "b"] and record["parameters"]["label"] == label


def test_a_project_without_notebooks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    with pytest.raises(InputError, match="holds no numbered notebook"):
        paper("smoke")


WAITS = """# %%
import os, time
from pathlib import Path
mine, other = Path(r"{folder}") / "{mine}", Path(r"{folder}") / "{other}"
mine.write_text(os.environ.get("OMP_NUM_THREADS", "unset"))
for _ in range(600):
    if other.exists():
        break
    time.sleep(0.1)
assert other.exists()
"""


def test_notebooks_run_side_by_side_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other, so that one after the other both would fail."""
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "notebooks").mkdir()
    for mine, other in (("00_a", "01_b"), ("01_b", "00_a")):
        text = WAITS.format(folder=tmp_path, mine=mine, other=other)
        (tmp_path / "notebooks" / f"{mine}.py").write_text(text)
    reports = paper("smoke", progress=False, jobs=2)
    assert [report.notebook.stem for report in reports] == ["00_a", "01_b"]
    assert [report.error for report in reports] == [None, None]
    threads = {(tmp_path / name).read_text() for name in ("00_a", "01_b")}
    assert len(threads) == 1 and 1 <= int(threads.pop()) <= max(1, (os.cpu_count() or 1) // 2)
    with pytest.raises(InputError, match="jobs=0"):
        paper("smoke", jobs=0)
