"""Running notebooks for real: outputs in place, failures kept, nothing repeated in vain, nothing left after Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from processes import heed_interrupts

from nullpaper.cli import main
from nullpaper.errors import InputError
from nullpaper.files import locked, sha256
from nullpaper.workflow import kernels
from nullpaper.workflow.figures import read_stamp
from nullpaper.workflow.plan import paper_notebooks, plan_run
from nullpaper.workflow.progress import Progress, seconds
from nullpaper.workflow.reference import entry_of, read_manifest
from nullpaper.workflow.runs import RunReport, _in_order, run_notebooks, up_to_date

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests" / "tiny"
DIES = "raise SystemExit('the start-up file ran')"
HOSTILE = {
    "home/profile_default/startup/00_mine.py": DIES,
    "home/profile_default/ipython_config.py": f"get_config().InteractiveShellApp.exec_lines = [{DIES!r}]",
    "home/profile_default/ipython_kernel_config.py": "get_config().InlineBackend.figure_formats = ['svg']",
    "home/jupyter_config.py": f"get_config().InteractiveShellApp.exec_lines = [{DIES!r}]",
    "home/start.py": DIES,
    "home/matplotlibrc": "savefig.dpi: 7\n",
    "matplotlibrc": "savefig.bbox: tight\ntext.usetex: True\n",  # of the folder that the kernel works in
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project of two notebooks, one of which fails, for a user whose own settings would end or change every run."""
    root = tmp_path_factory.mktemp("pro ject")
    shutil.copytree(TINY, root / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "home" / "profile_default" / "startup").mkdir(parents=True)
    for name, text in HOSTILE.items():
        (root / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(root))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("IPYTHONDIR", str(root / "home"))
        patch.setenv("MATPLOTLIBRC", str(root / "home"))
        patch.setenv("MPLBACKEND", "module://no.such.backend")
        patch.setenv("PYTHONSTARTUP", str(root / "home" / "start.py"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(root / "home"))
        patch.delenv("NULLPAPER_RUN", raising=False)
        yield root


@pytest.fixture(scope="module")
def reports(project: Path) -> list[RunReport]:
    return run_notebooks(paper_notebooks(), profile="smoke")


def run_tiny(project: Path, given: dict[str, object] | None = None, **options: object) -> RunReport:
    return run_notebooks([project / "notebooks" / "00_tiny.py"], given, profile="smoke", **options)[0]


def printed(report: RunReport) -> str:
    cells = json.loads(report.ipynb.read_text())["cells"]
    return "".join(line for cell in cells for output in cell.get("outputs", []) for line in output.get("text", []))


def test_a_run_makes_notebook_page_figures_and_tables(project: Path, reports: list[RunReport]) -> None:
    report, out = reports[0], project / "build" / "smoke"
    assert report.error is None and not report.reused
    assert (report.out, report.ipynb) == (out, out / "00_tiny.ipynb")
    names = sorted(path.relative_to(out).as_posix() for path in (*report.figures, *report.tables))
    assert names == ["figures/squares.pdf", "figures/squares.png", "results/squares.csv"]
    assert f"seen: {sys.executable} | plain | reused False" in printed(report)
    page = (out / "00_tiny.html").read_text()
    assert "A tiny notebook" in page and "data:image/png;base64" in page and "require.min.js" not in page
    with Image.open(out / "figures" / "squares.png") as image:
        assert image.size == (1260, 567), "no matplotlibrc changes a figure"
    assert read_stamp(report.figures[0])["parameters"] == {
        "count": 3,
        "eps": 0.5,
        "names": ["a", "b"],
        "label": "plain",
    }
    entry = read_manifest(out)["00_tiny"]
    assert entry["run"].startswith("00_tiny-") and entry["profile"] == "smoke" and entry["parameters"]["count"] == 3
    assert entry_of(report.ipynb)["run"] == entry["run"], "nullpaper show finds it"
    assert entry["seconds"] > 0 and len(entry["code"]) == 16 and set(names) <= entry["files"].keys()
    assert not (project / "figures").exists() and not (project / "results").exists(), "the reference is not a run's"


def test_a_failing_notebook_keeps_its_traceback_and_stops_nobody(project: Path, reports: list[RunReport]) -> None:
    good, bad = reports
    assert bad.error == "ValueError: a failure on purpose" and good.error is None
    assert bad.ipynb == project / "build" / "smoke" / "01_failing.failed.ipynb"
    assert "Traceback (most recent call last)" in bad.ipynb.read_text()
    left = {path.name for path in bad.ipynb.parent.glob("*01_failing*")} - {".01_failing.lock"}
    assert left == {"01_failing.failed.ipynb"} and "01_failing" not in read_manifest(bad.out)
    assert "build/smoke/00_tiny.html" in str(good) and "ValueError: a failure on purpose" in str(bad)


def test_a_failed_run_replaces_nothing(project: Path) -> None:
    notebooks, options = [project / "notebooks" / "01_failing.py"], {"profile": "smoke", "label": "mixed"}
    (good,) = run_notebooks(notebooks, {"fail": "false"}, **options)
    before = {path: sha256(path) for path in good.out.iterdir() if path.is_file()}
    (bad,) = run_notebooks(notebooks, {"die": "true"}, **options)
    assert good.error is None and "the kernel died" in bad.error and bad.ipynb.exists()
    assert {path: sha256(path) for path in before} == before
    assert run_notebooks(notebooks, {"fail": False}, **options)[0].reused


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        (("/nowhere/python",), "No such file or directory: '/nowhere/python'"),
        ((sys.executable, "-c", "raise ImportError('no zmq here')"), "ImportError: no zmq here"),
    ],
)
def test_a_kernel_that_does_not_start_is_one_sentence_and_stops_nobody(
    project: Path, launcher: tuple[str], reason: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "LAUNCHER", launcher)
    reports = run_notebooks(paper_notebooks(), profile="smoke", label="unstarted", jobs=1)
    for report in reports:
        assert report.error.startswith("the kernel does not start (") and f"{reason}): mend that" in report.error
        assert report.ipynb.exists()
    assert len(capfd.readouterr().err.splitlines()) == len(reports) == 2, "a line a notebook, and no traceback"


