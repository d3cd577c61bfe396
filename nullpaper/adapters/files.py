"""Adapters on disk, in the layout of the PEFT package: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT loads the plain "lora" files of this package and writes files that this package loads. What PEFT does not have
(LNLoRA, branches on q, k and v, the other kinds) carries another ``peft_type``, so that PEFT refuses it instead of
leaving the norms out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nullpaper.adapters.inject import (
    HEADS,
    LORA,
    TARGETS,
    AdaptedViT,
    attach,
    base_fingerprint,
    described,
    trained_parameters,
)
from nullpaper.adapters.layers import THIRDS, Adapter
from nullpaper.errors import InputError, check_choice, check_path, first_line, shown
from nullpaper.files import sha256, write_atomic
from nullpaper.models.vit import SHIPPED, ViT, check_vit, load_vit, shipped_weights
from nullpaper.models.weights import check_fit, read_weights

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

PEFT_KNOWN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # of A and B alone
}
"""Options of PEFT's LoRA that may be on, and how; all that is not here or in `PEFT_FREE` must be off."""
PEFT_FREE = ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform")
PEFT_FREE += ("layers_pattern", "modules_to_save", "base_model_name_or_path", "revision", "auto_mapping", "task_type")
PEFT_FREE += ("peft_version", "inference_mode", "megatron_core", "qalora_group_size")
"""Options of any value: read here, or written in the tensors as well, or without effect on an answer by themselves."""

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
    folder = check_path("folder", folder)
    tensors = {key: value.cpu().contiguous() for key, value in _file_tensors(vit).items()}
    content = save(tensors, metadata={"format": "pt"})
    write_atomic(folder / WEIGHTS_FILE, content)
    record = vars(vit.adapter) | {"sha256": sha256(content)}
    write_atomic(folder / CONFIG_FILE, json.dumps(_peft_config(vit) | {"nullpaper": record}, indent=2))


@torch.inference_mode(False)
def load_adapter(vit: ViT, folder: str | Path, *, any_base: bool = False) -> ViT:
    """Inject the adapter in ``folder`` into ``vit``, in place, with the weights that it was saved with.

    Args:
        vit: the base that the adapter was trained on; its head is replaced if the files hold one.
        folder: as `save_adapter` wrote it, or the PEFT package after training a plain LoRA on ``vit.net``.
        any_base: take files that do not say which weights they were trained on, as those of PEFT do not.

    Raises:
        InputError: files absent, damaged or of two adapters, another base or none named, a form of PEFT that is not
            known to be a plain LoRA on the weights as they were, a head of other classes, a model that carries an
            adapter already. The model is then as it was.
    """
    check_vit(vit)
    folder = check_path("folder", folder)
    config, state = _read_config(folder / CONFIG_FILE), read_weights(folder / WEIGHTS_FILE)
    adapter = _own_adapter(config, folder) if "nullpaper" in config else _peft_adapter(config, state, folder)
    if not adapter.base and not any_base:
        raise InputError(
            f"the adapter in {folder} does not say which weights it was trained on: pass any_base=True if it was on "
            f"those of {vit.name}."
        )
    if adapter.base and adapter.base != base_fingerprint(vit):
        raise InputError(
            f"the adapter in {folder} was trained on other weights ({adapter.base}) than those of {vit.name} "
            f"({base_fingerprint(vit)}): load the checkpoint that it started from."
        )
    trial = _file_tensors(attach(deepcopy(vit), adapter))
    heads = {key: value for key, value in trial.items() if key.removeprefix(PREFIX).partition(".")[0] in HEADS}
    state = heads | state  # PEFT stores no head unless it is told to: then it is the base's
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


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} holds no adapter: {path.name} is missing; name a folder of save_adapter.")
    with _readable(path):
        config = json.loads(path.read_text())
        if not isinstance(config, dict) or not config.keys() & {"nullpaper", "peft_type"}:
            raise TypeError("it describes no adapter")
        return config


def _own_adapter(config: dict[str, Any], folder: Path) -> Adapter:
    """The adapter in our part of a configuration, whose tensors are those in the folder."""
    with _readable(folder / CONFIG_FILE):
        record = config["nullpaper"]
        r, alpha, targets = record["r"], record["alpha"], tuple(record["targets"])
        if record["kind"] not in LORA:
            r, alpha, targets = 1, 1.0, None
        adapter = replace(described(record["kind"], r, alpha, targets, record["norm"]), base=str(record["base"]))
        digest = record["sha256"]
    if digest != sha256(folder / WEIGHTS_FILE):
        raise InputError(f"{WEIGHTS_FILE} and {CONFIG_FILE} in {folder} do not belong together: save the adapter anew.")
    return adapter


def _peft_adapter(config: dict[str, Any], state: Mapping[str, Tensor], folder: Path) -> Adapter:
    """The adapter in files of the PEFT package, without a base; its targets are read off the names of the tensors.

    PEFT has many forms of LoRA, and more in every version, some of which start from changed weights of the base (PiSSA,
    OLoRA). So every option must be known to leave y = W0 x + b + (alpha / r) B A x, or be off.
    """
    for option, value in config.items():
        if option not in PEFT_FREE and value not in PEFT_KNOWN.get(option, ()) and (value or option in PEFT_KNOWN):
            raise InputError(
                f"the adapter in {folder} has PEFT's {option}={shown(value)}, which is not known to be a plain LoRA on "
                "the weights as they were: merge it with PEFT and load the merged weights, or train a plain LoRA."
            )
    paths = {key.removeprefix(PREFIX).partition(".lora_A.")[0] for key in state if ".lora_A." in key}
    names = {path: target for target, path in TARGETS.items() if target not in THIRDS}
    layers = {re.sub(r"^blocks\.\d+\.", "", path) for path in paths}
    if unknown := layers - names.keys():
        raise InputError(
            f"the adapter in {folder} is on layers '{min(unknown)}', not on {' or '.join(names)} of vit.net alone: "
            "merge it with PEFT and load the merged weights, or train it on those."
        )
    with _readable(folder / CONFIG_FILE):
        return described("lora", config["r"], config["lora_alpha"], [names[layer] for layer in layers], "none")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what is missing or wrong in the configuration at ``path`` into one `InputError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged or not of save_adapter ({first_line(error)}): load an adapter that save_adapter wrote."
        ) from error
