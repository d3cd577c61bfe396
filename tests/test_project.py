"""The promises of the files around the package: the lock, the Makefile, the conda file, the shipped record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import yaml
from quick import QUICK

from nullpaper.cli import main
from nullpaper.finetuning.methods import METHODS
from nullpaper.models.vit import SHIPPED, fingerprint, load_vit, shipped_weights
from nullpaper.robustness.attacks import ATTACKS
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.workflow.plan import paper_notebooks, plan_run
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
    names: dict[str, object] = {"__name__": "__main__"}
    exec(code, names)
    space = names["space"]
    assert f"# {space.dim} of {len(space.basis)} dimensions a patch" in code
    shown = capsys.readouterr().out
    norm, change = (float(number) for number in re.findall(r"tensor\(([-+.\de]+)", shown))
    assert norm > 10 and change < 1e-3


FINDINGS = {
    "noise_or_finetuning": "does not hold",
    "attack_over_noise": "holds",
    "exact_noise": "holds",
    "largest_noise": "ill-posed",
    "permutation_control": "does not hold",
}
"""What the README finds, as words of results/verdicts.csv."""
NAMES = r"`[^`]*`|ViT-Ti/16|CIFAR-10|H100|!?\[[^]]*\]\([^)]*\)"  # code, names and links, whose digits measure nothing


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def findings() -> list[tuple[str, str]]:
    """(sentences, name of a verdict) of each finding of the README."""
    return re.findall(r"^\d\. ([^`]*) `(\w+)`$", without_code(README), re.MULTILINE)


def scorecard() -> list[tuple[str, str, str]]:
    """(claim and measured, verdict, name of the verdict) of each row of the README's table."""
    return re.findall(r"^\| [ABC, ]+ \| ([^|]*\|[^|]*) \| \*\*(.*)\*\* \| \[`(\w+)`\]\(.*\) \|$", README, re.MULTILINE)


def verdicts(folder: Path) -> pd.DataFrame:
    tables = [pd.read_csv(path, dtype=str) for path in sorted(folder.glob("*_verdicts.csv"))]
    return pd.concat(tables).set_index("name")


def quantities(text: str) -> list[str]:
    """Numbers, each with its unit of percent and its interval."""
    return re.findall(r"[-+]?\d[\d.,]*\b(?: %)?(?: \[[-+\d., ]+\])?", re.sub(NAMES, "", " ".join(text.split())))


