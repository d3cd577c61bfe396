"""The weights of timm models: read from files and checked before they touch a model, or left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nullpaper.data.folders import Transform
from nullpaper.errors import InputError, first_line, warn

PICKLED = (".pth", ".pt", ".bin")
SAID = ("mean", "std", "grid", "transform")  # what a file of `vit.save_vit` says of its weights
Size = tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights under timm's names, and what it says of them, or None: ``mean``, ``std``, patch ``grid``, and
    ``transform`` of photographs."""

    path: Path
    state: dict[str, Tensor]
    mean: list[float] | None = None
    std: list[float] | None = None
    grid: Size | None = None
    transform: Transform | None = None

    @property
    def num_classes(self) -> int:
        """Of its head; 0 if it has none."""
        return len(self.state.get("head.weight", ()))

    def image_size(self, net: nn.Module, asked: Size | None = None) -> Size:
        """(height, width) of the images that it was trained on, of its own grid or by the number of its positions.

        Args:
            net: a model of its architecture at any size, "meta" included.
            asked: the size that the caller wants, which decides where nothing else does.

        Raises:
            InputError: the grid cannot be known.
        """
        stem, own, stored = net.patch_embed, getattr(net, "pos_embed", None), self.state.get("pos_embed")
        patch, grid = tuple(stem.patch_size), self.grid
        if grid is None and own is not None and stored is not None and own.ndim == stored.ndim == 3:
            tokens = stored.shape[1] - (own.shape[1] - math.prod(stem.grid_size))  # without class and register tokens
            wanted = asked and (asked[0] // patch[0], asked[1] // patch[1])
            grid = self._guessed_grid(tokens, wanted, tuple(stem.grid_size))
        rows, columns = grid or stem.grid_size
        return rows * patch[0], columns * patch[1]

    def _guessed_grid(self, tokens: int, wanted: Size | None, default: Size) -> Size | None:
        square = math.isqrt(max(tokens, 0))
        if square**2 != tokens:
            fitting = [grid for grid in (wanted, default) if grid and math.prod(grid) == tokens]
            if not fitting:
                raise InputError(
                    f"{self.path.name} has positions for {tokens} patches and does not say in which grid: load it with "
                    "img_size=(height, width) of its training, save_vit that, and load the new file at another size."
                )
            return fitting[0]
        if wanted and wanted[0] != wanted[1] and math.prod(wanted) == tokens:
            warn(
                f"{self.path.name} does not say its grid: {square} x {square} is a guess, and is resampled to "
                f"{wanted[0]} x {wanted[1]}; if it has that grid already, load it into a timm model of that img_size "
                "and pass the model to load_vit."
            )
        return square, square


def load_weights(net: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Put the weights of a file into a timm model of its sizes.

    Raises:
        InputError: the names or shapes are not the model's; its weights are then as they were.
    """
    misfit = f"{checkpoint.path.name} does not fit {name}"
    check_fit(
        checkpoint.state,
        net.state_dict(),
        misfit,
        "pass the name of the model that it was saved from, or that model itself",
    )
    net.load_state_dict(checkpoint.state)


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a file, with what `vit.save_vit` writes beside them.

    Raises:
        InputError: as `read_weights`, or what is beside them is damaged.
    """
    state, metadata = read_weights(path), {}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    try:
        values = {key: json.loads(metadata[key]) for key in SAID if key in metadata}
        if "grid" in values:
            rows, columns = values["grid"]
            values["grid"] = int(rows), int(columns)
        if "transform" in values:
            values["transform"] = Transform(**values["transform"])
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} has damaged statistics ({first_line(error)}); save it anew with save_vit.") from error
    return Checkpoint(path, state, **values)


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
    """The tensors of a ``.safetensors`` file, or of a PyTorch file, of which nothing but tensors is unpickled.

    Of a training checkpoint of timm the averaged weights are taken, where it has them, as timm does.

    Raises:
        InputError: no such file, truncated, damaged or with other objects, or with values that are not finite.
    """
    if path.suffix not in (".safetensors", *PICKLED) or not path.is_file():
        raise InputError(
            f"weights file {path} is not an existing .safetensors or {PICKLED[0]} file; convert or fetch it first."
        )
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # unpickling raises whatever the bytes make of it
        reason = first_line(error).partition(". ")[0]
        raise InputError(
            f"weights file {path} is truncated or damaged, or holds more than tensors ({reason}); fetch it "
            "anew, or save model.state_dict() and load that."
        ) from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights file {path} holds more than tensors; save model.state_dict() and load that.")
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
