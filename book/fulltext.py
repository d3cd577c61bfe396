"""A search that works in a page opened as a file: the text of every section, as a script that the search page loads."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    pages: dict[str, list[list[str]]] = {}

    def collect(_: Sphinx, doctree: nodes.document, page: str) -> None:
        sections = list(doctree.findall(nodes.section))
        pages[page] = [[_title(one), f"{page}.html#{one['ids'][0]}", " ".join(_texts(one))] for one in sections]

    def write(app: Sphinx, error: Exception | None) -> None:
        if error is None:
            rows = [[sections[0][0], *section] for sections in pages.values() if sections for section in sections]
            text = f"nullpaperSearch({json.dumps(rows, ensure_ascii=False)});\n"
            Path(app.outdir, "_static", "sections.js").write_text(text, encoding="utf-8")

    app.connect("doctree-resolved", collect)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}


def _title(section: nodes.section) -> str:
    title = section.next_node(nodes.title)
    return title.astext() if title else ""


def _texts(node: nodes.Element) -> Iterator[str]:
    """The text of a section without that of its subsections, its code and its title."""
    for child in node.children:
        if isinstance(child, nodes.raw):
            yield " ".join(html.unescape(re.sub(r"<[^>]+>", " ", child.astext())).split())
        elif isinstance(child, nodes.Text):
            yield " ".join(child.astext().split())
        elif not isinstance(child, nodes.section | nodes.title) and "cell_input" not in child.get("classes", []):
            yield from _texts(child)
