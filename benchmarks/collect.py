"""Time of ``nullpaper report`` on many results, from the start of the process to its end, on one thread.

    python benchmarks/collect.py --jobs 10000

One real job of a small notebook is run by ``nullpaper sweep``; its folder is then copied for other seeds and radii,
with its table, record and checksums rewritten. The naive way, `json.load` and `pd.read_csv` for every job, is timed
beside it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nullpaper.files import sha256
from nullpaper.workflow.code_identity import dumps, loads

NOTEBOOK = """# %% tags=["parameters"]
seed: int = 0
eps: float = 0.03
model: str = "small"
images: int | None = None

# %%
import numpy as np
import pandas as pd

from nullpaper.workflow.figures import save_table

# %%
random = np.random.default_rng(seed)
methods = ["learned", "permuted", "random, eps", "random, norm", "zero", "ours, spread", "exact", "largest"]
shares = [random.uniform(0.5, 1, 2) for _ in methods]
bounds = [{"match": a, "match_low": a - 0.1, "match_high": a + 0.1, "n": 500} for a, _ in shares]
others = [{"norm": b, "steps": 40 + seed, "reached": b > 0.7} for _, b in shares]
rows = [{"method": name, **bound, **other} for name, bound, other in zip(methods, bounds, others)]
save_table(pd.DataFrame(rows), "noises")
"""
GRID = {"notebook": "demo", "profile": "smoke", "grid": {"eps": [0.03], "seed": [0]}}
QUESTIONS = {
    "table to CSV": ["--csv", "all.csv"],
    "table as text": [],
    "over seed": ["--over", "seed"],
    "pivot": ["--over", "seed", "--pivot", "eps", "method", "match"],
}
NAIVE = """
import json, sys
from pathlib import Path
import pandas as pd
frames = []
for folder in Path(sys.argv[1], "jobs").iterdir():
    record = json.loads((folder / "job.json").read_text())
    frames.append(pd.read_csv(folder / "results/smoke/noises.csv").assign(**record["parameters"], job=record["key"]))
pd.concat(frames).to_csv("naive.csv", index=False)
"""


def one_job(root: Path) -> Path:
    """The folder of a real, finished job."""
    (root / "notebooks").mkdir(parents=True)
    (root / "notebooks" / "demo.py").write_text(NOTEBOOK)
    (root / "demo.yaml").write_text(json.dumps(GRID))  # JSON is YAML
    command = [sys.executable, "-m", "nullpaper", "sweep", "demo.yaml", "--folder", "one"]
    subprocess.run(command, cwd=root, env=environment(root), check=True, capture_output=True)
    return next((root / "one" / "jobs").iterdir())


def copies(job: Path, folder: Path, count: int, seeds: int) -> None:
    """A sweep of ``count`` jobs in the format of a real one, ``seeds`` for each radius, and its record."""
    record, draw = loads((job / "job.json").read_bytes()), random.Random(0)
    path = next(path for path in record["files"] if path.endswith(".csv"))
    header, *rows = (job / path).read_text().splitlines()
    jobs = []
    for index in range(count):
        key, given = f"{draw.getrandbits(80):020x}", {"eps": (1 + index // seeds) / 255, "seed": index % seeds}
        lines = [row.replace(",40,", f",{40 + given['seed']},").replace("0.", f"0.{draw.randrange(9)}") for row in rows]
        table = "\n".join([header, *lines]).encode() + b"\n"
        place = folder / "jobs" / f"demo-{key}"
        for other in record["files"]:
            (place / other).parent.mkdir(parents=True, exist_ok=True)
            if other != path:
                os.link(job / other, place / other)
        (place / path).write_bytes(table)
        facts = {"key": key, "given": given, "parameters": record["parameters"] | given}
        facts["files"] = record["files"] | {path: sha256(table)}
        (place / "job.json").write_text(dumps(record | facts))
        jobs.append({"key": key, "given": given})
    run = {"commit": record["commit"], "dirty": False, "started": record["started"], "jobs": jobs}
    (folder / "many.json").write_text(dumps({"name": "many", "grid": {}, "runs": [run]}))


def environment(root: Path) -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "NULLPAPER_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": package}


def timed(root: Path, *command: str) -> tuple[float, float]:
    """Seconds from the start of a process to its end, and those of the CPU, which a busy machine does not blur."""
    wall, before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=root, env=environment(root), check=True, capture_output=True)
    wall, after = time.perf_counter() - wall, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="results (default: 10000)")
    parser.add_argument("--seeds", type=int, default=10, help="seeds for each radius (default: 10)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of which the least counts (default: 3)")
    parser.add_argument("--no-naive", action="store_true", help="leave the naive way out")
    args = parser.parse_args()

    found: dict[str, Any] = {"jobs": args.jobs}
    with tempfile.TemporaryDirectory() as name:
        root, folder = Path(name), Path(name, "build", "sweeps")
        copies(one_job(root), folder, args.jobs, args.seeds)
        report = [sys.executable, "-m", "nullpaper", "report", "many"]
        for question, options in QUESTIONS.items():
            wall, cpu = map(min, zip(*(timed(root, *report, *options) for _ in range(args.repeats)), strict=True))
            found[question] = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
            print(f"{question}: {wall:.2f} s ({cpu:.2f} s of the CPU), {args.jobs / wall:,.0f} jobs/s")
        if not args.no_naive:
            wall, cpu = timed(root, sys.executable, "-c", NAIVE, str(folder))
            found["naive"] = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
            found["ratio"] = round(cpu / found["table to CSV"]["cpu_seconds"], 1)
            print(f"naive: {wall:.2f} s ({cpu:.2f} s of the CPU), {found['ratio']} times that to CSV")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
