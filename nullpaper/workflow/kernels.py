"""A planned notebook in a fresh kernel of this Python: jupytext -> papermill -> executed notebook -> page."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import signal
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nullpaper.workflow.plan import Plan
from nullpaper.workflow.provenance import ROOT_VARIABLE

LAUNCHER = (sys.executable, "-m", "ipykernel_launcher")
_managers: weakref.WeakSet[Any] = weakref.WeakSet()


def execute(
    plan: Plan, output: Path, *, threads: int | None = None, hear: Callable[[str], object] = lambda text: None
) -> str | None:
    """Execute a planned notebook into ``output``; the first line of the error if it fails, which is in ``output`` then.

    Args:
        threads: of the kernel, unless OMP_NUM_THREADS is set; None: as many as it likes.
        hear: called with the cell that starts, and with what the kernel writes to stderr, such as its progress bars.

    Raises:
        KeyboardInterrupt: `end_kernels` was called meanwhile.
    """
    import jupytext
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    node = load_notebook_node(jupytext.read(plan.notebook, fmt="py:percent"))
    if plan.given:
        node = parameterize_notebook(node, dict(plan.given), kernel_name="python3", language="python")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what this returns says it, and in its place
    manager, begun = _kernel_manager(plan, threads), []

    def starts(cell: Any, cell_index: int) -> None:
        begun.append(cell_index)
        hear(f"cell {cell_index + 1} of {len(node.cells)}")

    try:
        papermill.execute_notebook(
            node,
            str(output).replace("{", "{{").replace("}", "}}"),  # papermill formats the path
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stderr_file=SimpleNamespace(write=hear, flush=lambda: None),
            kernel_manager_class=manager,
            resources={"metadata": {"path": str(plan.root)}},
            coalesce_streams=True,
            start_timeout=300,  # a machine that trains on all its cores starts a kernel slowly
            iopub_timeout=120,
            on_cell_start=starts,
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}".strip().splitlines()[0]
    except RuntimeError as error:  # of nbclient or jupyter_client
        if manager.ended:
            raise KeyboardInterrupt from error
        if not begun and (reason := manager.last_words()):
            return f"the kernel does not start ({reason}): mend that; `{shlex.join(LAUNCHER)} --version` must work"
        return f"the kernel died, perhaps for want of memory ({error})"
    return None


def end_kernels() -> None:
    """Kill every kernel that `execute` has started in this process, and the processes that they have started."""
    for manager in list(_managers):
        type(manager).ended = True
        if (provisioner := manager.provisioner) is not None and provisioner.has_process:
            with contextlib.suppress(OSError):
                os.killpg(provisioner.process.pid, signal.SIGKILL)  # a kernel leads a session of its own


def _kernel_manager(plan: Plan, threads: int | None) -> type:
    """A kernel manager that knows one kernel: this Python, told about the run in its environment.

    A kernelspec named python3 that is installed somewhere may start another Python; the user's start-up files, IPython
    settings, matplotlibrc and backend would make the run another one. A matplotlibrc in the working directory is for
    `figures.use_style` to undo. What belongs to this Python, such as its sitecustomize, stays.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    environment = {
        ROOT_VARIABLE: str(plan.root),  # what is relative would start from the kernel's folder
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # an executed page cannot show the hub client's widgets
        "TQDM_NCOLS": "64",  # else bars are as wide as the terminal that the run was started from
        "IPYTHONDIR": str(plan.root / "build" / "ipython"),
        "PYTHONSTARTUP": "",
        "MATPLOTLIBRC": os.devnull,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    } | plan.context.environment()
    if threads is not None:
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))

    class Manager(AsyncKernelManager):
        ended, stderr = False, None
        kernel_spec = KernelSpec(
            argv=[*LAUNCHER, "--log-level=ERROR", "-f", "{connection_file}"],
            env={name: value.replace("$", "$$") for name, value in environment.items()},  # jupyter expands $NAME
        )

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            _managers.add(self)

        async def start_kernel(self, **options: Any) -> None:
            try:
                type(self).stderr = tempfile.TemporaryFile()  # noqa: SIM115 (until the kernel ends)
                await super().start_kernel(stderr=self.stderr, **options)
            except OSError as error:
                type(self).stderr = io.BytesIO(str(error).encode())
                raise RuntimeError from error

        @classmethod
        def last_words(cls) -> str:
            """The last line that a kernel has written to stderr before its first cell."""
            if cls.stderr is None:
                return ""
            cls.stderr.seek(0)
            return "".join(cls.stderr.read().decode(errors="replace").strip().splitlines()[-1:])

    return Manager


def page(ipynb: Path) -> str:
    """The executed notebook as one page with its images inside; only typeset formulas ask the network for MathJax."""
    from nbconvert import HTMLExporter

    unused = ("html_head_js", "html_head_js_mermaidjs")  # scripts from the network that no notebook here needs
    blocks = "".join(f"{{% block {name} %}}{{% endblock %}}" for name in unused)
    exporter = HTMLExporter(raw_template=f"{{% extends 'index.html.j2' %}}{blocks}", embed_images=True)
    return exporter.from_filename(str(ipynb))[0]
