"""From tables of results to a table "the papers say, we measured, holds?": no number and no verdict in it is typed.

A `Claim` reads the tables (CSV) of one profile and answers with what was measured and a word by a stated criterion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nullpaper.errors import InputError
from nullpaper.files import storable, write_atomic
from nullpaper.studies.evidence import LONGER, Tables, percent

__all__ = ["WORDS", "Claim", "Verdict", "claim", "judge", "markdown", "replace_section", "save", "section"]

WORDS = ("holds", "in part", "no", "ill-posed", "not resolved", "not measured")
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"


Judge = Callable[[Tables], tuple[str, str]]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, or a question that it leaves open, and how results decide it.

    Attributes:
        name: of this claim in ``verdicts.csv``.
        papers: which say so, "A", "C" or "A, C"; empty: nobody asked.
        source: equation, section or table there, or "code" of the authors.
        said: the sentence in a few words.
        where: notebook and section that measure it.
        criterion: when it holds, in words; ``judge`` is the same in numbers.
        judge: from the tables to what was measured and one of `WORDS`; `Missing` if they do not say.
    """

    name: str
    papers: str
    source: str
    said: str
    where: str
    criterion: str
    judge: Judge


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured, and one of `WORDS`."""

    claim: Claim
    measured: str
    holds: str


def claim(papers: str, source: str, said: str, *, where: str, criterion: str) -> Callable[[Judge], Claim]:
    """A decorator that makes a `Claim` of the function that judges it."""
    return lambda judge: Claim(judge.__name__, papers, source, said, where, criterion, judge)


def judge(folder: Path, claims: Sequence[Claim]) -> list[Verdict]:
    """The verdicts on all claims by the tables in a folder; a claim that lacks a table, row or column is not measured.

    Raises:
        InputError: there is no such folder, or one of its files is no table.
    """
    if not folder.is_dir():
        raise InputError(f"there are no results in {folder}: run 'make paper PROFILE={folder.name}' first")
    tables, verdicts = Tables(folder), []
    for known in claims:
        try:
            measured, holds = known.judge(tables)
        except KeyError:
            measured, holds = "not measured at this profile", "not measured"
        verdicts.append(Verdict(known, measured, holds))
    return verdicts


def markdown(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as a Markdown table of four columns."""
    lines = ["| the papers say | we measured | holds? | where |", "|---|---|---|---|"]
    for verdict in verdicts:
        known, (notebook, _, part) = verdict.claim, verdict.claim.where.partition(" ")
        source = ", ".join(filter(None, (known.papers, known.source)))
        said = f"{known.said} ({source})" if known.papers else f"(not asked) {known.said}"
        cells = said, verdict.measured, f"**{verdict.holds}**", f"`{notebook}` {part}".strip()
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def section(verdicts: Sequence[Verdict], folder: Path) -> str:
    """The table with a sentence before it, on the model and the profile, and one after it, on the words."""
    try:
        known = Tables(folder).interval("00_accuracy", "accuracy", split="test")
        model = f", on the shipped model ({percent(known, 'CIFAR-10 test images')})"
    except KeyError:
        model = ""
    counts = Counter(verdict.holds for verdict in verdicts)
    told = ", ".join(f"{known} {counts[known]}" for known in WORDS if counts[known])
    after = (
        f"Of {len(verdicts)} rows: {told}. `make report` writes this table from `results/{folder.name}`; the words are "
        f"computed too, by the criteria in [`verdicts.csv`](results/{folder.name}/verdicts.csv)."
    )
    longer = folder.with_name(f"{folder.name}{LONGER}")
    if found := sorted({path.name[:2] for path in longer.glob("[0-9]*.csv")}):
        after += f" The rows of `{'`, `'.join(found)}` are from longer runs, in `results/{longer.name}`."
    before = f"At profile `{folder.name}`{model}; 95 % intervals in brackets:"
    return f"{before}\n\n{markdown(verdicts)}\n\n{after}"


def save(verdicts: Iterable[Verdict], folder: Path) -> list[Path]:
    """Write ``verdicts.csv``, with the criteria, and ``verdicts.tex`` into the folder of the tables.

    Raises:
        InputError: the folder cannot be written.
    """
    import pandas as pd

    fields = ("name", "papers", "source", "said", "criterion", "where")
    rows = (
        [*(getattr(verdict.claim, field) for field in fields), verdict.measured, verdict.holds] for verdict in verdicts
    )
    table = pd.DataFrame(rows, columns=[*fields, "measured", "holds"])
    shown = table[["said", "papers", "measured", "holds", "where"]]
    latex = shown.to_latex(index=False, escape=True, longtable=True, column_format="p{4cm}lp{7cm}ll")
    contents = {"verdicts.csv": table.to_csv(index=False, lineterminator="\n"), "verdicts.tex": latex}
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [folder / name for name in contents]


def replace_section(file: Path, text: str | None) -> None:
    """Put a text between the two marker lines of a file; None only checks that they are there.

    Raises:
        InputError: there is no such file, it lacks the markers, or it cannot be written.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file} to write the verdicts to: name one that has the line '{BEGIN}'")
    with storable(file):
        content = file.read_text(encoding="utf-8")
    before, found, rest = content.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise InputError(
            f"{file} has no line '{BEGIN}' with '{END}' below it: add both where the verdicts should stand"
        )
    if text is not None:
        write_atomic(file, f"{before}{BEGIN}\n{text}\n{END}{after}")
