"""Results of sweeps as one table: every row with its type, whole or refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sweeping
from collected import NEW, NOISES, call, make, noises, read, table_of, write_job, write_sweep

from nullpaper.workflow.aggregate import over
from nullpaper.workflow.collect import collect
from nullpaper.workflow.tables import choose_table, read_tables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    return tmp_path / "build" / "sweeps"


def test_every_row_of_every_job_to_the_last_bit_beside_its_parameters(folder: Path) -> None:
    keys = make(folder)
    frame = read(folder)
    assert list(frame.columns[:3]) == ["eps", "seed", "noise"] and list(frame.columns[-2:]) == ["job", "commit"]
    for _, part in frame.groupby("job"):
        given = {"eps": part["eps"].iloc[0], "seed": part["seed"].iloc[0]}
        written = noises(given)
        for name in written:
            assert part[name].tolist() == written[name].tolist()
    assert frame["job"].tolist() == [key for key in keys for _ in NOISES] and set(frame["commit"]) == {NEW[:10]}
    kinds = {name: frame[name].dtype.kind for name in ("eps", "seed", "match", "n", "steps", "reached")}
    assert kinds == {"eps": "f", "seed": "i", "match": "f", "n": "i", "steps": "i", "reached": "b"}


def test_files_hold_the_same_table_with_its_types(folder: Path, tmp_path: Path) -> None:
    make(folder)
    result = call("eps", "--csv", tmp_path / "new" / "a.csv", "--parquet", tmp_path / "a.parquet")
    assert result.exit_code == 0 and result.stdout == "" and result.stderr.count("18 rows") == 2
    frame, parquet = read(folder), pd.read_parquet(tmp_path / "a.parquet")
    assert parquet.columns.tolist() == frame.columns.tolist()
    assert (parquet["match"].to_numpy() == frame["match"].to_numpy()).all()
    assert {str(parquet[name].dtype) for name in ("seed", "steps", "n")} == {"int64"} and parquet[
        "reached"
    ].dtype == bool
    assert (tmp_path / "new" / "a.csv").read_text() == frame.to_csv(index=False), "all digits, however they are read"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_jobs_with_other_columns_leave_gaps_and_keep_types(folder: Path) -> None:
    def table(given: dict[str, Any]) -> pd.DataFrame | None:
        frame = noises(given)
        if given["seed"] == 0:
            return frame.drop(columns=["steps", "reached"]).assign(note="NA", rounds=pd.NA)
        return None if given["seed"] == 1 else frame.assign(note=7, rounds=range(3))

    make(folder, table=table)
    sweep = collect(folder, "eps")
    tidy = read_tables(sweep.jobs, "noises", sweep.given)
    frame = tidy.frame
    assert str(frame["steps"].dtype) == "Int64" and str(frame["reached"].dtype) == "boolean"
    assert str(frame["rounds"].dtype) == "Int64" and frame["steps"].isna().sum() == 6
    assert frame["note"].tolist() == ["NA"] * 3 + ["7"] * 3 + ["NA"] * 3 + ["7"] * 3, "words stay words"
    assert frame["seed"].tolist() == [0] * 3 + [2] * 3 + [0] * 3 + [2] * 3
    assert tidy.notes == ["2 of 6 finished jobs have no table 'noises'."]


def test_names_that_clash_are_resolved_openly(folder: Path) -> None:
    make(folder, table=lambda given: noises(given).assign(seed=range(3), job="x"))
    result = call("eps", "--value", "norm")
    assert "'seed' is a column of the table, and the parameter is called 'param.seed'." in result.stderr
    frame = read(folder)
    assert set(frame["seed"]) == {0, 1, 2} and frame["param.seed"].tolist()[:6] == [0, 0, 0, 1, 1, 1]
    assert set(frame["table.job"]) == {"x"} and frame["job"].nunique() == 6
    averaged = over(frame, ["eps", "param.seed", "noise"], ["param.seed"], ["norm"])
    assert averaged["n"].tolist() == [3] * 6


def test_unfinished_and_failed_jobs_are_counted(folder: Path) -> None:
    keys = make(folder)
    (folder / "jobs" / f"02_noises-{keys[1]}").rename(folder / "elsewhere")
    failed = folder / "failed" / f"02_noises-{keys[2]}"
    failed.mkdir(parents=True)
    (folder / "jobs" / f"02_noises-{keys[2]}").rename(failed / "old")
    result = call("eps", "--value", "norm")
    assert "2 of 6 jobs of 'eps' are not finished: 1 failed (eps=0.03137" in result.stderr
    assert "1 not run (eps=0.03137254901960784 seed=1)" in result.stderr and len(result.stdout.splitlines()) == 14
    result = call("eps", "--compare", "eps")
    assert result.stderr.count("2 of 6 jobs") == 2


def test_several_tables_are_listed_to_choose_from(folder: Path) -> None:
    given = {"eps": 0.5, "seed": 1}
    tables = {name: noises(given).head(rows).to_csv(index=False) for name, rows in (("long", 3), ("short", 1))}
    write_sweep(folder, "two", [(write_job(folder, given, tables), given)])
    result = call("two")
    assert result.exit_code == 2 and "choose one by --table: long (3 rows), short (1 rows)" in result.stderr
    assert len(call("two", "--table", "short").stdout.splitlines()) == 3


def test_a_grid_file_names_its_sweep_and_rows_are_sorted(folder: Path, tmp_path: Path) -> None:
    make(folder, table=lambda given: noises(given).assign(noise=["a", "b", "c"]))
    (tmp_path / "eps.yaml").write_text("notebook: 02_noises\n")
    (tmp_path / "grid.yml").write_text("name: eps\nnotebook: 02_noises\n")
    first, second = (call(tmp_path / name, "--value", "norm", "--sort=-norm") for name in ("eps.yaml", "grid.yml"))
    assert first.stdout == second.stdout
    norms = table_of(first)["norm"].astype(float)
    assert len(norms) == 18 and norms.is_monotonic_decreasing


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a missing table": lambda job: (job / "results/cpu/noises.csv").unlink(),
    "a short table": lambda job: (job / "results/cpu/noises.csv").write_bytes(
        (job / "results/cpu/noises.csv").read_bytes()[:-9]
    ),
    "an edited table": lambda job: (job / "results/cpu/noises.csv").write_text("noise,match\nlearned,1\n"),
    "no record": lambda job: (job / "job.json").unlink(),
    "half a record": lambda job: (job / "job.json").write_bytes((job / "job.json").read_bytes()[:99]),
    "a list for a record": lambda job: (job / "job.json").write_text("[1]"),
    "another's record": lambda job: (job / "job.json").write_text(
        (job / "job.json").read_text().replace('"key": "', '"key": "0')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_are_refused_with_the_remedy(folder: Path, damage: str, tmp_path: Path) -> None:
    keys = make(folder)
    job = folder / "jobs" / f"02_noises-{keys[3]}"
    DAMAGES[damage](job)
    result = call("eps", "--csv", tmp_path / "a.csv")
    assert result.exit_code == 2 and result.stdout == "" and not (tmp_path / "a.csv").exists()
    assert f"the result {job} is damaged" in result.stderr and "delete it and run the sweep again" in result.stderr


def test_a_table_with_ragged_rows_is_refused(folder: Path) -> None:
    given = {"eps": 0.5, "seed": 1}
    for text in ("a,b\n1,2\n3\n", "a,b\n1,2,3\n", 'a,b\n"x,2\n'):
        write_sweep(folder, "ragged", [(write_job(folder, given, {"noises": text}), given)])
        assert "rows of unequal length" in call("ragged").stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["epz"], "there is no sweep 'epz' in"),
        (["epz"], "Did you mean 'eps'?"),
        (["absent.yaml"], "there is no grid file absent.yaml"),
        (["eps", "--folder", "elsewhere"], "elsewhere is not a folder of sweeps"),
        (["eps", "--commit", "ccc"], "has no run at commit 'ccc'. It has runs at bbbbbbbbbb."),
        (["eps", "--compare", "@ccc"], "has no run at commit 'ccc'"),
        (["eps", "--table", "noise"], "no job has a table 'noise'. Did you mean 'noises'?"),
        (["eps", "--where", "epz=1"], "there is no column 'epz'. Did you mean 'eps'?"),
        (["eps", "--where", "eps~1"], "has no operator: write NAME=VALUE"),
        (["eps", "--where", "eps=x"], "'x' is no number"),
        (["eps", "--where", "eps=1/0"], "'1/0' is no number"),
        (["eps", "--where", "eps<1,2"], "needs one value after <"),
        (["eps", "--where", "eps="], "needs a value after ="),
        (["eps", "--where", "reached=1"], "'1' is neither true nor false"),
        (["eps", "--where", "noise<b"], "'noise' holds no numbers to compare"),
        (["eps", "--where", "seed=7"], "no row is left after --where 'seed=7'. Before it, 'seed' is 0, 1, 2."),
        (["eps", "--where", "images=7"], "no row is left after --where 'images=7'. Before it, 'images' is none."),
        (["eps", "--over", "seeds"], "--over: there is no column 'seeds'. Did you mean 'seed'?"),
        (["eps", "--over", "seed", "--value", "noise"], "'noise' holds words, which have no mean"),
        (["eps", "--over", "seed", "--value", "macth"], "Did you mean 'match'?"),
        (["eps", "--value", "seed"], "--value: 'seed' is a parameter"),
        (["eps", "--over", "seed", "--by", "reached"], "would count as different runs: they differ in"),
        (["eps", "--by", "nois"], "Did you mean 'noise'?"),
        (["eps", "--pivot", "eps", "noise", "matches"], "--pivot: there is no column 'matches'"),
        (["eps", "--pivot", "eps", "noise", "match"], "fall in one cell of the pivot: they differ in seed"),
        (["eps", "--sort", "norn"], "Did you mean 'norm'?"),
        (["eps", "--csv", "/dev/null/a.csv"], "cannot write to /dev/null"),
        (["eps", "--parquet", "build"], "build is a folder: name a file in it"),
        (["eps", "--profile", "cpu"], "--profile and --write are for the verdicts"),
        (["--over", "seed"], "name the sweep that the options are for"),
        (["none"], "no job of sweep 'none' at commit bbbbbbbbbb is finished"),
        (["bare"], "the finished jobs have no tables"),
        (["broken"], "is damaged: delete it and run the sweep again"),
        (["far", "--compare", "eps"], "no row has its like in the other by eps, seed, noise"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    make(folder)
    make(folder, "bare", lambda given: None, eps=(3.0,))
    make(folder, "far", eps=(4.0, 5.0))
    write_sweep(folder, "none", [("0" * 20, {"eps": 1.0})])
    (folder / "broken.json").write_text('{"name": "broken", "runs": [{"jobs": 3')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and sorted(tmp_path.rglob("*")) == before
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and sentence in errors[0] and result.stderr.endswith(errors[0] + "\n")


def test_without_a_sweep_the_verdicts_are_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    result = call("--profile", "cpu")
    assert result.exit_code == 0 and "| the papers say |" in result.stdout
    assert (tmp_path / "results" / "cpu" / "verdicts.csv").is_file()


@pytest.mark.long
def test_a_real_sweep_is_read(tmp_path: Path) -> None:
    text = sweeping.NOTEBOOK + (
        "\n# %%\nimport pandas as pd\nfrom nullpaper.workflow.figures import save_table\n"
        "save_table(pd.DataFrame({'model': [model, 'x'], 'seen': [eps + seed, 1]}), 'seen')\n"
    )
    root = sweeping.project(tmp_path / "project", text)
    done = sweeping.run(root, "sweep", sweeping.grid(root, name="real", seed=[2]))
    assert done.returncode == 0, done.stderr
    sweep = collect(root / "build" / "sweeps", "real")
    tidy = read_tables(sweep.jobs, choose_table(sweep.jobs), sweep.given)
    assert tidy.frame["seen"].tolist() == [2.5, 1] and tidy.frame["seed"].tolist() == [2, 2]
    assert list(tidy.parameters) == ["seed"] and tidy.columns == ["model", "seen"]
    assert not sweep.unfinished() and "param.model" in tidy.fixed
    buffer = io.BytesIO()
    tidy.frame.to_parquet(buffer)
