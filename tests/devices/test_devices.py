"""Every public function on a device against the CPU, with model and data on two devices, and every notebook.

`make test-gpu` runs it on CUDA, or on what NULLPAPER_TEST_DEVICE names: "cpu" tries the tests themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from devices.cases import ANYWHERE, TOGETHER
from devices.worlds import ALONE, DEVICE, HOST, WORLDS, World, vit_on
from notebook_runs import NOTEBOOKS, project, run_at_smoke  # noqa: F401
from quick import QUICK, few

from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import METHODS
from nullpaper.workflow.reference import read_manifest

TOLERANCE = 1e-3
pytestmark = pytest.mark.gpu
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device, so nothing is tested on one", allow_module_level=True)


@pytest.mark.skipif(DEVICE != "cuda", reason="make test runs the notebooks on the CPU")
@pytest.mark.parametrize("notebook", sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.py")))
def test_a_notebook_runs_on_the_device(notebook: str, project: Path) -> None:  # noqa: F811
    if not (folder := project / "notebooks").exists():
        folder.symlink_to(NOTEBOOKS)  # 13 sweeps over one of them
    out = run_at_smoke(project, notebook).report.out
    assert read_manifest(out)[notebook]["device"] == torch.cuda.get_device_name()


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs are CUDA's")
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.static])
def test_a_replayed_step_is_the_one_that_was_launched(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(QUICK, steps_per_noise=6, learning_rate=1e-3)

    def run() -> list[float]:
        done = finetune(vit_on(DEVICE), few(), method=method, steps=12, recipe=recipe, progress=False)
        return [record["loss"] for record in done.history[1:]] + [
            value.norm().item() for value in done.vit.parameters()
        ]

    replayed = run()
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], static=False))
    assert replayed == pytest.approx(run(), rel=1e-3)


@cache
def result(name: str, world: World) -> tuple[dict[str, np.ndarray], float]:
    """What a case returns in a world, leaf by leaf, and its tolerance."""
    value = (ANYWHERE | TOGETHER)[name](world)
    paired = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], float)
    value, tolerance = value if paired else (value, TOLERANCE)
    return dict(leaves(value)), tolerance


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The numbers, words and truths of a result, with where they stand in it."""
    value = value.to_dict("list") if isinstance(value, pd.DataFrame) else value
    value = vars(value) if dataclasses.is_dataclass(value) else value
    if isinstance(value, torch.Tensor):
        yield path, value.detach().cpu().numpy()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, np.asarray(value)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Relative L2 distance of numbers; of words, and of other shapes, 0 or infinity."""
    if first.shape != second.shape or first.dtype.kind not in "biuf":
        return 0.0 if first.shape == second.shape and (first == second).all() else np.inf
    first, second = first.astype(float), second.astype(float)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    return float(np.linalg.norm(np.where(same, 0, first - second)) / max(np.linalg.norm(np.nan_to_num(first)), 1e-12))


@pytest.mark.parametrize(
    ("name", "world"),
    [(name, world) for name in ANYWHERE for world in WORLDS] + [(name, ALONE) for name in TOGETHER],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_the_device_does_not_matter(name: str, world: World, record_property: Callable[[str, object], None]) -> None:
    (expected, tolerance), (got, _) = result(name, HOST), result.__wrapped__(name, world)
    assert expected.keys() == got.keys(), f"{name}: {sorted(expected)} on the CPU, {sorted(got)} on {world}"
    apart = {path: distance(expected[path], got[path]) for path in expected}
    record_property("distance", max(apart.values()))
    wrong = [path for path, far in apart.items() if not far <= tolerance]
    assert not wrong, "\n".join(
        f"{name}{path} is {apart[path]:.2g} apart, more than {tolerance:g}; on the CPU\n{expected[path]}\n"
        f"on {world}\n{got[path]}"
        for path in wrong
    )
