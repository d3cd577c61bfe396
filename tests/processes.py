"""Processes that tests kill or starve, forked from a server that has torch loaded: loading it takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

CONTEXT = multiprocessing.get_context("forkserver")  # a fork of this process would inherit the threads that tests left
CONTEXT.set_forkserver_preload(["pytest", "nullpaper.finetuning.finetune", "nullpaper.finetuning.scratch"])


def started(function: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """A process that runs ``function(send, *arguments)``, and the end where what it sends arrives."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_begin, args=(dict(os.environ), function, theirs, arguments))
    child.start()
    theirs.close()
    return child, ours


def _begin(environment: dict[str, str], function: Callable[..., None], end: Connection, arguments: tuple) -> None:
    os.environ.clear()  # the server's is as old as its start
    os.environ.update(environment)
    function(end.send, *arguments)


def heed_interrupts() -> None:
    """For ``preexec_fn``: what a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
