"""One notebook in three ways: cell by cell in Jupyter, through plain papermill, and by `nullpaper run`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pandas as pd
import pytest
from jupyter_client.manager import KernelManager
from notebook_runs import NotebookRun

from nullpaper.workflow.parameters import PROFILES, parameters, profile_parameters, takes_part
from nullpaper.workflow.plan import plan_run

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK, IMAGES = "12_any_model", 8
SILENT = ("NULLPAPER_ROOT", "NULLPAPER_RUN")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, run: NotebookRun) -> Iterator[Path]:
    """A checkout in small, the notebooks and the file that marks a project's root; ``run`` has set what it unsets."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        for variable in SILENT:
            patch.delenv(variable, raising=False)
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        yield root


@pytest.fixture(scope="module")
def reference(run: NotebookRun) -> pd.DataFrame:
    """The table of `nullpaper run`, at a profile that changes no parameter but the number of images."""
    assert profile_parameters(REPOSITORY / "notebooks" / f"{NOTEBOOK}.py", "smoke") == {"images": IMAGES}
    return run.table("12_effect")


def call(*command: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_cell_by_cell_in_jupyter(checkout: Path, reference: pd.DataFrame, folder: str) -> None:
    """As a reader does it: a kernel started in that folder, and a parameter edited in its cell."""
    table = checkout / "build" / "interactive" / "results" / "12_effect.csv"
    table.unlink(missing_ok=True)
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(checkout / folder))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        for cell in jupytext.read(checkout / "notebooks" / f"{NOTEBOOK}.py", fmt="py:percent").cells:
            tagged = "parameters" in cell.metadata.get("tags", [])
            if cell.cell_type == "code":
                source = cell.source + f"\nimages = {IMAGES}" * tagged
                reply = client.execute_interactive(source, timeout=300, output_hook=lambda message: None)
                assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    pd.testing.assert_frame_equal(pd.read_csv(table), reference)


@pytest.mark.long
def test_plain_papermill(checkout: Path, reference: pd.DataFrame) -> None:
    folder = checkout / "notebooks"
    call("jupytext", "--to", "ipynb", f"{NOTEBOOK}.py", cwd=folder)
    told = call("papermill", "--help-notebook", f"{NOTEBOOK}.ipynb", cwd=folder)
    for name, parameter in parameters(folder / f"{NOTEBOOK}.py").items():
        assert f"  {name}: {parameter.type} (default " in told and parameter.help in told
    table = checkout / "build" / "interactive" / "results" / "12_effect.csv"
    table.unlink(missing_ok=True)
    told = call("papermill", f"{NOTEBOOK}.ipynb", "out.ipynb", "-p", "images", str(IMAGES), cwd=folder)
    assert "unknown parameter" not in told
    pd.testing.assert_frame_equal(pd.read_csv(table), reference)


@pytest.mark.parametrize("notebook", sorted((REPOSITORY / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_profile_of_every_notebook_is_sound(notebook: Path) -> None:
    for profile in (profile for profile in PROFILES if takes_part(notebook, profile)):
        plan = plan_run(notebook, profile=profile)
        assert plan.out.name == profile and plan.context.parameters.keys() == parameters(notebook).keys()
        assert all(value is not None for value in plan.context.parameters.values())
