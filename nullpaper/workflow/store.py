"""Content-addressed results: parameters + code + data -> one folder, written whole or not at all, computed once.

A result is the folder ``<root>/<experiment>/<key>/`` with params.json, metrics.json, tensors.safetensors if there are
tensors, and provenance.json, which holds the checksums of the others. It comes into being by one rename, so a killed
run leaves nothing that looks finished.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, storable, temporary_sibling
from nullpaper.workflow.code_identity import code_identity, identity, is_place, plain
from nullpaper.workflow.provenance import commit_of, device_name, project_root, run_context, versions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

PARAMS, METRICS, TENSORS, PROVENANCE = "params.json", "metrics.json", "tensors.safetensors", "provenance.json"
LEFT_OUT = "left_out.txt"


@dataclass(frozen=True)
class Result:
    """A finished result. ``reused`` says that it was found rather than computed by this call."""

    path: Path
    key: str
    metrics: Any
    provenance: Mapping[str, Any] = field(repr=False)
    reused: bool

    def tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        """The stored tensors by name, read from disk at each call; empty if there are none.

        Raises:
            InputError: they were left out when the result was packed.
        """
        from safetensors.torch import load_file

        path = self.path / TENSORS
        if TENSORS in self.provenance["files"] and not path.exists():
            raise InputError(
                f"the tensors of {self.path} were left out when it was packed: pack all of it, or remove this folder "
                "to compute it anew."
            )
        return load_file(path, device=device) if path.exists() else {}

    def arrays(self) -> dict[str, np.ndarray]:
        """`tensors` as NumPy arrays."""
        return {name: tensor.numpy() for name, tensor in self.tensors().items()}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as metrics: one dict a row; ``pandas.DataFrame(result.metrics)`` gives it back. A named index is kept."""
    is_named = any(name is not None for name in frame.index.names)
    return (frame.reset_index() if is_named else frame).to_dict("records")


def store_root() -> Path:
    """``build/store`` in the project."""
    return project_root() / "build" / "store"


def stored(
    experiment: str,
    params: Mapping[str, Any],
    compute: Callable[[], Any],
    *,
    data: Mapping[str, str] | None = None,
    other_data: Mapping[str, str] | None = None,
    root: Path | None = None,
    on_wait: Callable[[], object] = lambda: None,
) -> Result:
    """The result of ``compute()`` for these parameters, this code and this data: found, or computed and stored.

    A run that was started with ``--force`` computes it even if it is there.

    Args:
        experiment: a name for a folder: letters, digits, ``_``, ``-``, ``.``.
        params: everything that decides the result, as JSON data. An absolute path counts by the content of its file.
        compute: returns metrics (JSON data), or ``(metrics, tensors)`` with a dict of torch tensors or NumPy arrays.
            Its code counts as `code_identity` says.
        data: names and checksums of the data sets and weights.
        other_data: the same of a result that serves as well where it is there and that of ``data`` is not.
        root: where results live; `store_root` by default.
        on_wait: called again and again while another process computes it; what it raises ends the waiting.

    Raises:
        InputError: params or metrics that JSON cannot hold, the absolute path of a folder among the params, a bad
            experiment name, a folder that cannot be written. Nothing is stored then; nor if ``compute`` raises.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", experiment):
        raise InputError(f"experiment name {experiment!r} is no folder name: use letters, digits, '_', '-' and '.'")
    given = _as_json(dict(params), "params")
    described = {"experiment": experiment, "code": code_identity(compute), "data": dict(data or {})}
    counted, parent = _counted(json.loads(given)), (root if root is not None else store_root()) / experiment

    def folder_of(origin: dict[str, Any]) -> Path:
        return parent / identity(origin, counted)[:20]

    folder = folder_of(described)
    places = [folder] if other_data is None else [folder, folder_of(described | {"data": dict(other_data)})]
    with locked(parent / f".{folder.name}.lock", on_wait):
        for result in filter(None, map(load, places)):
            if result.provenance["timestamp"] >= (run_context().recompute_before or 0.0):
                return result
        _compute(folder, given, described, compute)
        return replace(load(folder), reused=False)


def _as_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, indent=1, default=plain) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} cannot be written as JSON ({error}): give numbers, strings, lists or dicts, a table through "
            "store.records(), and arrays as the second value that compute returns"
        ) from error


def _counted(value: Any, where: str = "params") -> Any:
    """JSON data in which an absolute path gives way to the digest of its file, so that no place decides an identity."""
    if isinstance(value, dict):
        return {key: _counted(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list):
        return [_counted(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if not is_place(value):
        return value
    if os.path.isfile(value):
        return sha256(Path(value))
    raise InputError(
        f"{where} is the path {value}: a result must not depend on where a folder lies. Give a path "
        "relative to the project, or leave it out and name the content with its checksum in data"
    )


def load(folder: Path) -> Result | None:
    """The result in ``folder`` if it is unaltered and whole, but for tensors that were left out when it was packed."""
    try:
        origin = json.loads((folder / PROVENANCE).read_bytes())
        left = {TENSORS} if (folder / LEFT_OUT).exists() else set()
        if all(name in left or sha256(folder / name) == digest for name, digest in origin["files"].items()):
            return Result(folder, folder.name, json.loads((folder / METRICS).read_bytes()), origin, reused=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # absent, or damaged in some way: computed anew either way
    return None


def adopt(folder: Path) -> str:
    """Move the whole result in ``<...>/<experiment>/<key>``, computed elsewhere, into the store unless there is one.

    Returns:
        "new", "there" if the store has the same result, or "different" if it has another one, which stays.
    """
    place = store_root() / folder.parent.name / folder.name
    with locked(place.parent / f".{place.name}.lock"):
        if (result := load(place)) is not None:
            return "there" if result.provenance["files"] == load(folder).provenance["files"] else "different"
        shutil.rmtree(place, ignore_errors=True)  # altered
        os.rename(folder, place)
        return "new"


def _compute(folder: Path, given: str, described: Mapping[str, Any], compute: Callable[[], Any]) -> None:
    """Compute and rename into place, with the lock of this result in hand."""
    begun = time.time()
    computed = compute()
    metrics, tensors = computed if isinstance(computed, tuple) else (computed, {})
    contents = {PARAMS: given.encode(), METRICS: _as_json(metrics, "metrics").encode()}
    if tensors:
        contents[TENSORS] = _serialised(tensors)
    context = run_context()
    origin = {**described, "run": context.run, "notebook": context.notebook, "commit": commit_of(project_root())}
    origin |= {"versions": versions(), "device": device_name(), "timestamp": begun, "seconds": time.time() - begun}
    origin["files"] = {name: sha256(content) for name, content in contents.items()}
    with storable(folder.parent):
        for leftover in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):  # altered, or of killed runs
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = temporary_sibling(folder)
        try:
            temporary.mkdir()
            for name, content in (contents | {PROVENANCE: _as_json(origin, "provenance").encode()}).items():
                (temporary / name).write_bytes(content)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _serialised(tensors: Mapping[str, Any]) -> bytes:
    """Tensors and arrays in the safetensors format. Bytes, because a full disk must raise OSError."""
    import numpy as np
    import torch
    from safetensors.torch import save

    own = {}  # safetensors refuses tensors that share memory
    for name, value in tensors.items():
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, order="C"))
        own[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return save(own)
