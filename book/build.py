"""Build the book: executed notebooks, the verdicts of all of them and the pages beside this file, as a static site.

    python book/build.py --profile cpu      # after `make paper`; `make book` does both

The site, build/book, needs no network: it carries MathJax and DataTables. Nothing is computed here and no sentence of a
notebook is changed: links are turned to where their targets stand in the book, and every page says which run it shows.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
import yaml

from nullpaper.errors import InputError
from nullpaper.workflow.parameters import default_profile
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.verdicts import collected

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
SECTION = re.compile(r"^#{2,} (?=\((\w)\) )", re.MULTILINE)
FIGURE = re.compile(r"""save_figure\(.*?["']([\w.-]+)["']""", re.DOTALL)
FACTS = ("run", "commit", "versions", "parameters", "data", "weights")


def build(profile: str) -> Path:
    """Build the site ``build/book`` from the executed notebooks in ``build/<profile>``, and return its first page.

    Raises:
        InputError: nothing was executed, or Sphinx warns of a page, for example of a broken link. The old site stays.
    """
    root = project_root()
    runs, site = root / "build" / profile, root / "build" / "book"
    notebooks = [path for path in sorted(runs.glob("[0-9][0-9]_*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    if not notebooks:
        raise InputError(f"no notebook was executed under {runs}: run 'make paper PROFILE={profile}' first.")
    with TemporaryDirectory(dir=root / "build") as work:
        source, html = Path(work, "source"), Path(work, "html")
        write_sources(root, runs, notebooks, source)
        options = ["-N", "-q", "-W", "--keep-going", "-d", Path(work, "trees")]
        if subprocess.run([sys.executable, "-m", "sphinx", *options, source, html]).returncode:
            raise InputError("a page of the book cannot be shown as it stands, Sphinx says why: mend its source.")
        shutil.rmtree(site, ignore_errors=True)
        html.rename(site)
    return site / "index.html"


def write_sources(root: Path, runs: Path, notebooks: list[Path], folder: Path) -> None:
    """Write what Sphinx reads into ``folder``: pages, the files that they link to, and what a browser needs."""
    shutil.copytree(HERE / "static", folder / "_static")
    shutil.copyfile(HERE / "conf.py", folder / "conf.py")
    mathjax = files("sphinx-mathjax-offline") / "static/mathjax/tex-svg-full.js"
    shutil.copyfile(mathjax, folder / "_static/mathjax.js")
    tables = files("itables") / "html"
    shutil.copyfile(tables / "dt_bundle.css", folder / "_static/dt_bundle.css")
    module = (tables / "dt_bundle.js").read_text(encoding="utf-8")  # browsers load no module from file://
    (folder / "_static/tables.js").write_text(f"nullpaperTables({json.dumps(module)});\n", encoding="utf-8")
    pages = sorted((root / "book" / "pages").glob("*.md"))
    names = {"README.md": "index.md"} | {f"book/pages/{path.name}": path.name for path in pages}
    names |= {f"notebooks/{path.stem}.py": path.name for path in notebooks}

    def relinked(path: str, text: str) -> str:
        """Markdown of a file of the project with its links turned to the book; files that they name are copied."""

        def turned(match: re.Match[str]) -> str:
            target = os.path.normpath(os.path.join(os.path.dirname(path), match[1]))
            if target not in names and (root / target).is_file():
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / target, folder / target)
            return f"]({names.get(target, target)}{match[2] or ''})"

        return LINK.sub(turned, text)

    record = runs / "manifest.json"
    entries = json.loads(record.read_text()) if record.is_file() else {}
    for path in notebooks:
        node = nbformat.read(path, as_version=4)
        for cell in node.cells:
            if cell.cell_type == "markdown":
                cell.source = relinked(f"notebooks/{path.name}", cell.source)
        nbformat.write(page(node, path.stem[:2], entries.get(path.stem, {})), folder / path.name)
    for path in pages:
        (folder / path.name).write_text(relinked(f"book/pages/{path.name}", path.read_text(encoding="utf-8")))
    (folder / "verdicts.md").write_text(verdicts(runs, notebooks, root), encoding="utf-8")
    contents = "\n".join(["verdicts", *(path.stem for path in [*notebooks, *pages])])
    readme = relinked("README.md", (root / "README.md").read_text(encoding="utf-8"))
    index = f"{readme}\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n"
    (folder / "index.md").write_text(index, encoding="utf-8")


def page(node: nbformat.NotebookNode, number: str, entry: dict[str, object]) -> nbformat.NotebookNode:
    """A notebook with its code folded, its lettered sections named ``nb01-a``, and its run below the title."""
    for cell in node.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            cell.source = SECTION.sub(rf"(nb{number}-\1)=\n\g<0>", cell.source)
        elif not {"parameters", "injected-parameters"} & set(tags):
            cell.metadata.tags = [*tags, "hide-input"]
            if figures := FIGURE.findall(cell.source):
                cell.metadata["mystnb"] = {"image": {"alt": f"figure {', '.join(figures)}"}}
    run = "no record was found"
    if entry:
        run = f"profile {entry['profile']}, {entry['device']}, {entry['seconds'] / 60:.1f} min"
    facts = yaml.safe_dump({name: entry.get(name) for name in FACTS}, sort_keys=False)
    details = f'<details class="np-run"><summary>Run: {run}</summary>\n\n```yaml\n{facts}```\n\n</details>'
    title, _, rest = node.cells[0].source.partition("\n")
    node.cells[0].source = f"{title}\n\n{details}\n\n{rest}"
    return node


def verdicts(runs: Path, notebooks: list[Path], root: Path) -> str:
    """All claims with what was measured, a word, and a link to the section that decides it; then the criteria.

    Between them, the same claims as the reference on photographs answers them, where the project at ``root`` has one.
    """
    title = "# What the papers say, and what was measured\n\n"
    table = verdict_table(runs / "results")
    if table.empty:
        return f"{title}These runs made no verdicts.\n"
    words = ", ".join(f"{word} {count}" for word, count in table["holds"].value_counts().items())
    stems = {path.stem[:2]: path.stem for path in notebooks}

    def place(where: str) -> str:
        number = where[:2]
        if number not in stems:
            return where
        letters = re.sub(r"\((\w)\)", rf"[\g<0>](#nb{number}-\1)", where[2:])
        return f"[{number}]({stems[number]}.ipynb){letters}"

    source = (table["papers"] + ", " + table["source"]).str.strip(", ")
    claims = pd.DataFrame(
        {
            "the papers say": (table["said"] + " (" + source + ")").where(source != "", "(not asked) " + table["said"]),
            "we measured": table["measured"],
            "holds?": "**" + table["holds"] + "**",
            "where": table["where"].map(place),
        }
    )
    criteria = table[["said", "criterion"]].rename(columns={"said": "claim"})
    text = f"{title}Of {len(table)} claims: {words}.\n\n{listed(claims)}\n"
    other = verdict_table(root / "results" / "photographs")
    if not other.empty:
        both = other.merge(table, on=["where", "name"], suffixes=("", " here"))
        pairs = pd.DataFrame(
            {
                "the papers say": both["said"],
                "measured on photographs": both["measured"],
                "holds there?": "**" + both["holds"] + "**",
                "holds above?": both["holds here"],
                "where": both["where"].map(place),
            }
        )
        source = "what `results/photographs/manifest.json` names: models, weights and folders of photographs"
        text += f"## The same claims on photographs\n\nFrom {source}.\n\n{listed(pairs)}\n"
    return f"{text}## The criteria\n\n{listed(criteria)}"


def verdict_table(folder: Path) -> pd.DataFrame:
    """The verdicts of all notebooks in a folder of tables, as text and corrected as one; empty where there are none."""
    paths = sorted(folder.glob("[0-9][0-9]_verdicts.csv"))
    if not paths:
        return pd.DataFrame()
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]
    words = pd.read_csv(io.StringIO(collected(paths)))["verdict"]
    return pd.concat(tables, ignore_index=True).assign(holds=words)


def listed(table: pd.DataFrame) -> str:
    """A table as Sphinx reads it."""
    return f"```{{csv-table}}\n:header-rows: 1\n:class: np-whole\n\n{table.to_csv(index=False)}```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=default_profile(), help="whose runs to show (default: %(default)s)")
    try:
        print(f"the book is {build(parser.parse_args().profile)}: open it in a browser")
    except InputError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
