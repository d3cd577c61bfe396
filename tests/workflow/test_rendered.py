"""A page of a notebook shows what its run printed and drew, in Markdown that GitHub reads; those of the paper too."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from nullpaper.errors import InputError
from nullpaper.workflow.reference import read_manifest
from nullpaper.workflow.rendered import FIGURE, OUTPUT, ROOM, outputs_of, page, place

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / ROOM).glob("*.md"))
ENTRY = {"device": "a laptop", "note": "From 2 runs.", "parameters": {"images": 500}}
NOTEBOOK = r"""# %% [markdown]
# # 01 · A line
#
# It costs `$5`, for $a_{i} <
# b_{i}$, see [02](02_next.py#a) and [the figure](../figures/01_line.png):
#
# $$ \operatorname{softmax} f(x) \\ y $$

# %% tags=["parameters"]
images: int = 20

# %%
figures.save_figure(figure, "01_line")
figures.save_table(table, "01_points")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "01_line.py").write_text(NOTEBOOK)
    return tmp_path / "01_line.py"


def rich(**data: str) -> nbformat.NotebookNode:
    return new_output("display_data", data={name.replace("_", "/"): value for name, value in data.items()})


def shown(folder: Path, *outputs: nbformat.NotebookNode) -> list[str]:
    """The outputs of a run whose last cell has made these."""
    injected = new_code_cell("images = 500", metadata={"tags": ["injected-parameters"]})
    last = new_code_cell(NOTEBOOK[NOTEBOOK.rindex("figures.save_figure") :], outputs=[*outputs])
    nbformat.write(new_notebook(cells=[new_code_cell("images: int = 20"), injected, last]), folder / "run.ipynb")
    return outputs_of(folder / "run.ipynb", {"figures/01_line.png", "results/01_points.csv"})


def test_text_formulas_and_links_are_as_github_reads_them(source: Path) -> None:
    text = page(source, ["", "said"], ENTRY)
    assert text.startswith("# 01 · A line\n") and "a laptop. From 2 runs." in text and "images = 500" in text
    assert "`$5`, for $`a_{i} < b_{i}`$, see [02](02_next.md#a) and [the figure](../../figures/01_line.png)" in text
    assert "\n```math\n\\mathop{\\text{softmax}} f(x) \\\\ y\n```\n" in text


def test_a_page_is_made_again_from_its_own_outputs_and_from_no_others(source: Path) -> None:
    outputs = ["", "one\n\n**Answer:** two"]
    text = page(source, outputs, ENTRY)
    assert OUTPUT.findall(text) == outputs and page(source, OUTPUT.findall(text), ENTRY) == text
    assert text.index("> **Answer:** two") < text.index("It costs"), "a reader finds the answer first"
    with pytest.raises(InputError, match="run it again"):
        page(source, outputs[1:], ENTRY)


def test_only_what_the_reference_keeps_is_shown(tmp_path: Path) -> None:
    said = new_output("stream", name="stdout", text=f"saved /tmp/x/run.csv, at 8/255 {'word ' * 40}\n")
    bar = new_output("stream", name="stderr", text="100%|#####| 2/2\n")
    paths = new_output("execute_result", data={"text/plain": "[PosixPath('/tmp/x/01_line.png')]"})
    pictures = [rich(image_png="iVBORw0KGgo=", text_plain="<Figure>")] * 2
    first, last = shown(tmp_path, said, bar, paths, *pictures)
    printed = re.match(r"```text\n(.*?)\n```\n", last, re.DOTALL)[1]
    assert first == "" and all(len(line) <= 100 for line in printed.splitlines())
    assert re.findall(r"!\[.*?\]\((.*?)\)", last) == ["../../figures/01_line.png"], "one file, one picture"
    assert printed.startswith("saved run.csv, at 8/255 word") and not re.search("tmp|%|Path|iVBOR", last)
    assert "(../../figures/01_line.pdf)" in last and "(../../results/01_points.csv)" in last


