"""Adapters on disk, in the layout of the PEFT package: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT loads the plain "lora" files of this package and writes files that this package loads. What PEFT does not have
(LNLoRA, branches on q, k and v, the other kinds) carries another ``peft_type``, so that PEFT refuses it instead of
leaving the norms out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nullpaper.adapters.inject import HEADS, TARGETS, AdaptedViT, base_fingerprint, inject, remove, trained_parameters
from nullpaper.adapters.layers import THIRDS
from nullpaper.errors import InputError, first_line, nearest
from nullpaper.files import sha256, write_atomic
from nullpaper.models.vit import SHIPPED, ViT, load_vit, shipped_weights
from nullpaper.models.weights import read_weights

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FOREIGN_OPTIONS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


ADAPTED = ("vit_robust_lnlora",)
"""The adapters that travel with the package: LNLoRA of rank 3 on the shipped ViT, trained on the batches of
``vit_robust`` against PGD at 8/255 (notebook 09)."""


def save_adapter(vit: ViT, folder: str | Path) -> None:
    """Write what the adapter of ``vit`` trains to ``folder``, each file in one step, tensors first.

    The configuration holds the SHA-256 sum of the tensors, so that a pair that does not belong together is found.

    Raises:
        InputError: nothing was injected, or the folder cannot be written.
    """
    if not isinstance(vit, AdaptedViT):
        raise InputError(f"{vit.name} carries no adapter to save: inject one, or use save_vit for the whole model.")
    folder = Path(folder)
    tensors = {key: value.cpu().contiguous() for key, value in _file_tensors(vit).items()}
    content = save(tensors, metadata={"format": "pt"})
    write_atomic(folder / WEIGHTS_FILE, content)
    write_atomic(
        folder / CONFIG_FILE, json.dumps(_config(vit) | {"nullpaper": _record(vit, sha256(content))}, indent=2)
    )


def load_adapter(vit: ViT, folder: str | Path, *, any_base: bool = False) -> ViT:
    """Inject the adapter in ``folder`` into ``vit``, in place, with the weights that it was saved with.

    Args:
        vit: the base that the adapter was trained on; its head is replaced.
        any_base: take an adapter that does not name its base, as the files of the PEFT package do not.

    Raises:
        InputError: files absent, damaged or of two adapters, another base or architecture, a model that carries an
            adapter already. The model is then as it was.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG_FILE)
    state = read_weights(folder / WEIGHTS_FILE)
    record = config.get("nullpaper")
    if record is not None:
        _check_record(vit, record, folder)
    elif not any_base:
        raise InputError(
            f"the adapter in {folder} does not say which base it is for: pass any_base=True if it is this."
        )
    try:
        options = _options(record) if record is not None else _foreign_options(config, state, folder)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / CONFIG_FILE} is damaged ({first_line(error)}): save the adapter anew.") from error
    trained = [parameter.requires_grad for parameter in vit.parameters()]
    inject(vit, **options)
    try:
        _fill(vit, state, folder)
    except InputError:
        for parameter, flag in zip(remove(vit).parameters(), trained, strict=True):
            parameter.requires_grad_(flag)
        raise
    return vit


def load_adapted(name: str, *, device: str | torch.device | None = None) -> ViT:
    """The shipped ViT with one of `ADAPTED`, in evaluation mode.

    Raises:
        InputError: unknown name, or files that are missing or damaged.
    """
    if name not in ADAPTED:
        raise InputError(f"adapter '{name}' is unknown.{nearest(name, ADAPTED)} Choose from {', '.join(ADAPTED)}.")
    vit = load_vit(SHIPPED)
    vit.name = name
    return load_adapter(vit, adapter_folder(name)).eval().to(device)


def adapter_folder(name: str) -> Path:
    """Where the package keeps one of `ADAPTED`."""
    return shipped_weights().with_name(name)


def _file_tensors(vit: AdaptedViT) -> dict[str, Tensor]:
    """Views of the trained parameters under PEFT's names and, for the patch embedding, in the shape of convolutions."""
    tensors = {}
    for name, parameter in trained_parameters(vit).items():
        value = parameter.detach()
        if name == "patch_embed.proj.adapter.lora_A.weight":
            value = value.unflatten(1, (vit.channels, *vit.patch_size))
        elif name == "patch_embed.proj.adapter.lora_B.weight":
            value = value[:, :, None, None]
        tensors[PREFIX + name.replace(".adapter.", ".")] = value
    return tensors


