"""Quicker gradients of the same model: what a step of an attack, a synthesis or a training run computes inside.

A plain forward pass, which is what results report, never changes: outside, every logit is as before, to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import linear, unfold

CHUNK = 64  # images that a CPU's caches hold: 0.55 to 0.87 of the time of 500 at once, for three architectures
MEMORY = 0.2  # of what is free on a card, for what a pass keeps: the rest is for what else it needs, and for others
COARSEST = {"cpu": ("mkldnn", "bf16"), "cuda": ("cuda", "tf32")}
"""By device: which of torch's backends multiplies float32 matrices, and how far it may be let round what enters."""


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (B, ...) in pieces of even length, on a CPU of at most 64 images, on other devices all at once.

    Of more than 64 images no piece has fewer than 32: the last bits of a product depend on how few rows it has.
    """
    count = -(-len(tensors[0]) // CHUNK) if tensors[0].device.type == "cpu" else 1
    return zip(*(part.tensor_split(count) for part in tensors), strict=True)


def at_once(model: Callable[[Tensor], Tensor], images: Tensor, free: int | None = None) -> int:
    """How many images of the size of ``images`` (B, C, H, W) a pass with gradients should take together.

    On a CPU 64; on a card as many as a share of the free memory holds, by what passes of one and two images keep.

    Args:
        free: bytes to reckon with; None: what the images' device has.
    """
    device = images.device
    if free is None:
        if device.type != "cuda":
            return CHUNK
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reusable
    one, two = (_kept(model, images[:1].repeat(count, 1, 1, 1)) for count in (1, 2))
    return max(1, int(MEMORY * free / max(two - one, 1)))


def _kept(model: Callable[[Tensor], Tensor], images: Tensor) -> int:
    with torch.enable_grad():
        return kept(lambda: model(images.detach().requires_grad_()))


def kept(compute: Callable[[], Tensor], beside: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of ``compute()`` keeps for its backward pass, what lies in ``beside`` left out.

    What is kept and released meanwhile, as by an attack inside, does not count. Tensors may be without values.
    """
    packed: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        alias = tensor.detach()
        packed.append(weakref.ref(alias))
        return alias

    with saved_tensors_hooks(pack, lambda alias: alias):
        graph = compute()
    there, alive = [*beside], [alias for one in packed if (alias := one()) is not None]
    size = storage_bytes([*there, *alive]) - storage_bytes(there)
    del graph  # until here it alone holds what was packed
    return size


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages behind ``tensors``, each counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, no parameter asks for gradients, so that nothing is kept for them; each flag is put back after."""
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def fast_gradients(model: Callable[[Tensor], Tensor], *, exact: bool = False) -> Iterator[None]:
    """Inside, forward and backward passes of a model cost about half, and add the same numbers in another order.

    Float32 matrix products go through the kernels that may round what enters them (not the sums): to TF32 on a GPU, to
    bfloat16 on a CPU that has AMX. Other CPUs with AVX-512 do not round, and may yet take half the time. On every CPU
    convolutions that embed patches become matrix products, and attention is plain products and not a fused kernel.

    Args:
        exact: no rounding, as where it is decided whether an image is fooled: such kernels are left out.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    device = next((p.device.type for module in modules for p in module.parameters()), "cpu")
    changes = _on_a_cpu(modules) if device == "cpu" else []
    before = [vars(module).get(name) for module, name, _ in changes]
    try:
        for change in changes:
            setattr(*change)
        with _products(device, coarse=not (exact and rounds(device))):
            yield
    finally:
        for (module, name, _), value in zip(changes, before, strict=True):
            if value is None:
                delattr(module, name)
            else:
                setattr(module, name, value)


def _on_a_cpu(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """What to change in modules, as (module, attribute, value)."""
    plain = [(module, "fused_attn", False) for module in modules if hasattr(module, "fused_attn")]
    convolutions = [module for module in modules if type(module) is nn.Conv2d]  # an adapter's has more than its weight
    return plain + [(one, "forward", partial(_embedded, one)) for one in convolutions if _cuts_patches(one)]


def _cuts_patches(layer: nn.Conv2d) -> bool:
    """Whether each pixel enters one patch, and all channels each output."""
    aside = (layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return layer.kernel_size == layer.stride != (1, 1) and aside == ((0, 0), (1, 1), 1, "zeros")


def _embedded(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What such a layer makes of images (B, C, H, W), by one matrix product: (B, d, H/p, W/p)."""
    patches = unfold(images, layer.kernel_size, stride=layer.stride).transpose(1, 2)
    grid = [side // step for side, step in zip(images.shape[-2:], layer.stride, strict=True)]
    return linear(patches, layer.weight.flatten(1), layer.bias).transpose(1, 2).unflatten(2, grid)


@cache
def rounds(device: str) -> bool:
    """Whether what `fast_gradients` allows makes this device round: a product of numbers with 12 bits is tried."""
    values = torch.full((256, 256), 1 + 2**-12, device=device)
    with _products(device, coarse=True):
        return (values @ values)[0, 0].item() < 256 * (1 + 2**-12)


@contextmanager
def _products(device: str, coarse: bool) -> Iterator[None]:
    """Inside, float32 matrix products may be rounded; torch before 2.9 lacks the switch, and nothing changes."""
    name, value = COARSEST.get(device, ("", ""))
    backend = getattr(getattr(torch.backends, name, None), "matmul", None)
    before = getattr(backend, "fp32_precision", None)
    if before is None or not coarse:
        yield
        return
    try:
        backend.fp32_precision = value
        yield
    finally:
        backend.fp32_precision = before
