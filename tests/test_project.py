"""The promises of the files around the package: the lock, the Makefile, the conda file, the shipped record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nullpaper.cli import main
from nullpaper.models.vit import SHIPPED, fingerprint, load_vit, shipped_weights
from nullpaper.workflow.sweep import plan_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def locked() -> dict[str, set[str]]:
    """Versions by name; a name may have several, for different Pythons or platforms."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", LOCK, re.MULTILINE):
        versions.setdefault(name.lower(), set()).add(version)
    return versions


def test_the_lock_is_exact_hashed_and_without_addresses() -> None:
    entries = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert all(re.match(r"[A-Za-z0-9_.-]+==\S+", entry) for entry in entries)
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks if re.match(r"[A-Za-z0-9]", block))
    assert "://" not in LOCK


def test_the_lock_has_no_old_requests_and_covers_the_project() -> None:
    versions = locked()
    assert all(tuple(map(int, version.split(".")[:2])) >= (2, 32) for version in versions["requests"])
    text = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^\s+"([a-z-]+)>=', text, re.MULTILINE) + ["cvxpy", "pytest", "ruff"]
    assert len(wanted) > 15 and {name for name in wanted if name not in versions} == set()


def test_conda_users_get_the_tools_that_make_needs() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    names = {re.split(r"[=<>]", entry)[0] for entry in environment["dependencies"]}
    assert environment["name"] == "nullpaper" and {"python", "uv", "make"} <= names
    assert "CONDA_DEFAULT_ENV),nullpaper" in (ROOT / "Makefile").read_text()


def test_make_help_documents_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in targets if not re.search(rf"make {target} .*\w", shown)] == []


def test_the_record_beside_the_weights_is_of_these_weights() -> None:
    record = json.loads(shipped_weights().with_suffix(".json").read_text())
    vit = load_vit(SHIPPED)
    assert record["weights"] == fingerprint(vit)
    assert record["parameters"] == sum(parameter.numel() for parameter in vit.parameters())
    assert len(record["history"]) == record["recipe"]["epochs"] and record["test_accuracy"]["value"] >= 0.70


@pytest.mark.parametrize("grid", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_grid_file_of_the_repository_can_be_run(grid: Path) -> None:
    assert len(plan_sweep(grid, profile="smoke").jobs) > 1


def test_the_code_in_the_readme_runs(capsys) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(code, {"__name__": "__main__"})
    shown = capsys.readouterr().out
    norm, change = (float(number) for number in re.findall(r"tensor\(([-+.\de]+)", shown))
    assert norm > 10 and change < 1e-3


def test_the_scorecard_says_what_the_reference_says() -> None:
    """Each row: the word of the verdict that it names, and numbers that stand in its text."""
    rows = re.findall(r"^\| [ABC, ]+ \| .*? \| (.*?) \| \*\*(.*?)\*\* \| .*? `(\w+)` \|$", README, re.MULTILINE)
    tables = [pd.read_csv(path, dtype=str) for path in (ROOT / "results").glob("*_verdicts.csv")]
    verdicts = pd.concat(tables).set_index("name")
    assert 10 <= len(rows) <= 14
    for measured, word, name in rows:
        verdict = verdicts.loc[name]
        numbers = re.findall(r"[-+]?\d[\d.,]*\b", measured)
        assert word == verdict["holds"] and numbers, name
        assert [number for number in numbers if number not in verdict["measured"] + verdict["said"] + "64"] == [], name


def test_what_the_readme_says_of_photographs_is_measured() -> None:
    said = re.search(r"^\*\*On a ViT-Ti/16.*?\n\n", README, re.MULTILINE | re.DOTALL)[0]
    folder = ROOT / "results" / "photographs"
    dimensions = pd.read_csv(folder / "12_dimensions.csv").set_index("through").loc["embedding"]
    effect = pd.read_csv(folder / "12_effect.csv").set_index("noise")
    exact, gaussian = effect.loc["exact, encoder"], effect.loc["Gaussian"]
    kept = f"{exact['unchanged'] * exact['n']:,.0f} of {exact['n']:,}"
    verdicts = pd.concat(pd.read_csv(folder / f"{number}_verdicts.csv") for number in ("01", "04")).set_index("name")
    bounds = [100 * gaussian[column] for column in ("unchanged", "unchanged_low", "unchanged_high")]
    for words in (
        f"{dimensions['ignored']} of {dimensions['patch_dim']} dimensions",
        f"{kept} predictions stay under exact noise of norm {exact['norm']:.0f}",
        "{:.1f} % [{:.1f}, {:.1f}]".format(*bounds),
    ):
        assert words in " ".join(said.split())
    for number, name in (("77.5 % [71.2, 82.7]", "stored_noise"), ("6.4 % [6.3, 6.6]", "look_alike")):
        assert number in said and number in verdicts.loc[name, "measured"]


def test_the_readme_is_short_and_its_commands_exist() -> None:
    assert len(re.sub(r"```.*?```", "", README, flags=re.DOTALL).split()) <= 1_100
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {target for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)} <= set(targets)
    for command in re.findall(r"`nullpaper (\w+)", README):
        assert command in main.commands
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("module", ["nullpaper", "nullpaper.cli"])
def test_importing_does_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
