"""Parts of the notebook tests: a file names its ``NOTEBOOKS``, run once, at smoke, in a project of its own.

The files are several because a file is what pytest-xdist hands to a worker; notebooks that share trials stay together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nullpaper.workflow.runs import RunReport, run_notebook

ALL = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))


def numbered(*numbers: str) -> list[Path]:
    """The notebooks of these numbers."""
    chosen = [path for path in ALL if path.stem.split("_")[0] in numbers]
    if len(chosen) != len(numbers):
        raise LookupError(f"of the notebooks {numbers} there are {[path.name for path in chosen]}")
    return chosen


def stems(notebooks: list[Path]) -> list[str]:
    return [notebook.stem for notebook in notebooks]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def runs(request, project: Path) -> dict[str, RunReport]:
    """The file's notebooks, run once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(project))
        reports = [run_notebook(notebook, profile="smoke", progress=False) for notebook in request.module.NOTEBOOKS]
    return {report.notebook.stem: report for report in reports}


def assert_complete(report: RunReport) -> None:
    """It ran and left a page, figures and tables."""
    assert report.error is None
    assert report.html.stat().st_size > 10_000 and report.figures and report.tables
    assert {path.suffix for path in report.figures} == {".pdf", ".png"}
    assert {path.suffix for path in report.tables} == {".csv", ".tex"}
