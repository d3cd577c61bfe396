"""Build the book: executed notebooks, the verdicts of all of them and the pages beside this file, as a static site.

    python book/build.py --profile cpu      # after `make paper`; `make book` does both

The site, build/book, needs no network: it carries MathJax and DataTables. Nothing is computed here and no sentence of a
notebook is changed: tables are laid out for the page, links are turned to where their targets stand in the book, and
every page says which run it shows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import verdicts
from executed import Notebook, linked

from nullpaper import PUBLIC
from nullpaper.errors import InputError
from nullpaper.workflow.parameters import default_profile
from nullpaper.workflow.provenance import project_root

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"""(\]\(|(?:src|href)=["'])(?!\w+:|#|/)([^)\s#"']+)(#[^)\s"']*)?(?=[)"'\s])""")
ALSO = ("CONTRIBUTING.md", "CHANGELOG.md")
CLASSES = (
    *("models.vit.ViT", "data.datasets.Data", "data.datasets.Split", "nullspace.patch.PatchNullspace"),
    *("synthesis.influence.EncoderNoise", "finetuning.finetune.FinetuneResult", "statistics.Interval"),
)
"""What the public functions return."""


def build(profile: str) -> Path:
    """Build the site ``build/book`` from the executed notebooks in ``build/<profile>``, and return its first page.

    Raises:
        InputError: nothing was executed, or Sphinx warns of a page, for example of a broken link. The old site stays.
    """
    root = project_root()
    runs, site = root / "build" / profile, root / "build" / "book"
    paths = [path for path in sorted(runs.glob("[0-9][0-9]_*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    if not paths:
        raise InputError(f"no notebook was executed under {runs}: run 'make paper PROFILE={profile}' first.")
    with TemporaryDirectory(dir=root / "build") as work:
        source, html = Path(work, "source"), Path(work, "html")
        write_sources(root, runs, {path.name[:2]: Notebook(path) for path in paths}, source)
        options = ["-N", "-q", "-W", "--keep-going", "-d", Path(work, "trees")]
        known = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        if subprocess.run([sys.executable, "-m", "sphinx", *options, source, html], env=known).returncode:
            raise InputError("a page of the book cannot be shown as it stands, Sphinx says why: mend its source.")
        shutil.rmtree(site, ignore_errors=True)
        html.rename(site)
    return site / "index.html"


def write_sources(root: Path, runs: Path, notebooks: dict[str, Notebook], folder: Path) -> None:
    """Write what Sphinx reads into ``folder``: pages, the files that they link to, and what a browser needs."""
    _copy_files(root, runs, notebooks, folder)
    pages = sorted((root / "book" / "pages").glob("*.md"))
    pages += [root / name for name in ALSO if (root / name).is_file()]
    names = {"README.md": "index.md"} | {os.path.relpath(path, root): path.name for path in pages}
    for stem in (one.path.stem for one in notebooks.values()):
        names[f"notebooks/{stem}.py"] = f"{stem}.ipynb"

    def relinked(path: str, text: str) -> str:
        """Markdown of a file of the project with its links turned to the book; files that they name are copied."""

        def turned(match: re.Match[str]) -> str:
            target = os.path.normpath(os.path.join(os.path.dirname(path), match[2]))
            target = re.sub(r"^notebooks/rendered/(\w+)\.md$", r"notebooks/\1.py", target)  # the book has its own
            markdown = match[1] == "]("
            if target not in names and (root / target).is_file():
                place = folder / ("" if markdown else "_extra") / target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / target, place)
            name = names.get(target, target)
            if target in names and not markdown:
                name = str(Path(name).with_suffix(".html"))
            return f"{match[1]}{name}{match[3] or ''}"

        return LINK.sub(turned, text)

    def prose(number: str, text: str) -> str:
        return linked(relinked("notebooks/any.ipynb", text), number, notebooks)

    record = runs / "manifest.json"
    entries = json.loads(record.read_text()) if record.is_file() else {}
    for number, one in notebooks.items():
        node = one.page(entries.get(one.path.stem, {}), partial(prose, number))
        nbformat.write(node, folder / one.path.name)
    for path in pages:
        text = relinked(os.path.relpath(path, root), path.read_text(encoding="utf-8"))
        (folder / path.name).write_text(linked(text, "", notebooks), encoding="utf-8")
    claims = verdicts.page(runs / "results", notebooks, root / "results" / "photographs")
    (folder / "verdicts.md").write_text(claims, encoding="utf-8")
    (folder / "api.md").write_text(api(), encoding="utf-8")
    stems = [*(one.path.stem for one in notebooks.values()), *(path.stem for path in pages)]
    contents = "\n".join(["verdicts", *stems, "api"])
    readme = relinked("README.md", (root / "README.md").read_text(encoding="utf-8"))
    (folder / "index.md").write_text(f"{readme}\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n", encoding="utf-8")


def _copy_files(root: Path, runs: Path, notebooks: dict[str, Notebook], folder: Path) -> None:
    """Copy the settings of the site, its scripts, and the files that captions link to."""
    for name in ("static", "templates"):
        shutil.copytree(HERE / name, folder / f"_{name}")
    shutil.copyfile(HERE / "conf.py", folder / "conf.py")
    mathjax = files("sphinx-mathjax-offline") / "static/mathjax/tex-svg-full.js"
    shutil.copyfile(mathjax, folder / "_static/mathjax.js")
    tables = files("itables") / "html"
    shutil.copyfile(tables / "dt_bundle.css", folder / "_static/dt_bundle.css")
    module = (tables / "dt_bundle.js").read_text(encoding="utf-8")  # browsers load no module from file://
    (folder / "_static/tables.js").write_text(f"nullpaperTables({json.dumps(module)});\n", encoding="utf-8")
    (folder / "_extra" / "source").mkdir(parents=True)
    for stem in (one.path.stem for one in notebooks.values()):  # a browser shows a text, and would save a program
        shutil.copyfile(root / "notebooks" / f"{stem}.py", folder / "_extra" / "source" / f"{stem}.py.txt")
    for name in ("figures", "results", "latex"):
        if (runs / name).is_dir():
            shutil.copytree(runs / name, folder / "_extra" / name)


def api() -> str:
    """The page of the public functions and of what they return, from their docstrings."""
    lines = [".. autosummary::", "   :nosignatures:", ""]
    lines += [f"   ~nullpaper.{name}" for name in (*PUBLIC, *CLASSES)]
    lines += [f"\n.. autofunction:: nullpaper.{name}" for name in PUBLIC]
    lines += [f"\n.. autoclass:: nullpaper.{name}\n   :members:" for name in CLASSES]
    return "# The public API\n\n```{eval-rst}\n" + "\n".join(lines) + "\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=default_profile(), help="whose runs to show (default: %(default)s)")
    try:
        print(f"the book is {build(parser.parse_args().profile)}: open it in a browser")
    except InputError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
