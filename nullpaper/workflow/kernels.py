"""A planned notebook in a fresh kernel of this Python: jupytext -> papermill -> executed notebook -> page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from nullpaper.workflow.planning import Plan
from nullpaper.workflow.provenance import RunContext

__all__ = ["execute", "page"]


def execute(
    plan: Plan,
    output: Path,
    *,
    progress: bool = False,
    threads: int | None = None,
    on_cell: Callable[[int], object] | None = None,
) -> str | None:
    """Execute a planned notebook into ``output``; the first line of the error if it fails, which is in ``output`` then.

    Args:
        progress: show a bar over cells, and what the kernel writes to stderr.
        threads: of the kernel, unless OMP_NUM_THREADS is set; None: as many as it likes.
        on_cell: called with the index of each cell that starts.
    """
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    node = load_notebook_node(jupytext.reads(plan.source.text, fmt="py:percent"))
    if plan.injected:
        node = parameterize_notebook(node, dict(plan.injected), kernel_name="python3", language="python")
    try:
        papermill.execute_notebook(
            node,
            str(output).replace("{", "{{").replace("}", "}}"),  # papermill formats the path
            kernel_name="python3",
            language="python",
            progress_bar={"desc": plan.notebook.stem} if progress else False,
            stderr_file=sys.stderr if progress else None,
            kernel_manager_class=_kernel_manager(plan.context, threads),
            resources={"metadata": {"path": str(plan.root)}},
            coalesce_streams=True,
            start_timeout=300,  # a machine that trains on all its cores starts a kernel slowly
            iopub_timeout=120,
            on_cell_start=(lambda cell, cell_index: on_cell(cell_index)) if on_cell is not None else None,
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}".strip().splitlines()[0]
    except DeadKernelError as error:
        return f"the kernel died, perhaps for want of memory ({error})"
    return None


def _kernel_manager(context: RunContext, threads: int | None) -> type:
    """A kernel manager that knows one kernel: this Python, told about the run in its environment.

    A kernelspec named python3 that is installed somewhere may start another Python.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from traitlets import default

    quiet = "ignore:IProgress not found"  # the hub's client asks for widgets, which an executed page cannot show
    environment = {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": quiet} | context.environment()
    if threads is not None:
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
    specification = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env={name: value.replace("$", "$$") for name, value in environment.items()},  # jupyter expands $NAME
    )

    class Specifications(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return specification

    class Manager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_python(self) -> KernelSpecManager:
            return Specifications(parent=self)

    return Manager


def page(ipynb: Path, title: str) -> str:
    """The executed notebook as one page with its images inside; only typeset formulas ask the network for MathJax."""
    import nbformat
    from nbconvert import HTMLExporter

    unused = ("html_head_js", "html_head_js_mermaidjs")  # scripts from the network that no notebook here needs
    blocks = "".join(f"{{% block {name} %}}{{% endblock %}}" for name in unused)
    exporter = HTMLExporter(raw_template=f"{{% extends 'index.html.j2' %}}{blocks}", embed_images=True)
    text, _ = exporter.from_notebook_node(nbformat.read(ipynb, as_version=4), {"metadata": {"name": title}})
    return text
