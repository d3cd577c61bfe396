"""The finetuned checkpoints that travel with the package, trained again by their records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nullpaper.adapters.files import ADAPTED, adapter_folder, save_adapter
from nullpaper.data.datasets import load_data
from nullpaper.errors import InputError, nearest
from nullpaper.files import write_atomic
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.models.checkpoints import FINETUNED, classifier_weights
from nullpaper.models.vit import SHIPPED, fingerprint, load_vit, save_vit
from nullpaper.workflow.provenance import device_name


def retrain(name: str, folder: Path, *, device: str = "cpu", **changes: Any) -> Path:
    """Finetune the shipped ViT again as the record of a checkpoint says: about an hour on one core.

    Args:
        name: ``vit_robust``, or ``vit_robust_lnlora``, the adapter trained like it.
        folder: gets the weights and their record, and keeps the state of a run that is killed.
        changes: arguments of `finetune` that differ from the record's, such as ``steps``.

    Returns:
        The path of the new record.

    Raises:
        InputError: another name, or as `finetune`.
    """
    if name not in (*FINETUNED, *ADAPTED):
        raise InputError(f"'{name}' was not finetuned.{nearest(name, [*FINETUNED, *ADAPTED])}")
    start, adapted = load_vit(SHIPPED, device=device), name in ADAPTED
    original = adapter_folder(name) / "record.json" if adapted else classifier_weights(name).with_suffix(".json")
    record = json.loads(original.read_text())
    options = {key: record.get(key) for key in ("method", "steps", "seed", "adapter")}
    options |= {"recipe": FinetuneRecipe(**record["recipe"])} | changes
    result = finetune(start, load_data("cifar10"), folder=folder / "state", **options)
    if adapted:
        save_adapter(result.vit, folder / name)
    else:
        save_vit(result.vit, folder / f"{name}.safetensors")
    record |= {**options, "recipe": asdict(options["recipe"]), "start": fingerprint(start)}
    record |= {"device": device_name(), "weights": fingerprint(result.vit), "best_step": result.best_step}
    record |= {"seconds": result.seconds, "history": result.history}
    path = folder / name / "record.json" if adapted else folder / f"{name}.json"
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    return path