def test_verdicts_and_conclusions_are_paragraphs(tmp_path: Path) -> None:
    measured = "    -0.1 [-0.4,\n    +0.2] points\n    (n = 5)\n    (holds if\n    (b) is)\n"
    text = f"\nDOES NOT HOLD: it is a*b (paper A)\n{measured}\nQuestion: Is it\n    so?\n\nother\n"
    _, last = shown(tmp_path, new_output("stream", name="stdout", text=text))
    assert last.split("\n\n")[:3] == [
        "- **DOES NOT HOLD:** it is a\\*b (paper A)<br>-0.1 [-0.4,\u00a0+0.2] points (n = 5)<br>(holds if (b) is)",
        "**Question:** Is it so?",
        "```text\nother\n```",
    ]


def test_a_table_has_its_intervals_in_the_column_of_the_estimate(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"dev_method": ["start", "x|y"], "value": 0.5, "value_low": 0.1, "value_high": 0.9, "low": 0.2, "high": 0.8}
        | {"images_low": 0.3, "images_high": 0.7, "n": [1, 5], "images": 500, "df": 4.0, "share": None, "steps": [1, 2]}
    )
    _, last = shown(tmp_path, rich(text_html=table.style.hide(axis="index").format(precision=1).to_html()))
    assert last.splitlines()[:4] == [
        "| dev method | value | n | images | share | steps |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
        "| start | 0.5 [0.3,\u00a00.7] | 1 | 500 |  | 1 |",
        "| x\\|y | 0.5 [0.2,\u00a00.8] | 5 | 500 |  | 2 |",
    ]
    _, last = shown(tmp_path, rich(text_html=table.assign(a=[1, 2], b=[3, 4]).to_html()))
    assert "In every row: images 500." in last and "share" not in last
    assert shown(tmp_path, rich(text_html=pd.DataFrame().to_html()))[1].startswith("<sub>")


def test_a_table_of_levels_is_flat_and_a_long_one_folded(tmp_path: Path) -> None:
    long = pd.DataFrame({"group": ["a"] * 2 + ["b"] * 14, "row": range(16), "x": 1.5, "y": 2.5})
    pivot = long.pivot_table(index=["group", "row"], values=["x", "y"])
    pivot.columns = pd.MultiIndex.from_product([["mean"], ["x", "y"]], names=["kind", "of"])
    _, last = shown(tmp_path, rich(text_html=pivot.to_html()))
    assert last.startswith("<details><summary>Table of 16 rows: group, row, mean, x, mean, y, …</summary>\n\n|")
    assert "\n| a | 0 | 1.5 | 2.5 |\n|  | 1 | 1.5 | 2.5 |\n| b | 2 |" in last


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_of_the_paper_says_what_the_tables_say_and_is_whole(path: Path) -> None:
    text = path.read_text()
    assert len(text.encode()) < 200_000 and not re.search(r"base64|(?<![\w.])/(?:tmp|home|work|root)/", text)
    for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert (path.parent / target).exists(), target
    code = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    assert "$" not in code.replace("\\$", "").replace("$$", ""), "every formula is protected"
    drawn = {name for name in FIGURE.findall(text) if (ROOT / "figures" / f"{name}.png").is_file()}
    assert drawn == set(re.findall(r"/figures/([\w.-]+)\.png\)", text))
    verdicts = ROOT / "results" / f"{path.stem[:2]}_verdicts.csv"
    for line in pd.read_csv(verdicts, dtype=str).to_dict("records") if verdicts.is_file() else []:
        plain = " ".join(re.sub(r"\\(.)", r"\1", text).replace("\u00a0", " ").split())
        assert f"**{line['holds'].upper()}:** {line['said']}" in plain and line["measured"] in plain, line["name"]


def test_every_notebook_of_the_reference_has_its_page() -> None:
    assert {place(name) for name in read_manifest(ROOT / "results")} == {f"{ROOM}/{path.name}" for path in PAGES}
