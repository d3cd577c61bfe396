"""The layers of `inject.py`: a frozen linear map or patch embedding beside low-rank branches.

y = W0 x + b + (alpha / r) B A norm(x), with the names of the PEFT package for the parts of a branch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from nullpaper.models.nets import TokenLinear, token_linear
from nullpaper.models.vit import HALF, patchify

THIRDS = ("q", "k", "v")
NORM_EPS = 1e-5
NORMS = {
    "affine": partial(nn.LayerNorm, eps=NORM_EPS),
    "plain": partial(nn.LayerNorm, eps=NORM_EPS, elementwise_affine=False),
    "rms": partial(nn.RMSNorm, eps=NORM_EPS),
    "none": nn.Identity,
}
"""What stands in front of A in LNLoRA; ``affine`` is paper B's, the others are its ablation."""


@dataclass(frozen=True)
class Adapter:
    """What was injected; ``base`` is the fingerprint of the weights below it, without the head.

    Kinds without a LoRA branch have r = 0, alpha = 0, no targets and norm "none"; so has "lora" as to its norm.
    """

    kind: str
    r: int
    alpha: float
    targets: tuple[str, ...]
    norm: str
    base: str


class Branch(nn.Module):
    """(alpha / r) B A norm(x): tokens (..., d_in) to (..., d_out)."""

    def __init__(self, layer: nn.Module, d_in: int, d_out: int, adapter: Adapter, generator: torch.Generator) -> None:
        super().__init__()
        place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.scale = adapter.alpha / adapter.r
        self.lora_norm = NORMS[adapter.norm](d_in).to(**place)
        self.lora_A = skip_init(TokenLinear, d_in, adapter.r, bias=False, **place)  # spares the global generator
        self.lora_B = skip_init(TokenLinear, adapter.r, d_out, bias=False, **place)
        drawn = torch.empty(adapter.r, d_in)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            self.lora_A.weight.copy_(drawn)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(self.lora_norm(x))) * self.scale

    def merges(self) -> bool:
        """Whether the weights are better added than the outputs: no norm between, and no rounding to half precision."""
        half = self.lora_A.weight.dtype in HALF or torch.is_autocast_enabled(self.lora_A.weight.device.type)
        return isinstance(self.lora_norm, nn.Identity) and not half

    def update(self) -> Tensor:
        """(alpha / r) B A as a float64 matrix (d_out, d_in); what is folded where nothing normalises."""
        return self.scale * self.lora_B.weight.detach().double() @ self.lora_A.weight.detach().double()


class ThirdsBranch(nn.Module):
    """Branches of their own for some of q, k and v, each on its third of the fused outputs."""

    def __init__(self, layer: nn.Linear, thirds: Iterable[str], adapter: Adapter, generator: torch.Generator) -> None:
        super().__init__()
        for third in thirds:
            self.add_module(third, Branch(layer, layer.in_features, layer.out_features // 3, adapter, generator))

    def forward(self, x: Tensor) -> Tensor:
        return self._joined({name: branch(x) for name, branch in self.named_children()}, dim=-1)

    def update(self) -> Tensor:
        """The update of the fused matrix, (3 d, d_in)."""
        return self._joined({name: branch.update() for name, branch in self.named_children()}, dim=0)

    def _joined(self, parts: dict[str, Tensor], dim: int) -> Tensor:
        zeros = torch.zeros_like(next(iter(parts.values())))
        return torch.cat([parts.get(third, zeros) for third in THIRDS], dim)


class MergedLinear(torch.autograd.Function):
    """(W0 + s B A) x + b, for tokens x (..., d_in): one product of that size forward, one backward.

    A and B get their gradients, s (B^T g) x^T and s g (A x)^T, from thin products. That of the whole matrix, which
    automatic differentiation would make first, is never made. All of it can be differentiated once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return token_linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = token_linear(gradient, torch.addmm(weight, b, a, alpha=ctx.scale).mT)
        if any(ctx.needs_input_grad[3:5]):
            inputs, outputs = x.flatten(0, -2), gradient.flatten(0, -2)
            of_a = (ctx.scale * (outputs @ b)).mT @ inputs
            of_b = ctx.scale * (outputs.mT @ (inputs @ a.mT))
        return of_x, None, None, of_a, of_b, None


class AdaptedLinear(TokenLinear):
    """A frozen linear map beside a branch."""

    def forward(self, x: Tensor) -> Tensor:
        branch, trains = self.adapter, any(parameter.requires_grad for parameter in self.parameters(recurse=False))
        if isinstance(branch, Branch) and branch.merges() and not trains:
            a, b = branch.lora_A.weight, branch.lora_B.weight
            return MergedLinear.apply(x, self.weight, self.bias, a, b, branch.scale)
        return super().forward(x) + self.adapter(x)


class AdaptedConv2d(nn.Conv2d):
    """A frozen patch embedding beside a branch that acts on the flattened patches."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.adapter
        if branch.merges():
            matrix = torch.addmm(self.weight.flatten(1), branch.lora_B.weight, branch.lora_A.weight, alpha=branch.scale)
            return self._conv_forward(x, matrix.view_as(self.weight), self.bias)
        y = super().forward(x)
        return y + branch(patchify(x, self.kernel_size)).transpose(1, 2).reshape(y.shape)


ADAPTED_LAYERS = {TokenLinear: AdaptedLinear, nn.Conv2d: AdaptedConv2d}


def merged_weight(layer: AdaptedLinear | AdaptedConv2d) -> Tensor:
    """W0 + (alpha / r) B A in float64, in the shape of W0."""
    return layer.weight.detach().double() + layer.adapter.update().view_as(layer.weight)
