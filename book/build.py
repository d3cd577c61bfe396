"""Build the book: executed notebooks, the verdicts of all of them and the pages beside this file, as a static site.

    python book/build.py --label cpu      # after `make paper`; `make book` does both

The site, build/book, needs no network: it carries MathJax and DataTables. Nothing is computed here and no sentence of a
notebook is changed: links are turned to where their targets stand in the book, and every page says which run it shows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from nullpaper.errors import InputError
from nullpaper.files import temporary_sibling
from nullpaper.workflow.provenance import project_root

HERE = Path(__file__).resolve().parent
MATHJAX, TABLES = "sphinx-mathjax-offline", "itables"
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", TABLES, MATHJAX)
MARK = "book.json"  # tells a book, which may be replaced, from a folder of the user's
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
SECTION = re.compile(r"^#{2,} (?=\((\w)\) )", re.MULTILINE)
FIGURE = re.compile(r"""save_figure\(.*?["']([\w.-]+)["']""", re.DOTALL)


def build(label: str, out: Path | None = None) -> Path:
    """Build the site from the executed notebooks in ``build/<label>``, and return its folder.

    Args:
        label: the profile of the runs, or the name that they were given.
        out: the folder of the site, replaced whole; None: ``build/book``.

    Raises:
        InputError: a package is missing, nothing was executed, ``out`` is no book, or a link or formula is broken.
    """
    root = project_root()
    runs = root / "build" / label
    out = (root / "build" / "book" if out is None else out).resolve()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"the book needs {', '.join(missing)}: run 'make setup', or pip install 'nullpaper[book]'.")
    notebooks = sorted(runs.glob("[0-9][0-9]_*.ipynb"))
    notebooks = [path for path in notebooks if not path.name.endswith(".failed.ipynb")]
    if not notebooks:
        raise InputError(f"no notebook was executed under {runs}: run 'make paper PROFILE={label}' first.")
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there and is no book: choose another folder or delete it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = temporary_sibling(out)
    try:
        Book(root, runs, notebooks, work / "source").write()
        _sphinx(work)
        if out.exists():
            out.rename(work / "old")
        (work / "html").rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


class Book:
    """The sources of the site: pages, the files that they link to, and what a browser needs to show them."""

    def __init__(self, root: Path, runs: Path, notebooks: list[Path], folder: Path) -> None:
        self.root, self.runs, self.notebooks, self.folder = root, runs, notebooks, folder
        self.stems = [path.stem for path in notebooks]
        manifest = runs / "manifest.json"
        self.entries: dict[str, Any] = json.loads(manifest.read_text()) if manifest.is_file() else {}
        self.sections: set[str] = set()

    def write(self) -> None:
        shutil.copytree(HERE / "static", self.folder / "_static")
        shutil.copyfile(HERE / "conf.py", self.folder / "conf.py")
        shutil.copyfile(_package(MATHJAX) / "static/mathjax/tex-svg-full.js", self.folder / "_static/mathjax.js")
        tables = _package(TABLES) / "html"
        shutil.copyfile(tables / "dt_bundle.css", self.folder / "_static/dt_bundle.css")
        module = (tables / "dt_bundle.js").read_text(encoding="utf-8")  # browsers load no module from file://
        (self.folder / "_static/tables.js").write_text(f"nullpaperTables({json.dumps(module)});\n", encoding="utf-8")
        for path in self.notebooks:
            nbformat.write(self.page(path), self.folder / path.name)
        pages = sorted((self.root / "book" / "pages").glob("*.md"))
        texts = {path.name: self.relinked(path.read_text(encoding="utf-8"), "book/pages") for path in pages}
        texts["verdicts.md"] = self.verdicts()
        texts["index.md"] = self.relinked(self.front([path.stem for path in pages]))
        for name, text in texts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        runs = {stem: entry.get("run") for stem, entry in self.entries.items()}
        (self.folder / MARK).write_text(json.dumps({"label": self.runs.name, "runs": runs}))

    def page(self, path: Path) -> nbformat.NotebookNode:
        """A notebook with its code folded, its lettered sections named ``nb01-a``, and its run below the title."""
        node, number = nbformat.read(path, as_version=4), path.stem.partition("_")[0]

        def named(match: re.Match[str]) -> str:
            name = f"nb{number}-{match[1]}"
            known, _ = name in self.sections, self.sections.add(name)
            return match[0] if known else f"({name})=\n{match[0]}"

        for index, cell in enumerate(node.cells):
            tags = cell.metadata.get("tags", [])
            cell.metadata, cell.id = nbformat.NotebookNode(tags=tags), f"cell-{index}"
            if cell.cell_type == "markdown":
                cell.source = SECTION.sub(named, self.relinked(cell.source, "notebooks"))
            elif not {"parameters", "injected-parameters"} & set(tags):
                cell.metadata.tags = [*tags, "hide-input"]
                if figures := FIGURE.findall(cell.source):
                    cell.metadata["mystnb"] = {"image": {"alt": f"figure {', '.join(figures)}"}}
        heading, _, rest = node.cells[0].source.partition("\n")
        node.cells[0].source = f"{heading}\n\n{self.run_line(path.stem)}\n{rest}"
        node.metadata = nbformat.from_dict({"language_info": {"name": "python", "pygments_lexer": "ipython3"}})
        return node

    def run_line(self, stem: str) -> str:
        """One line on the run that opens into all that is known of it."""
        entry = self.entries.get(stem)
        if not entry:
            return "*No record of this run was found.*\n"
        facts = {name: entry.get(name) for name in ("run", "commit", "versions", "parameters", "data", "weights")}
        lines = "\n".join(f"- {name}: {_shown(value)}" for name, value in facts.items() if value)
        line = f"profile {entry.get('profile')}, {entry.get('device')}, {entry.get('seconds', 0) / 60:.1f} min"
        return f'<details class="np-run"><summary>Run: {line}</summary>\n\n{lines}\n\n</details>\n'

    def verdicts(self) -> str:
        """All claims with what was measured, a word, and a link to the section that decides it; then the criteria."""
        paths = sorted((self.runs / "results").glob("[0-9][0-9]_verdicts.csv"))
        if not paths:
            return "# What the papers say, and what was measured\n\nThese runs made no verdicts.\n"
        table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths], ignore_index=True)
        words = ", ".join(f"{word} {count}" for word, count in table["holds"].value_counts().items())
        rows, criteria = [], []
        for verdict in table.to_dict("records"):
            source = ", ".join(filter(None, (verdict["papers"], verdict["source"])))
            said = f"{verdict['said']} ({source})" if source else f"(not asked) {verdict['said']}"
            rows.append((said, verdict["measured"], f"**{verdict['holds']}**", self.place(verdict["where"])))
            criteria.append((verdict["said"], verdict["criterion"]))
        return (
            f"# What the papers say, and what was measured\n\nOf {len(table)} claims: {words}.\n\n"
            + _table(("the papers say", "we measured", "holds?", "where"), rows)
            + "\n\n## The criteria\n\n"
            + _table(("claim", "criterion"), criteria)
        )

    def place(self, where: str) -> str:
        """``01 (a)`` with links to the notebook and its section."""
        number, _, letters = where.partition(" ")
        stem = next((stem for stem in self.stems if stem.startswith(f"{number}_")), None)
        for letter in re.findall(r"\((\w)\)", letters):
            if (name := f"nb{number}-{letter}") in self.sections:
                letters = letters.replace(f"({letter})", f"[({letter})](#{name})")
        return f"[{number}]({stem}.ipynb) {letters}".strip() if stem else where

    def front(self, pages: list[str]) -> str:
        """The README, and the contents of the book."""
        readme = self.root / "README.md"
        text = readme.read_text(encoding="utf-8").strip() if readme.is_file() else "# nullpaper"
        contents = "\n".join(["verdicts", *self.stems, *pages])
        return f"{text}\n\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n"

    def relinked(self, text: str, folder: str = "") -> str:
        """Markdown of a file in ``folder`` with its relative links turned to pages and files of the book.

        A file that is linked to is copied; a target that is not there is left as it is, and Sphinx names it.
        """

        def turned(match: re.Match[str]) -> str:
            target, part = os.path.normpath(os.path.join(folder, match[1])), match[2] or ""
            stem, suffix = os.path.splitext(os.path.basename(target))
            if suffix in (".py", ".ipynb") and stem in self.stems:
                return f"]({stem}.ipynb{part})"
            if target == "README.md" or target.startswith("book/pages/"):
                return f"]({'index' if target == 'README.md' else stem}.md{part})"
            if not target.startswith("..") and (self.root / target).is_file():
                (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / target, self.folder / target)
                return f"]({target})"
            return match[0]

        return LINK.sub(turned, text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table that is shown whole, however long."""
    cells = [head, ("---",) * len(head), *rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]
    return "```{container} np-whole\n\n" + "\n".join(lines) + "\n```"


def _shown(value: Any) -> str:
    return ", ".join(f"`{name}={item}`" for name, item in value.items()) if isinstance(value, dict) else f"`{value}`"


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    return Path(importlib.util.find_spec(name).origin).parent


def _sphinx(work: Path) -> None:
    """Build ``work/source`` into ``work/html``; what Sphinx warns of is an error."""
    command = [sys.executable, "-m", "sphinx", "-N", "-q", "-W", "--keep-going", "-E", "-d", work / "trees"]
    done = subprocess.run([*command, work / "source", work / "html"], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "WARNING" in line or "rror" in line]
        first = (lines or done.stderr.splitlines() or ["no reason given"])[0].replace(f"{work / 'source'}{os.sep}", "")
        raise InputError(f"a page of the book cannot be shown as it stands: {first.strip()}; mend its source.")
    (work / "html" / ".buildinfo").unlink(missing_ok=True)
    shutil.copyfile(work / "source" / MARK, work / "html" / MARK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="cpu", help="whose runs to show: a profile, or the label of a run")
    parser.add_argument("--out", type=Path, help="folder of the site, replaced whole; by default build/book")
    options = parser.parse_args()
    try:
        print(f"the book is {build(options.label, options.out) / 'index.html'}: open it in a browser")
    except InputError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
