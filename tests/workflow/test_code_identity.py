"""Code is the same when it computes the same: words and places do not count, all that a result rests on does."""

from __future__ import annotations

import importlib
import linecache
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from nullpaper.errors import InputError
from nullpaper.finetuning.methods import METHODS
from nullpaper.robustness.attacks import ATTACKS
from nullpaper.statistics import over_seeds
from nullpaper.workflow.code_identity import code_identity
from nullpaper.workflow.store import stored

LOWER = (
    '"""Doc."""\nimport math\n\nSCALE = 2  # two\n\n\ndef check(x):\n    if x < 0:\n        raise ValueError("no")\n'
)
UPPER = "from nullpaper_test_code.lower import SCALE, check\n\n\ndef compute():\n    check(1)\n    return SCALE\n"


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, lower: str = LOWER, upper: str = UPPER) -> ModuleType:
    """A package of two modules, the upper of which rests on the lower, imported from ``folder``."""
    root = folder / "nullpaper_test_code"
    root.mkdir(parents=True, exist_ok=True)
    for name, text in (("__init__", ""), ("lower", lower), ("upper", upper)):
        (root / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("nullpaper_test_code")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module("nullpaper_test_code.upper")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""Doc."""', '"""Other words."""', True),
        ("  # two", "  # now said at length", True),
        ("import math\n", "import math\nimport json\n", True),
        ('raise ValueError("no")', 'raise ValueError("x must not be negative")', True),
        ("SCALE = 2", "SCALE = 3", False),
        ("x < 0", "x <= 0", False),
    ],
    ids=["docstring", "comment", "import", "sentence of an error", "constant", "condition"],
)
def test_what_a_module_rests_on_counts_and_its_words_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, same: bool
) -> None:
    first = code_identity(package(tmp_path, monkeypatch).compute)
    changed = package(tmp_path, monkeypatch, LOWER.replace(before, after, 1))
    assert (code_identity(changed.compute) == first) is same


def test_a_copied_checkout_and_a_moved_module_are_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = code_identity(package(tmp_path / "a", monkeypatch).compute)
    assert code_identity(package(tmp_path / "copy of a", monkeypatch).compute) == first
    root = tmp_path / "copy of a" / "nullpaper_test_code"
    before = code_identity(root / "upper.py")
    (root / "room").mkdir()
    shutil.move(root / "lower.py", root / "room" / "deeper.py")
    (root / "upper.py").write_text(UPPER.replace("test_code.lower", "test_code.room.deeper"))
    assert code_identity(root / "upper.py") == before


def test_a_folder_that_a_closure_captures_decides_nothing(tmp_path: Path) -> None:
    def writer(folder: Path) -> Callable[[], str]:
        return lambda: str(folder)

    keys = {code_identity(writer(tmp_path / name)) for name in ("here", "there")}
    assert len(keys) == 1
    assert code_identity(writer(Path("relative"))) not in keys


NOTEBOOK = """
from dataclasses import dataclass
from functools import cache, partial
@dataclass
class Settings: steps: int
class Model:
    scale = 31
    def __call__(self, x): return x + 1
    def loss(self): return 11
@cache
def helper(): return 1
def listed(): return 7
METHODS = {"listed": (listed, 0.5), "partial": partial(listed, key=13), "lambda": lambda: 17, "loss": Model().loss}
EPS, MODEL, SETTINGS = 0.2, Model(), Settings(19)
def compute(seed=23): return helper().real + METHODS["listed"][0]() + EPS + MODEL(SETTINGS)
"""


def of_notebook(source: str) -> str:
    """The identity of ``compute`` in a cell, whose source IPython keeps as it is done here."""
    name = f"<cell {abs(hash(source))}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, object] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), space)
    return code_identity(space["compute"])


@pytest.mark.parametrize(
    ("source", "same"),
    [
        (NOTEBOOK.replace("(): ", "():\n    'said'\n    ").replace("SETTINGS)", "SETTINGS)  # why\n\n"), True),
        (NOTEBOOK + "real = 9", True),
        (NOTEBOOK.replace("def listed", "import json\ndef listed"), True),
        (NOTEBOOK.replace("return 1\n", "return 5\n"), False),
        (NOTEBOOK.replace("+ EPS", "- EPS"), False),
        *(
            (NOTEBOOK.replace(old, "59"), False)
            for old in ("0.5", "return 7", "0.2", "13", "17", "11", "x + 1", "31", "19", "23")
        ),
    ],
)
def test_functions_of_a_notebook_count(source: str, same: bool) -> None:
    assert (of_notebook(source) == of_notebook(NOTEBOOK)) is same


def test_a_function_without_source_is_refused() -> None:
    space: dict[str, object] = {"__name__": "__main__"}
    exec(compile("def compute(): return 1", "<nowhere>", "exec"), space)
    with pytest.raises(InputError, match="source of compute is not to be had.*define it in a cell"):
        code_identity(space["compute"])


def test_captured_values_and_defaults_count(tmp_path: Path) -> None:
    seen = [stored("captured", {}, lambda seed=seed: seed, root=tmp_path).metrics for seed in (1, 2)]
    assert seen == [1, 2]
    assert code_identity(over_seeds) != code_identity(stored)


def test_what_a_user_registers_counts() -> None:
    method = METHODS["pgd_at"]
    other = replace(method, loss=lambda vit, batch: vit(batch.images).sum())
    assert code_identity(vars(other)) != code_identity(vars(method))
    attack = ATTACKS["fgsm"]
    assert code_identity(vars(replace(attack, steps=attack.steps + 1))) != code_identity(vars(attack))


@pytest.mark.parametrize(
    "block",
    [
        "try:\n        pass\n    except OSError:\n        {}",
        "try:\n        pass\n    finally:\n        {}",
        "with open(x):\n        for _ in x:\n            {}",
        "if x:\n        pass\n    else:\n        {}",
        "match x:\n        case 1:\n            {}",
        "class Inner:\n        async def method():\n            {}",
    ],
)
def test_an_import_is_found_in_whatever_block_it_stands(tmp_path: Path, block: str) -> None:
    (tmp_path / "lower.py").write_text("SCALE = 2\n")
    (tmp_path / "upper.py").write_text(f"def compute(x):\n    {block.format('from .lower import SCALE')}\n")
    first = code_identity(tmp_path / "upper.py")
    (tmp_path / "lower.py").write_text("SCALE = 3\n")
    assert code_identity(tmp_path / "upper.py") != first
