"""Every notebook runs, executed by papermill at the smoke profile: here those that no other file names."""

from __future__ import annotations

import pytest
import test_notebooks_ablations
import test_notebooks_finetuning
import test_notebooks_fooling
import test_notebooks_fulllora
import test_notebooks_joined
import test_notebooks_nullspace
from notebook_runs import ALL, assert_complete, project, runs, stems

from nullpaper.errors import InputError
from nullpaper.runner import RunReport, run_notebook

__all__ = ["project", "runs"]  # fixtures

GROUPS = (
    *(test_notebooks_nullspace, test_notebooks_fooling, test_notebooks_finetuning),
    *(test_notebooks_fulllora, test_notebooks_ablations, test_notebooks_joined),
)
ELSEWHERE = [test_notebooks_nullspace.CHECKPOINT, *(notebook for group in GROUPS for notebook in group.NOTEBOOKS)]
NOTEBOOKS = [notebook for notebook in ALL if notebook not in ELSEWHERE]


@pytest.mark.parametrize("name", stems(NOTEBOOKS))
def test_it_runs_and_leaves_a_page_figures_and_tables(runs: dict[str, RunReport], name: str) -> None:
    assert_complete(runs[name])


@pytest.mark.parametrize("name", stems(ALL))
def test_it_takes_a_profile_and_refuses_a_misspelt_parameter(name: str) -> None:
    notebook = next(path for path in ALL if path.stem == name)
    with pytest.raises(InputError, match="no parameter 'profil'. Did you mean 'profile'?"):
        run_notebook(notebook, {"profil": "smoke"}, profile="smoke")
