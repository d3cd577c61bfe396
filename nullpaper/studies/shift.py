"""How far finetuning moved the parameters of a ViT, tensor by tensor: the motivation of paper B, with what it lacks.

Paper B observes that scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs.
Whether that is special to LayerNorm shows only beside the other parameters.
"""

from __future__ import annotations

import pandas as pd
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from nullpaper.errors import InputError
from nullpaper.models.vit import ViT

__all__ = ["KINDS", "parameter_shift"]

KINDS = ("LayerNorm scale", "LayerNorm bias", "weight", "bias")
"""LayerNorm's gamma and beta; weights and biases of linear layers and of the patch embedding."""


def parameter_shift(before: ViT, after: ViT) -> pd.DataFrame:
    """Rows of one tensor each: name, kind (see `KINDS`), depth, relative (norm of the change / norm before), cosine.

    ``depth`` is the block, from 0; -1 before the blocks and their number after them. Heads, class tokens and position
    embeddings are left out: they belong to neither side of the comparison.

    Raises:
        InputError: the two have other parameters.
    """
    first, second = dict(before.net.named_parameters()), dict(after.net.named_parameters())
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        raise InputError(
            f"{before.name} and {after.name} have other parameters: compare a ViT with its finetuned self."
        )
    rows = []
    for path, module in before.net.named_modules():
        if path.partition(".")[0] in ("head", "head_dist"):
            continue
        for last, value in module.named_parameters(recurse=False):
            if kind := _kind(module, last):
                name = f"{path}.{last}"
                depth = _depth(path, len(before.net.blocks))
                rows.append({"name": name, "kind": kind, "depth": depth, **_change(value, second[name])})
    return pd.DataFrame(rows)


def _kind(module: nn.Module, last: str) -> str | None:
    if isinstance(module, nn.LayerNorm):
        return "LayerNorm scale" if last == "weight" else "LayerNorm bias"
    return last if isinstance(module, nn.Linear | nn.Conv2d) else None


def _depth(path: str, blocks: int) -> int:
    if path.startswith("blocks."):
        return int(path.split(".")[1])
    return -1 if path.startswith(("patch_embed", "norm_pre")) else blocks


def _change(before: Tensor, after: Tensor) -> dict[str, float]:
    first, second = (value.detach().double().flatten().cpu() for value in (before, after))
    size = first.norm().item()
    relative = (second - first).norm().item() / size if size else float("nan")
    return {"relative": relative, "cosine": cosine_similarity(first, second, dim=0).item()}
