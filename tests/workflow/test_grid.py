"""Grid files: what they make, and the one sentence for each thing that can be wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweeping import project

from nullpaper.errors import InputError
from nullpaper.workflow.sweep import plan_sweep


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(project(tmp_path)))
    return tmp_path


def points(root: Path, text: str) -> list[dict[str, Any]]:
    """The parameters of the jobs of a grid file over the notebook ``trivial``."""
    file = root / "tried.yaml"
    file.write_text(f"notebook: trivial\n{text}")
    return [dict(job.given) for job in plan_sweep(file, profile="smoke").jobs]


def test_grids_cross_and_zips_go_side_by_side(root: Path) -> None:
    text = "fixed: {nap: 1}\ngrid: {seed: [1, 2]}\nzip: {eps: [0.1, 1, 2], model: [a, b, c]}"
    pairs = [(0.1, "a"), (1.0, "b"), (2.0, "c")]
    expected = [{"nap": 1.0, "seed": seed, "eps": eps, "model": model} for seed in (1, 2) for eps, model in pairs]
    assert points(root, text) == expected
    assert all(type(point["eps"]) is float and type(point["seed"]) is int for point in points(root, text))
    assert points(root, "grid: {eps: [1e-3]}") == [{"eps": 0.001}], "which YAML 1.1 takes for a text"
    assert points(root, "") == [{}], "one job as the notebook is"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: &base {nap: 1, model: a}\nfixed: {<<: *base, model: b}", [{"nap": 1.0, "model": "b"}]),
        ("base: &base\n  seed: [1, 2]\ngrid: {<<: *base}", [{"seed": 1}, {"seed": 2}]),
        ("a: &a {nap: 1}\nb: &b {<<: *a, eps: 1}\nfixed: {<<: *b, eps: 2}", [{"nap": 1.0, "eps": 2.0}]),
        ("two: &two [1, 2]\nzip: {seed: *two, eps: *two}", [{"seed": 1, "eps": 1.0}, {"seed": 2, "eps": 2.0}]),
    ],
)
def test_anchors_and_merge_keys_are_resolved(root: Path, text: str, expected: list[dict[str, Any]]) -> None:
    assert points(root, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {seed: [1], seed: [2]}", "'seed' stands there twice"),
        ("grid: {seed: [1]}\ngrid: {eps: [1]}", "'grid' stands there twice"),
        ("grid: {1: [1]}", "a name must be a text"),
        ("fixed: {null: 1}", "a name must be a text"),
        ("gird: &gird {seed: [1]}", "has an entry 'gird'. Did you mean 'grid'"),
        ("base: {seed: [1]}", "has an entry 'base'. It takes notebook"),
        ("grid: {sed: [1]}", "no parameter 'sed'. Did you mean 'seed'"),
        ("fixed: {sed: 1}\ngrid: {eps: [1]}", "no parameter 'sed'"),
        ("grid: {seed: [1, x]}", "'seed' must be int, but 'x' is not"),
        ("grid: {seed: [1.5]}", "'seed' must be int, but 1.5 is not"),
        ("grid: {profile: [cpu]}", "no parameter 'profile'"),
        ("grid: {seed: 1}", "'seed' must be a list of values; one value alone goes to 'fixed'"),
        ("zip: {seed: []}", "must be a list of values"),
        ("grid: {seed: [1]}\nfixed: {seed: 2}", "sets the parameter 'seed' twice"),
        ("zip: {seed: [1, 2], eps: [1]}", "must be of one length, but have seed 2, eps 1"),
        ("gird: {seed: [1]}", "has an entry 'gird'. Did you mean 'grid'"),
        ("grid: [1]", "'grid' must map parameters to values"),
        ("grid: {seed: [1}", "line 2, column"),
        ("grid: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    ],
)
def test_one_sentence_names_what_is_wrong(root: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        points(root, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_names_no_notebook_or_profile_is_refused(root: Path) -> None:
    file = root / "tried.yaml"
    for text, message in (
        ("grid: {seed: [1]}", "names no notebook"),
        ("- 1", "must map names to values"),
        ("notebook: trivia\ngrid: {seed: [1]}", "Did you mean 'trivial.py'"),
        ("notebook: trivial\nprofile: smok\ngrid: {seed: [1]}", "'smok' is unknown. Did you mean 'smoke'"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            plan_sweep(file)
    with pytest.raises(InputError, match="cannot be read"):
        plan_sweep(root / "absent.yaml")
