"""The weights of timm models: read from safetensors files and checked before they touch a model, or left out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nullpaper.errors import InputError, first_line


def load_weights(net: nn.Module, path: Path, name: str) -> None:
    """Read a safetensors file into a timm model; position embeddings of another image size are resampled.

    Raises:
        InputError: as `read_weights`, or the names or shapes are not the model's; its weights are then as they were.
    """
    state, own = read_weights(path), net.state_dict()
    positions = state.get("pos_embed")
    if positions is not None and "pos_embed" in own and positions.shape != own["pos_embed"].shape:
        with contextlib.suppress(RuntimeError):  # another width cannot be resampled: refused below, with the rest
            state["pos_embed"] = resample_abs_pos_embed(
                positions.float(), list(net.patch_embed.grid_size), num_prefix_tokens=net.num_prefix_tokens
            )
    check_fit(state, own, f"{path.name} does not fit {name}", "check the model name, img_size and num_classes")
    net.load_state_dict(state)


def check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], misfit: str, remedy: str) -> None:
    """Raise an `InputError`, from ``misfit`` to ``remedy``, if names or shapes of a file are not those of ``own``."""
    stored, wanted = ({key: tuple(value.shape) for key, value in part.items()} for part in (state, own))
    wrong = [key for key in wanted | stored if stored.get(key) != wanted.get(key)]
    if wrong:
        raise InputError(
            f"{misfit}: {len(wrong)} tensors differ, first '{wrong[0]}' ({stored.get(wrong[0], 'absent')} in the file, "
            f"{wanted.get(wrong[0], 'absent')} in the model); {remedy}."
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        InputError: no such file, not safetensors, truncated or damaged, or with values that are not finite.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"weights file {path} is not an existing .safetensors file; convert or fetch it first.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weights file {path} is truncated or damaged ({first_line(error)}); fetch it anew."
        ) from error
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"weights file {path} holds NaN or infinity in '{broken[0]}'; it is of no use.")
    return state


def skeleton(name: str) -> nn.Module:
    """A timm model without weights, on PyTorch's "meta" device: its structure, before anything is downloaded."""
    with torch.device("meta"), _Unclamped():
        return timm.create_model(name, pretrained=False)


class _Unclamped(TorchFunctionMode):
    """Leaves ``clamp_`` out: on tensors without values it is most of the time that the initialisation takes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function is Tensor.clamp_ else function(*args, **(kwargs or {}))
