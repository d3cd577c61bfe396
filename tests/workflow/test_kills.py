"""Sweeps whose jobs, kernels, drivers and Dask workers are killed at random moments, for real.

NULLPAPER_KILLS says how many times (``make test-more``: 50); one of a driver and one of a worker by default.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from sweeping import command, environment, executions, grid, project, results

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("NULLPAPER_KILLS", "2"))
TARGETS = {
    "job": "nullpaper.workflow.job",
    "kernel": "ipykernel_launcher",
    "worker": "multiprocessing.spawn",
    "driver": "",
}


def family(driver: psutil.Process, target: str) -> list[psutil.Process]:
    """The driver's processes of one kind, the driver itself being its own kind."""
    if target == "driver":
        return [driver]
    found = []
    for process in driver.children(recursive=True):
        try:
            if TARGETS[target] in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_behind(root: Path) -> list[int]:
    """Processes that still work for this project 10 seconds after nobody waits for them."""
    end = time.time() + 10
    while (
        found := [process.pid for process in psutil.process_iter() if works_for(process, root)]
    ) and time.time() < end:
        time.sleep(0.2)
    return found


def works_for(process: psutil.Process, root: Path) -> bool:
    try:
        ours = process.environ().get("NULLPAPER_ROOT") == str(root)
        return ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    except psutil.Error:
        return False


@pytest.mark.parametrize("executor", ["local", "dask"])
def test_killed_at_random_moments_every_job_is_done_and_nothing_looks_finished_that_is_not(
    executor: str, tmp_path: Path
) -> None:
    kills, jobs = max(1, KILLS // 2), max(2, KILLS // 3)
    draw = random.Random(KILLS + len(executor))
    root, folder = project(tmp_path), tmp_path / "build" / "sweeps"
    file = grid(root, seed={"from": 1, "to": jobs}, fixed={"nap": 0.3})
    targets = [target for target in TARGETS if target != "worker" or executor == "dask"]
    arguments = command("sweep", file, "--executor", executor, "--workers", 2, "--retries", 100)
    plan = ["worker" if executor == "dask" else "driver", *draw.sample(targets * kills, kills)][:kills]
    killed, drivers = 0, 0
    while True:
        drivers += 1
        with open(tmp_path / "said", "ab") as said:
            driver = subprocess.Popen(arguments, cwd=root, env=environment(root), stdout=said, stderr=said)
        while killed < kills and driver.poll() is None:
            if victims := family(psutil.Process(driver.pid), plan[killed]):
                time.sleep(draw.uniform(0, 2.5))
                victim = draw.choice(victims)
                killed += victim.is_running()
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            if folder.is_dir():
                results(folder)
            time.sleep(0.02)
        status = driver.wait(timeout=300)
        assert status in (0, -9), (tmp_path / "said").read_text()
        if status == 0 and killed == kills:
            break
        if status == 0:  # all done too soon: the rest of the kills meet them anew
            (tmp_path / "build").rename(tmp_path / f"build-{drivers}")
    print(
        f"{executor}: killed {', '.join(f'{plan.count(target)} x {target}' for target in targets)}; {drivers} drivers"
    )
    assert len(results(folder)) == jobs
    assert [path.name for path in (folder / "jobs").iterdir() if path.name.startswith(".")] == []
    assert not list((folder / "running").iterdir()) and not list((folder / "failed").iterdir())
    assert len(executions(root)) == jobs
    assert not left_behind(root), "a killed sweep leaves no process behind"


def test_an_interrupted_sweep_says_how_to_go_on(tmp_path: Path) -> None:
    root, folder = project(tmp_path), tmp_path / "build" / "sweeps"
    file = grid(root, seed=[1, 2, 3], fixed={"nap": 60})
    driver = subprocess.Popen(
        command("sweep", file),
        cwd=root,
        env=environment(root),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not list(folder.glob("running/*.json")):
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    assert "Interrupted: the same command goes on from here." in driver.communicate(timeout=20)[1]
    assert driver.returncode == 130 and not results(folder) and not left_behind(root)
