"""Whether a ViT's encoder ignores a shift of its patch tokens along the all-ones vector: the fact that the papers miss.

Statement. Let u (N, d) be the patch tokens and c (N,) any scalars. In a ViT whose residual stream is read only through
LayerNorm, f(u + c 1^T) = f(u) for every c, at any norm: the non-linear encoder has an exact nullspace of dimension at
least N, where papers A and C look for an approximate one.

Proof. LayerNorm subtracts the mean over the width: with P = I - 11^T/d, LN(x) = g * Px / sqrt(|Px|^2/d + eps) + b, and
P(x + c1) = Px, so LN(x + c1) = LN(x) for every gain, bias and eps. Position embeddings add a constant, the class and
register tokens enter with c = 0. Induction over blocks: if block l reads x + c1 in place of x, its branches read the
same normalised tokens, hence add the same update, and hand on x' + c1; layer scale, drop path, relative and rotary
positions, gates and norms inside a branch act on the update only. At the end the head reads the stream through the
final norm (any pooling, attention pooling included), or the average over tokens through a norm (the average is shifted
by mean(c) 1), or the class token, which never carried a shift. In each case c is gone.

Limits. A LayerNorm before the first block (CLIP) removes the shift at once, whatever follows. Otherwise it fails for
RMSNorm and SimpleNorm, which do not subtract the mean; for residual post-norm blocks, whose attention and MLP read the
stream itself; for maxima over un-normalised tokens; and for average pooling without any norm. NaFlex models, whose
embedding is not a convolution, are not judged, nor is any class that timm's plain families do not have. In floating
point P(x + c1) is Px up to an error of about machine epsilon times |c|, so "exact" ends where |c| eps nears |Px|.

Consequence at the pixels. The image directions that such a model ignores, as far as they are exact and linear, are the
nullspace of P W per patch, not of W. rank(PW) = rank(W) - 1 if 1 lies in the column space of W, else rank(W). So with
C*p*p pixels a patch the dimension is C*p*p - rank(PW): one more than for W wherever d <= C*p*p and W has full rank
(ViT-B/16: 0 becomes 1, so 196 an image), and generally none more where d > C*p*p (ViT-L/16 stays at 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nullpaper.models.vit import ViT

MODELS = ("VisionTransformer", "VisionTransformerDistilled", "VisionTransformerRelPos", "Beit", "Eva", "Cait")
PRE_NORM = ("Block", "EvaBlock", "RelPosBlock", "LayerScaleBlock", "LayerScaleBlockClassAttn")
PRE_NORM += ("ParallelThingsBlock", "ParallelScalingBlock", "DiffParallelScalingBlock")
POST_NORM = ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm")


@dataclass(frozen=True)
class Invariance:
    """Whether c_n * 1 added to patch token n leaves the output exactly unchanged, and why."""

    holds: bool
    reason: str


def shift_invariance(model: ViT | nn.Module) -> Invariance:
    """Decide from the structure whether the output ignores c_n * 1 on the patch tokens (B, N, d), for all c (N,).

    Args:
        model: a `ViT` or its timm net, on any device, "meta" included: no weight is read and nothing is run. A class
            that is not known to be safe is answered ``holds=False``, with that as the reason.
    """
    net = model.net if isinstance(model, ViT) else model
    if type(net).__name__ not in MODELS or not _is_timm(net):
        return Invariance(False, f"{type(net).__name__} is not analysed")
    before = getattr(net, "norm_pre", None)
    if _centres(before, net):
        return Invariance(True, "LayerNorm before the first block removes the shift")
    if not _absent(before):
        return Invariance(False, f"{_name(before)} before the first block does not subtract the mean")
    blocks = [*net.blocks, *getattr(net, "blocks_token_only", ())]
    fault = next(filter(None, (_fault(block, net) for block in blocks)), None)
    return Invariance(False, fault) if fault else _head(net)


def _fault(block: nn.Module, net: nn.Module) -> str | None:
    """Why the block lets the shift out of the residual stream, or None if it does not."""
    kind = type(block).__name__
    if kind in POST_NORM:
        return f"post-norm blocks ({kind}) read the tokens un-normalised"
    if kind not in PRE_NORM or not _is_timm(block):
        return f"block {kind} is not analysed"
    branches = (*getattr(block, "attns", ()), *getattr(block, "ffns", ()))
    readers = [getattr(block, name) for name in ("norm1", "norm2", "in_norm") if hasattr(block, name)]
    readers += [branch.norm for branch in branches]
    wrong = next((norm for norm in readers if not _centres(norm, net)), None)
    return None if wrong is None else f"blocks read through {_name(wrong)}, which does not subtract the mean"


def _head(net: nn.Module) -> Invariance:
    """What the head reads of a stream that still carries the shift."""
    pool, norm, after = net.global_pool, getattr(net, "norm", None), getattr(net, "fc_norm", None)
    attention = getattr(net, "attn_pool", None) is not None
    if pool == "token" and not attention:
        return Invariance(True, "pre-norm blocks; the head reads the class token, which carries no shift")
    if _centres(norm, net):
        return Invariance(True, "pre-norm blocks; the head reads normalised tokens")
    if _absent(norm) and pool in ("avg", "") and not attention and _centres(after, net):
        return Invariance(True, "pre-norm blocks; the head reads averaged tokens through LayerNorm")
    if not _absent(norm):
        return Invariance(False, f"the head reads through {_name(norm)}, which does not subtract the mean")
    return Invariance(False, f"'{pool}' pooling reads un-normalised tokens")


def _centres(norm: nn.Module | None, net: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm) and tuple(norm.normalized_shape) == (net.embed_dim,)


def _absent(norm: nn.Module | None) -> bool:
    return norm is None or isinstance(norm, nn.Identity)


def _name(norm: nn.Module) -> str:
    return type(norm).__name__


def _is_timm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.models.")
