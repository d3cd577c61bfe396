"""The support package of an executable paper on the nullspace of Vision Transformers.

Its public names are loaded when they are first asked for, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

PUBLIC = {
    "load_vit": "models.vit",
    "load_data": "data.datasets",
    "patch_nullspace": "nullspace.patch",
    "encoder_noise": "synthesis.noise",
    "input_noise": "synthesis.noise",
    "noise_influence": "synthesis.influence",
    "inject": "adapters.inject",
    "merge": "adapters.inject",
    "save_adapter": "adapters.files",
    "load_adapter": "adapters.files",
    "finetune": "finetuning.finetune",
    "attack": "robustness.attacks",
    "evaluate": "robustness.evaluation",
}
"""The module, below this package, that defines each public name."""


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'nullpaper' has no attribute '{name}'")
    return getattr(import_module(f"nullpaper.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
