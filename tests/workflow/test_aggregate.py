"""What is asked of results: seeds averaged as `statistics` does, pairs paired, keys found, pivots readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from collected import NEW, OLD, SEEDS, call, make, noises, read, table_of

from nullpaper.errors import InputError
from nullpaper.statistics import over_seeds
from nullpaper.workflow.aggregate import differences, over, pivot
from nullpaper.workflow.columns import key_columns, where
from nullpaper.workflow.listing import cells, lines, parts

RESULTS = Path(__file__).resolve().parents[2] / "results" / "cpu"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    return tmp_path / "build" / "sweeps"


def test_means_over_seeds_are_those_of_statistics(folder: Path) -> None:
    make(folder)
    frame = read(folder)
    averaged = over(frame, ["eps", "seed", "noise"], ["seed"])
    assert len(averaged) == 6 and averaged["n"].tolist() == [3] * 6 and averaged["table.n"].tolist() == [48] * 6
    for row in averaged.to_dict("records"):
        group = frame[(frame["eps"] == row["eps"]) & (frame["noise"] == row["noise"])]
        for name in ("match", "norm", "steps", "reached"):
            known = over_seeds(group[name])
            got = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            assert np.allclose(got, [known.value, known.low, known.high], rtol=1e-12, atol=1e-12)


def test_one_run_has_no_interval_and_missing_values_are_not_runs() -> None:
    frame = pd.DataFrame(
        {"eps": [1, 1, 1, 2], "seed": [0, 1, 2, 0], "x": [0.5, np.nan, 0.7, 0.1], "y": 1.0, "images": 48}
    )
    averaged = over(frame, ["eps", "seed"], ["seed"])
    assert averaged["n"].tolist() == [3, 1] and averaged["x_n"].tolist() == [2, 1] and "y_n" not in averaged
    assert averaged["images"].tolist() == [48, 48] and "images_low" not in averaged, "nothing was measured there"
    assert averaged["x"].tolist() == pytest.approx([0.6, 0.1]) and averaged["x_low"].isna().tolist() == [False, True]
    assert averaged["y_high"].iloc[0] == 1 and np.isnan(averaged["y_high"].iloc[1])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("02_closure", ["kind", "factor", "noise"]),
        ("02_dimension", ["dimension", "draw"]),
        ("02_eps", ["method"]),
        ("02_eps_runs", ["method", "seed"]),
        ("02_lambda", ["lambda", "noise"]),
        ("03_transfer", ["noise of", "read by"]),
        ("04_approximate_seen", ["eps", "method", "network"]),
        ("06_logo", ["logo", "form", "mark", "transport"]),
        ("07_paired", ["method", "against", "measure"]),
        ("07_rounds", ["method", "seed", "step"]),
        ("08_eps", ["eps", "method", "measure"]),
    ],
)
def test_the_papers_own_tables_have_these_keys(name: str, keys: list[str]) -> None:
    written = pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False, na_values=[""])
    words = written.select_dtypes(exclude=["number", "bool"]).columns
    written[words] = written[words].astype("string")
    measured = [column for column in written.select_dtypes("float") if column not in keys]
    random = np.random.default_rng(0)
    jobs = [
        written.assign(**{column: written[column] + random.normal() for column in measured}).set_axis(
            [place] * len(written)
        )
        for place in range(3)
    ]
    assert key_columns(pd.concat(jobs), list(written.columns)) == keys


def test_rows_that_nothing_tells_apart_go_by_their_place() -> None:
    frame = pd.DataFrame({"x": [0.1, 0.2, 0.3, 0.4], "word": ["a"] * 4}, index=[0, 0, 1, 1])
    assert key_columns(frame, ["x", "word"]) == ["row"] and frame["row"].tolist() == [0, 1, 0, 1]
    measured = pd.DataFrame({"x": [1.0, 0.5] * 2, "x_low": [0.9, 0.4] * 2, "x_high": 1.0, "n": 9}, index=[0, 0, 1, 1])
    assert key_columns(measured, ["x", "x_low", "x_high", "n"]) == ["row"], "an estimate that recurs is no key"
    assert key_columns(frame[["x"]].iloc[[0, 2]], ["x"]) == [], "one row a job needs no key"


def test_filters_know_lists_fractions_and_missing_values(folder: Path) -> None:
    make(folder)
    frame = read(folder)
    assert set(where(frame, ["eps=8/255"])["eps"]) == {8 / 255} == set(where(frame, ["eps = 0.0313725490196"])["eps"])
    assert set(where(frame, ["seed=0,2", "seed!=2"])["seed"]) == {0} and set(where(frame, ["seed!=0,1"])["seed"]) == {2}
    assert set(where(frame, ['noise="random, eps",learned'])["noise"]) == {"random, eps", "learned"}
    assert where(frame, ["reached=false"])["match"].max() <= 0.5 < where(frame, ["reached!=False"])["match"].min()
    kept = where(frame, ["match<0.5", "match>=0.1"])["match"]
    assert len(kept) == ((frame["match"] < 0.5) & (frame["match"] >= 0.1)).sum() > 0
    gaps = pd.DataFrame({"steps": pd.array([1, None, 3], "Int64"), "word": pd.array(["none", "b", None], "string")})
    assert len(where(gaps, ["steps=none"])) == 1 and len(where(gaps, ["steps!=none"])) == 2
    assert len(where(gaps, ["steps>0"])) == 2 and len(where(gaps, ["word=none"])) == 2
    fixed = call("eps", "--where", "images=none", "--where", 'methods="[""a"",""b""]"', "--value", "norm")
    assert fixed.exit_code == 0 and len(fixed.stdout.splitlines()) == 20


def test_a_value_that_is_asked_for_is_no_key(folder: Path) -> None:
    make(folder, table=lambda given: pd.DataFrame({"steps": [given["seed"], 5 + given["seed"]], "norm": 1.0}))
    result = call("eps", "--over", "seed", "--by", "steps")
    assert len(result.stdout.splitlines()) == 2 + 12, "every run has its own steps"
    head, _, *rows = call("eps", "--over", "seed", "--value", "steps").stdout.splitlines()
    assert head.split() == ["eps", "row", "steps", "n"] and len(rows) == 4 and "6 [3.516, 8.484]" in rows[1]


def test_a_pivot_shows_means_with_intervals_and_numbers_in_order(folder: Path, tmp_path: Path) -> None:
    make(folder, eps=(0.1, 0.02), table=lambda given: noises(given).assign(noise=["a", "b", "c"]))
    result = call("eps", "--over", "seed", "--pivot", "eps", "noise", "match")
    head, _, *rows = result.stdout.splitlines()
    known = over_seeds([noises({"eps": 0.02, "seed": seed})["match"][1] for seed in SEEDS])
    assert head.split() == ["eps", "a", "b", "c", "n"] and [row.split()[0] for row in rows] == ["0.02", "0.1"]
    assert f"{known.value:.4g} [{known.low:.4g}, {known.high:.4g}]" in rows[0] and rows[0].endswith("  3")
    call("eps", "--over", "seed", "--pivot", "noise", "eps", "match", "--csv", tmp_path / "pivot.csv")
    table = pd.read_csv(tmp_path / "pivot.csv")
    assert table.columns.tolist() == ["noise"] + [
        f"eps={x}{end}" for x in (0.02, 0.1) for end in ("", "_low", "_high", "_n")
    ]
    assert table["eps=0.02"][1] == pytest.approx(known.value) and table["eps=0.1_n"].tolist() == [3, 3, 3]
    with pytest.raises(
        InputError, match="3 rows with noise=a, eps=0.1 fall in one cell of the pivot: they differ in seed"
    ):
        pivot(read(folder), ["eps", "seed", "noise"], "noise", "eps", "match")


def test_a_narrow_terminal_gets_parts_with_the_keys_in_front(folder: Path) -> None:
    make(folder)
    frame = over(read(folder), ["eps", "seed", "noise"], ["seed"])
    columns = cells(frame)
    whole, narrow = list(lines(columns)), [list(lines(part)) for part in parts(columns, ["eps", "noise"], 70)]
    assert len(narrow) > 1 and max(len(line) for part in narrow for line in part) <= 70 < max(map(len, whole))
    assert all(part[0].split()[:2] == ["eps", "noise"] and len(part) == len(whole) for part in narrow)
    assert sorted(" ".join(part[0] for part in narrow).replace("eps  noise", "").split())[:2] == ["commit", "match"]
    assert [len(part) for part in parts(columns, ["eps", "noise"], 1)] == [3] * (len(columns) - 2)


def test_two_commits_are_paired_by_parameters_and_keys(folder: Path) -> None:
    make(
        folder, commit=OLD, seeds=(0, 1, 2, 3), table=lambda given: noises(given).assign(norm=1.0 + given["seed"] ** 2)
    )
    make(folder, table=lambda given: noises(given).assign(norm=2.0 * given["seed"]))
    result = call("eps", "--compare", f"@{OLD[:6]}", "--over", "seed", "--value", "norm", "--where", "noise!=permuted")
    assert f"'eps' at {NEW[:10]} minus 'eps' at {OLD[:10]}, 12 pairs." in result.stderr
    assert f"4 rows are only in 'eps' at {OLD[:10]}." in result.stderr and "only in 'eps' at bbb" not in result.stderr
    known = over_seeds([2 * seed - 1 - seed**2 for seed in SEEDS])
    rows = result.stdout.splitlines()[2:]
    assert len(rows) == 4 and all(f"{known.value:.4g} [{known.low:.4g}, {known.high:.4g}]  3" in row for row in rows)
    back = call(f"eps@{OLD}", "--compare", f"eps@{NEW}", "--value", "norm")
    assert f"6 rows are only in 'eps' at {OLD[:10]}." in back.stderr
    assert (
        table_of(call("eps", "--over", "seed", "--value", "norm", "--where", "seed=0", "--where", "noise=learned"))[
            "norm"
        ].tolist()
        == ["0"] * 2
    )
    assert set(read(folder)["commit"]) == {NEW[:10]}, "the latest run is taken"
    assert (
        call("eps", "--commit", OLD[:4]).stdout.count(OLD[:10]) == 24 == call(f"eps@{OLD[:4]}").stdout.count(OLD[:10])
    )


def test_two_sweeps_are_compared_in_what_differs_between_them(folder: Path) -> None:
    make(folder, "ours", rate=0.1)
    make(folder, "other", lambda given: noises(given).assign(match=0.25), rate=0.2)
    result = call("ours", "--compare", "other", "--value", "match")
    assert "'rate' is 0.1 in the first, 0.2 in the other." in result.stderr and len(result.stdout.splitlines()) == 20
    frames = [read(folder, name) for name in ("ours", "other")]
    table, *alone = differences(*frames, ["eps", "seed", "noise"], ["match", "reached"])
    assert alone == [0, 0] and np.array_equal(table["match_difference"], frames[0]["match"] - 0.25)
    shuffled = frames[1].iloc[::-1]
    again, *_ = differences(frames[0], shuffled, ["eps", "seed", "noise"], ["match", "reached"])
    assert again.equals(table), "pairs do not go by the order of rows"
    with pytest.raises(InputError, match="3 rows with eps=0.03137.*, noise=learned would be paired .* differ in seed"):
        differences(*frames, ["eps", "noise"], ["match"])
