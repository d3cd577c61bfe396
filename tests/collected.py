"""Sweeps on disk for tests, in the format of nullpaper.workflow.job and nullpaper.workflow.sweep, and the real ``report`` on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from click.testing import CliRunner, Result

from nullpaper.cli import OneSentence
from nullpaper.cli_report import report
from nullpaper.files import sha256
from nullpaper.workflow.code_identity import dumps, identity
from nullpaper.workflow.collect import collect
from nullpaper.workflow.tables import choose_table, read_tables

NOISES = ("learned", "random, eps", "permuted")
EPS, SEEDS = (8 / 255, 0.1), (0, 1, 2)
OLD, NEW = "a" * 40, "b" * 40

Table = Callable[[dict[str, Any]], pd.DataFrame | None]


def noises(given: dict[str, Any]) -> pd.DataFrame:
    """A table as notebooks write them: words, a measure with bounds, others without, a count, a boolean."""
    random = np.random.default_rng([given["seed"], round(1e6 * given["eps"])])
    match = random.uniform(size=len(NOISES))
    bounds = {"match": match, "match_low": match - 0.1, "match_high": match + 0.1, "n": 48}
    steps = random.integers(1, 99, len(NOISES))
    return pd.DataFrame(
        {"noise": NOISES, **bounds, "norm": random.normal(size=3), "steps": steps, "reached": match > 0.5}
    )


def write_job(
    folder: Path, given: dict[str, Any], tables: dict[str, str], commit: str = NEW, fixed: dict[str, Any] | None = None
) -> str:
    """A finished job in the format of nullpaper.workflow.job; its key."""
    parameters = {"seed": 0, "eps": 0.5, "images": None, "methods": ["a", "b"], **(fixed or {}), **given}
    key = identity(parameters, commit)[:20]
    place = folder / "jobs" / f"02_noises-{key}"
    contents = {f"results/cpu/{name}.csv": text.encode() for name, text in tables.items()} | {"notebook.ipynb": b"{}"}
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    record = {"key": key, "notebook": "02_noises.py", "profile": "cpu", "label": "cpu", "parameters": parameters}
    record |= {"given": given, "commit": commit, "dirty": False, "seconds": 1.0}
    record["files"] = {name: sha256(content) for name, content in contents.items()}
    (place / "job.json").write_text(dumps(record))
    return key


def write_sweep(folder: Path, name: str, jobs: Sequence[tuple[str, dict[str, Any]]], commit: str = NEW) -> None:
    """A run of a sweep, behind those that it has."""
    path = folder / f"{name}.json"
    earlier = json.loads(path.read_text())["runs"] if path.exists() else []
    run = {"commit": commit, "dirty": False, "jobs": [{"key": key, "given": given} for key, given in jobs]}
    path.write_text(dumps({"name": name, "grid": {}, "runs": [*earlier, run]}))


def make(
    folder: Path,
    name: str = "eps",
    table: Table = noises,
    commit: str = NEW,
    eps: Sequence[float] = EPS,
    seeds: Sequence[int] = SEEDS,
    **fixed: Any,
) -> list[str]:
    """A finished sweep over eps and seed with one table, ``noises``; the keys of its jobs."""
    jobs = []
    for given in ({"eps": radius, "seed": seed} for radius in eps for seed in seeds):
        frame = table(given)
        text = {} if frame is None else {"noises": frame.to_csv(index=False, lineterminator="\n")}
        jobs.append((write_job(folder, given, text, commit, fixed), given))
    write_sweep(folder, name, jobs, commit)
    return [key for key, _ in jobs]


def read(folder: Path, name: str = "eps") -> pd.DataFrame:
    sweep = collect(folder, name)
    return read_tables(sweep.jobs, choose_table(sweep.jobs), sweep.given).frame


def call(*arguments: Any) -> Result:
    group = OneSentence("nullpaper", commands={"report": report})
    return CliRunner().invoke(group, ["report", *map(str, arguments)], prog_name="nullpaper")


def table_of(result: Result) -> pd.DataFrame:
    """A printed table, read back; for cells without blanks."""
    assert result.exit_code == 0, result.output
    head, _, *rows = result.stdout.splitlines()
    return pd.DataFrame([row.split() for row in rows], columns=head.split())
