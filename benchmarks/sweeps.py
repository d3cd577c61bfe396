"""Sweeps: a dry run of 1,000 jobs, 100 trivial jobs, and two workers against one.

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
        click.echo(f"{jobs} trivial jobs on {len(os.sched_getaffinity(0))} cores: {taken:.0f} s")
        click.echo(f"  of a job, from its kernel's start to its record: {sum(done) / jobs:.2f} s")
        again, _ = sweep(root, "trivial", jobs, 0.0)
        click.echo(f"  the same sweep again, all found: {again:.2f} s")
        times = {count: sweep(root, f"w{count}", 6, work, "--workers", count)[0] for count in (1, 2)}
        click.echo(
            f"6 jobs of {work:g} CPU seconds: 1 worker {times[1]:.1f} s, 2 workers {times[2]:.1f} s, "
            f"ratio {times[2] / times[1]:.2f}"
        )


def sweep(root: Path, name: str, jobs: int, work: float, *options: object) -> tuple[float, list[float]]:
    """Wall seconds of the command, and those of each job."""
    file = root / f"{name}.yaml"
    content = {"notebook": "busy", "profile": "smoke", "fixed": {"work": work}}
    content |= {"grid": {"seed": {"from": 1, "to": jobs}}}
    file.write_text(yaml.safe_dump(content))
    command = [*map(str, (sys.executable, "-m", "nullpaper", "sweep", file, *options))]
    begun = time.time()
    subprocess.run(command, cwd=root, env={**os.environ, "NULLPAPER_ROOT": str(root)}, check=True, capture_output=True)
    taken = time.time() - begun
    manifests = (root / "build" / "sweeps" / name).glob("*/manifest.json")
    return taken, [json.loads(path.read_text())["busy"]["seconds"] for path in manifests]


if __name__ == "__main__":
    main()
