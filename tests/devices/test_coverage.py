"""No public function of the science is without a test on a device: this test needs none, and runs with `make test`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

from devices.cases import ANYWHERE, EVERYWHERE, INSIDE, TOGETHER

import nullpaper

ROOMS = ("models", "nullspace", "synthesis", "adapters", "robustness", "finetuning", "fooling")
TENSORS = re.compile(r"\b(Tensor|Module|ViT|Classifier|Pool|Noise|Patches|Problem|Split)\b")
ELSEWHERE = (*INSIDE.split(), *EVERYWHERE.split())
CASES = {name.partition(",")[0] for name in (*ANYWHERE, *TOGETHER)}


def public() -> set[str]:
    """``module.function`` of all that takes or returns tensors or models, methods as ``module.Class.method``."""
    names = set()
    for room in ROOMS:
        package = importlib.import_module(f"nullpaper.{room}")
        for info in pkgutil.iter_modules(package.__path__, f"nullpaper.{room}."):
            module = importlib.import_module(info.name)
            own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == info.name}
            for key, value in own.items():
                methods = vars(value).items() if inspect.isclass(value) else ()
                found = [(key, value), *((f"{key}.{method}", each) for method, each in methods)]
                names |= {
                    f"{module.__name__.rpartition('.')[2]}.{name}"
                    for name, each in found
                    if inspect.isfunction(each) and not re.search(r"(^|\.)_", name) and _takes_tensors(each)
                }
    return names


def _takes_tensors(function: object) -> bool:
    return bool(TENSORS.search(" ".join(map(str, inspect.unwrap(function).__annotations__.values()))))


def test_every_public_function_is_tested_on_a_device() -> None:
    """One that is not needs a case in `devices.cases`, or a word there on where it is run."""
    assert [name for name in sorted(public() - CASES) if not name.startswith(ELSEWHERE)] == []


def test_what_the_package_exports_is_tested_on_a_device() -> None:
    exported = {f"{module.rpartition('.')[2]}.{name}" for name, module in nullpaper.PUBLIC.items()}
    assert exported - CASES - {*ELSEWHERE} == {"datasets.load_data"}


def test_no_case_is_of_a_function_that_is_gone() -> None:
    known = public() | {"datasets.to_pixels", "datasets.augmented", "datasets.Split.batches", "methods.METHODS"}
    assert known >= CASES and {part for part in ELSEWHERE if not any(name.startswith(part) for name in known)} == set()
