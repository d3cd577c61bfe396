"""Weights on disk: safetensors with timm's parameter names, checked before they touch a model."""

from __future__ import annotations

import contextlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from nullpaper.errors import InputError, first_line

__all__ = ["load_weights", "read_weights"]


def load_weights(net: nn.Module, path: Path, name: str) -> None:
    """Read a safetensors file into a timm ViT; position embeddings of another image size are resampled.

    Raises:
        InputError: as `read_weights`, or the names or shapes are not the model's; its weights are then as they were.
    """
    state = read_weights(path)
    own = net.state_dict()
    positions = state.get("pos_embed")
    if positions is not None and "pos_embed" in own and positions.shape != own["pos_embed"].shape:
        with contextlib.suppress(RuntimeError):  # another width cannot be resampled: refused below, with the rest
            state["pos_embed"] = resample_abs_pos_embed(
                positions.float(), list(net.patch_embed.grid_size), num_prefix_tokens=net.num_prefix_tokens
            )
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    extra = [key for key in state if key not in own]
    if wrong or extra:
        key = (wrong or extra)[0]
        have, want = (tuple(part[key].shape) if key in part else "absent" for part in (state, own))
        raise InputError(
            f"{path.name} does not fit {name}: {len(wrong)} tensors differ and {len(extra)} are unknown, first "
            f"'{key}' ({have} in the file, {want} in the model); check the model name, img_size and num_classes."
        )
    net.load_state_dict(state)


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
