"""What is said of a run before it begins, and that nothing runs for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from nullpaper.cli import main
from nullpaper.errors import InputError
from nullpaper.workflow.plan import plan_run
from nullpaper.workflow.preview import planned

TINY = Path(__file__).parents[1] / "tiny"
PLANNING = """
# %% tags=["parameters"]
count: int = 4

# %% [markdown]
# The work.

# %% tags=["plan"]
plan = {"all": list(range(count))}

# %%
raise SystemError("this is the work itself")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(TINY, tmp_path / "notebooks")
    (tmp_path / "notebooks/20_planning.py").write_text(PLANNING)
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    return tmp_path


def test_of_any_notebook_it_says_where_it_goes_and_what_it_reads(project: Path) -> None:
    done = CliRunner().invoke(main, ["run", "00_tiny", "--dry-run", "-p", "count", "7", "--profile", "smoke"])
    assert done.exit_code == 0, done.output
    assert "00_tiny would go to build/00_tiny-count=7-smoke\n  data: none\n  weights: shipped" in done.output
    assert not (project / "build").exists()


def test_bad_parameters_are_refused_as_by_a_run(project: Path) -> None:
    done = CliRunner().invoke(main, ["run", "00_tiny", "--dry-run", "-p", "cuont", "7"])
    assert done.exit_code == 2 and "Did you mean 'count'?" in done.output


def test_a_plan_is_made_with_the_runs_parameters_and_no_later_cell(project: Path) -> None:
    run = plan_run(project / "notebooks/20_planning.py", {"count": 2}, profile="cpu")
    assert planned(run)["plan"] == {"all": [0, 1]}
    assert planned(plan_run(project / "notebooks/00_tiny.py", profile="cpu")) is None
    text = PLANNING.replace("list(range(count))", "[][count]").replace(
        "plan = ", "from nullpaper.errors import InputError\nraise InputError('no') #"
    )
    (project / "notebooks/20_planning.py").write_text(text)
    with pytest.raises(InputError, match="no"):
        planned(plan_run(project / "notebooks/20_planning.py", profile="cpu"))