def test_an_equal_run_is_skipped_without_heavy_imports(project: Path, reports: list[RunReport]) -> None:
    script = (
        "import sys, pathlib; from nullpaper.workflow.runs import run_notebooks\n"
        "(report,) = run_notebooks([pathlib.Path(sys.argv[1])], {'eps': '0.5'}, profile='smoke')\n"
        "assert report.reused and len(report.figures) == 2, report\n"
        "print(sorted({'torch', 'matplotlib', 'nbconvert', 'numpy', 'pandas'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(project / "notebooks" / "00_tiny.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_waiting_runs_say_so_and_reuse(project: Path, reports: list[RunReport]) -> None:
    script = (
        "import sys, pathlib; from nullpaper.workflow.runs import run_notebooks\n"
        "print(run_notebooks([pathlib.Path(sys.argv[1])], profile='smoke')[0].reused)"
    )
    command = [sys.executable, "-c", script, str(project / "notebooks" / "00_tiny.py")]
    with locked(project / "build" / "smoke" / ".00_tiny.lock"):
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr.readline() == f"waiting for another run of 00_tiny in {project / 'build' / 'smoke'}\n"
    out, rest = waiting.communicate(timeout=60)
    assert out.strip() == "True" and rest.startswith("00_tiny ") and rest.endswith("00_tiny.html (1 of 1)\n")


def test_changed_inputs_and_missing_outputs_are_noticed(project: Path, reports: list[RunReport]) -> None:
    """Each reason for a new run, seen from the plan, so that no kernel has to start."""
    notebook = project / "notebooks" / "00_tiny.py"

    def is_up_to_date(**given: object) -> bool:
        return up_to_date(plan_run(notebook, given, profile="smoke", label="smoke")) is not None

    assert is_up_to_date() and not is_up_to_date(eps=0.25)
    for file in (reports[0].figures[0], reports[0].tables[0], reports[0].ipynb, reports[0].out / "manifest.json"):
        content = file.read_bytes()
        file.unlink()
        assert not is_up_to_date(), f"{file} is gone"
        file.write_bytes(content)
        assert is_up_to_date()
    text = notebook.read_text()
    notebook.write_text(f"{text}\n# %% [markdown]\n# Another word.\n")
    assert not is_up_to_date(), "the page shows the old prose"
    notebook.write_text(text)
    assert is_up_to_date()


def test_other_parameters_go_to_a_folder_of_their_own(project: Path, reports: list[RunReport]) -> None:
    before = {path: sha256(path) for path in reports[0].out.rglob("*") if path.is_file()}
    report = run_tiny(project, {"count": 5})
    assert report.out == project / "build" / "00_tiny-count=5-smoke"
    assert {path: sha256(path) for path in before} == before


@pytest.mark.long
def test_odd_strings_arrive_unchanged_and_force_recomputes(project: Path, reports: list[RunReport]) -> None:
    label = '$HOME ${PATH} "quoted" \\n ü {x}'
    report = run_tiny(project, {"label": label}, label="odd")
    assert report.error is None and f"| {label} | reused True" in printed(report)
    assert read_stamp(report.figures[0])["parameters"]["label"] == label
    forced = run_tiny(project, {"label": label}, label="odd", force=True)
    assert not forced.reused and f"| {label} | reused False" in printed(forced)
    assert [sha256(path) for path in forced.figures] == [sha256(path) for path in report.figures], "the same bytes"


MEETS = """# %%
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
SLEEPS = """# %%
import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(r"{folder}", "{mine}").write_text(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)
"""


def make_pair(root: Path, text: str) -> None:
    (root / "notebooks").mkdir()
    for mine, other in (("00_a", "01_b"), ("01_b", "00_a")):
        (root / "notebooks" / f"{mine}.py").write_text(text.format(folder=root, mine=mine, other=other))


def test_notebooks_run_side_by_side_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other, so that one after the other both would fail."""
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    make_pair(tmp_path, MEETS)
    reports = run_notebooks(paper_notebooks(), profile="smoke", jobs=2)
    assert [report.notebook.stem for report in reports] == ["00_a", "01_b"]
    assert [report.error for report in reports] == [None, None]
    threads = {(tmp_path / name).read_text() for name in ("00_a", "01_b")}
    assert len(threads) == 1 and 1 <= int(threads.pop()) <= max(1, (os.cpu_count() or 1) // 2)


def test_an_interrupt_ends_all_kernels_at_once(tmp_path: Path) -> None:
    """Ctrl-C on `nullpaper paper`: within 3 seconds no kernel and no process that one started is left."""
    make_pair(tmp_path, SLEEPS)
    environment = os.environ | {"NULLPAPER_ROOT": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "nullpaper", "paper", "--jobs", "2", "--profile", "smoke"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, preexec_fn=heed_interrupts, **pipes)
    notes, deadline = [tmp_path / "00_a", tmp_path / "01_b"], time.time() + 60
    while not all(note.is_file() and note.read_text() for note in notes):
        assert time.time() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    kernels = [psutil.Process(int(pid)) for note in notes for pid in note.read_text().split()]
    interrupted = time.time()
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(kernels, timeout=3)
    assert alive == []
    out, told = process.communicate(timeout=10)
    assert time.time() - interrupted < 4 and process.returncode == 130
    assert out == "" and told.startswith("Interrupted: ") and told.count("\n") == 1 and "same command goes on" in told
    left = {path.name for path in (tmp_path / "build" / "smoke").iterdir()}
    assert left == {".00_a.lock", ".01_b.lock"}, "nothing looks finished"


KEEPS = """# %%
import time
from pathlib import Path
from nullpaper.workflow.store import stored
folder = Path(r"{folder}")
def compute(trial):
    with (folder / "computed").open("a") as log:
        log.write(trial)
for trial in "{trials}":
    stored("trial", {{"trial": trial}}, lambda: compute(trial))
while "{trials}" and not (folder / "go").exists():
    time.sleep(0.1)
"""


@pytest.mark.long
def test_a_budget_ends_what_runs_and_a_later_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    for name, trials in (("00_quick", ""), ("01_long", "ab"), ("02_never_begun", "c")):
        text = KEEPS.format(folder=tmp_path, trials=trials)
        (tmp_path / "notebooks" / f"{name}.py").write_text(text)

    def paper(*more: str) -> Result:
        return CliRunner().invoke(main, ["paper", "--profile", "smoke", "--jobs", "1", *more])

    computed = tmp_path / "computed"
    for _ in range(10):  # a busy machine may need several calls until the trials are stored
        stopped = paper("--budget", "6s")
        assert stopped.exit_code == 3 and "Out of time after 6s, left are " in stopped.stdout
        if computed.exists() and "02_never_begun; the same command goes on" in stopped.stdout:
            break
    assert "1 notebook, 0 failed." in stopped.stdout and "left are 01_long, 02_never_begun;" in stopped.stdout
    shown = {path.name for path in (tmp_path / "build" / "smoke").iterdir() if not path.name.endswith(".lock")}
    assert shown == {"00_quick.py", "00_quick.ipynb", "00_quick.html", "manifest.json"}, "nothing is half-written"
    assert computed.read_text() == "ab"
    (tmp_path / "go").touch()
    done = paper("--budget", "1h")
    assert done.exit_code == 0 and "3 notebooks, 0 failed." in done.stdout and "up to date" in done.stderr
    assert computed.read_text() == "abc", "a stored trial is not computed again"


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("8m", 480), ("1h30m", 5400), ("2h5s", 7205)])
def test_durations_are_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0m", "8", "8 m", "-8m", "30m1h", "1.5h", "soon"])
def test_what_is_no_duration_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="is no duration: write hours, minutes and seconds"):
        seconds(text)