def _fill(vit: AdaptedViT, state: dict[str, Tensor], folder: Path) -> None:
    """Copy the tensors of a file into place, after a look at all names and shapes."""
    own = _file_tensors(vit)
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        have, want = (tuple(part[wrong[0]].shape) if wrong[0] in part else "absent" for part in (state, own))
        raise InputError(
            f"the adapter in {folder} does not fit {vit.name}: {len(wrong)} tensors differ, first '{wrong[0]}' "
            f"({have} in the file, {want} in the model); load the base that it was trained on."
        )
    for key, value in own.items():
        value.copy_(state[key])


def _config(vit: AdaptedViT) -> dict[str, Any]:
    """PEFT's part of the configuration."""
    adapter = vit.adapter
    standard = adapter.kind == "lora" and not set(adapter.targets) & set(THIRDS)
    adapted = {name.partition(".adapter.")[0] for name in trained_parameters(vit) if ".adapter." in name}
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


def _record(vit: AdaptedViT, digest: str) -> dict[str, Any]:
    """Our part: how to inject the adapter, and into what."""
    adapter = vars(vit.adapter)
    return {**adapter, "targets": list(vit.adapter.targets), "architecture": _architecture(vit), "sha256": digest}


def _architecture(vit: ViT) -> dict[str, Any]:
    return {
        "embed_dim": vit.embed_dim,
        "depth": len(getattr(vit.net, "blocks", ())),
        "channels": vit.channels,
        "patch_size": list(vit.patch_size),
        "image_size": list(vit.image_size),
        "num_classes": vit.num_classes,
    }


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} holds no adapter: {path.name} is missing; name a folder of save_adapter.")
    try:
        config = json.loads(path.read_text())
        record = config.get("nullpaper", {})
        if not isinstance(record, dict):
            raise TypeError("no record")
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): save the adapter anew.") from error
    return config


def _check_record(vit: ViT, record: dict[str, Any], folder: Path) -> None:
    """Refuse files of two adapters, and another architecture or base than ``vit``."""
    if record.get("sha256") != sha256(folder / WEIGHTS_FILE):
        raise InputError(f"{WEIGHTS_FILE} and {CONFIG_FILE} in {folder} do not belong together: save the adapter anew.")
    own, theirs = _architecture(vit), record.get("architecture")
    if theirs != own:
        differ = [key for key in own if not isinstance(theirs, dict) or theirs.get(key) != own[key]]
        wanted = theirs.get(differ[0]) if isinstance(theirs, dict) else "unknown"
        raise InputError(
            f"the adapter in {folder} is for another architecture: {differ[0]} is {wanted}, and {own[differ[0]]} in "
            f"{vit.name}; load the base that it was trained on."
        )
    if record.get("base") != base_fingerprint(vit):
        raise InputError(
            f"the adapter in {folder} was trained on other weights ({record.get('base')}) than those of {vit.name} "
            f"({base_fingerprint(vit)}): load the checkpoint that it started from."
        )


def _options(record: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `inject` in our record."""
    targets = [str(target) for target in record["targets"]] or None
    norm = str(record["norm"]) if record["kind"] == "lnlora" else "affine"
    size = {"r": record["r"], "alpha": record["alpha"]} if targets else {}
    return {"kind": record["kind"], "targets": targets, "norm": norm, **size}


def _foreign_options(config: dict[str, Any], state: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """The arguments of `inject` for files that the PEFT package wrote; targets are read off the tensors' names."""
    used = [name for name in FOREIGN_OPTIONS if config.get(name)]
    if config["peft_type"] != "LORA" or config.get("bias", "none") != "none" or used:
        what = used[0] if used else f"peft_type={config['peft_type']}, bias={config.get('bias')}"
        raise InputError(f"the adapter in {folder} uses PEFT's {what}, which is not served here: train a plain LoRA.")
    paths = {key.removeprefix(PREFIX).partition(".lora_A")[0] for key in state if ".lora_A." in key}
    layers = {re.sub(r"^blocks\.\d+\.", "", path) for path in paths}
    names = {path: target for target, path in TARGETS.items() if target not in THIRDS}
    if unknown := layers - names.keys():
        raise InputError(f"the adapter in {folder} is on '{min(unknown)}'; served are {', '.join(names)}.")
    return {"kind": "lora", "r": config["r"], "alpha": config["lora_alpha"], "targets": [names[x] for x in layers]}
