"""A notebook of the reference as a page of Markdown that code hosts show: ``notebooks/rendered/NN_name.md``.

A page has the text and the code of a notebook as they are today, and what its run for the reference printed and drew,
between comments. So when the text changes, the page is written anew from the outputs that it has, without a run.
"""

from __future__ import annotations

import itertools
import os
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nullpaper.errors import InputError
from nullpaper.statistics import TWO_WAY
from nullpaper.workflow.parameters import MARK, PARAMETERS, read_notebook, remembered

if TYPE_CHECKING:
    from bs4 import Tag

ROOM = "notebooks/rendered"
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
"""A link of Markdown to a file of the project."""
SAVED = r"""save_{}\(.*?["'](\d\d_[\w.-]+)["']"""
FIGURE, TABLE = (re.compile(SAVED.format(kind), re.DOTALL) for kind in ("figure", "table"))
"""The name under which a cell saves a figure or a table."""
MATH = re.compile(r"(^```.*?^```$|`[^`]+`)|\$\$(.+?)\$\$|(?<!\\)\$([^$]+)\$", re.DOTALL | re.MULTILINE)
OUTPUT = re.compile(r"<!-- (?:no output|output -->\n\n(.*?)\n\n<!-- end) -->", re.DOTALL)
PLACE = re.compile(r"(?<![\w./])/(?:[\w.+-]+/)+")
CONCLUSION = re.compile(r"([A-Z][A-Z -]+|Question|Answer|What would change it|Limits): ")
FEW_COLUMNS, MOST_COLUMNS, OPEN_ROWS = 7, 12, 12
"""Of a table in a page: with more than a few columns those of one value stand below it, more are left out; more rows
are folded.
"""


def place(notebook: str) -> str:
    """Where the page of a notebook lies in the project."""
    return f"{ROOM}/{notebook}.md"


def page(source: Path, outputs: Sequence[str], entry: Mapping[str, Any]) -> str:
    """The page of a notebook.

    Args:
        source: the notebook as it is today.
        outputs: of each of its cells with code, as `outputs_of` gives them.
        entry: of the run that made them, in a manifest.

    Raises:
        InputError: there are not as many outputs as cells.
    """
    cells = _cells(source)
    if sum(not cell.is_prose for cell in cells) != len(outputs):
        raise InputError(f"{source} has not the cells of its run for the reference: run it again")
    parts, left = [], iter(outputs)
    for cell in cells:
        if cell.is_prose:
            parts.append(_prose(cell.text))
        else:
            summary, output = "Code", next(left)
            if cell.has_parameters:
                summary = "Parameters and their defaults"
                values = "\n".join(f"{name} = {value!r}" for name, value in entry["parameters"].items())
                parts.append(_folded("Parameters of this run", _fenced(values, "python")))
            parts.append(_folded(summary, _fenced(cell.text, "python")))
            parts.append(f"<!-- output -->\n\n{output}\n\n<!-- end -->" if output else "<!-- no output -->")
    title, _, text = "\n\n".join(parts).partition("\n")
    origin = f"Written by `make figures` from [{source.name}](../{source.name}) and its run on {entry['device']}."
    note = _escaped(f" {entry['note']}" if "note" in entry else "")
    return "\n\n".join(filter(None, [title, f"*{origin}{note}*", _answer(outputs), text.strip()])) + "\n"


class Cell(NamedTuple):
    """A cell of a notebook's source."""

    text: str
    is_prose: bool
    has_parameters: bool


@remembered
def _cells(source: Path) -> list[Cell]:
    """As jupytext reads them, which takes half a second to load and longer to read all notebooks."""
    cells = []
    for part in MARK.split(read_notebook(source))[1:]:
        head, _, text = part.partition("\n")
        is_prose = "[markdown]" in head
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE) if is_prose else text
        cells.append(Cell(text.strip("\n"), is_prose, bool(PARAMETERS.match(part))))
    return cells


