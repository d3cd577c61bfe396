"""Sweeps whose jobs, kernels, drivers and Dask workers are killed at random moments, for real.

NULLPAPER_KILLS says how many times (``make kills``: 50); fewer by default, since each costs a second or two.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from sweeps import command, environment, executions, grid, project, results

KILLS = int(os.environ.get("NULLPAPER_KILLS", "6"))
TARGETS = {"job": "nullpaper.job", "kernel": "ipykernel_launcher", "worker": "multiprocessing.spawn", "driver": ""}


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


def orphans(root: Path) -> list[int]:
    """Processes that work for this project and have nobody to work for."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("NULLPAPER_ROOT") == str(root)
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("executor", ["local", "dask"])
def test_killed_at_random_moments_every_job_is_done_and_nothing_looks_finished_that_is_not(
    executor: str, tmp_path: Path
) -> None:
    kills, jobs = max(1, KILLS // 2), max(3, KILLS // 3)
    draw = random.Random(KILLS + len(executor))
    root, folder = project(tmp_path), tmp_path / "build" / "sweeps"
    file = grid(root, seed={"from": 1, "to": jobs}, fixed={"nap": 0.3})
    targets = [target for target in TARGETS if target != "worker" or executor == "dask"]
    arguments = command("sweep", file, "--executor", executor, "--workers", 2, "--retries", 100)
    plan = draw.sample(targets * kills, kills)
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
    end = time.time() + 10
    while (left := orphans(root)) and time.time() < end:
        time.sleep(0.2)
    assert not left, "a killed sweep leaves no process behind"
