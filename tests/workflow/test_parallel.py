"""Pieces of work run in processes of their own, in order, and no process outlives the one that waits for it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nullpaper.workflow.parallel import each


@pytest.mark.long
def test_pieces_run_in_processes_of_their_own_and_in_order() -> None:
    threads = torch.get_num_threads()
    assert each(math.sqrt, [16.0, 4.0, 9.0], workers=2) == [4, 2, 3]
    assert each(math.sqrt, [16.0, 4.0], workers=1) == [4, 2] and torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        each(math.sqrt, [4.0, -1.0], workers=2)


@pytest.mark.long
def test_processes_serve_the_next_call_unless_it_would_begin_others(monkeypatch) -> None:
    def processes(workers: int = 2) -> set[int]:
        return set(each(eval, ["__import__('os').getpid()", "__import__('time').sleep(0.5)"] * 2, workers=workers)[::2])

    first = processes()
    assert processes() <= first and not processes(3) & first
    monkeypatch.setenv("NULLPAPER_ROOT", "elsewhere")
    assert each(eval, ["__import__('os').environ['NULLPAPER_ROOT']"] * 2, workers=3) == ["elsewhere"] * 2


@pytest.mark.long
def test_a_killed_caller_leaves_no_process_behind(tmp_path) -> None:
    code = "import time; from nullpaper.workflow.parallel import each; each(time.sleep, [300.0, 300.5], workers=2)"
    caller = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
    if not children.exists():
        pytest.skip("only Linux lists the children of a process")

    def workers() -> list[str]:
        found = [
            pid for pid in children.read_text().split() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        return [pid for pid in found if len(list(Path(f"/proc/{pid}/task").iterdir())) > 1]  # with the watching thread

    deadline = time.monotonic() + 120
    while len(pids := workers()) < 2:
        assert caller.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    caller.kill()
    caller.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.2)
