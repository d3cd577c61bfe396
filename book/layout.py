"""Tables of executed notebooks as the book shows them: what they answer first, at most seven columns, the rest folded.

Cells are shown as the notebook printed them. Columns ``x``, ``x_low`` and ``x_high`` become ``x [low, high]``; columns
that say the same in every row go into the caption; heads get the names of names.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from bs4.element import Tag

from nullpaper.workflow.rendered import grid

WORDS = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text(encoding="utf-8"))
MOST = 7
NUMBER = re.compile(r"([<>≤≥±~+]?\s*[-−]?[\d,]*\.?\d+(e[-+]?\d+)?\s*%?)?( ?\[[-−+\d.,e ]*\])?", re.IGNORECASE)
INTERVAL = re.compile(r"(?:^| )(\[[^]]*\])$")
COUNTS = ("n", "seeds", "images", "steps", "df")


@dataclass
class Column:
    name: str
    cells: list[str]

    @property
    def numeric(self) -> bool:
        return any(self.cells) and all(NUMBER.fullmatch(cell) for cell in self.cells)

    @property
    def constant(self) -> bool:
        return len(self.cells) > 1 and len(set(self.cells)) == 1


@dataclass
class Table:
    """The columns that identify a row, at most two; those that stand beside them; those of the fold; the rest."""

    keys: list[Column]
    shown: list[Column]
    folded: list[Column]
    everywhere: list[Column]


def arranged(html: str) -> Table | None:
    """The table in the output of a cell, or None where it has no rows."""
    index, columns = _read(html)
    if not columns or not columns[0].cells:
        return None
    if any(cell.endswith("_low") for column in columns[:index] for cell in column.cells):
        columns = _transposed(_merged(_transposed(columns)))
    columns = _merged(columns)
    columns = [column for column in columns if any(column.cells) or len(columns) == 1]
    for column in columns:
        if column.name in (*WORDS["keys"], *COUNTS) or column in columns[:index]:
            column.cells = _plain(column.cells)
    count = index
    while count < len(columns) and _identifies(columns[count], count):
        count += 1
    keys = [c for c in columns[count:] if c.name in WORDS["text keys"] and not c.numeric] + columns[:count]
    rest = [column for column in columns if column not in keys]
    movable = [*keys, *(column for column in rest if column.name in WORDS["last"])]
    everywhere = [column for column in movable if column.constant]
    keys = [column for column in keys if column not in everywhere]
    rest = sorted((column for column in rest if column not in everywhere), key=_rank)
    if len(keys) > 2:
        keys = [_joined(keys[:-1]), keys[-1]]
    room = MOST - len(keys)
    return Table(keys, rest[:room], rest[room:], everywhere)


def rendered(table: Table) -> str:
    """The table as HTML, and below it, folded, tables of the columns for which it has no room."""
    text, room = _html([*table.keys, *table.shown]), MOST - len(table.keys)
    if table.folded:
        parts = [table.folded[i : i + room] for i in range(0, len(table.folded), room)]
        names = ", ".join(human(column.name) for column in table.folded)
        inside = "\n".join(_html([*table.keys, *part]) for part in parts)
        text += f'\n<details class="np-more"><summary>More columns: {escape(names)}</summary>\n{inside}\n</details>'
    return text


def human(name: str) -> str:
    """The head of a column in words."""
    return WORDS["heads"].get(name) or name.replace("_", " ")


def _read(html: str) -> tuple[int, list[Column]]:
    """How many columns are the index, and all columns, of HTML as pandas writes it."""
    page = BeautifulSoup(html, "html.parser")
    if page.thead is None or page.tbody is None:
        return 0, []
    heads = _texts(page.thead.find_all("tr"))
    body = page.tbody.find_all("tr")
    rows = _texts(body)
    if not heads or not rows:
        return 0, []
    index = max(len(line.find_all("th")) for line in body)
    named = len(heads) > 1 and not any(heads[-1][index:])
    names = heads[-1][:index] if named else [""] * index
    names += [", ".join(filter(None, (line[i] for line in heads))) for i in range(index, len(heads[0]))]
    return index, [Column(name, list(cells)) for name, cells in zip(names, zip(*rows, strict=True), strict=True)]


def _texts(lines: Sequence[Tag]) -> list[list[str]]:
    """The texts of rows of cells, those over several rows or columns repeated."""
    rows = [[" ".join(text.split()) for text in line] for line in grid(lines, below=True)]
    return [["" if text == "NaN" else text.replace(" [no interval]", "") for text in line] for line in rows]


def _merged(columns: list[Column]) -> list[Column]:
    """Columns with their bounds behind the value. Bare ``low`` and ``high`` are the interval of difference or value.

    Where a row has no such interval but is a single run, its interval over images stands there.
    """
    by_name = {column.name: column for column in columns}
    bounds = {part for part in by_name if (stem := re.sub("_?(low|high)$", "", part)) != part and _both(by_name, stem)}
    main = next((name for name in ("difference", "value") if name in by_name and _both(by_name, "")), None)
    out = []
    for column in columns:
        name = column.name
        if name in bounds:
            stem = name.removesuffix("_low")
            if main and stem in ("images", main) and (cells := _intervals(by_name, stem)) != _ends(by_name):
                out.append(Column("over images" if stem == "images" else "over seeds", cells))
        elif name == main:
            out.append(Column(name, _beside(column.cells, _ends(by_name))))
        elif name and name != "images" and _both(by_name, name):
            out.append(Column(name, _beside(column.cells, _intervals(by_name, name))))
        else:
            out.append(column)
    return out


def _ends(by_name: dict[str, Column]) -> list[str]:
    """The interval for new seeds and new images of each row, of a single run that over images."""
    whole = _intervals(by_name, "")
    if not _both(by_name, "images") or "n" not in by_name:
        return whole
    rows = zip(whole, _intervals(by_name, "images"), by_name["n"].cells, strict=True)
    return [over_images if n == "1" else both for both, over_images, n in rows]


def _both(by_name: dict[str, Column], stem: str) -> bool:
    """Whether a value has two bounds among the columns; those of nothing belong to difference or value."""
    start = f"{stem}_" if stem else ""
    known = stem in by_name or stem == "images" or (not stem and bool({"difference", "value"} & set(by_name)))
    return known and {f"{start}low", f"{start}high"} <= set(by_name)


def _intervals(by_name: dict[str, Column], stem: str) -> list[str]:
    start = f"{stem}_" if stem else ""
    pairs = zip(by_name[f"{start}low"].cells, by_name[f"{start}high"].cells, strict=True)
    return [f"[{low}, {high}]" if low or high else "" for low, high in pairs]


def _beside(values: list[str], ends: list[str]) -> list[str]:
    return [f"{value} {end}".strip() for value, end in zip(values, ends, strict=True)]


def _transposed(columns: list[Column]) -> list[Column]:
    """Rows as columns, named by the first cell of each."""
    first, *others = columns
    names = Column(first.name, [column.name for column in others])
    lines = zip(*(column.cells for column in others), strict=True)
    return [names, *(Column(name, list(line)) for name, line in zip(first.cells, lines, strict=True))]


def _identifies(column: Column, place: int) -> bool:
    """Whether a column after as many of them says which row it is and not what was found."""
    if column.name in WORDS["last"] or set(column.cells) <= {"True", "False", ""}:
        return False
    return not column.numeric or column.name in WORDS["keys"] or (place == 0 and column.name in WORDS["first keys"])


def _rank(column: Column) -> tuple[int, int]:
    """Named answers first, then values with an interval, other values, what a row rests on."""
    for place, part in ((0, "first"), (3, "last")):
        if column.name in WORDS[part]:
            return place, WORDS[part].index(column.name)
    return (1 if any(INTERVAL.search(cell) for cell in column.cells) else 2), 0


def _joined(keys: list[Column]) -> Column:
    """Several keys as one: ``full · lora minus lnlora``."""

    def joined(texts: Sequence[str]) -> str:
        parts = [
            (" minus " if column.name == "against" else " · ", text) for column, text in zip(keys, texts, strict=True)
        ]
        given = [(between, text) for between, text in parts if text]
        return "".join(text if i == 0 else between + text for i, (between, text) in enumerate(given))

    cells = [joined(line) for line in zip(*(column.cells for column in keys), strict=True)]
    return Column(joined([human(column.name) for column in keys]).replace(" minus against", " minus other"), cells)


def _plain(cells: list[str]) -> list[str]:
    """Numbers without the zeros that a common format gave them."""
    return [re.sub(r"^(-?\d+)(\.0+|(\.\d*?)0+)$", r"\1\3", cell) for cell in cells]


def _html(columns: Sequence[Column]) -> str:
    heads = "".join(f"<th>{_breakable(human(column.name))}</th>" for column in columns)
    marks = [' class="np-number"' if column.numeric else "" for column in columns]
    body = "\n".join(
        f"<tr>{''.join(f'<td{mark}>{_cell(text)}</td>' for mark, text in zip(marks, line, strict=True))}</tr>"
        for line in zip(*(column.cells for column in columns), strict=True)
    )
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _cell(text: str) -> str:
    """A cell whose interval stays on one line, below its value where the column is narrow."""
    found = INTERVAL.search(text)
    if found and NUMBER.fullmatch(text):
        return f'{escape(text[: found.start()])} <span class="np-interval">{escape(found[1])}</span>'.strip()
    return _breakable(text)


def _breakable(text: str) -> str:
    return re.sub(r"([_/])(?=\w{3})", r"\1<wbr>", escape(text))
