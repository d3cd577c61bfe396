"""A small book of two executed notebooks, and a headless Chromium that may not leave the site that it opens.

NULLPAPER_BOOK=folder makes the tests named ``test_site_*`` look at that book instead of the small one made here.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nullpaper.workflow.plan import paper_notebooks
from nullpaper.workflow.runs import run_notebooks

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIRST = """# %% [markdown]
# # 00 · The first
# It maps $x \\mapsto \\tfrac12 \\lVert x \\rVert_\\infty$, and the [second](01_second.py#a-what-follows) goes on;
# the [opening](../README.md) is near, [the paper](https://arxiv.org/abs/2403.10476) is far.
#
# $$\\min_{v} \\; \\mathbb{E} \\, \\lVert f(x + v) - f(x) \\rVert \\quad \\text{subject to} \\quad W v = 0, \\qquad
# \\mathbb{E} \\, \\lVert f(x + v) - f(x) \\rVert^2 + \\mathbb{E} \\, \\lVert f(x - v) - f(x) \\rVert^2 \\le
# \\varepsilon_{last}$$
#
# See `00_numbers`, notebook 01, 01 (b) and (c).

# %% tags=["parameters"]
points: int = 2

# %%
import pandas as pd

from nullpaper.workflow import figures

figure, axis = figures.subplots()
axis.plot([0, 1], [1, 0])
_ = figures.save_figure(figure, "00_training")

# %%
words = ["10.0 [9.0, 11.0]", "9.5 [9.0, 10.0]", "-2 [-3, -1]", "1,000", "-", "2e-05"]
table = pd.DataFrame({"kind": list("aabbcc"), "n": range(6), "score": words})
_ = figures.save_table(table, "00_numbers", caption="Scores of three kinds.")
table.style.hide(axis="index")

# %%
table.pivot_table(index=["kind", "n"], columns="score", values="n", aggfunc="sum").style

# %%
paired = pd.DataFrame({"method": ["full", "lnlora"] * 6, "against": "zero", "measure": [*"abcdef"] * 2})
bounds = ("difference_low", "difference_high", "n", "low", "high", "images_low", "images_high", "images", "df")
for i, column in enumerate(["difference", *bounds, "p", "resolved", "steps"]):
    paired[column] = [0.01 * i + row for row in range(12)]
paired["n"] = 5
figures.save_table(paired, "00_paired", caption="Paired differences.")

# %%
only = paired[paired["measure"] != "z"]
only.style.format(precision=4).hide(axis="index")

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

# %%
from nullpaper.studies.verdicts import Verdicts

answer = Verdicts()


@answer.claim("A", "eq. 1", "it holds", where="01 (b)", criterion="always")
def holds() -> tuple[str, str]:
    return "measured it was", "holds"


answer.show("a small project", question="Does it hold?", answer="It does.")
"""
README = """# A small paper

It opens with a sentence. Read [the first](notebooks/00_first.py), under a [licence](LICENSE).
"""


Build = Callable[..., subprocess.CompletedProcess[str]]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def build(project: Path) -> Build:
    """What the command says, for the small project."""

    def run(profile: str = "smoke") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, REPOSITORY / "book" / "build.py", "--profile", profile]
        environment = {**os.environ, "NULLPAPER_ROOT": str(project)}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


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
def built(project: Path, build: Build) -> Path:
    done, folder = build(), project / "build" / "book"
    assert done.returncode == 0 and str(folder / "index.html") in done.stdout, done.stderr
    return folder


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH, so no page was opened: apt-get install --no-install-recommends chromium")
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
    context.set_default_timeout(30_000)
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
            for (let i = 0; sortable && document.documentElement.dataset.tables !== "ready" && i < 1500; i++)
                await new Promise((done) => setTimeout(done, 20));
        }"""
        page.evaluate(ready)
        return page

    yield go
    context.close()
    assert wrong == []
