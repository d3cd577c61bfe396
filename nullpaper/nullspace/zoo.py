"""How much of pixel space plain ViTs cannot see, from their shapes alone: the table of paper A, appendix C, extended.

Nothing is downloaded and no weight is allocated: timm builds the models on PyTorch's "meta" device. Dimensions are
those of a patch-embedding matrix W (d, C*p*p) of full rank, which random weights have almost surely; trained weights
may have a lower rank, and then a larger nullspace (`patch.patch_nullspace` measures it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import timm
from timm.models import is_model_pretrained

from nullpaper.errors import InputError, nearest
from nullpaper.models.vit import ViT
from nullpaper.models.weights import skeleton
from nullpaper.nullspace.layernorm import shift_invariance

FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(names.split())
    for family, names in {
        "ViT": """
            vit_tiny_patch16_224 vit_small_patch16_224 vit_small_patch32_224 vit_base_patch8_224
            vit_base_patch16_224 vit_base_patch32_224 vit_large_patch14_224 vit_large_patch16_224
            vit_large_patch32_224 vit_huge_patch14_224 vit_giant_patch14_224 vit_gigantic_patch14_224
        """,
        "DeiT": "deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224",
        "DeiT distilled": "deit_tiny_distilled_patch16_224 deit_base_distilled_patch16_224",
        "DeiT-3": """
            deit3_small_patch16_224 deit3_medium_patch16_224 deit3_base_patch16_224 deit3_large_patch16_224
            deit3_huge_patch14_224
        """,
        "BEiT": "beit_base_patch16_224 beit_large_patch16_224 beit3_base_patch16_224",
        "BEiT v2": "beitv2_base_patch16_224 beitv2_large_patch16_224",
        "MAE": "vit_base_patch16_224.mae vit_large_patch16_224.mae vit_huge_patch14_224.mae",
        "DINO": "vit_small_patch8_224.dino vit_small_patch16_224.dino vit_base_patch16_224.dino",
        "DINOv2": "vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2 vit_giant_patch14_dinov2",
        "DINOv2 registers": "vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2",
        "DINOv3": "vit_small_patch16_dinov3 vit_base_patch16_dinov3 vit_large_patch16_dinov3",
        "CLIP": """
            vit_base_patch32_clip_224 vit_base_patch16_clip_224 vit_large_patch14_clip_224
            vit_huge_patch14_clip_224
        """,
        "SigLIP": """
            vit_base_patch16_siglip_224 vit_base_patch16_siglip_gap_224 vit_large_patch16_siglip_256
            vit_so400m_patch14_siglip_224
        """,
        "SigLIP 2": "vit_base_patch32_siglip_256 vit_giantopt_patch16_siglip_256",
        "Perception Encoder": "vit_pe_core_base_patch16_224 vit_pe_spatial_large_patch14_448",
        "EVA": "eva_large_patch14_196 eva_giant_patch14_224",
        "EVA-02": "eva02_tiny_patch14_224 eva02_small_patch14_224 eva02_base_patch14_224 eva02_base_patch16_clip_224",
        "RoPE": "vit_base_patch16_rope_224 vit_base_patch16_rope_mixed_224 vit_base_patch16_rope_reg1_gap_256",
        "Relative positions": "vit_relpos_base_patch16_224 vit_relpos_base_patch16_cls_224",
        "Registers, GAP": "vit_medium_patch16_gap_256 vit_base_patch16_reg4_gap_256 vit_so150m_patch16_reg4_map_256",
        "FlexiViT": "flexivit_small flexivit_base",
        "Parallel blocks": "vit_small_patch16_18x2_224 vit_pwee_patch16_reg1_gap_256",
        "Differential attention": "vit_dwee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256",
        "No final norm": "vit_intern300m_patch14_448",
        "Post-norm": """
            vit_base_patch16_rpn_224 vit_relpos_base_patch16_rpn_224 vit_relpos_base_patch32_plus_rpn_256
            eva02_enormous_patch14_clip_224
        """,
        "RMSNorm": "vit_base_patch16_xp_224 vit_large_patch14_xp_224 vit_base_patch16_sapiens2",
    }.items()
}
"""Models by family."""
ZOO: tuple[str, ...] = tuple(name for names in FAMILIES.values() for name in names)


def embedding_nullity(width: int, patch_dim: int) -> int:
    """Dimension of the nullspace of a full-rank W (width, patch_dim): paper A's rank condition."""
    return patch_dim - min(patch_dim, width)


def encoder_nullity(width: int, patch_dim: int) -> int:
    """Dimension of the nullspace of P W, P = I - 11^T/d, for a generic W: P takes one from the rank if W is onto."""
    return patch_dim - min(patch_dim, width - 1)


def nullity_table(names: Sequence[str] = ZOO) -> pd.DataFrame:
    """Exactly invisible pixel dimensions of timm models, one row a model, for a full-rank patch embedding.

    Columns: ``model``, ``family``, ``patch`` (side, pixels), ``width`` d, ``patch_dim`` C*p*p, ``tokens`` N at the
    model's own image size; per patch ``dim_embedding`` (joint over channels, of W), ``dim_per_channel`` (the official
    code's basis, summed over channels), ``dim_encoder`` (of P W where the encoder is shift-invariant, else that of W);
    ``invariant`` and ``reason`` from `layernorm.shift_invariance`; ``share_embedding`` and ``share_encoder`` of pixel
    space; ``image_embedding`` and ``image_encoder``, dimensions per image. Models of `ZOO` that the installed timm
    does not know are left out and named in ``table.attrs["left_out"]``.

    Raises:
        InputError: a name outside `ZOO` that timm does not know, or a model without a linear patch embedding.
    """
    left_out = [name for name in names if not _known(name)]
    strangers = [name for name in left_out if name not in ZOO]
    if strangers:
        hint = nearest(strangers[0], timm.list_models())
        raise InputError(f"'{strangers[0]}' is no model of timm {timm.__version__}.{hint}")
    family = {name: label for label, members in FAMILIES.items() for name in members}
    table = pd.DataFrame([_row(name, family.get(name, "other")) for name in names if name not in left_out])
    table.attrs["left_out"] = left_out
    return table


def _known(name: str) -> bool:
    return timm.is_model(name) and ("." not in name or is_model_pretrained(name))


def _row(name: str, family: str) -> dict[str, object]:
    net = skeleton(name)
    vit = ViT(net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"], name)
    invariance = shift_invariance(vit)
    width, area, tokens = vit.embed_dim, math.prod(vit.patch_size), math.prod(vit.grid_size)
    patch_dim = vit.channels * area
    embedding = embedding_nullity(width, patch_dim)
    encoder = encoder_nullity(width, patch_dim) if invariance.holds else embedding
    return {
        "model": name,
        "family": family,
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
        "image_embedding": embedding * tokens,
        "image_encoder": encoder * tokens,
    }
