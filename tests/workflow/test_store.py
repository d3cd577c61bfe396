"""The store's promises: whole or absent, computed once, reused when nothing changed and only then."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nullpaper.errors import InputError
from nullpaper.workflow.provenance import RunContext
from nullpaper.workflow.store import Result, records, stored

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = """
import sys, time
from pathlib import Path
import numpy as np
from nullpaper.workflow.store import stored

HERE = Path(__file__).parent

def compute():
    with (HERE / "log").open("a") as log:
        log.write("computed\\n")
    time.sleep(float((HERE / "seconds").read_text()))
    return {"answer": 42}, {"noise": np.arange(100_000, dtype=np.float32)}

def run():
    return stored("job", {"a": 1}, compute, root=HERE / "store")
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module with a slow computation, and a way to run it in a process of its own."""
    (tmp_path / "nullpaper_test_job.py").write_text(JOB)
    (tmp_path / "seconds").write_text("0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nullpaper_test_job", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    return importlib.import_module("nullpaper_test_job")


def start(setup: str = "") -> subprocess.Popen[str]:
    script = f"import nullpaper_test_job as job\n{setup}\nresult = job.run()\nprint(result.key, result.reused)"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(root: Path) -> list[Path]:
    return [path for path in root.glob("job/*") if path.is_dir() and not path.name.startswith(".")]


def leftovers(root: Path) -> list[Path]:
    return list(root.glob("*/.*.tmp"))


def test_result_is_reused_and_depends_on_params_and_data(tmp_path: Path) -> None:
    calls = iter(range(1, 9))

    def compute() -> dict[str, int]:
        return {"calls": next(calls)}

    def ask(**options: object) -> Result:
        return stored("count", {"a": (1, 2), "b": Path("x")}, compute, root=tmp_path, **options)

    first, second = ask(), ask()
    assert not first.reused and second.reused and first.metrics == second.metrics == {"calls": 1}
    assert stored("count", {"b": "x", "a": [1, 2]}, compute, root=tmp_path).key == first.key
    others = [ask(data={"cifar10": "47af"}), stored("count", {"a": 1}, compute, root=tmp_path)]
    assert len({first.key, *(other.key for other in others)}) == 3
    assert json.loads((first.path / "params.json").read_text()) == {"a": [1, 2], "b": "x"}


def test_a_result_of_other_data_serves_where_the_own_is_not_there(tmp_path: Path) -> None:
    def of(machine: str, other: str | None) -> Result:
        options = {"data": {"machine": machine}, "other_data": other and {"machine": other}}
        return stored("job", {}, lambda: {"answer": 42}, root=tmp_path, **options)

    first = of("card", None)
    assert of("laptop", "card").key == first.key and len(finished(tmp_path)) == 1
    own = of("laptop", None)
    assert own.key != first.key and of("laptop", "card").key == own.key


def test_force_recomputes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(range(9))

    def ask() -> int:
        return stored("force", {}, lambda: next(values), root=tmp_path).metrics

    assert (ask(), ask()) == (0, 0)
    monkeypatch.setenv(*next(iter(RunContext(recompute_before=time.time()).environment().items())))
    assert (ask(), ask()) == (1, 1), "a forced run computes a result that it needs twice only once"


def test_metrics_round_trip(tmp_path: Path) -> None:
    table = pd.DataFrame({"eps": [0.5, math.nan], "name": ["a", "b"]})
    metrics = {"z": np.float32(0.5), "n": np.int64(3), "ok": np.bool_(True), "bad": -math.inf, "rows": records(table)}
    result = stored("metrics", {"eps": math.inf}, lambda: metrics, root=tmp_path)
    assert list(result.metrics) == list(metrics)
    assert result.metrics["bad"] == -math.inf and result.metrics["ok"] is True and result.metrics["n"] == 3
    pd.testing.assert_frame_equal(pd.DataFrame(result.metrics["rows"]), table)


def test_tensors_round_trip(tmp_path: Path) -> None:
    import torch

    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"transposed": weight.T, "shared": weight, "array": np.eye(2), "half": weight.bfloat16()}
    result = stored("tensors", {}, lambda: ({"loss": torch.tensor(0.25)}, tensors), root=tmp_path)
    assert result.metrics == {"loss": 0.25}
    loaded = result.tensors()
    assert loaded.keys() == tensors.keys() and loaded["half"].dtype == torch.bfloat16
    assert all(torch.equal(loaded[name], torch.as_tensor(value)) for name, value in tensors.items())
    array = stored("array", {}, lambda: ({}, {"eye": np.eye(3)[:, ::2]}), root=tmp_path).arrays()["eye"]
    np.testing.assert_array_equal(array, np.eye(3)[:, ::2])


def test_kill_while_computing(job, tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("60")
    process = start()
    while not (tmp_path / "log").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    assert finished(tmp_path / "store") == [] and leftovers(tmp_path / "store") == []
    (tmp_path / "seconds").write_text("0")
    again = job.run()
    assert not again.reused and again.metrics == {"answer": 42} and leftovers(tmp_path / "store") == []


@pytest.mark.long
@pytest.mark.parametrize("moment", ["metrics.json", "tensors.safetensors", "provenance.json", "os.rename"])
def test_kill_while_writing(job, tmp_path: Path, moment: str) -> None:
    hook = f"""
