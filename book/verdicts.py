"""The page of all verdicts: the word first, with a link to the section that decided it, and the numbers of that run."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

import pandas as pd
from executed import Notebook

from nullpaper.workflow.verdicts import collected


def page(folder: Path, notebooks: dict[str, Notebook], photographs: Path) -> str:
    """All claims of the tables in a folder, then those that the reference on photographs answers too, if any."""
    title = "# What the papers say, and what was measured\n\n"
    table = _verdicts(folder)
    if table.empty:
        return f"{title}These runs made no verdicts.\n"
    words = ", ".join(f"{word} {count}" for word, count in table["verdict"].value_counts().items())
    text = f"{title}Of {len(table)} claims: {words}. A verdict leads to the section that decided it.\n\n"
    text += _html([_row(row, notebooks) for row in table.to_dict("records")])
    other = _verdicts(photographs)
    if not other.empty:
        both = other.merge(table[["where", "name", "verdict"]], on=["where", "name"], suffixes=("", " above"))
        source = "what `results/photographs/manifest.json` names: models, weights and folders of photographs"
        rows = [_row(row, notebooks) for row in both.to_dict("records")]
        text += f"\n## The same claims on photographs\n\nFrom {source}.\n\n{_html(rows)}"
    return text


def _verdicts(folder: Path) -> pd.DataFrame:
    """The verdicts of all notebooks in a folder of tables, corrected as one; empty where there are none."""
    paths = sorted(folder.glob("[0-9][0-9]_verdicts.csv"))
    if not paths:
        return pd.DataFrame()
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]
    words = pd.read_csv(io.StringIO(collected(paths)))
    return pd.concat(tables, ignore_index=True).assign(verdict=words["verdict"], holm=words["holm"]).fillna("")


def _row(row: dict[str, str], notebooks: dict[str, Notebook]) -> dict[str, str]:
    """The cells of one claim."""
    number, letters = row["where"][:2], re.findall(r"\((\w)\)", row["where"])
    where, verdict = escape(row["where"]), f"<strong>{row['verdict']}</strong>"
    if number in notebooks:
        path = f"{notebooks[number].path.stem}.html"
        sections = [letter for letter in letters if letter in notebooks[number].letters]
        places = [f' <a href="{path}#nb{number}-{letter}">({letter})</a>' for letter in sections]
        where = f'<a href="{path}">{number}</a>{",".join(places)}'
        verdict = f'<a href="{path}{f"#nb{number}-{sections[0]}" if sections else ""}">{verdict}</a>'
    papers = f"paper {row['papers']}" if row["papers"] else "no paper asks"
    asked = ", ".join(filter(None, (papers, row["source"])))
    claim = f'{escape(row["said"])} <span class="np-small">({escape(asked)})</span>'
    if row.get("verdict above"):
        claim += f' <span class="np-small">above: {row["verdict above"]}</span>'
    decided = f"<p>{escape(row['criterion'])}</p>"
    if row.get("value"):
        decided = f"<p>{escape(row['endpoint'])}: {_number(row)}.</p>{decided}"
    measured = f"{escape(row['measured'])}<details><summary>what decides</summary>{decided}</details>"
    return {"verdict": verdict, "claim": claim, "measured": measured, "where": where}


def _number(row: dict[str, str]) -> str:
    """The endpoint in its own unit with what it rests on."""
    text = f"{float(row['value']):.3g}"
    if row["low"]:
        text += f" [{float(row['low']):.3g}, {float(row['high']):.3g}]"
    counts = ((row[f"n_{name}"], name) for name in ("seeds", "images"))
    text += "".join(f", {float(count):,.0f} {name}" for count, name in counts if count)
    return text + (f", p = {float(row['holm']):.2g} after Holm's correction" if row["holm"] != "" else "")


def _html(rows: list[dict[str, str]]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in rows[0]) if rows else ""
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row.values())}</tr>" for row in rows)
    table = f'<table class="np-verdicts">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    return f"```{{raw}} html\n{table}\n```\n"
