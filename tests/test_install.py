"""The package in another project: what its installation brings, by pip and by uv, and what each extra adds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv") or shutil.which("uv", path=ROOT / "build" / "uv" / "bin")
EXTRAS = ("papermill", "jupyterlab", "distributed", "sphinx", "pytest", "captum", "torchattacks")

pytestmark = pytest.mark.long


def resolved(folder: Path, extras: str = "", *options: str) -> dict[str, str]:
    """Versions by name that uv takes for a project elsewhere, whose only requirement is this package."""
    if UV is None:
        pytest.skip("uv is not installed; make setup brings it")
    requirement = folder / "requirements.in"
    requirement.write_text(f"nullpaper{extras} @ {ROOT.as_uri()}\n")
    command = [UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options, str(requirement)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", done.stdout, re.MULTILINE))


def test_the_core_computes_and_brings_nothing_else(tmp_path: Path) -> None:
    versions = resolved(tmp_path)
    assert {
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "scipy",
        "pandas",
        "platformdirs",
        "safetensors",
    } <= versions.keys()
    assert versions.keys() & set(EXTRAS) == set() and len(versions) < 80


@pytest.mark.parametrize(
    ("extra", "package"), [("attacks", "torchattacks"), ("notebooks", "papermill"), ("cluster", "distributed")]
)
def test_an_extra_brings_its_package(tmp_path: Path, extra: str, package: str) -> None:
    assert package in resolved(tmp_path, f"[{extra}]")


def test_attacks_and_notebooks_need_the_override_that_pyproject_documents(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    override = re.search(r'^override-dependencies = \["(.*)"\]', text, re.MULTILINE)[1]
    (tmp_path / "override.txt").write_text(override)
    versions = resolved(tmp_path, "[attacks,notebooks]", "--override", "override.txt")
    assert {"torchattacks", "jupyterlab"} <= versions.keys() and not versions["requests"].startswith("2.25")


def test_pip_resolves_the_core_in_a_fresh_environment(tmp_path: Path) -> None:
    venv.create(tmp_path / "fresh", with_pip=True)
    python, report = tmp_path / "fresh" / "bin" / "python", tmp_path / "report.json"
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, ROOT]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    names = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert {"nullpaper", "torch", "timm"} <= names and names & set(EXTRAS) == set()
