"""Files that are either whole or absent, and locks between processes: the floor under results, figures and runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nullpaper.errors import InputError


def sha256(content: bytes | Path) -> str:
    """The SHA-256 sum, in hexadecimal, of bytes or of a file's content."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()


def temporary_sibling(path: Path) -> Path:
    """A fresh hidden name ``.<name>.<process>-<random>.tmp`` in the folder of ``path``, so that a rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def storable(
    folder: Path, remedy: str = "make it writable, free some space, or choose another folder"
) -> Iterator[None]:
    """Turn a failure of the disk inside the block into an `InputError` that names ``folder`` and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot write to {folder} ({reason}): {remedy}") from error


def check_writable(folder: Path) -> None:
    """Make ``folder``, and try that a file can be written there, before the work whose result it is for.

    Raises:
        InputError: it cannot.
    """
    with storable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_sibling(folder / "probe")
        probe.touch()
        probe.unlink()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` (UTF-8 if text) under a temporary name and rename it to ``path``, whose folder is created.

    Raises:
        InputError: the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    with storable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(path)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``, which the system frees if the process dies.

    Args:
        on_wait: called again and again while another holds it; what it raises ends the waiting.

    Raises:
        InputError: the lock file cannot be made.
    """
    lock = FileLock(path, thread_local=False)
    with storable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_wait()
                time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()
