"""How much of pixel space plain ViTs cannot see, from their shapes alone: the table of paper A, appendix C, extended.

Nothing is downloaded and no weight is allocated: timm builds the models on PyTorch's "meta" device. Dimensions are
those of a patch-embedding matrix W (d, C*p*p) of full rank, which random weights have almost surely; trained weights
may have a lower rank, and then a larger nullspace (`patch.patch_nullspace` measures it).
"""

from __future__ import annotations

import math
from importlib import resources

import pandas as pd
import timm
import yaml

from nullpaper.models.vit import ViT
from nullpaper.models.weights import skeleton
from nullpaper.nullspace.layernorm import shift_invariance

ZOO: dict[str, str] = {
    name: family
    for family, names in yaml.safe_load((resources.files(__package__) / "zoo.yaml").read_text()).items()
    for name in names.split()
}
"""The family of each model."""
PAPERS_OWN = (
    *("vit_small_patch16_224", "vit_base_patch16_224"),  # A finetunes them
    *("vit_small_patch32_224", "vit_base_patch32_224", "vit_large_patch32_224"),  # C's scripts and their options
)
"""The plain ViTs that papers A and C measure."""


def embedding_nullity(width: int, patch_dim: int) -> int:
    """Dimension of the nullspace of a full-rank W (width, patch_dim): paper A's rank condition."""
    return patch_dim - min(patch_dim, width)


def encoder_nullity(width: int, patch_dim: int) -> int:
    """Dimension of the nullspace of P W, P = I - 11^T/d, for a generic W: P takes one from the rank if W is onto."""
    return patch_dim - min(patch_dim, width - 1)


def nullity_table() -> pd.DataFrame:
    """Exactly invisible pixel dimensions of the models of `ZOO` that the installed timm has, one row a model.

    Columns: ``model``, ``family``, ``patch`` (side, pixels), ``width`` d, ``patch_dim`` C*p*p, ``tokens`` N at the
    model's own image size; per patch ``dim_embedding`` (joint over channels, of W), ``dim_per_channel`` (the official
    code's basis, summed over channels), ``dim_encoder`` (of P W where the encoder is shift-invariant, else that of W);
    ``invariant`` and ``reason`` from `layernorm.shift_invariance`; ``share_embedding`` and ``share_encoder`` of pixel
    space; ``image_encoder``, dimensions an image.
    """
    return pd.DataFrame([_row(name) for name in ZOO if timm.is_model(name)])


def _row(name: str) -> dict[str, object]:
    net = skeleton(name)
    vit = ViT(net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"], name)
    invariance = shift_invariance(vit)
    width, area, tokens = vit.embed_dim, math.prod(vit.patch_size), math.prod(vit.grid_size)
    patch_dim = vit.channels * area
    embedding = embedding_nullity(width, patch_dim)
    encoder = encoder_nullity(width, patch_dim) if invariance.holds else embedding
    return {
        "model": name,
        "family": ZOO[name],
        "patch": vit.patch_size[0],
        "width": width,
        "patch_dim": patch_dim,
        "tokens": tokens,
        "dim_embedding": embedding,
        "dim_per_channel": vit.channels * embedding_nullity(width, area),
        "dim_encoder": encoder,
        "invariant": invariance.holds,
        "reason": invariance.reason,
        "share_embedding": embedding / patch_dim,
        "share_encoder": encoder / patch_dim,
        "image_encoder": encoder * tokens,
    }
