"""The sources of the book: executed notebooks, the README's opening and the verdicts as pages that MyST can read.

Nothing is computed and no sentence of the paper is changed: links are turned to where their targets stand in the book,
sections get a name that the table of verdicts can point at, and every page says which run it comes from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullpaper.workflow.code_identity import loads

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from nullpaper.studies.judging import Verdict

__all__ = ["Sources", "front", "notebook_page", "run_record", "verdict_page"]

PYTHON = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
SECTION = re.compile(r"^#{2,} (?=\((\w)\) )", re.MULTILINE)
FIGURE = re.compile(r"""save_figure\(.*?["']([\w.-]+)["']""", re.DOTALL)
PLACE = re.compile(r"\| `(\d+)` ?([^|]*?) ?\|$", re.MULTILINE)


@dataclass
class Sources:
    """What pages may point at: the project's files, the notebooks of the book, and their lettered sections.

    Attributes:
        root: the project.
        profile: whose figures are shown where the README shows another's.
        stems: names of the notebooks of the book.
        sections: names of lettered sections that a page has given, ``nb01-a``.
        files: the project's files that some page links to, relative to ``root``; the book carries them.
    """

    root: Path
    profile: str
    stems: Sequence[str]
    sections: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def relink(self, text: str, folder: str = "") -> str:
        """Markdown of a file in ``folder`` with its relative links turned to the pages and files of the book.

        A target that is not there is left as it is; Sphinx then names it.
        """

        def turned(match: re.Match[str]) -> str:
            target, part = os.path.normpath(os.path.join(folder, match[1])).replace(os.sep, "/"), match[2] or ""
            stem, suffix = os.path.splitext(os.path.basename(target))
            if suffix in (".py", ".ipynb") and stem in self.stems:
                return f"]({stem}.ipynb{part})"
            if target == "README.md":
                return f"](index.md{part})"
            own = re.sub(r"^(figures|results)/[^/]+/", rf"\1/{self.profile}/", target)
            for known in (own, target):
                if not known.startswith("..") and (self.root / known).is_file():
                    self.files.add(known)
                    return f"]({known})"
            return match[0]

        return LINK.sub(turned, text)


def run_record(ipynb: Path) -> dict[str, Any]:
    """The record that the runner left beside an executed notebook; empty if there is none."""
    try:
        return dict(loads(ipynb.with_name(f"{ipynb.stem}.run.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def notebook_page(node: NotebookNode, stem: str, record: Mapping[str, Any], sources: Sources) -> NotebookNode:
    """The notebook with its code folded, its sections named and its run told below the title."""
    import nbformat

    number = stem.partition("_")[0]

    def named(match: re.Match[str]) -> str:
        name = f"nb{number}-{match[1]}"
        if name in sources.sections:
            return match[0]
        sources.sections.add(name)
        return f"({name})=\n{match[0]}"

    for index, cell in enumerate(node.cells):
        cell.metadata, cell.id = nbformat.NotebookNode(tags=cell.metadata.get("tags", [])), f"cell-{index}"
        if cell.cell_type == "markdown":
            cell.source = SECTION.sub(named, sources.relink(cell.source, "notebooks"))
        elif not {"parameters", "injected-parameters"} & set(cell.metadata.tags):
            cell.metadata.tags = [*cell.metadata.tags, "hide-input"]
            if figures := FIGURE.findall(cell.source):
                cell.metadata["mystnb"] = {"image": {"alt": f"figure {', '.join(figures)}"}}
    title = next((i for i, cell in enumerate(node.cells) if cell.cell_type == "markdown"), -1)
    heading, _, rest = node.cells[title].source.partition("\n") if title >= 0 else (f"# {stem}", "", "")
    if not heading.startswith("# "):
        heading, rest = f"# {stem}", f"{heading}\n{rest}"
    told = nbformat.v4.new_markdown_cell(f"{heading}\n\n{_told(record)}\n{rest}", id="run")
    node.cells = [*node.cells[: max(title, 0)], told, *node.cells[title + 1 :]]
    node.metadata = nbformat.from_dict(PYTHON)
    return node


def front(readme: str, records: Mapping[str, Mapping[str, Any]], counted: str, sources: Sources) -> str:
    """The first page: the README's opening, the notebooks with their questions and runs, and the works."""
    opening = readme.partition("\n## ")[0].strip() or "# nullpaper"
    questions = dict(re.findall(r"^\| \[`(\w+)`\]\([^)]*\) \| (.*) \|$", readme, re.MULTILINE))
    rows = [
        f"| [`{stem}`]({stem}.ipynb) | {questions.get(stem, '')} | {_commit(record)} | {_took(record)} |"
        for stem, record in records.items()
    ]
    devices = sorted({str(record.get("device", "unknown")) for record in records.values()})
    parts = [
        opening,
        f"This book was made from runs at profile `{sources.profile}` on {' and '.join(devices)}. Code is folded: a "
        "click on *Show code cell source* opens it. Tables sort by a click on a column's head.",
        f"[What the papers say, and what was measured](verdicts.md): {counted}",
        "## Notebooks",
        "```{container} np-list\n\n| notebook | question | commit | time |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n```",
    ]
    if works := re.search(r"^## The works\n.*?(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL):
        parts.append(works[0].strip())
    pages = "\n".join(["verdicts", *records])
    return sources.relink("\n\n".join(parts)) + f"\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def verdict_page(section: str, verdicts: Sequence[Verdict], sources: Sources) -> str:
    """The table of verdicts with links to the sections that measure them, and each verdict's criterion below it."""

    def placed(match: re.Match[str]) -> str:
        number, letters = match[1], match[2]
        stem = next((stem for stem in sources.stems if stem.startswith(f"{number}_")), None)
        notebook = f"[`{number}`]({stem}.ipynb)" if stem else f"`{number}`"
        for letter in re.findall(r"\((\w)\)", letters):
            if (name := f"nb{number}-{letter}") in sources.sections:
                letters = letters.replace(f"({letter})", f"[({letter})](#{name})")
        return f"| {notebook} {letters} |".replace("  ", " ")

    before, table, after = section.split("\n\n", 2)
    shown = f"```{{container}} np-whole\n\n{PLACE.sub(placed, table)}\n```"
    criteria = [
        f"| {verdict.claim.said.replace('|', chr(92) + '|')} | {verdict.claim.criterion.replace('|', chr(92) + '|')} |"
        for verdict in verdicts
    ]
    below = "```{container} np-whole\n\n| claim | it holds if |\n|---|---|\n" + "\n".join(criteria) + "\n```"
    parts = "# What the papers say, and what was measured", before, shown, after, "## The criteria", below
    return sources.relink("\n\n".join(parts)) + "\n"


def _told(record: Mapping[str, Any]) -> str:
    """One line on the run that opens into all that is known of it."""
    if not record:
        return "*No record of this run was found.*\n"
    device = record.get("device", "unknown device")
    line = f"profile {record.get('profile')}, commit {_commit(record, plain=True)}, {device}"
    facts = {
        "run": record.get("run"),
        "commit": _commit(record, whole=True),
        "started": f"{record.get('started')}, took {_took(record)}",
        "versions": _pairs(record.get("versions")),
        "parameters": _pairs(record.get("parameters")),
        "data": _pairs(record.get("data")),
    }
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    return f'<details class="np-run"><summary>Run: {line}</summary>\n\n{listed}\n\n</details>\n'


def _pairs(values: Any) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in values.items()) if isinstance(values, Mapping) else ""


def _commit(record: Mapping[str, Any], *, plain: bool = False, whole: bool = False) -> str:
    commit = record.get("commit")
    if not commit:
        return "unknown"
    shown = commit if whole else commit[:7]
    return (shown if plain else f"`{shown}`") + (" with changes" if record.get("dirty") else "")


def _took(record: Mapping[str, Any]) -> str:
    seconds = record.get("seconds")
    if not isinstance(seconds, (int, float)):
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
