"""The state of a run that may be killed: weights, moments of AdamW, a record; one file, whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nullpaper.errors import InputError
from nullpaper.files import write_atomic

__all__ = ["parameter_groups", "read_state", "write_state"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters for AdamW; decay for matrices alone: not for biases, norms, tokens and positions."""

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.endswith(("pos_embed", "_token"))

    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices, others = ([p for name, p in trained if decays(name, p) is kind] for kind in (True, False))
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def write_state(
    path: Path, modules: Mapping[str, nn.Module], trained: nn.Module, optimizer: torch.optim.Optimizer, record: Any
) -> None:
    """Write the weights of ``modules``, the moments of ``trained``'s parameters and ``record`` (JSON), in one step.

    Raises:
        InputError: the disk is full or the folder cannot be written; the file is then as it was.
    """
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, parameter in _optimised(trained):
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"moment.{key}.{name}": value for key, value in moments.items() if isinstance(value, Tensor)}
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomic(path, save(whole, metadata={"record": json.dumps(record)}))


def read_state(
    path: Path, modules: Mapping[str, nn.Module], trained: nn.Module, optimizer: torch.optim.Optimizer
) -> Any:
    """Put what `write_state` wrote back in place, and return its record.

    Raises:
        InputError: the file is damaged, or of another architecture; nothing is changed then.
    """
    device = next(trained.parameters()).device
    try:
        state = load_file(path, device=str(device))
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["record"])
        parts = {
            name: {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            for name in modules
        }
        for name, module in modules.items():
            _check_fits(module, parts[name])
    except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged or of another model: remove it to start anew.") from error
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    for name, parameter in _optimised(trained):
        if f"moment.{MOMENTS[0]}.{name}" in state:
            optimizer.state[parameter] = {key: state[f"moment.{key}.{name}"] for key in MOMENTS}
    return record


def _optimised(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _check_fits(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A ValueError unless ``state`` has the module's names and shapes, found before anything is loaded."""
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    if shapes != {key: value.shape for key, value in state.items()}:
        raise ValueError("other names or shapes")
