"""Sweeps on this machine, in real processes: each job once, failures kept and survived, bad surroundings named."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from sweeping import command, environment, executions, grid, project, results, run

from nullpaper.errors import InputError
from nullpaper.workflow.code_identity import loads
from nullpaper.workflow.grid import read_grid
from nullpaper.workflow.job import Job, finished, record_of, run_job
from nullpaper.workflow.sweep import Progress, plan_sweep

BUILD = ("build", "sweeps")


def jobs_of(file: Path, folder: Path) -> list[Job]:
    return list(plan_sweep(read_grid(file), folder=folder, profile="smoke", threads=1).jobs)


def test_a_failed_job_keeps_its_notebook_and_stops_no_other(tmp_path: Path) -> None:
    root, folder = project(tmp_path), tmp_path.joinpath(*BUILD)
    file = root / "tried.yaml"
    pairs = {"seed": [0, 1, 2], "broken": [False, True, False]}
    file.write_text(yaml.safe_dump({"notebook": "trivial", "profile": "smoke", "zip": pairs}, sort_keys=False))
    first = run(root, "sweep", file, "--gpus", "3,5")
    assert first.returncode == 1, first.stderr
    assert "3 jobs: 2 done now, 0 found done, 1 failed (1 attempts more)" in first.stdout
    assert "seed=1 broken=True: ValueError: broken at seed 1" in first.stdout
    (failed,) = (folder / "failed").iterdir()
    assert "broken at seed 1" in (failed / "notebook.ipynb").read_text()
    record = loads((failed / "error.json").read_bytes())
    assert record["error"] == "ValueError: broken at seed 1" and record["given"] == {"seed": 1, "broken": True}
    assert len(results(folder)) == 2
    slots = [lines[0].split()[1] for lines in executions(root).values()]
    assert {*slots} <= {"3", "5"}, "a job sees the GPU of its slot alone"

    (root / "mended").touch()
    again = run(root, "sweep", file)
    assert again.returncode == 0 and "3 jobs: 1 done now, 2 found done, 0 failed" in again.stdout
    assert not list((folder / "failed").iterdir())
    assert all(len(lines) == 1 for lines in executions(root).values()), "what was done is not repeated"
    assert [*executions(root).values()][1][0].split()[1:] == ["None", "1"], "one thread a job on a CPU"
    for name, record in results(folder).items():
        assert record["parameters"]["nap"] == 0.0 and record["given"].keys() == {"seed", "broken"}, name
    assert len(loads((folder / "tried.json").read_bytes())["runs"]) == 1

    whole = run(root, "sweep", file, "--dry-run")
    assert whole.stdout.count("finished") == 3 and whole.returncode == 0
    damaged = folder / "jobs" / name
    (damaged / "notebook.ipynb").write_text("{}")
    mended = run(root, "sweep", file)
    assert f"{damaged} is damaged (notebook.ipynb has another size): it is done again" in mended.stderr
    assert "1 done now, 2 found done" in mended.stdout and len(results(folder)) == 3


@pytest.mark.long
def test_two_sweeps_that_share_jobs_do_each_once(tmp_path: Path) -> None:
    root, folder = project(tmp_path), tmp_path.joinpath(*BUILD)
    files = [
        grid(root, name=name, seed=seeds, fixed={"nap": 0.5}) for name, seeds in (("a", [1, 2, 3]), ("b", [3, 2, 4]))
    ]
    drivers = [
        subprocess.Popen(command("sweep", file), cwd=root, env=environment(root), stdout=subprocess.PIPE, text=True)
        for file in files
    ]
    said = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert all(len(lines) == 1 for lines in executions(root).values()) and len(executions(root)) == 4
    assert len(results(folder)) == 4


def test_a_dry_run_shows_the_jobs_and_leaves_nothing(tmp_path: Path) -> None:
    root = project(tmp_path)
    shown = run(root, "sweep", grid(root, seed=[1, 2], eps=[0.1]), "--dry-run")
    assert shown.returncode == 0 and "2 jobs, 0 of them finished" in shown.stderr
    assert [line.split("  ")[-1].strip() for line in shown.stdout.splitlines()] == ["seed=1 eps=0.1", "seed=2 eps=0.1"]
    assert not (root / "build").exists()


def small_files() -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))


def test_surroundings_that_do_not_serve_are_named_in_one_sentence(tmp_path: Path) -> None:
    root = project(tmp_path)
    file, folder = grid(root, seed=[1]), tmp_path / "out"
    (tmp_path / "taken").touch()
    folder.mkdir()
    (folder / "tried.json").write_text('{"runs": [')

    def refused(*arguments: object, **options: object) -> str:
        asked = command("sweep", file, *arguments)
        done = subprocess.run(asked, cwd=root, env=environment(root), capture_output=True, text=True, **options)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr.splitlines()[-1]

    assert f"{tmp_path / 'taken'} is a file: name a folder" in refused("--folder", tmp_path / "taken")
    assert "tried.json is damaged" in refused("--folder", folder)
    assert "--scheduler is for --executor dask" in refused("--executor", "local", "--scheduler", "tcp://127.0.0.1:1")
    assert "profile 'smok' is unknown. Did you mean 'smoke'" in refused("--profile", "smok")
    full = refused("--folder", tmp_path / "full", preexec_fn=small_files)
    assert f"cannot write to {tmp_path / 'full'}" in full and "File too large" in full
    assert not [*(tmp_path / "full" / "jobs").iterdir()], "nothing half written"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("NULLPAPER_ROOT", str(project(tmp_path)))
    (job,) = jobs_of(grid(tmp_path, seed=[7]), tmp_path / "out")
    return job


def test_a_job_under_other_code_is_refused(job: Job) -> None:
    notebook = Path(job.notebook)
    notebook.write_text(notebook.read_text().replace("broken at", "defect at"))
    outcome = run_job(job)
    assert outcome.state == "refused" and "another version" in str(outcome.error)
    assert not job.result.exists() and not job.failure.exists()


def test_a_job_that_another_process_holds_is_left_to_it(job: Job) -> None:

    job.lock.parent.mkdir(parents=True)
    with FileLock(job.lock):
        assert run_job(job).state == "elsewhere"
    assert not job.result.exists()


def test_a_process_that_dies_is_a_failure_with_a_reason(job: Job) -> None:
    outcome = run_job(job, environment={"PYTHONHASHSEED": "nonsense"})
    assert outcome.state == "failed" and "the job's process died (exit status 1" in str(outcome.error)


@pytest.mark.parametrize("content", ["", "[]", '{"sizes": {"absent": 1}}', '{"key": 1}', "\x00"])
def test_a_damaged_result_is_no_result(job: Job, content: str) -> None:

    assert record_of(job.result) is None
    job.result.mkdir(parents=True)
    (job.result / "job.json").write_text(content)
    assert not finished(job)
    with pytest.raises(InputError, match=r"is damaged \(.*\): delete it and run the sweep again"):
        record_of(job.result)


def test_the_time_left_is_that_of_the_jobs_left() -> None:
    progress = Progress([], slots=2, states={"a": "done", "b": "waiting", "c": "running", "d": "waiting"})
    assert progress.eta() is None
    progress.seconds += [10.0, 20.0]
    assert progress.eta() == 3 * 15 / 2
    progress.states = {"a": "done", "b": "failed", "c": "running"}
    assert progress.eta() == 15, "one job left does not get faster by two slots"
