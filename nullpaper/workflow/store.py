"""Content-addressed results: parameters + code + data -> one folder, written whole or not at all, computed once.

A result is the folder ``<root>/<experiment>/<key>/`` with params.json, metrics.json, tensors.safetensors if there are
tensors, and provenance.json, which holds the checksums of the others. It comes into being by one rename, so a killed
run leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from nullpaper.errors import InputError
from nullpaper.files import locked, sha256, storable, temporary_sibling
from nullpaper.workflow.canonical import dumps, identity, loads, placeless, plain
from nullpaper.workflow.code_identity import code_identity
from nullpaper.workflow.provenance import commit_of, device_name, project_root, run_context, versions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

PARAMS, METRICS, TENSORS, PROVENANCE = "params.json", "metrics.json", "tensors.safetensors", "provenance.json"


@dataclass(frozen=True)
class Result:
    """A finished result. ``reused`` says that it was found rather than computed by this call."""

    path: Path
    key: str
    metrics: Any
    provenance: Mapping[str, Any] = field(repr=False)
    reused: bool

    def tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        """The stored tensors by name, read from disk at each call; empty if there are none."""
        from safetensors.torch import load_file

        path = self.path / TENSORS
        return load_file(path, device=device) if path.exists() else {}

    def arrays(self) -> dict[str, np.ndarray]:
        """`tensors` as NumPy arrays, without loading torch."""
        from safetensors.numpy import load_file

        path = self.path / TENSORS
        return load_file(path) if path.exists() else {}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as metrics: one dict a row; ``pandas.DataFrame(result.metrics)`` gives it back. A named index is kept."""
    kept = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
    return plain(kept.to_dict("records"), "table")


def store_root() -> Path:
    """``build/store`` in the project."""
    return project_root() / "build" / "store"


def stored(
    experiment: str,
    params: Mapping[str, Any],
    compute: Callable[[], Any],
    *,
    data: Mapping[str, str] | None = None,
    root: Path | None = None,
    force: bool | None = None,
) -> Result:
    """The result of ``compute()`` for these parameters, this code and this data: found, or computed and stored.

    Args:
        experiment: a name for a folder: letters, digits, ``_``, ``-``, ``.``.
        params: everything that decides the result, as JSON data. An absolute path counts by the content of its file.
        compute: returns metrics (JSON data), or ``(metrics, tensors)`` with a dict of torch tensors or NumPy arrays.
            Its code counts as `code_identity` says.
        data: names and checksums of the data sets and weights.
        root: where results live; `store_root` by default.
        force: compute even if a result is there; by default as the run was started with ``--force`` or not.

    Raises:
        InputError: params or metrics that JSON cannot hold, the absolute path of a folder among the params, a bad
            experiment name, a folder that cannot be written. Nothing is stored then; nor if ``compute`` raises.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", experiment):
        raise InputError(f"experiment name {experiment!r} is no folder name: use letters, digits, '_', '-' and '.'")
    given = plain(dict(params), "params")
    described = {"experiment": experiment, "code": code_identity(compute), "data": plain(dict(data or {}), "data")}
    key = identity(described, placeless(given, "params"))[:20]
    folder = (root if root is not None else store_root()) / experiment / key
    threshold = time.time() if force else 0.0 if force is not None else run_context().recompute_before or 0.0
    if (result := _load(folder, key, threshold)) is not None:
        return result
    with locked(_lock_file(folder)):
        if (result := _load(folder, key, threshold)) is not None:
            return result
        _remove_leftovers(folder.parent, held=key)
        _compute(folder, given, described, compute)
    made = _load(folder, key, 0.0)
    if made is None:
        raise InputError(f"{folder} was damaged while it was written: check the disk and run again")
    return Result(made.path, key, made.metrics, made.provenance, reused=False)


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _load(folder: Path, key: str, threshold: float) -> Result | None:
    """The result in ``folder`` if it is whole, unaltered and not begun before ``threshold`` (Unix time)."""
    try:
        origin = loads((folder / PROVENANCE).read_bytes())
        whole = origin["key"] == key and {PARAMS, METRICS} <= origin["files"].keys()
        whole = whole and all(sha256(folder / name) == digest for name, digest in origin["files"].items())
        if not whole or origin["timestamp"] < threshold:
            return None
        return Result(folder, key, loads((folder / METRICS).read_bytes()), origin, reused=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or damaged in some way: computed anew either way


def _compute(folder: Path, params: Any, described: Mapping[str, Any], compute: Callable[[], Any]) -> None:
    """Compute and rename into place; the temporary folder comes first, so that a bad disk is found before the work."""
    temporary = temporary_sibling(folder)
    try:
        with storable(folder.parent):
            temporary.mkdir()
            (temporary / PARAMS).write_text(dumps(params))
        begun = time.time()
        computed = compute()
        origin = _origin(described, folder.name, begun)
        metrics, tensors = computed if isinstance(computed, tuple) else (computed, {})
        text, blob = dumps(plain(metrics, "metrics")), _serialised(tensors)
        with storable(folder.parent):
            (temporary / METRICS).write_text(text)
            if blob:
                (temporary / TENSORS).write_bytes(blob)
            origin["files"] = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / PROVENANCE).write_text(dumps(origin))
            if folder.exists():
                os.rename(folder, temporary_sibling(folder))
            os.rename(temporary, folder)
    finally:
        _remove_leftovers(folder.parent, held=folder.name)


def _origin(described: Mapping[str, Any], key: str, begun: float) -> dict[str, Any]:
    context = run_context()
    run = {"run": context.run, "notebook": context.notebook, "commit": commit_of(project_root())}
    started = datetime.fromtimestamp(begun, timezone.utc).isoformat(timespec="seconds")
    timing = {"started": started, "timestamp": begun, "seconds": round(time.time() - begun, 3)}
    return {"key": key, **described, **run, "versions": versions(), "device": device_name(), **timing}


def _serialised(tensors: Mapping[str, Any]) -> bytes:
    """Tensors in the safetensors format; empty for none. Bytes, because a full disk must raise OSError."""
    if not tensors:
        return b""
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in tensors.values()):
        from safetensors.torch import save

        # cloned, since safetensors refuses tensors that share memory
        own = {name: torch.as_tensor(value).detach().cpu().clone() for name, value in tensors.items()}
        return save({name: value.contiguous() for name, value in own.items()})
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})


def _remove_leftovers(experiment: Path, held: str) -> None:
    """Remove what killed runs left: of the key whose lock we hold, and of others whose lock nobody holds."""
    for leftover in experiment.glob(".*.tmp"):
        key = leftover.name[1:].partition(".")[0]
        lock = FileLock(experiment / f".{key}.lock")
        with contextlib.suppress(Timeout, OSError):
            if key != held:
                lock.acquire(timeout=0)
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        lock.release()
