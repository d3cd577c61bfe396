"""The book, opened page by page in a headless Chromium that may not leave the site: what a reader does with it works.

NULLPAPER_BOOK=folder makes the tests named ``test_site_*`` look at that book instead of the small one made here.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from nullpaper.workflow.plan import paper_notebooks
from nullpaper.workflow.runs import run_notebooks

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium on PATH, so no page was opened: apt-get install --no-install-recommends chromium",
)
pytestmark = pytest.mark.long
FIRST = """# %% [markdown]
# # 00 · The first
# It maps $x \\mapsto \\tfrac12 \\lVert x \\rVert_\\infty$, and the [second](01_second.py#a-what-follows) goes on;
# the [opening](../README.md) is near, [the paper](https://arxiv.org/abs/2403.10476) is far.
#
# $$\\min_{v} \\; \\mathbb{E} \\, \\lVert f(x + v) - f(x) \\rVert \\quad \\text{subject to} \\quad W v = 0$$

# %% tags=["parameters"]
points: int = 2

# %%
import pandas as pd

from nullpaper.workflow import figures

figure, axis = figures.subplots()
axis.plot([0, 1], [1, 0])
_ = figures.save_figure(figure, "00_line")

# %%
words = ["10.0 [9.0, 11.0]", "9.5 [9.0, 10.0]", "-2 [-3, -1]", "1,000", "-", "2e-05"]
table = pd.DataFrame({"kind": list("aabbcc"), "n": range(6), "score": words})
_ = figures.save_table(table, "00_numbers")
table.style.hide(axis="index")

# %%
table.pivot_table(index=["kind", "n"], columns="score", values="n", aggfunc="sum").style

# %%
pd.DataFrame({f"a long name of column {i}": range(40) for i in range(12)})
"""
SECOND = """# %% [markdown]
# # 01 · The second

# %% [markdown]
# ## (a) What follows
# The word quixotic stands here alone. Back to the [first](00_first.py).
#
# ## (b) What remains
#
# ## (c) What does not
"""
README = """# A small paper

It opens with a sentence. Read [the first](notebooks/00_first.py), under a [licence](LICENSE).
"""


def build(project: Path, profile: str = "smoke") -> subprocess.CompletedProcess[str]:
    """What the command says, for the project in this folder."""
    command = [sys.executable, REPOSITORY / "book" / "build.py", "--profile", profile]
    environment = {**os.environ, "NULLPAPER_ROOT": str(project)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project of two executed notebooks, with the reference's verdicts beside their tables."""
    root = tmp_path_factory.mktemp("pro ject")
    (root / "notebooks").mkdir()
    contents = {"notebooks/00_first.py": FIRST, "notebooks/01_second.py": SECOND, "README.md": README, "LICENSE": "MIT"}
    for name, content in contents.items():
        (root / name).write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLPAPER_ROOT", str(root))
        patch.delenv("NULLPAPER_RUN", raising=False)
        assert not any(report.error for report in run_notebooks(paper_notebooks(), profile="smoke"))
        for path in (REPOSITORY / "results").glob("*_verdicts.csv"):
            shutil.copy(path, root / "build" / "smoke" / "results")
        yield root


@pytest.fixture(scope="module")
def built(project: Path) -> Path:
    done, folder = build(project), project / "build" / "book"
    assert done.returncode == 0 and str(folder / "index.html") in done.stdout, done.stderr
    return folder


def test_pages_say_which_run_they_come_from(project: Path, built: Path) -> None:
    entry = json.loads((project / "build" / "smoke" / "manifest.json").read_text())["00_first"]
    page = (built / "00_first.html").read_text(encoding="utf-8")
    assert entry["run"] in page and entry["device"] in page and "profile smoke" in page


def test_what_cannot_be_shown_is_refused_and_the_old_book_stays(project: Path, built: Path) -> None:
    refused = build(project, "cpu")
    assert refused.returncode and "cpu: run 'make paper PROFILE=cpu' first" in refused.stderr
    try:
        (project / "README.md").write_text(README.replace("(LICENSE)", "(LICENCE.txt)"), encoding="utf-8")
        refused = build(project)
    finally:
        (project / "README.md").write_text(README, encoding="utf-8")
    assert refused.returncode and "LICENCE.txt" in refused.stderr and "mend its source" in refused.stderr
    assert (built / "index.html").is_file()
    assert not list(built.parent.glob("tmp*"))


class Page(HTMLParser):
    """The names that links may point at, and the links, of a page as it was written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names: set[str] = {"", "top"}
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "id":
                self.names.add(value)
            elif value and (name, tag) in (("href", "a"), ("src", "img"), ("href", "link"), ("src", "script")):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Path:
    """The book to look at: that of NULLPAPER_BOOK, else the small one."""
    given = os.environ.get("NULLPAPER_BOOK")
    return Path(given).resolve() if given else request.getfixturevalue("built")


@pytest.fixture(scope="module")
def pages(site: Path) -> list[str]:
    found = sorted(path.name for path in site.glob("*.html"))
    assert {"index.html", "verdicts.html", "search.html"} < set(found)
    return found


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the site on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Open]:
    """Opens an address and waits until formulas and tables stand; whatever goes wrong meanwhile fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    page, wrong = context.new_page(), []
    here: list[str] = [f"{site.as_uri()}/"]

    def guard(route: Any) -> None:
        if route.request.url.startswith((*here, "blob:", "data:")):
            route.continue_()
        else:
            wrong.append(f"left the site for {route.request.url}")
            route.abort()

    context.route("**/*", guard)
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"no answer from {request.url}"))
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)

    def go(name: str, root: str | None = None) -> Any:
        here[1:] = [root] if root else []
        page.goto(f"{root or here[0]}{name}")
        ready = """async () => {
            if (document.querySelector("article .math")) await MathJax.startup.promise;
            const rows = (table) => table.tHead && table.tBodies[0].rows.length > 1;
            const sortable = [...document.querySelectorAll("article table")].some(rows);
            for (let i = 0; sortable && document.documentElement.dataset.tables !== "ready" && i < 500; i++)
                await new Promise((done) => setTimeout(done, 20));
        }"""
        page.evaluate(ready)
        return page

    yield go
    context.close()
    assert wrong == []


