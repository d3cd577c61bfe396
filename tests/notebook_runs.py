"""The fixture `run` of the notebooks' tests: a file names its ``NOTEBOOK``, which is run once, at smoke, for real.

::

    NOTEBOOK = "01_existence"

    def test_the_dimensions_are_those_of_the_shapes(run: NotebookRun) -> None:
        table = run.table("01_dimensions")

All files and all pytest-xdist workers share one project and so one store: what two notebooks compute is computed once.
A test that looks into the store must therefore ask for what its own notebook made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from nullpaper.workflow.runs import RunReport, run_notebooks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@dataclass(frozen=True)
class NotebookRun:
    """A finished run: its report, and the project in whose ``build/`` everything lies."""

    report: RunReport
    project: Path

    def table(self, name: str, **options: object) -> pd.DataFrame:
        """The saved table of this name; ``options`` go to `pandas.read_csv`."""
        paths = {path.stem: path for path in self.report.tables if path.suffix == ".csv"}
        assert name in paths, f"{self.report.notebook.stem} saved no table {name} but {sorted(paths)}"
        return pd.read_csv(paths[name], **options)

    @property
    def figures(self) -> set[str]:
        """The names of the figures."""
        return {path.stem for path in self.report.figures}

    @property
    def printed(self) -> str:
        """All that its cells printed."""
        cells = json.loads(self.report.ipynb.read_text())["cells"]
        streams = [output.get("text", []) for cell in cells for output in cell.get("outputs", [])]
        return "".join("".join(text) for text in streams)


def run_at_smoke(project: Path, notebook: str, label: str | None = None, **parameters: object) -> NotebookRun:
    """Run a notebook at the smoke profile in ``project``; it must succeed and leave a page, figures and tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(project))
        path = NOTEBOOKS / f"{notebook}.py"
        (report,) = run_notebooks([path], parameters, profile="smoke", label=label)
    assert report.error is None, f"{report.error}: {report.ipynb}"
    assert report.ipynb.with_suffix(".html").stat().st_size > 10_000 and report.figures and report.tables
    assert {path.suffix for path in report.figures} == {".pdf", ".png"}
    return NotebookRun(report, project)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    project = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "paper"
    project.mkdir(exist_ok=True)
    return project


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, project: Path) -> Iterator[NotebookRun]:
    """The file's notebook, run once; `nullpaper` finds the run's project while the file is tested."""
    result = run_at_smoke(project, request.module.NOTEBOOK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(project))
        yield result
