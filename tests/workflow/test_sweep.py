"""Sweeps on this machine, in real processes: each job once, failures kept and survived, bad surroundings named."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from processes import heed_interrupts
from sweeping import command, environment, executions, grid, left_behind, project, results, run

from nullpaper.errors import InputError
from nullpaper.workflow.sweep import Job, Sweep, plan_sweep, run_job
from nullpaper.workflow.tables import jobs_of

PLACE = ("build", "sweeps", "tried")


@pytest.mark.long
def test_a_failed_job_keeps_its_notebook_and_stops_no_other(tmp_path: Path) -> None:
    root, folder = project(tmp_path), tmp_path.joinpath(*PLACE)
    file = root / "tried.yaml"
    pairs = {"seed": [0, 1, 2], "broken": [False, True, False]}
    file.write_text(yaml.safe_dump({"notebook": "trivial", "profile": "smoke", "zip": pairs}, sort_keys=False))
    first = run(root, "sweep", file, "--gpus", "3,5", "--threads", 3)
    assert first.returncode == 1, first.stderr
    assert "3 jobs: 2 done now, 0 found done, 1 failed" in first.stdout
    assert "seed=1 broken=True: ValueError: broken at seed 1" in first.stdout
    assert "seed=1 broken=True failed: ValueError: broken at seed 1" in first.stderr
    (failed,) = (folder / "failed").iterdir()
    assert (root / "tries").read_text() == "11", "it is tried once more"
    assert "broken at seed 1" in (failed / "trivial.ipynb").read_text()
    assert len(results(folder)) == 2
    places = [tuple(lines[0].split()[1:]) for lines in executions(root).values()]
    own = ("3", "3", "None")  # threads, and nothing of what Dask tells the C library of its workers
    assert {*places} <= {("3", *own), ("5", *own)}, "a job sees the GPU of its worker alone, and its threads"

    (root / "mended").touch()
    again = run(root, "sweep", file)
    assert again.returncode == 0 and "3 jobs: 1 done now, 2 found done, 0 failed" in again.stdout
    assert not list((folder / "failed").iterdir())
    assert all(len(lines) == 1 for lines in executions(root).values()), "what was done is not repeated"
    assert [*executions(root).values()][1][0].split()[1:] == ["None", "1", "1", "None"], "one thread a job on a CPU"
    for name, entry in results(folder).items():
        assert entry["parameters"]["nap"] == 0.0 and jobs_of(folder)[name].keys() == {"seed", "broken"}

    whole = run(root, "sweep", file, "--dry-run")
    assert whole.stdout.count("  finished  ") == 3 and whole.returncode == 0
    (folder / name / "manifest.json").write_text("{")
    assert run(root, "sweep", file, "--dry-run").stdout.count("  finished  ") == 2, "a damaged result is no result"
    mended = run(root, "sweep", file)
    assert "1 done now, 2 found done" in mended.stdout and len(results(folder)) == 3


@pytest.mark.long
def test_an_interrupt_ends_everything_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    root, folder = project(tmp_path), tmp_path.joinpath(*PLACE)
    file = grid(root, seed=[1, 2, 3], fixed={"nap": 60})
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(
        command("sweep", file), cwd=root, env=environment(root), preexec_fn=heed_interrupts, **pipes
    )
    said = driver.stderr.readline()
    link = re.search(r"3 jobs at profile smoke; dashboard: (http://127.0.0.1:\d+/status)", said)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    with direct.open(link[1], timeout=20) as page:
        assert page.status == 200 and b"bokeh" in page.read().lower(), "the dashboard works"
    while not list(folder.glob(".trivial-*.running")):
        time.sleep(0.05)
    begun = time.time()
    driver.send_signal(signal.SIGINT)
    said = driver.communicate(timeout=20)[1]
    assert time.time() - begun < 3 and "the same command goes on from here" in said and "Traceback" not in said
    assert driver.returncode == 130 and not results(folder) and not left_behind(root)


@pytest.mark.long
def test_two_sweeps_on_one_folder_do_each_job_once(tmp_path: Path) -> None:
    root, folder = project(tmp_path), tmp_path / "out"
    files = [
        grid(root, name=name, seed=seeds, fixed={"nap": 0.5}) for name, seeds in (("a", [1, 2, 3]), ("b", [3, 2, 4]))
    ]
    drivers = [
        subprocess.Popen(
            command("sweep", file, "--folder", folder),
            cwd=root,
            env=environment(root),
            stdout=subprocess.PIPE,
            text=True,
        )
        for file in files
    ]
    said = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert all(len(lines) == 1 for lines in executions(root).values()) and len(executions(root)) == 4
    assert len(results(folder)) == 4 == len(jobs_of(folder))


def test_a_dry_run_shows_the_jobs_and_leaves_nothing(tmp_path: Path) -> None:
    root = project(tmp_path)
    shown = run(root, "sweep", grid(root, seed=[1, 2], eps=[0.1]), "--dry-run")
    assert shown.returncode == 0 and "2 jobs, 0 of them finished" in shown.stderr
    assert [line.split("  ")[-1].strip() for line in shown.stdout.splitlines()] == ["seed=1 eps=0.1", "seed=2 eps=0.1"]
    assert not (root / "build").exists()


def small_files() -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


@pytest.mark.long
def test_surroundings_that_do_not_serve_are_named_in_one_sentence(tmp_path: Path) -> None:
    root = project(tmp_path)
    file = grid(root, seed=[1])
    (tmp_path / "taken").touch()

    def refused(*arguments: object, **options: object) -> str:
        asked = command("sweep", file, *arguments)
        done = subprocess.run(asked, cwd=root, env=environment(root), capture_output=True, text=True, **options)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr.splitlines()[-1]

    assert f"cannot write to {tmp_path / 'taken'} (File exists)" in refused("--folder", tmp_path / "taken")
    full = refused("--folder", tmp_path / "full", preexec_fn=small_files)
    assert f"cannot write to {tmp_path / 'full'}" in full and "File too large" in full
    assert not [*(tmp_path / "full").glob("trivial*")], "nothing half written"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(project(tmp_path)))
    return tmp_path


@pytest.fixture
def job(root: Path) -> Job:
    folder = root / "out"
    folder.mkdir()
    (job,) = plan_sweep(grid(root, seed=[7]), folder=folder).jobs
    return job


def test_a_job_under_other_code_is_refused(job: Job) -> None:
    notebook = job.plan.notebook
    notebook.write_text(notebook.read_text().replace("seed - 1", "seed - 2"))
    with pytest.raises(InputError, match="has another version of the package, the notebook, data or weights"):
        run_job(job)
    assert not job.path.exists() and not job.failure.exists()


def test_a_machine_without_the_folder_is_named(job: Job) -> None:
    job.folder.rmdir()
    with pytest.raises(InputError, match="does not see the folder .*: use one that all machines share"):
        run_job(job)


def test_jobs_are_named_by_what_decides_them(root: Path) -> None:
    def planned(text: str, profile: str = "smoke") -> Sweep:
        (root / "tried.yaml").write_text(f"notebook: trivial\n{text}")
        return plan_sweep(root / "tried.yaml", profile=profile)

    def keys(text: str, profile: str = "smoke") -> list[str]:
        return [job.plan.key for job in planned(text, profile).jobs]

    first = keys("grid: {seed: [0, 1]}")
    assert len({*first}) == 2 and keys("fixed: {eps: 0.5}\ngrid: {seed: [1, 0]}") == first[::-1]
    assert keys("grid: {seed: [1, 1, 0, 1]}") == first[::-1], "equal points are one job"
    weights = root / "weights.bin"
    weights.write_bytes(b"one")
    named = keys(f"grid: {{model: ['{weights}']}}")
    weights.write_bytes(b"two")
    assert keys(f"grid: {{model: ['{weights}']}}") != named, "a file counts by its content"
    notebook = root / "notebooks" / "trivial.py"
    notebook.write_text(notebook.read_text().replace("seed - 1", "seed - 2"))
    assert not {*first} & {*keys("grid: {seed: [0, 1]}")}
