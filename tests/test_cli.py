"""The command line: quick to start, helpful, one sentence for bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from nullpaper.cli import main
from nullpaper.workflow.figures import save_table

TINY = Path(__file__).parent / "tiny" / "00_tiny.py"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NULLPAPER_RUN", raising=False)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="nullpaper")


def test_start_up_loads_nothing_heavy() -> None:
    script = "import sys, nullpaper.cli; print(sorted({'torch', 'numpy', 'papermill', 'pandas'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=TINY.parents[2])
    assert done.stdout.strip() == "[]", done.stderr


def test_module_is_the_command() -> None:
    command = [sys.executable, "-m", "nullpaper", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TINY.parents[2])
    assert done.returncode == 0 and done.stdout.startswith("Usage: nullpaper run")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["paper"],
        ["data"],
        ["data", "fetch"],
        ["show"],
        ["store"],
        ["store", "pack"],
        ["store", "unpack"],
        ["verify"],
        ["sweep"],
        ["report"],
        ["figures"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = call(*command, "--help")
    documented = result.output.split("Options:")[0].splitlines()
    assert result.exit_code == 0 and any(line.startswith("  ") and line.endswith(".") for line in documented)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", str(TINY), "-p", "cuont", "3"], "has no parameter 'cuont'. Did you mean 'count'?"),
        (["run", str(TINY), "-p", "count", "three"], "'count' must be int"),
        (["run", str(TINY), "--profile", "gpuu"], "Did you mean 'gpu'?"),
        (["run", "01_absent"], "there is no notebook"),
        (["paper", "--profile", "smoke"], "holds no numbered notebook"),
        (["show", "absent.png"], "there is no file absent.png"),
        (["data", "fetch", "cifar11"], "Did you mean 'cifar10'?"),
    ],
)
def test_bad_input_is_one_sentence(root: Path, arguments: list[str], sentence: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and sentence in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == "" and list(root.iterdir()) == [], "nothing was begun"


def test_parameters_are_listed() -> None:
    result = call("run", str(TINY), "--parameters")
    assert "count: int = 4  # points drawn\n" in result.output


def test_show_prints_where_a_figure_is_from() -> None:
    csv, tex = save_table(pd.DataFrame({"x": [1]}), "numbers")
    for path in (csv, tex):
        result = call("show", str(path))
        assert result.exit_code == 0 and "notebook      interactive" in result.output and "device " in result.output