def test_site_links_lead_somewhere(site: Path, pages: list[str]) -> None:
    read = {name: Page(site / name) for name in pages}
    for name, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "data") and name != "search.html", f"{name}: {link}"
                continue
            target = unquote(parts.path) or name
            assert (site / target).is_file(), f"{name}: {link}"
            if target in read:
                assert unquote(parts.fragment) in read[target].names, f"{name}: {link}"


@needs_chromium
def test_site_every_page_opens_whole_and_fits_a_phone(visit: Open, pages: list[str]) -> None:
    state = """() => ({
        formulas: document.querySelectorAll("article .math").length,
        typeset: document.querySelectorAll("article .math mjx-container svg").length,
        refused: document.querySelectorAll("[data-mjx-error], [data-mml-node=merror]").length,
        broken: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
        plain: [...document.querySelectorAll("article table:not(.dataTable)")]
            .filter((table) => table.tHead && table.tBodies[0].rows.length > 1).length,
        text: document.querySelector("article")?.innerText || "",
    })"""
    formulas = tables = 0
    for name in pages:
        page = visit(name)
        found = page.evaluate(state)
        assert found["typeset"] == found["formulas"] and found["refused"] == 0, name
        assert found["broken"] == [] and found["plain"] == 0, name
        assert not any(raw in found["text"] for raw in ("\\(", "\\[", "$$", "```", "<div", "(nb0")), name
        formulas, tables = formulas + found["formulas"], tables + page.locator("table.dataTable").count()
        page.set_viewport_size({"width": 390, "height": 844})
        wide = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(wide) == 390, name
        page.set_viewport_size({"width": 1280, "height": 900})
    assert formulas >= 2 and tables >= 2


@needs_chromium
def test_site_a_click_on_a_head_sorts_the_table(visit: Open) -> None:
    page = visit("verdicts.html")
    words = page.locator("table").first.locator("tbody tr td:nth-child(3)")
    before = words.all_inner_texts()
    page.locator("table").first.locator("th", has_text="holds?").click()
    page.wait_for_selector("th[aria-sort=ascending]")
    after = words.all_inner_texts()
    assert len(before) > 40 and after == sorted(before) != before


@needs_chromium
def test_numbers_with_intervals_sort_as_numbers(visit: Open, site: Path) -> None:
    if os.environ.get("NULLPAPER_BOOK"):
        pytest.skip("NULLPAPER_BOOK names another book than the small one")
    page = visit("00_first.html")
    table = page.locator("table").first
    cells = table.locator("tbody tr td:nth-child(3)")
    head, numbers = table.locator("th", has_text="score"), ["-2", "2e-05", "9.5", "10.0", "1,000"]
    for order in ("ascending", "descending"):
        head.click()
        page.wait_for_selector(f"th[aria-sort={order}]")
        shown = [text.split()[0] for text in cells.all_inner_texts() if text != "-"]
        assert shown == numbers[:: 1 if order == "ascending" else -1]
    nested = page.locator("table").nth(1)  # indexed by kind and n: their names share a row with the columns'
    (head,) = nested.locator("thead tr").all()
    assert head.inner_text().split()[:4] == ["kind", "n", "\\", "score"]
    cells = [row.locator("th, td").all_inner_texts()[:2] for row in nested.locator("tbody tr").all()]
    assert cells == [[kind, str(n)] for n, kind in enumerate("aabbcc")]  # a cell over two rows is repeated


@needs_chromium
def test_site_dark_and_light(visit: Open) -> None:
    page = visit("verdicts.html")
    ground = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    seen = {}
    for mode in ("dark", "light"):
        page.locator("button.theme-switch-button:visible").click()
        page.locator(f"button.theme-change-button[data-mode={mode}]:visible").click()
        page.wait_for_function(f"document.documentElement.dataset.theme === '{mode}'")
        assert page.evaluate("document.documentElement.classList.contains('dark')") == (mode == "dark")
        seen[mode] = sum(page.evaluate(ground)) / 3
    assert seen["dark"] < 60 and seen["light"] > 200


@needs_chromium
@pytest.mark.parametrize("where", ["disk", "server"])
def test_site_search_finds_a_word(visit: Open, served: str, where: str) -> None:
    word = "nullspace" if os.environ.get("NULLPAPER_BOOK") else "quixotic"
    page = visit("index.html", served if where == "server" else None)
    page.keyboard.press("Control+k")
    page.locator("input[type=search]:visible").first.fill(word)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    if where == "server":
        page.wait_for_selector("#search-results li p.context")
        page.wait_for_load_state("networkidle")  # it reads the pages that it found, to show a piece of each
    page.locator("#search-results li a").first.click()
    page.wait_for_url("**/*_*.html*")
    assert word in page.locator("article").inner_text().lower()
