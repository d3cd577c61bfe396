"""Sweeps whose kernels, workers and drivers are killed, for real: at chosen stages, and at random moments.

NULLPAPER_KILLS says how many times at random (``make test-more``: 50); one of a worker and one of a driver by default.
NULLPAPER_SEED draws other moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sweeping import command, environment, executions, grid, left_behind, project, results

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("NULLPAPER_KILLS", "2"))
SEED = int(os.environ.get("NULLPAPER_SEED", KILLS))
TARGETS = {"kernel": "ipykernel_launcher", "worker": "multiprocessing.spawn", "driver": ""}


def family(driver: psutil.Process, target: str) -> list[psutil.Process]:
    """The driver's processes of one kind, the driver itself being its own kind."""
    if target == "driver":
        return [driver]
    relatives = []
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if TARGETS[target] in " ".join(process.cmdline()):
                relatives.append(process)
    return relatives


SIGNS: dict[str, Callable[[psutil.Process, Path], bool]] = {
    "set-up": lambda driver, folder: bool(family(driver, "worker")),
    "comparison of versions": lambda driver, folder: (folder / "tried.json").exists(),
    "job": lambda driver, folder: bool(family(driver, "kernel")),
    "tear-down": lambda driver, folder: len(list(folder.glob("trivial-*"))) == 2,
}
"""What shows that a sweep of two jobs has come to a stage."""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("stage", SIGNS)
def test_the_death_of_all_workers_is_a_retry_at_any_stage(tmp_path: Path, stage: str, delay: float) -> None:
    root, folder = project(tmp_path), tmp_path / "build" / "sweeps" / "tried"
    asked = command("sweep", grid(root, seed=[1, 2]), "--workers", 2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(asked, cwd=root, env=environment(root), **pipes)
    process = psutil.Process(driver.pid)
    while not SIGNS[stage](process, folder):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.005)
    time.sleep(delay)
    with contextlib.suppress(psutil.Error):
        for victim in family(process, "worker"):
            with contextlib.suppress(psutil.Error):
                victim.kill()
    out, said = driver.communicate(timeout=120)
    assert driver.returncode == 0 and " 0 failed" in out, said
    assert not {"Error", "Traceback", "failed", "version"} & {*said.replace(":", " ").split()}, said
    assert len(results(folder)) == 2 == len(executions(root)) and not left_behind(root)


def test_killed_at_random_moments_every_job_is_done_and_nothing_looks_finished_that_is_not(tmp_path: Path) -> None:
    jobs, draw = max(2, KILLS // 2), random.Random(SEED)
    root, folder = project(tmp_path), tmp_path / "build" / "sweeps" / "tried"
    file = grid(root, seed=[*range(1, jobs + 1)], fixed={"nap": 0.3})
    arguments = command("sweep", file, "--workers", 2, "--retries", 100)
    targets = ["worker", "driver", *draw.sample([*TARGETS] * KILLS, KILLS)][:KILLS]
    killed, drivers = 0, 0
    while True:
        drivers += 1
        with open(tmp_path / "said", "ab") as said:
            driver = subprocess.Popen(arguments, cwd=root, env=environment(root), stdout=said, stderr=said)
        while killed < KILLS and driver.poll() is None:
            if victims := family(psutil.Process(driver.pid), targets[killed]):
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
        if status == 0 and killed == KILLS:
            break
        if status == 0:  # all done too soon: the rest of the kills meet them anew
            (tmp_path / "build").rename(tmp_path / f"build-{drivers}")
    print(f"killed {', '.join(f'{targets.count(target)} x {target}' for target in TARGETS)}; {drivers} drivers")
    assert len(results(folder)) == jobs == len(executions(root))
    assert not list(folder.glob(".trivial*")) and not list(folder.glob("failed/*"))
    assert not left_behind(root), "a killed sweep leaves no process behind"