def test_side_by_side_the_longest_come_first_and_within_a_budget_the_shortest(project: Path, reports: list) -> None:
    tiny, failing = (plan_run(path, profile="smoke", label="order") for path in paper_notebooks())
    finished = plan_run(tiny.notebook, profile="smoke")
    watch = Progress({"00_tiny": 5.0, "01_failing": 60.0}, jobs=2)
    assert _in_order([tiny, failing], watch, 2, None) == [failing, tiny]
    assert _in_order([failing, tiny, finished], watch, 2, 30.0) == [finished, tiny, failing]
    assert _in_order([tiny, failing], watch, 1, None) == [tiny, failing]


def test_the_overall_line_estimates_from_earlier_runs() -> None:
    progress = Progress({"a": 60.0, "b": 120.0, "c": None}, jobs=1)
    assert progress.overall() == "0 of 3, 4 min 30 s left"  # a notebook never run is expected to take the mean, 90 s
    progress.end("a", 30.0, "done")  # twice as quick as then
    assert progress.overall() == "1 of 3, 1 min 45 s left"
    progress.begin("b")
    progress.begun["b"] -= 20
    progress.hear("b", "\rimages: 20%\rimages: 30%")
    overall, line = progress.lines()
    assert overall == "1 of 3, 1 min 25 s left" and line.split() == ["b", "20.0", "s", "images:", "30%"]
    progress.end("b", 60.0, "done")
    progress.end("c", 0.0, "up to date")
    assert progress.overall() == "3 of 3"