def page_anew(root: Path, notebook: str, entry: Mapping[str, Any]) -> str | None:
    """The page from the text and code of today and the outputs of the page in place; None where that needs a run."""
    old = root / place(notebook)
    outputs = OUTPUT.findall(old.read_text(encoding="utf-8")) if old.is_file() else []
    try:
        return page(root / "notebooks" / f"{notebook}.py", outputs, entry)
    except InputError:
        return None


def outputs_of(executed: Path, files: Collection[str]) -> list[str]:
    """What each cell with code of an executed notebook printed and drew, as Markdown.

    Left out are messages on stderr, such as progress bars, and pictures that are in none of ``files``, those of the
    reference.
    """
    import nbformat

    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    own = [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return ["\n\n".join(filter(None, _shown(cell, files))) for cell in own]


def _shown(cell: Mapping[str, Any], files: Collection[str]) -> Iterator[str]:
    figures, tables = (
        [name for name in kind.findall(cell["source"]) if f"{room}/{name}{suffix}" in files]
        for kind, room, suffix in ((FIGURE, "figures", ".png"), (TABLE, "results", ".csv"))
    )
    drawn = iter(figures)
    for output in cell["outputs"]:
        data = output.get("data", {})
        if output.get("name") == "stdout":
            yield from _printed(output["text"])
        elif "image/png" in data:
            yield "".join(f"![figure {name}](../../figures/{name}.png)" for name in itertools.islice(drawn, 1))
        elif "text/html" in data:
            yield _table(data["text/html"])
        elif "Path(" not in (text := data.get("text/plain", "")):  # of the files that a cell has saved
            yield from _printed(text)
    saved = [f"figures/{name}.pdf" for name in figures] + [f"results/{name}.csv" for name in tables]
    yield f"<sub>{', '.join(f'[{name}](../../{name})' for name in saved)}</sub>" if saved else ""


def _printed(text: str) -> Iterator[str]:
    """Verdicts and conclusions as paragraphs, all else as it was printed, in lines that fit; of paths the last name."""
    paragraphs = re.split(r"\n\s*\n", PLACE.sub("", text).strip("\n"))
    for is_said, group in itertools.groupby(paragraphs, lambda paragraph: bool(CONCLUSION.match(paragraph))):
        for paragraph in group if is_said else ["\n\n".join(group)]:
            lines = paragraph.splitlines()
            if not is_said:
                wrapped = [textwrap.fill(line, 100, subsequent_indent="    ", tabsize=4) for line in lines]
                yield _fenced("\n".join(wrapped), "text") if paragraph.strip() else ""
            elif (label := CONCLUSION.match(paragraph)[1]).isupper():
                opened = [row for row, line in enumerate(lines) if line.startswith("    (")]
                tails = {row: " ".join(map(str.strip, lines[row:])) for row in opened}
                end = max((row for row in opened if tails[row].count("(") == tails[row].count(")")), default=len(lines))
                measured = " ".join(map(str.strip, lines[1:end]))
                parts = [lines[0].removeprefix(f"{label}: "), measured, tails.get(end, "")]
                yield f"- **{label}:** {'<br>'.join(_escaped(part) for part in parts if part)}"
            else:
                yield f"**{label}:** {_escaped(' '.join(paragraph.removeprefix(f'{label}: ').split()))}"


def _answer(outputs: Sequence[str]) -> str:
    """The question and the answer with which the notebook concludes, for the top of the page."""
    lines = re.findall(r"^\*\*(?:Question|Answer):\*\* .*$", "\n".join(outputs), re.MULTILINE)
    return "\n>\n".join(f"> {line}" for line in lines)


def _prose(text: str) -> str:
    """Markdown with formulas as GitHub reads them unharmed, and links from where the page lies."""

    def typeset(match: re.Match[str]) -> str:
        code, display, inline = match.groups()
        if code:
            return code
        formula = re.sub(r"\\operatorname\*?\{(.*?)\}", r"\\mathop{\\text{\1}}", display or inline)  # not allowed there
        return f"\n\n```math\n{formula.strip()}\n```\n\n" if display else f"$`{' '.join(formula.split())}`$"

    def turned(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join("notebooks", match[1]))
        if re.fullmatch(r"notebooks/\d\d_\w+\.py", target):
            target = place(Path(target).stem)
        return f"]({os.path.relpath(target, ROOM)}{match[2] or ''})"

    return re.sub(r"\n{3,}", "\n\n", LINK.sub(turned, MATH.sub(typeset, text))).strip()


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, with no line break within an interval."""
    text = re.sub(r"(?<=,) (?=[^][ ]+\])", "\u00a0", text)
    return re.sub(r"[\\`*<|$~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _table(html: str) -> str:
    """The table of pandas in ``html`` for Markdown, with bounds in the column of their estimate; "" if it is empty."""
    from bs4 import BeautifulSoup

    table = BeautifulSoup(html, "html.parser").table
    body = grid(table.tbody.find_all("tr")) if table and table.tbody else []
    if not any(map(any, body)):
        return ""
    columns = _with_intervals([*zip(_names(grid(table.thead.find_all("tr"))), zip(*body, strict=True), strict=True)])
    columns = [(_escaped(name.replace("_", " ")), [_escaped(cell) for cell in values]) for name, values in columns]
    same = [column for column in columns if len({*column[1]}) == 1 < len(body) and len(columns) > FEW_COLUMNS]
    columns = [column for column in columns if column not in same]
    names, shown = zip(*columns[:MOST_COLUMNS], strict=True)
    marks = ["---:" if all(re.match(r"[-+]?\d|$", cell) for cell in values) else ":---" for values in shown]
    text = "\n".join(f"| {' | '.join(line)} |" for line in [names, marks, *zip(*shown, strict=True)])
    if constants := [f"{name} {values[0]}" for name, values in same if values[0]]:
        text += f"\n\nIn every row: {', '.join(constants)}."
    if rest := [name for name, _ in columns[MOST_COLUMNS:]]:
        text += f"\n\nNot shown, but in [results](../../results): {', '.join(rest)}."
    return _folded(f"Table of {len(body)} rows: {', '.join(names[:4])}, …", text) if len(body) > OPEN_ROWS else text


def grid(rows: Sequence[Tag], *, below: bool = False) -> list[list[str]]:
    """The cells of a table: one that spans columns is repeated, one that spans rows only if ``below``."""
    cells: list[dict[int, str]] = [{} for _ in rows]
    for row, line in enumerate(rows):
        for cell in line.find_all(["th", "td"]):
            text = cell.get_text().strip()
            for _ in range(int(cell.get("colspan", 1))):
                column = next(column for column in itertools.count() if column not in cells[row])
                for down in range(int(cell.get("rowspan", 1))):
                    cells[row + down][column] = "" if down and not below or text in ("nan", "None") else text
    return [[line[column] for column in sorted(line)] for line in cells]


def _names(head: Sequence[Sequence[str]]) -> list[str]:
    """The names of columns; where the last row of the head names the index, those above it name the rest."""
    levels = [*zip(*head, strict=True)]
    if len(head) > 1 and not all(head[-1]):
        levels = [names[-1:] if names[-1] else names for names in levels]
    return [", ".join(dict.fromkeys(filter(None, names))) for names in levels]


def _with_intervals(columns: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, Sequence[str]]]:
    """The columns with ``value [low, high]`` in one: of one run the interval over images, else that for new seeds too.

    In the CSV are the others.
    """
    cells, gone, joined = dict(columns), {"df"}, []
    for name, values in columns:
        own, both = (f"{name}_low", f"{name}_high"), [("low", "high"), ("images_low", "images_high")]
        pairs = [pair for pair in both if name in TWO_WAY and pair[0] in cells]
        pairs = pairs or [own] * (own[0] in cells and own[1] in cells and name != "images")  # which is a count
        if pairs:
            gone |= {*own, *itertools.chain(*pairs)}
            chosen = [pairs[-1 if n == "1" else 0] for n in cells.get("n", values)]
            spans = [[cells[end][row] for end in pair] for row, pair in enumerate(chosen)]
            ends = [f" [{low}, {high}]" if low and high else "" for low, high in spans]
            values = [value + span for value, span in zip(values, ends, strict=True)]
        joined.append((name, values))
    return [(name, values) for name, values in joined if name not in gone]
