"""Parameter-efficient finetuning of a ViT: LoRA, paper B's LNLoRA, BitFit, LayerNorm-only, linear probe.

Paper B (FullLoRA, arXiv 2401.01752) puts a learnable LayerNorm in front of LoRA in all linear layers of a frozen ViT.
Our reading of it, for a frozen map W0, b and a rank r: y = W0 x + b + (alpha / r) B A LN(x). LN stands on the branch
alone, A starts as in LoRA (Kaiming-uniform), B at zero, so that nothing changes at injection. The adapted layers keep
timm's parameter names and gain ``adapter.lora_norm``, ``adapter.lora_A`` and ``adapter.lora_B``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nullpaper.adapters.layers import ADAPTED_LAYERS, NORMS, THIRDS, Adapter, Branch, ThirdsBranch, merged_weight
from nullpaper.errors import InputError, check_choice, check_count, check_number, check_seed
from nullpaper.models.vit import ViT, check_vit, fingerprint

LORA = ("lora", "lnlora")
KINDS = (*LORA, "bitfit", "layernorm", "linear")
TARGETS = {"patch_embed": "patch_embed.proj", "qkv": "attn.qkv", "proj": "attn.proj"}
TARGETS |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
DEFAULT_TARGETS = tuple(TARGETS)
TARGETS |= dict.fromkeys(THIRDS, "attn.qkv")
"""Layers that take a LoRA branch; q, k and v are thirds of the fused qkv, each with a branch of its own."""
OPTIONS = ("kind", "r", "alpha", "targets", "norm")
HEADS = ("head", "head_dist")


class AdaptedViT(ViT):
    """A ViT that carries an `Adapter`; it is made by `inject` and unmade by `merge`."""

    adapter: Adapter

    @property
    def patch_matrix(self) -> Tensor:
        """As `ViT.patch_matrix`, with the update of plain LoRA folded in.

        Raises:
            InputError: a norm in front of the branch makes the embedding non-linear; there is no such matrix.
        """
        if "patch_embed" not in self.adapter.targets:
            return super().patch_matrix
        if self.adapter.norm != "none":
            raise InputError(
                f"the patch embedding of {self.name} is not linear with LNLoRA on it, so it has no matrix and no "
                "nullspace: leave 'patch_embed' out of the targets."
            )
        return (merged_weight(self.net.patch_embed.proj) / self.std.double()).flatten(1)


def inject(
    vit: ViT,
    kind: str,
    *,
    r: int = 16,
    alpha: float = 16,
    targets: str | Iterable[str] | None = None,
    norm: str = "affine",
    seed: int = 0,
) -> ViT:
    """Freeze ``vit``, in place, but for the head and what the adapter ``kind`` trains; logits stay equal to the bit.

    Args:
        kind: "lora", "lnlora" (paper B), "bitfit" (all biases), "layernorm" (all of the LayerNorms), "linear" (the
            head alone). The remaining arguments concern the first two.
        r: rank of the branches.
        alpha: a branch is scaled by alpha / r.
        targets: names in `TARGETS`; None: patch_embed, qkv, proj, fc1, fc2.
        norm: "lnlora" only, what stands in front of A: a name in `NORMS`.
        seed: of A.

    Raises:
        InputError: an unknown kind, target or norm, r below 1 or above the full rank of the layers, a model that
            carries an adapter already, that has no head, or whose layers are not those of timm's VisionTransformer. The
            model is then as it was.
    """
    return attach(vit, described(kind, r, alpha, targets, norm), seed)


@torch.inference_mode(False)  # or what trains could not ask for gradients later
def attach(vit: ViT, adapter: Adapter, seed: int = 0) -> ViT:
    """`inject` for an adapter in one piece, whose ``base`` is filled in."""
    check_vit(vit)
    if isinstance(vit, AdaptedViT):
        raise InputError(f"{vit.name} carries a '{vit.adapter.kind}' adapter already: merge it or load the base anew.")
    if not isinstance(vit.net, VisionTransformer):
        kind = type(vit.net).__name__
        raise InputError(f"{vit.name} is a {kind}, whose layers take no adapter; take a VisionTransformer of timm.")
    if vit.num_classes < 1:
        raise InputError(f"{vit.name} has no head to train: load it with num_classes=... of the data.")
    if any(parameter.is_inference() for parameter in vit.parameters()):
        raise InputError(f"{vit.name} was made inside torch.inference_mode and cannot train: load it outside of it.")
    layers = dict(vit.net.named_modules())
    places = _places(vit, adapter.targets)
    for path in places:
        if type(layers.get(path)) not in ADAPTED_LAYERS:
            raise InputError(f"{vit.name} has no plain layer '{path}' for an adapter; choose other targets.")
    largest = max((min(layers[path].weight.flatten(1).shape) for path in places), default=0)
    if adapter.r > largest:
        raise InputError(
            f"r={adapter.r} is above {largest}, the full rank of the layers of {vit.name} that it is for: take an r of "
            f"at most {largest}."
        )
    seed = check_seed(seed)
    adapter = replace(adapter, base=base_fingerprint(vit))
    generator = torch.Generator().manual_seed(seed)
    branches = {path: _branch(layers[path], thirds, adapter, generator) for path, thirds in places.items()}
    vit.requires_grad_(False)  # from here on nothing can fail
    for path, branch in branches.items():
        layer = layers[path]
        layer.__class__ = ADAPTED_LAYERS[type(layer)]  # keeps timm's parameter names, which a wrapper would change
        layer.adapter = branch.train(layer.training)
    vit.__class__ = AdaptedViT
    vit.adapter = adapter
    for parameter in trained_parameters(vit, adapter.kind).values():
        parameter.requires_grad_(True)
    return vit


@torch.inference_mode(False)
def adapted_copy(vit: ViT, adapter: str | Mapping[str, Any], seed: int = 0) -> ViT:
    """A copy of ``vit`` with an adapter: a kind, or the arguments of `inject` by name; A is drawn from ``seed``.

    Raises:
        InputError: as `inject`, or a mapping with other names.
    """
    options = {"kind": None, **adapter} if isinstance(adapter, Mapping) else {"kind": adapter}
    for name in options:
        check_choice("adapter option", name, OPTIONS)
    return inject(deepcopy(vit), **options, seed=seed)


def merge(vit: ViT) -> ViT:
    """Fold plain LoRA into the weights, in place: a plain `ViT` again, with every parameter trainable.

    The update is added in float64 and rounded once, so logits agree up to rounding.

    Raises:
        InputError: nothing was injected, or a norm stands in front of the branches.
    """
    check_vit(vit)
    if not isinstance(vit, AdaptedViT):
        raise InputError(f"{vit.name} carries no adapter, so there is nothing to merge.")
    if vit.adapter.norm != "none":
        raise InputError(
            f"LNLoRA cannot be merged into {vit.name}: its norm depends on the token, so B A norm(x) is no fixed "
            "matrix; keep the adapter, or train plain 'lora'."
        )
    layers = _adapted_layers(vit)
    merged = [merged_weight(layer).to(layer.weight) for layer in layers]  # all of them before any is replaced
    for layer, weight in zip(layers, merged, strict=True):
        layer.weight.detach().copy_(weight)
    return remove(vit)


def remove(vit: AdaptedViT) -> ViT:
    """Take the branches away without folding them, in place; trained heads, biases and norms stay."""
    for layer in _adapted_layers(vit):
        del layer.adapter
        layer.__class__ = type(layer).__base__
    del vit.adapter
    vit.__class__ = ViT
    return vit.requires_grad_(True)


def trained_parameters(vit: ViT, kind: str) -> dict[str, nn.Parameter]:
    """What an adapter of that kind trains, by timm's names: its own parameters, the base's biases or norms; the head.

    It does not go by ``requires_grad``, which a user may have switched off.
    """
    norms = {name for name, module in vit.net.named_modules() if isinstance(module, nn.LayerNorm)}

    def trains(name: str) -> bool:
        owner, _, last = name.rpartition(".")
        own = ".adapter." in name or (kind == "bitfit" and last == "bias") or (kind == "layernorm" and owner in norms)
        return own or owner in HEADS

    return {name: parameter for name, parameter in vit.net.named_parameters() if trains(name)}


def trainable(vit: ViT) -> tuple[int, float]:
    """How many parameters train, and their share of the parameters of the model without branches."""
    named = dict(vit.named_parameters())
    count = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    return count, count / sum(parameter.numel() for name, parameter in named.items() if ".adapter." not in name)


def expected_parameters(
    vit: ViT, kind: str, *, r: int = 16, targets: str | Iterable[str] | None = None, norm: str = "affine"
) -> int:
    """`trainable`'s count of a plain ``vit`` after `inject`, in closed form.

    Besides the head, and the biases or norms of the base, a branch of rank r from d_in to d_out has r (d_in + d_out) +
    g d_in parameters, g = 2 for LayerNorm, 1 for RMSNorm, 0 without weights.
    """
    adapter = described(kind, r, 1.0, targets, norm)
    total = sum(parameter.numel() for parameter in trained_parameters(vit, kind).values())
    for path, thirds in _places(vit, adapter.targets).items():
        weight = vit.net.get_submodule(path).weight
        d_out, d_in = weight.flatten(1).shape
        branches, d_out = (len(thirds), d_out // 3) if thirds else (1, d_out)
        in_norm = sum(parameter.numel() for parameter in NORMS[adapter.norm](d_in).parameters())
        total += branches * (r * (d_in + d_out) + in_norm)
    return total


def base_fingerprint(vit: ViT) -> str:
    """A short name for the weights below an adapter and the normalisation: all but the head and the branches.

    Of a model that carries an adapter it is the one from before the injection.
    """
    check_vit(vit)
    return vit.adapter.base if isinstance(vit, AdaptedViT) else fingerprint(vit, without=HEADS)


def described(kind: str, r: int, alpha: float, targets: str | Iterable[str] | None, norm: str) -> Adapter:
    """The adapter in one form, without its base; targets without repeats, in the order of `TARGETS`.

    Raises:
        InputError: as `inject`, for these arguments.
    """
    check_choice("adapter", kind, KINDS)
    check_choice("norm", norm, NORMS)
    check_count("r", r)
    check_number("alpha", alpha, 0, math.inf)
    if kind != "lnlora" and norm not in ("affine", "none"):
        raise InputError(f"norm='{norm}' stands in front of 'lnlora' only, not of '{kind}': leave it out.")
    if kind not in LORA:
        if targets is not None:
            raise InputError(f"targets are of {' and '.join(LORA)}, not of '{kind}': leave them out.")
        return Adapter(kind, 0, 0, (), "none", "")
    if targets is None:
        targets = DEFAULT_TARGETS
    asked = (targets,) if isinstance(targets, str) or not isinstance(targets, Iterable) else tuple(targets)
    for target in asked:
        check_choice("target", target, TARGETS)
    if not asked:
        raise InputError(f"targets are empty: choose from {', '.join(TARGETS)}, or take the adapter 'linear'.")
    if "qkv" in asked and set(asked) & set(THIRDS):
        raise InputError("targets name 'qkv' beside q, k or v, which are its thirds: choose one form.")
    ordered = tuple(target for target in TARGETS if target in asked)
    return Adapter(kind, int(r), float(alpha), ordered, norm if kind == "lnlora" else "none", "")


def _branch(layer: nn.Module, thirds: list[str], adapter: Adapter, generator: torch.Generator) -> nn.Module:
    """What stands beside a layer: one branch, or one for each of some thirds of its outputs."""
    if thirds:
        return ThirdsBranch(layer, thirds, adapter, generator)
    return Branch(layer, layer.weight[0].numel(), len(layer.weight), adapter, generator)


def _adapted_layers(vit: AdaptedViT) -> list[nn.Module]:
    return [layer for layer in vit.net.modules() if isinstance(layer, tuple(ADAPTED_LAYERS.values()))]


def _places(vit: ViT, targets: Iterable[str]) -> dict[str, list[str]]:
    """The layers with a branch, by timm's path, each with the thirds that it is cut into (none: whole)."""
    places: dict[str, list[str]] = {}
    for target in targets:
        blocks = [""] if target == "patch_embed" else [f"blocks.{index}." for index in range(len(vit.net.blocks))]
        for block in blocks:
            places.setdefault(block + TARGETS[target], []).extend([target] if target in THIRDS else [])
    return places
