"""Adapters on disk, in the layout of the PEFT package: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT loads the plain "lora" files of this package. What PEFT does not have (LNLoRA, branches on q, k and v, the other
kinds) carries another ``peft_type``, so that PEFT refuses it instead of leaving the norms out.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nullpaper.adapters.inject import HEADS, AdaptedViT, attach, base_fingerprint, trained_parameters
from nullpaper.adapters.layers import THIRDS, Adapter
from nullpaper.errors import InputError, check_choice, first_line
from nullpaper.files import sha256, write_atomic
from nullpaper.models.vit import SHIPPED, ViT, check_vit, load_vit, shipped_weights
from nullpaper.models.weights import check_fit, read_weights

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

ADAPTED = ("vit_robust_lnlora",)
"""The adapters that travel with the package: LNLoRA of rank 3 on the shipped ViT, trained on the batches of
``vit_robust`` against PGD at 8/255 (notebook 09)."""


def save_adapter(vit: ViT, folder: str | Path) -> None:
    """Write what the adapter of ``vit`` trains to ``folder``, each file in one step, tensors first.

    The configuration holds the SHA-256 sum of the tensors, so that a pair that does not belong together is found.

    Raises:
        InputError: nothing was injected, or the folder cannot be written.
    """
    check_vit(vit)
    if not isinstance(vit, AdaptedViT):
        raise InputError(f"{vit.name} carries no adapter to save: inject one, or use save_vit for the whole model.")
    folder = Path(folder)
    tensors = {key: value.cpu().contiguous() for key, value in _file_tensors(vit).items()}
    content = save(tensors, metadata={"format": "pt"})
    write_atomic(folder / WEIGHTS_FILE, content)
    record = vars(vit.adapter) | {"sha256": sha256(content)}
    write_atomic(folder / CONFIG_FILE, json.dumps(_peft_config(vit) | {"nullpaper": record}, indent=2))


def load_adapter(vit: ViT, folder: str | Path) -> ViT:
    """Inject the adapter in ``folder`` into ``vit``, in place, with the weights that it was saved with.

    Args:
        vit: the base that the adapter was trained on; its head is replaced.

    Raises:
        InputError: files absent, damaged or of two adapters, another base, a head of other classes, a model that
            carries an adapter already. The model is then as it was.
    """
    check_vit(vit)
    folder = Path(folder)
    adapter, digest = _read_config(folder / CONFIG_FILE)
    state = read_weights(folder / WEIGHTS_FILE)
    if digest != sha256(folder / WEIGHTS_FILE):
        raise InputError(f"{WEIGHTS_FILE} and {CONFIG_FILE} in {folder} do not belong together: save the adapter anew.")
    if adapter.base != base_fingerprint(vit):
        raise InputError(
            f"the adapter in {folder} was trained on other weights ({adapter.base}) than those of {vit.name} "
            f"({base_fingerprint(vit)}): load the checkpoint that it started from."
        )
    trial = _file_tensors(attach(deepcopy(vit), adapter))
    check_fit(state, trial, f"the adapter in {folder} does not fit {vit.name}", "load it with the adapter's classes")
    for key, value in _file_tensors(attach(vit, adapter)).items():
        value.copy_(state[key])
    return vit


def load_adapted(name: str, *, device: str | torch.device | None = None) -> ViT:
    """The shipped ViT with one of `ADAPTED`, in evaluation mode.

    Raises:
        InputError: unknown name, or files that are missing or damaged.
    """
    check_choice("adapter", name, ADAPTED)
    vit = load_vit(SHIPPED)
    vit.name = name
    return load_adapter(vit, shipped_weights(name).with_suffix("")).eval().to(device)


def _file_tensors(vit: AdaptedViT) -> dict[str, Tensor]:
    """Views of the trained parameters under PEFT's names and, for the patch embedding, in the shape of convolutions."""
    tensors = {}
    for name, parameter in trained_parameters(vit, vit.adapter.kind).items():
        value = parameter.detach()
        if name == "patch_embed.proj.adapter.lora_A.weight":
            value = value.unflatten(1, (vit.channels, *vit.patch_size))
        elif name == "patch_embed.proj.adapter.lora_B.weight":
            value = value[:, :, None, None]
        tensors[PREFIX + name.replace(".adapter.", ".")] = value
    return tensors


def _peft_config(vit: AdaptedViT) -> dict[str, Any]:
    """PEFT's part of the configuration; ours is the `Adapter` and the sum of the tensors."""
    adapter = vit.adapter
    standard = adapter.kind == "lora" and not set(adapter.targets) & set(THIRDS)
    adapted = {name.partition(".adapter.")[0] for name, _ in vit.net.named_parameters() if ".adapter." in name}
    return {
        "peft_type": "LORA" if standard else f"NULLPAPER_{adapter.kind.upper()}",
        "task_type": None,
        "base_model_name_or_path": None,  # PEFT would ask the hub for a name
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapted),
        "modules_to_save": [name for name in HEADS if hasattr(vit.net, name)],
        "bias": "none",
        "inference_mode": True,
    }


def _read_config(path: Path) -> tuple[Adapter, str]:
    """The adapter and the sum of the tensors in our part of the configuration."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no adapter: {path.name} is missing; name a folder of save_adapter.")
    try:
        record = json.loads(path.read_text())["nullpaper"]
        record |= {"targets": tuple(record["targets"])}
        return Adapter(**{field.name: record[field.name] for field in fields(Adapter)}), record["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged or not of save_adapter ({first_line(error)}): load an adapter that save_adapter wrote."
        ) from error
