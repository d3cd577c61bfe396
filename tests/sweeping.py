"""Small sweeps for tests: a notebook that costs nothing, a project around it, and the real command on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from nullpaper.workflow.reference import altered, read_manifest

NOTEBOOK = """# %% tags=["parameters"]
seed: int = 0
eps: float = 0.5
model: str = "small"
nap: float = 0.0
broken: bool = False

# %%
import os
import time
from pathlib import Path

time.sleep(nap)

# %%
if broken and not Path("mended").exists():
    with open("tries", "a") as file:
        file.write(str(seed))
    raise ValueError(f"broken at seed {seed}")
before = seed - 1
log = Path("log")
log.mkdir(exist_ok=True)
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
with open(log / f"{seed}-{eps}-{model}", "a") as file:
    file.write(f"{os.getpid()} {' '.join(str(os.environ.get(name)) for name in names)}\\n")
"""


def project(folder: Path, text: str = NOTEBOOK) -> Path:
    """A project with one notebook, ``trivial``."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "trivial.py").write_text(text)
    return folder


def grid(root: Path, *, name: str = "tried", fixed: Any = None, **values: Any) -> Path:
    """A grid file over ``values``; ``trivial`` at profile smoke."""
    file = root / f"{name}.yaml"
    content = {"notebook": "trivial", "profile": "smoke", "fixed": fixed, "grid": values}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def environment(root: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NULLPAPER_R")}
    return {**kept, "NULLPAPER_ROOT": str(root), "OMP_NUM_THREADS": "1", **variables}


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "nullpaper", *map(str, arguments)]


def run(root: Path, *arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, from the project's folder."""
    return subprocess.run(
        command(*arguments), cwd=root, env=environment(root, **variables), capture_output=True, text=True, timeout=240
    )


def executions(root: Path) -> dict[str, list[str]]:
    """By point of the grid: a line for each time that a job came to its end."""
    return {path.name: path.read_text().splitlines() for path in sorted((root / "log").glob("*"))}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest entries of everything that looks finished, each checked to the last byte and cell."""
    finished = {}
    for path in sorted(folder.glob("trivial-*")):
        (entry,) = read_manifest(path).values()
        assert "code" in entry and not altered(path, entry)
        cells = json.loads((path / "trivial.ipynb").read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] and not cell["metadata"]["papermill"]["exception"] for cell in code)
        assert path.name.startswith(entry["run"])
        finished[path.name] = entry
    return finished


def left_behind(root: Path) -> list[int]:
    """Processes that still work for this project 10 seconds after nobody waits for them."""
    end = time.time() + 10
    while (
        left := [process.pid for process in psutil.process_iter() if _works_for(process, root)]
    ) and time.time() < end:
        time.sleep(0.2)
    return left


def _works_for(process: psutil.Process, root: Path) -> bool:
    try:
        ours = process.environ().get("NULLPAPER_ROOT") == str(root)
        return ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    except psutil.Error:
        return False
