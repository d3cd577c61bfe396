"""The book, opened page by page in a headless Chromium: what a reader does with it works."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml

import nullpaper

pytestmark = pytest.mark.long
REPOSITORY = Path(__file__).resolve().parents[2]
Build = Callable[..., Any]
Open = Callable[..., Any]
MEASURE = Path(__file__).with_name("measure.js").read_text(encoding="utf-8")


def test_pages_say_which_run_they_come_from(project: Path, built: Path) -> None:
    entry = json.loads((project / "build" / "smoke" / "manifest.json").read_text())["00_first"]
    page = (built / "00_first.html").read_text(encoding="utf-8")
    assert entry["run"] in page and entry["device"] in page and "profile smoke" in page


def test_what_cannot_be_shown_is_refused_and_the_old_book_stays(project: Path, built: Path, build: Build) -> None:
    refused = build("cpu")
    assert refused.returncode and "cpu: run 'make paper PROFILE=cpu' first" in refused.stderr
    readme = project / "README.md"
    text = readme.read_text(encoding="utf-8")
    try:
        readme.write_text(text.replace("(LICENSE)", "(LICENCE.txt)"), encoding="utf-8")
        refused = build()
    finally:
        readme.write_text(text, encoding="utf-8")
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


def test_site_every_page_opens_whole_and_nothing_is_cut(visit: Open, pages: list[str]) -> None:
    """At 1,400 px, light, and on a phone, dark, where a wide table scrolls after its first three columns."""
    formulas = tables = 0
    for name in pages:
        page = visit(name)
        for width, height, theme in ((1400, 900, "light"), (390, 844, "dark")):
            page.set_viewport_size({"width": width, "height": height})
            page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
            page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            found, where = page.evaluate(MEASURE), f"{name} at {width} px"
            assert found["typeset"] == found["formulas"] and found["refused"] == 0, where
            assert found["broken"] == found["silent"] == found["plain"] == found["wide"] == [], where
            assert not any(raw in found["text"] for raw in ("\\(", "\\[", "$$", "```", "<div", "(nb0", "PosixPath")), (
                where
            )
            assert found["width"] == width, where
            assert found["cut"] == found["hidden" if width == 390 else "tables"] == [], where
        formulas, tables = formulas + found["formulas"], tables + page.locator("table.dataTable").count()
    assert formulas >= 2 and tables >= 2


def test_site_a_click_on_a_head_sorts_the_table(visit: Open) -> None:
    page = visit("verdicts.html")
    words = page.locator("table").first.locator("tbody tr td:nth-child(1)")
    before = words.all_inner_texts()
    page.locator("table").first.locator("th", has_text="verdict").click()
    page.wait_for_selector("th[aria-sort=ascending]")
    after = words.all_inner_texts()
    assert len(before) > 40 and after == sorted(before) != before


def test_numbers_with_intervals_sort_as_numbers(visit: Open, site: Path) -> None:
    if os.environ.get("NULLPAPER_BOOK"):
        pytest.skip("NULLPAPER_BOOK names another book than the small one")
    page = visit("00_first.html")
    table = page.locator("figure[id='00_numbers'] table").first
    heads = [head.strip() for head in table.locator("th").all_inner_texts()]
    assert heads == ["kind", "score", "n"]  # what it rests on comes last
    cells = table.locator("tbody tr td:nth-child(2)")
    head, numbers = table.locator("th", has_text="score"), ["-2", "2e-05", "9.5", "10.0", "1,000"]
    for order in ("ascending", "descending"):
        head.click()
        page.wait_for_selector(f"th[aria-sort={order}]")
        shown = [text.split()[0] for text in cells.all_inner_texts() if text != "-"]
        assert shown == numbers[:: 1 if order == "ascending" else -1]


def test_tables_and_figures_have_captions_with_their_files(built: Path) -> None:
    page = (built / "00_first.html").read_text(encoding="utf-8")
    captions = re.findall(r'<figure class="[\w-]+" id="([^"]+)">.*?<figcaption>(.*?)</figcaption>', page, re.DOTALL)
    said = {name: re.sub(r"<[^>]+>", "", caption) for name, caption in captions}
    assert said["00_training"].startswith("Figure 0.1 Training of") and "PDF · PNG · source" in said["00_training"]
    assert said["00_numbers"].startswith("Table 0.1 Scores of three kinds.") and "CSV" in said["00_numbers"]
    assert said["00_paired"].startswith("Table 0.3 Paired differences.")  # shown by what was made of it
    assert "In every row: against zero, n 5" in said["00_paired"]
    assert 'href="00_first.html#00_numbers"' in page and 'href="01_second.html#nb01-b"' in page


def test_a_verdict_leads_to_its_section_with_the_numbers_of_the_run(project: Path, built: Path) -> None:
    rows = re.findall(r"<tr><td>.*?</tr>", (built / "verdicts.html").read_text(encoding="utf-8"), re.DOTALL)
    made = pd.read_csv(project / "build/smoke/results/01_verdicts.csv", keep_default_na=False)
    for line in made.to_dict("records"):
        (row,) = (row for row in rows if html.escape(line["measured"]) in row)
        letter = line["where"][4]
        target = f"01_second.html#nb01-{letter}" if letter in "abc" else "01_second.html"
        assert f'href="{target}"' in row and f"<strong>{line['holds']}</strong>" in row
        assert line["value"] == "" or f"{float(line['value']):.3g}" in row


def test_the_answer_says_the_verdict_first(built: Path) -> None:
    page = (built / "01_second.html").read_text(encoding="utf-8")
    assert "<p><strong>holds</strong> it holds (paper A, eq. 1)</p><p>measured it was</p>" in page
    assert "<p><strong>Answer.</strong> It does.</p>" in page


def test_the_public_functions_are_on_one_page(built: Path) -> None:
    page = (built / "api.html").read_text(encoding="utf-8")
    assert all(f'id="nullpaper.{name}"' in page for name in nullpaper.PUBLIC)


def test_every_figure_of_the_paper_has_a_caption_and_what_is_seen() -> None:
    words = yaml.safe_load((REPOSITORY / "book/figures.yaml").read_text(encoding="utf-8"))
    texts = (path.read_text(encoding="utf-8") for path in (REPOSITORY / "notebooks").glob("*.py"))
    names = {name for text in texts for name in re.findall(r'save_figure\(.*?"([\w-]+)"', text)}
    assert names == set(words)
    for name, said in words.items():
        assert len(said["alt"].split()) > 10 and len(said["caption"].split()) > 5, name
        assert not re.search(r"\d", re.sub("95 %|8 bits", "", said["caption"] + said["alt"])), f"{name} has a number"


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


@pytest.mark.parametrize("where", ["disk", "server"])
def test_site_search_finds_a_section_by_its_text(visit: Open, served: str, where: str) -> None:
    word = "softmax" if os.environ.get("NULLPAPER_BOOK") else "quixotic"
    page = visit("index.html", served if where == "server" else None)
    page.keyboard.press("Control+k")
    page.locator("input[type=search]:visible").first.fill(word)
    page.keyboard.press("Enter")
    first = page.locator("#search-results li").first
    assert word in first.locator("p.context mark").first.inner_text().lower()
    first.locator("a").click()
    page.wait_for_url("**/*.html#*")
    section = unquote(page.url.partition("#")[2])
    assert word in page.locator(f"section[id='{section}']").inner_text().lower()