def facts() -> list[str]:
    """What the README says in numbers beside findings and scorecard, as the files say it."""
    shipped = json.loads(shipped_weights().with_suffix(".json").read_text())
    manifest = json.loads((ROOT / "results" / "manifest.json").read_text())
    finetuning = manifest["07_nullspace_finetuning"]["parameters"]
    python = re.search(r'^requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    photographs = ROOT / "results" / "photographs"
    measured = verdicts(photographs)["measured"]
    dimensions = pd.read_csv(photographs / "12_dimensions.csv").set_index("through").loc["embedding"]
    effect = pd.read_csv(photographs / "12_effect.csv").set_index("noise")
    exact, gaussian = effect.loc["exact, encoder"], effect.loc["Gaussian"]
    left = [100 * gaussian[column] for column in ("unchanged", "unchanged_low", "unchanged_high")]
    return [
        f"Python {python} or newer",
        f"{shipped['parameters'] / 1e6:.2f} million parameters",
        f"at {shipped['architecture']['img_size']} px, {100 * shipped['test_accuracy']['value']:.1f} % accurate",
        f"finding 1 on {finetuning['seeds']} seeds × {finetuning['images']} images, {finetuning['steps']} steps",
        f"{dimensions['ignored']} of {dimensions['patch_dim']} dimensions",
        f"{exact['unchanged'] * exact['n']:,.0f} of {exact['n']:,} predictions stay",
        f"under exact noise of norm {exact['norm']:.0f}",
        "Gaussian noise leaves {:.1f} % [{:.1f}, {:.1f}]".format(*left),
        "{} stay as JPEG 90".format(re.search(r"JPEG 90: (.*?\])", measured["stored_noise"])[1]),
        re.search(r"covers .*?\]", measured["look_alike"])[0],
        "on Imagenette: {}".format(re.match(r".*?\] points", measured["finetuning"])[0]),
    ]


def test_findings_and_scorecard_have_the_final_words() -> None:
    final = pd.read_csv(ROOT / "results" / "verdicts.csv").set_index("name")["verdict"]
    assert {name: final[name] for _, name in findings()} == FINDINGS
    assert 10 <= len(scorecard()) <= 14
    assert [name for _, word, name in scorecard() if word != final[name]] == []
    assert findings()[0][0].startswith("**Does nullspace finetuning make a ViT robust? No.**")


def test_findings_and_scorecard_have_the_numbers_of_the_verdicts() -> None:
    reference = verdicts(ROOT / "results")
    texts = reference["said"] + ": " + reference["measured"]
    for text, name in [*findings(), *((cells, name) for cells, _, name in scorecard())]:
        assert quantities(text), name
        for quantity in quantities(text):
            assert re.search(rf"(?<![\d.,]){re.escape(quantity)}(?!\d)", texts[name]), (name, quantity)


def test_no_other_number_stands_in_the_readme() -> None:
    left = re.sub(r"^(\d\. .*(\n   .*)*|\|.*\|)$", "", without_code(README), flags=re.MULTILINE)
    left = " ".join(left.replace("\n> ", "\n").split())
    for fact in facts():
        assert fact in left
        left = left.replace(fact, "")
    assert quantities(left) == []


def test_the_devices_of_the_readme_are_those_of_the_manifest() -> None:
    manifest = json.loads((ROOT / "results" / "manifest.json").read_text())
    said = re.search(r"one H100 for the training in (.*?), else", README.replace("\n> ", " "))[1]
    there = {name for name, entry in manifest.items() if "H100" in entry["device"] + entry.get("note", "")}
    assert set(re.findall(r"(\d\d)_\w+\.", said)) == {name[:2] for name in there}


def test_the_readme_is_short_and_its_commands_exist() -> None:
    assert len(without_code(README).split()) <= 900
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {target for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)} <= set(targets)
    for command in re.findall(r"^nullpaper (\w+)", README, re.MULTILINE):
        assert command in main.commands


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_parts_are_added_as_contributing_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer images and steps; the notebook in a project of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(blocks) == 6 and max(len(block.splitlines()) for block in blocks) < 20
    code = "\n".join(blocks[:-1]).replace("subset(100)", "subset(8)").replace("steps=4", "steps=1, recipe=RECIPE")
    parts = [ATTACKS, CORRUPTIONS, METHODS]
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(patch.dict(part))
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"RECIPE": QUICK})
    assert {"uniform", "posterise", "mirrored"}.isdisjoint(name for part in parts for name in part)
    printed = capsys.readouterr().out
    assert "576 of 768" in printed and "uniform@0.031" in printed and "posterise@5" in printed
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / "15_share.py"
    notebook.write_text(blocks[-1])
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    assert paper_notebooks() == [notebook] and plan_run(notebook, {"images": 8}, profile="cpu").values == {"images": 8}
    exec(compile(blocks[-1].replace("= 100", "= 8"), notebook.name, "exec"), {})
    (table,) = tmp_path.glob("build/**/15_share.csv")
    assert pd.read_csv(table)["share"].between(0, 1).all()


def test_the_version_is_written_once() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    newest = re.search(r"^## (\S+) \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == version
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version not in "".join(path.read_text() for path in (ROOT / "nullpaper").rglob("*.py"))


@pytest.mark.parametrize("module", ["nullpaper", "nullpaper.cli"])
def test_importing_does_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
