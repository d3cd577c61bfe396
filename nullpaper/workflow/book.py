"""The book: executed notebooks and the verdicts as a static site that is read without a network, from a disk too.

Sphinx, MyST-NB and sphinx-book-theme build it. MathJax, from sphinx-mathjax-offline, typesets formulas as SVG, which
needs no font files; DataTables, from itables, sorts tables. Both are copied into the site.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nullpaper.errors import InputError, first_line
from nullpaper.files import locked, storable, temporary_sibling
from nullpaper.workflow.book_pages import Sources, front, notebook_page, run_record, verdict_page
from nullpaper.workflow.code_identity import dumps
from nullpaper.workflow.profiles import check_profile
from nullpaper.workflow.provenance import project_root

__all__ = ["build_book"]

ASSETS = Path(__file__).resolve().parents[2] / "book"
MATHJAX = "sphinx-mathjax-offline"
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "itables", MATHJAX)
MARK = "book.json"
SETTINGS = {
    "project": "nullpaper",
    "author": "",
    "extensions": ["myst_nb", "sphinx.ext.mathjax"],
    "exclude_patterns": [],
    "html_theme": "sphinx_book_theme",
    "html_title": "nullpaper",
    "html_static_path": ["_static"],
    "html_css_files": ["dt_bundle.css", "book.css"],
    "html_js_files": ["book.js"],
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_use_index": False,
    "html_domain_indices": False,
    "html_theme_options": {
        "home_page_in_toc": True,
        "navbar_persistent": [],
        "secondary_sidebar_items": {"**": ["page-toc"], "verdicts": []},
        "show_toc_level": 2,
        "use_download_button": False,
        "use_fullscreen_button": False,
    },
    "html_context": {"default_mode": "auto"},
    "mathjax_path": "mathjax.js",
    "mathjax3_config": {
        "options": {"enableMenu": False, "ignoreHtmlClass": ".*", "processHtmlClass": "math"},
        "svg": {"fontCache": "local"},
        "tex": {"packages": {"[-]": ["noundefined"]}},
    },
    "myst_enable_extensions": ["amsmath", "dollarmath"],
    "myst_heading_anchors": 4,
    "myst_update_mathjax": False,
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_output_stderr": "remove",
}


def build_book(profile: str, out: Path | None = None, *, stale: bool = False) -> Path:
    """Build the site from the project's executed notebooks and results at a profile, and return its folder.

    Args:
        profile: whose ``build/<profile>/*.ipynb`` and ``results/<profile>`` are shown.
        out: the folder of the site, replaced whole; None: ``build/book`` of the project.
        stale: show executed notebooks even if they are older than their sources, and leave out what is missing.

    Raises:
        InputError: a notebook has no executed version that is up to date, a package is missing, ``out`` holds
            something else than a book, a page has a link or a formula that cannot be shown, or the disk fails.
    """
    check_profile(profile)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the book needs {', '.join(missing)}: run 'make setup', or pip install 'nullpaper[book]'")
    if not ASSETS.is_dir():
        raise InputError(f"there is no {ASSETS}: the book is built from a clone of the repository")
    root = project_root()
    executed = _executed(root, profile, stale)
    out = (root / "build" / "book" if out is None else out).resolve()
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there and is no book: choose another folder or delete it")
    with locked(out.parent / f".{out.name}.lock"), storable(out.parent):
        for left in out.parent.glob(f".{out.name}.*.tmp"):  # of builds that were killed
            shutil.rmtree(left, ignore_errors=True)
        work = temporary_sibling(out)
        try:
            _write_sources(work / "source", root, profile, executed)
            _sphinx(work)
            _replace(out, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return out


def _executed(root: Path, profile: str, stale: bool) -> list[Path]:
    """The executed notebooks of all numbered sources, in order, each up to date."""
    from nullpaper.workflow.planning import paper_notebooks, plan_run
    from nullpaper.workflow.runs import up_to_date

    sources = paper_notebooks()
    found = [root / "build" / profile / f"{source.stem}.ipynb" for source in sources]
    if stale:
        found = [path for path in found if path.is_file()]
        old = [] if found else sources
    else:
        old = [source for source in sources if up_to_date(plan_run(source, {}, profile=profile)) is None]
    if old:
        names = f"{old[0].name}{f' and {len(old) - 1} more' * (len(old) > 1)}"
        raise InputError(
            f"no run at profile {profile} is up to date for {names}: run 'make paper PROFILE={profile}' first"
        )
    return found


def _write_sources(folder: Path, root: Path, profile: str, executed: Sequence[Path]) -> None:
    """Pages, the files that they link to, and what the browser needs, in the folder that Sphinx reads."""
    import nbformat

    from nullpaper.studies.claims import CLAIMS
    from nullpaper.studies.judging import WORDS, judge, save, section

    folder.mkdir(parents=True)
    sources = Sources(root, profile, [path.stem for path in executed])
    records = {path.stem: run_record(path) for path in executed}
    for path in executed:
        page = notebook_page(nbformat.read(path, as_version=4), path.stem, records[path.stem], sources)
        nbformat.write(page, folder / path.name)
    results = root / "results" / profile
    verdicts = judge(results, CLAIMS)
    counts = Counter(verdict.holds for verdict in verdicts)
    counted = f"of {len(verdicts)} rows, {', '.join(f'{word} {counts[word]}' for word in WORDS if counts[word])}."
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    pages = {
        "verdicts.md": verdict_page(section(verdicts, results), verdicts, sources),
        "index.md": front(text, records, counted, sources),
    }
    for name, content in pages.items():
        (folder / name).write_text(content, encoding="utf-8")
    for name in sources.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    save(verdicts, folder / "results" / profile)
    _write_assets(folder / "_static")
    known = {"profile": profile, "runs": {stem: record.get("run") for stem, record in records.items()}}
    (folder / MARK).write_text(dumps(known), encoding="utf-8")


def _write_assets(folder: Path) -> None:
    """Style and script of the book, MathJax, and DataTables as a script that a page read from a disk may load."""
    shutil.copytree(ASSETS, folder)
    shutil.copyfile(_package(MATHJAX) / "static" / "mathjax" / "tex-svg-full.js", folder / "mathjax.js")
    itables = _package("itables")
    shutil.copyfile(itables / "html" / "dt_bundle.css", folder / "dt_bundle.css")
    module = (itables / "html" / "dt_bundle.js").read_text(encoding="utf-8")  # browsers load no module from file://
    (folder / "tables.js").write_text(f"nullpaperTables({json.dumps(module)});\n", encoding="utf-8")


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    return Path(importlib.util.find_spec(name).origin).parent


def _sphinx(work: Path) -> None:
    """Build ``work/source`` into ``work/html``; what Sphinx warns of is an error."""
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = io.StringIO()
    source, html, trees = work / "source", work / "html", work / "trees"
    try:
        with patch_docutils(), docutils_namespace():
            app = Sphinx(source, None, html, trees, "html", SETTINGS, status=None, warning=warnings, freshenv=True)
            app.build(force_all=True)
    except SphinxError as error:
        raise InputError(f"Sphinx cannot build the book: {first_line(error)}") from error
    told = _told(warnings.getvalue(), source)
    if told:
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        raise InputError(f"a page of the book cannot be shown as it stands: {told[0]}{more}; mend its notebook")
    (html / ".buildinfo").unlink(missing_ok=True)
    shutil.copyfile(source / MARK, html / MARK)


def _told(warnings: str, source: Path) -> list[str]:
    """Sphinx's warnings, one line each, without colours and without the path of the temporary folder."""
    from sphinx.util.console import strip_escape_sequences

    lines = strip_escape_sequences(warnings).replace(f"{source}/", "").splitlines()
    return [line.strip() for line in lines if "WARNING" in line or "ERROR" in line or "CRITICAL" in line]


def _replace(out: Path, work: Path) -> None:
    """Put the new site in the place of the old one, by renames."""
    if out.exists():
        out.rename(work / "old")
    (work / "html").rename(out)