import os, signal, sys
def strike(event, args):
    if event == {moment!r} or event == "open" and str(args[0]).endswith({moment!r}) and args[1] in ("w", "wb"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(strike)"""
    process = start(hook)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert finished(tmp_path / "store") == [] and len(leftovers(tmp_path / "store")) == 1
    again = job.run()
    assert not again.reused and again.arrays()["noise"].sum() > 0 and leftovers(tmp_path / "store") == []


def test_processes_that_need_the_same_result_compute_it_once(job, tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("1")
    processes = [start() for _ in range(3)]
    printed = [process.communicate() for process in processes]
    answers = [out.split() for out, _ in printed]
    assert all(process.returncode == 0 for process in processes), printed
    assert len({key for key, _ in answers}) == 1
    assert sorted(reused for _, reused in answers) == ["False", "True", "True"]
    assert (tmp_path / "log").read_text().count("computed") == 1


def flip(path: Path) -> None:
    path.write_text(path.read_text().replace("42", "43"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.json", flip),
        ("metrics.json", lambda path: path.write_text("{")),
        ("metrics.json", Path.unlink),
        ("provenance.json", lambda path: path.write_text("[]")),
        ("provenance.json", lambda path: path.write_bytes(b"\xff\x00")),
        ("provenance.json", Path.unlink),
        ("tensors.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-4])),
        ("params.json", lambda path: path.write_text("{}")),
    ],
)
def test_damaged_results_are_computed_anew(job, name: str, damage) -> None:
    damage(job.run().path / name)
    repaired = job.run()
    assert not repaired.reused and repaired.metrics == {"answer": 42}
    assert job.run().reused


def test_unwritable_folder_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to .*file/sub/job"):
        stored("job", {}, lambda: pytest.fail("computed"), root=tmp_path / "file" / "sub")


@pytest.mark.long
def test_full_disk(job, tmp_path: Path) -> None:
    process = start("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))")
    _, error = process.communicate()
    assert process.returncode == 1
    assert f"InputError: cannot write to {tmp_path / 'store' / 'job'} (File too large)" in error
    assert finished(tmp_path / "store") == [] and leftovers(tmp_path / "store") == []


def test_failed_computation_stores_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        raise FileNotFoundError("images")

    with pytest.raises(FileNotFoundError, match="images"):
        stored("job", {}, broken, root=tmp_path)
    with pytest.raises(InputError, match=r"metrics cannot be written as JSON \(a value of type ndarray\)"):
        stored("job", {}, lambda: {"curve": np.ones(3)}, root=tmp_path)
    assert finished(tmp_path) == [] and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("../up", {}, "no folder name"),
        ("", {}, "no folder name"),
        ("fine", {"f": print}, "params cannot be written as JSON"),
        ("fine", {"of": [Path("/some/folder")]}, r"params\['of'\]\[0\] is the path /some/folder: a result must not"),
    ],
)
def test_bad_input(tmp_path: Path, name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stored(name, params, lambda: pytest.fail("computed"), root=tmp_path)


def test_a_path_among_the_params_counts_by_the_content_of_its_file(tmp_path: Path) -> None:
    keys = []
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(content)
        keys.append(stored("weights", {"file": str(tmp_path / name)}, lambda: 1, root=tmp_path).key)
    assert keys[0] == keys[1] != keys[2]


def test_provenance_names_commit_versions_and_device(tmp_path: Path) -> None:
    result = stored("origin", {}, lambda: 1, root=tmp_path)
    origin = result.provenance
    assert {"run", "commit", "versions", "device", "seconds", "files", "code"} <= origin.keys()
    assert {"python", "numpy", "torch", "timm", "nullpaper", "torchattacks"} <= origin["versions"].keys()
    assert origin["device"] and origin["seconds"] >= 0
