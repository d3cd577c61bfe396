"""Results of sweeps as one table: every row with its type and its parameters, means over seeds, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sweeping import grid, project, run

from nullpaper.errors import InputError
from nullpaper.statistics import over_seeds
from nullpaper.workflow.tables import collect, key_columns, mean_over, text, write

NOISES = ("learned", "random, eps", "NA")
EPS, SEEDS = (8 / 255, 0.1), (0, 1, 2)
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


def make(folder: Path, table: Table = noises, names: Sequence[str] = ("noises",), name: str = "eps") -> list[str]:
    """A finished sweep over eps and seed in the format of nullpaper.workflow.sweep; the names of its jobs."""
    jobs = {}
    for number, given in enumerate({"eps": eps, "seed": seed} for eps in EPS for seed in SEEDS):
        frame = table(given)
        jobs[job := f"02_noises-{name}{number}"] = given
        files = {f"results/{table}.csv": "0" * 16 for table in names} if frame is not None else {}
        (folder / job / "results").mkdir(parents=True)
        for file in files:
            frame.to_csv(folder / job / file, index=False, lineterminator="\n")
        entry = {"parameters": {**given, "images": 8}, "files": files, "code": "0", "seconds": 1.0}
        (folder / job / "manifest.json").write_text(json.dumps({"02_noises": entry}))
    (folder / f"{name}.json").write_text(json.dumps({"profile": "smoke", "jobs": jobs}))
    return [*jobs]


def test_every_row_of_every_job_to_the_last_bit_beside_its_parameters(tmp_path: Path) -> None:
    jobs = make(tmp_path)
    frame = collect(tmp_path)
    assert list(frame.columns[:3]) == ["eps", "seed", "noise"] and frame.columns[-1] == "job"
    assert frame["job"].tolist() == [job for job in jobs for _ in NOISES]
    for _, part in frame.groupby("job"):
        written = noises({"eps": part["eps"].iloc[0], "seed": part["seed"].iloc[0]})
        for name in written:
            assert part[name].tolist() == written[name].tolist(), "words stay words, numbers all their digits"
    kinds = {name: frame[name].dtype.kind for name in ("eps", "seed", "match", "n", "steps", "reached")}
    assert kinds == {"eps": "f", "seed": "i", "match": "f", "n": "i", "steps": "i", "reached": "b"}
    assert frame.attrs == {"table": "noises", "parameters": ["eps", "seed"], "unfinished": 0}


def test_files_hold_the_same_table(tmp_path: Path) -> None:
    make(tmp_path)
    frame = collect(tmp_path)
    parquet, csv = write(frame, tmp_path / "new" / "noises")
    read = pd.read_parquet(parquet)
    assert read.attrs == frame.attrs and (read["match"].to_numpy() == frame["match"].to_numpy()).all()
    assert read["seed"].dtype.kind == "i" and read["reached"].dtype.kind == "b"
    assert csv.read_text() == frame.to_csv(index=False), "all digits"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"noises.parquet", "noises.csv"}


def test_two_sweeps_in_one_folder_are_one_table(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, name="more")
    assert len(collect(tmp_path)) == 2 * len(EPS) * len(SEEDS) * len(NOISES)


def test_a_parameter_that_is_a_column_too_gets_a_name_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, lambda given: noises(given).assign(seed=range(3), eps=given["eps"]))
    frame = collect(tmp_path)
    assert set(frame["seed"]) == {0, 1, 2} and frame["param.seed"].tolist()[:6] == [0, 0, 0, 1, 1, 1]
    assert list(frame).count("eps") == 1, "equal values are one column"
    assert mean_over(frame, "param.seed", by=["noise"])["n"].tolist() == [3] * 6


def test_what_is_missing_is_counted_and_leaves_gaps(tmp_path: Path) -> None:
    jobs = make(tmp_path, lambda given: noises(given).drop(columns="steps") if given["seed"] == 0 else noises(given))
    (tmp_path / jobs[1] / "manifest.json").unlink()
    frame = collect(tmp_path)
    assert frame.attrs["unfinished"] == 1 and len(frame) == 5 * len(NOISES)
    assert frame["steps"].isna().sum() == 6


def test_means_over_seeds_are_those_of_statistics(tmp_path: Path) -> None:
    make(tmp_path)
    frame = collect(tmp_path)
    averaged = mean_over(frame, "seed")
    assert len(averaged) == 6 and averaged["n"].tolist() == [3] * 6 and list(averaged.columns[:2]) == ["eps", "noise"]
    for row in averaged.to_dict("records"):
        group = frame[(frame["eps"] == row["eps"]) & (frame["noise"] == row["noise"])]
        for name in ("match", "norm", "steps", "reached"):
            interval = over_seeds(group[name])
            ends = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            assert ends == pytest.approx([interval.value, interval.low, interval.high], nan_ok=True)
    first = averaged.iloc[0]
    assert f"{first['match']:.3g} [{first['match_low']:.3g}, {first['match_high']:.3g}]" in text(averaged)
    single = mean_over(frame[frame["seed"] == 0], "seed")
    assert single["match_low"].isna().all() and single["n"].tolist() == [1] * 6, "one run has no interval"
    assert f"{single['match'][0]:.3g} [no interval]" in text(single)


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ({"x": [0.1, 0.2], "word": ["a", "b"]}, ["word"]),
        ({"word": ["a", "b"], "other": ["c", "d"], "x": [0.1, 0.2]}, ["word"]),
        ({"model": "m", "word": ["a", "b"]}, ["word"]),
        ({"step": [1, 2], "x": [0.1, 0.2]}, []),
        ({"x": [0.1]}, []),
    ],
)
def test_keys_are_the_leftmost_columns_that_tell_rows_apart(columns: dict[str, Any], keys: list[str]) -> None:
    frame = pd.concat([pd.DataFrame(columns).assign(seed=seed, job=f"{seed}") for seed in (0, 1)])
    frame.attrs["parameters"] = ["seed"]
    assert key_columns(frame) == keys


def test_one_sentence_names_what_is_wrong(tmp_path: Path) -> None:
    make(tmp_path / "eps", names=("long", "short", "02_verdicts"))
    frame = collect(tmp_path / "eps", "long")
    for asked, message in (
        (lambda: collect(tmp_path / "esp"), "no sweep was started in .*esp. Did you mean 'eps'"),
        (lambda: collect(tmp_path / "eps"), "have 3 tables: name one by --table: long, short"),
        (lambda: collect(tmp_path / "eps", "lang"), "have no table 'lang'. Did you mean 'long'"),
        (lambda: mean_over(frame, "sed"), "sets no parameter 'sed'. Did you mean 'seed'. It sets eps, seed"),
        (lambda: mean_over(frame, "seed", by=[]), "eps, seed do not tell the rows of the table apart"),
    ):
        with pytest.raises(InputError, match=message):
            asked()


TABLE = """

import pandas as pd

from nullpaper.workflow.figures import save_table

save_table(pd.DataFrame({"kind": ["a", "b"], "value": [seed + eps, seed - eps]}), "values")
"""


@pytest.mark.long
def test_the_command_reports_a_real_sweep(tmp_path: Path) -> None:
    from sweeping import NOTEBOOK

    root = project(tmp_path, NOTEBOOK + TABLE)
    file = grid(root, seed=[1, 2, 3], eps=[0.5])
    assert run(root, "sweep", file).returncode == 0
    done = run(root, "report", file, "--over", "seed")
    assert done.returncode == 0 and "3 jobs" not in done.stderr, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["eps", "kind", "value", "n"]
    assert rows[0].split() == ["0.5", "a", "2.5", "[0.0159,", "4.98]", "3"]
    frame = pd.read_parquet(tmp_path / "build" / "sweeps" / "tried" / "values.parquet")
    assert frame["value"].tolist() == [1.5, 0.5, 2.5, 1.5, 3.5, 2.5] and frame["seed"].tolist() == [1, 1, 2, 2, 3, 3]
    assert run(root, "report", "tried", "--over", "sed").returncode == 2
