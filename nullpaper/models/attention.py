"""The attention of a ViT in plain matrix products, to be read out and differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from nullpaper.errors import InputError
from nullpaper.models.vit import ViT, check_vit


@contextmanager
def explicit_attention(vit: ViT) -> Iterator[None]:
    """Inside, attention is computed by plain matrix products, which can be read out and have second derivatives, not by
    a fused kernel. The modules get their flags back, whatever happens.

    Raises:
        InputError: a block whose attention has no such switch.
    """
    check_vit(vit)
    modules = [getattr(block, "attn", None) for block in vit.net.blocks]
    if not all(hasattr(module, "fused_attn") and hasattr(module, "attn_drop") for module in modules):
        raise InputError(f"the attention of {vit.name} cannot be read out; take a plain ViT.")
    flags = [module.fused_attn for module in modules]
    try:
        for module in modules:
            module.fused_attn = False
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.fused_attn = flag


def attention_weights(vit: ViT, images: Tensor) -> list[Tensor]:
    """Attention after the softmax, (B, heads, T, T) a block: what enters timm's dropout on it. Raises as above."""
    return logits_and_attention(vit, images)[1]


def logits_and_attention(vit: ViT, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, K) and `attention_weights`, of one pass; both can be differentiated."""
    weights: list[Tensor] = []
    with explicit_attention(vit):
        drops = [block.attn.attn_drop for block in vit.net.blocks]
        handles = [drop.register_forward_pre_hook(lambda _, inputs: weights.append(inputs[0])) for drop in drops]
        try:
            logits = vit(images)
        finally:
            for handle in handles:
                handle.remove()
    return logits, weights
