"""Sweeps: what a job costs beside its cells, 100 trivial jobs, a dry run of 1,000, and two workers against one.

Everything is the real command on a small project of its own: ``python benchmarks/sweeps.py`` prints what it measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import yaml

NOTEBOOK = """# %% tags=["parameters"]
seed: int = 0
work: float = 0.0

# %%
import time

end = time.process_time() + work  # one core's work, however long that takes
value = 0
while time.process_time() < end:
    value += sum(range(1000))
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", default=100, show_default=True, help="Trivial jobs.")
@click.option("--work", default=10.0, show_default=True, help="CPU seconds of each job that 1 and 2 workers share.")
def main(jobs: int, work: float) -> None:
    """Print the bars of a sweep, each with what it was measured on."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "notebooks").mkdir()
        (root / "notebooks" / "busy.py").write_text(NOTEBOOK)
        taken, _ = sweep(root, "dry", 1000, 0.0, "--dry-run")
        click.echo(f"dry run of 1,000 jobs: {taken:.2f} s")
        taken, done = sweep(root, "trivial", jobs, 0.0)
        outside = [job["wall"] - job["cells"] for job in done]
        click.echo(f"{jobs} trivial jobs on {len(os.sched_getaffinity(0))} cores: {taken:.0f} s")
        click.echo(f"  of a job, beside its cells: mean {sum(outside) / jobs:.2f} s, longest {max(outside):.2f} s")
        again, _ = sweep(root, "trivial", jobs, 0.0)
        click.echo(f"  the same sweep again, all found: {again:.2f} s")
        times = {count: sweep(root, f"w{count}", 6, work, "--workers", count)[0] for count in (1, 2)}
        click.echo(
            f"6 jobs of {work:g} CPU seconds: 1 worker {times[1]:.1f} s, 2 workers {times[2]:.1f} s, "
            f"ratio {times[2] / times[1]:.2f}"
        )


def sweep(root: Path, name: str, jobs: int, work: float, *options: object) -> tuple[float, list[dict[str, float]]]:
    """Wall seconds of the command, and for each job those of the job and of its cells."""
    file = root / f"{name}.yaml"
    content = {"notebook": "busy", "profile": "smoke", "fixed": {"work": work}}
    content |= {"grid": {"seed": {"from": 1, "to": jobs}}}
    file.write_text(yaml.safe_dump(content))
    folder = root / "out" / name
    command = [sys.executable, "-m", "nullpaper", "sweep", file, "--folder", folder, *options]
    begun = time.time()
    subprocess.run(
        [*map(str, command)], cwd=root, env={**os.environ, "NULLPAPER_ROOT": str(root)}, check=True, capture_output=True
    )
    return time.time() - begun, [_times(path) for path in sorted(folder.glob("jobs/*"))]


def _times(result: Path) -> dict[str, float]:
    record = json.loads((result / "job.json").read_text())
    cells = json.loads((result / "notebook.ipynb").read_text())["cells"]
    spent = sum(cell["metadata"]["papermill"]["duration"] for cell in cells if cell["cell_type"] == "code")
    return {"wall": record["seconds"], "cells": spent}


if __name__ == "__main__":
    main()
