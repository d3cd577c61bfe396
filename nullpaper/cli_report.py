"""The command ``nullpaper report``: the verdicts on the papers' claims, or the results of a sweep as one table."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullpaper.errors import InputError
from nullpaper.workflow.profiles import check_profile, default_profile

if TYPE_CHECKING:
    import pandas as pd

    from nullpaper.workflow.tables import Tidy

__all__ = ["report", "verdict_table"]


@dataclass(frozen=True)
class Asked:
    """What the options of ``nullpaper report SWEEP`` ask for."""

    folder: Path | None
    table: str | None
    where: tuple[str, ...]
    over: tuple[str, ...]
    by: tuple[str, ...]
    value: tuple[str, ...]
    pivot: tuple[str, str, str] | None
    compare: str | None
    commit: str | None
    sort: str | None
    csv: Path | None
    parquet: Path | None


@click.command()
@click.argument("sweep", required=False)
@click.option("--profile", metavar="NAME", help="Of the verdicts: whose tables to read; by default what fits.")
@click.option("--write", "file", type=click.Path(path_type=Path), help="Of the verdicts: put them into this file.")
@click.option("--folder", type=click.Path(path_type=Path), help="Of the sweeps; by default build/sweeps.")
@click.option("--table", metavar="NAME", help="Which table of the jobs, if they have several.")
@click.option("--where", multiple=True, metavar="CONDITION", help="Rows with NAME=A,B or != < <= > >=; repeatable.")
@click.option("--over", multiple=True, metavar="NAME", help="Mean and 95 % interval over it, such as seed; repeatable.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Columns of the table that identify a row; repeatable.")
@click.option("--value", multiple=True, metavar="COLUMN", help="Only these measured columns; repeatable.")
@click.option("--pivot", nargs=3, metavar="ROWS COLUMNS VALUE", help="A value by rows and columns.")
@click.option("--compare", metavar="OTHER", help="Minus another sweep: NAME, NAME@COMMIT or @COMMIT.")
@click.option("--commit", metavar="PREFIX", help="The sweep's run at this commit; by default its latest.")
@click.option("--sort", metavar="COLUMN", help="Sort rows by it; -COLUMN from large to small.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write the table to this file, with all digits.")
@click.option("--parquet", type=click.Path(path_type=Path), help="Write the table to this file.")
def report(sweep: str | None, profile: str | None, file: Path | None, **options: Any) -> None:
    """Say which claims of the papers hold, or show the results of a SWEEP.

    Without SWEEP, prints the verdicts by the tables of a profile as Markdown, and writes results/PROFILE/verdicts.csv
    with the criteria. With SWEEP, the name of a sweep or its grid file, prints one table over its jobs, or writes it.
    Nothing is run.

    \b
    nullpaper report eps --over seed --pivot eps method accuracy
    nullpaper report eps --where 'eps>=4/255' --compare @1a2b3c4 --over seed --csv difference.csv
    """
    asked = Asked(**options)
    if sweep is None:
        if any(options.values()):
            raise InputError("name the sweep that the options are for: nullpaper report SWEEP ...")
        _report_verdicts(profile, file)
    elif profile or file:
        raise InputError("--profile and --write are for the verdicts: leave them out, or name no sweep.")
    else:
        _report_sweep(sweep, asked)


def verdict_table(profile: str) -> str:
    """Judge all claims by the tables of a profile, store the verdicts beside them, and return the table."""
    from nullpaper.studies.claims import CLAIMS
    from nullpaper.studies.judging import judge, save, section
    from nullpaper.workflow.provenance import project_root

    folder = project_root() / "results" / profile
    verdicts = judge(folder, CLAIMS)
    save(verdicts, folder)
    return section(verdicts, folder)


def _report_verdicts(profile: str | None, file: Path | None) -> None:
    from nullpaper.studies.judging import replace_section

    chosen = check_profile(profile) if profile else default_profile()
    if file is not None:
        replace_section(file, None)
    text = verdict_table(chosen)
    if file is not None:
        replace_section(file, text)
    click.echo(text)


def _report_sweep(sweep: str, asked: Asked) -> None:
    from nullpaper.workflow.aggregate import pivot
    from nullpaper.workflow.columns import split_names

    for path in (asked.csv, asked.parquet):
        if path and path.is_dir():
            raise InputError(f"{path} is a folder: name a file in it.")
    frame, keys = _compared(sweep, asked) if asked.compare else _single(sweep, asked)
    if asked.pivot:
        rows, columns, value = asked.pivot
        value = f"{value}_difference" if asked.compare and value not in frame else value
        frame = pivot(frame, keys, rows, columns, value)
        keys = split_names(frame, rows, "--pivot")
    if asked.sort:
        frame = _sorted(frame, asked.sort)
    if not (asked.csv or asked.parquet):
        _show(frame, keys)
    _write(frame, asked)


def _single(name: str, asked: Asked) -> tuple[pd.DataFrame, list[str]]:
    """The table of one sweep, and the columns that identify a row."""
    from nullpaper.workflow.aggregate import left_out, over
    from nullpaper.workflow.collect import collect
    from nullpaper.workflow.columns import BOUNDS, check_columns, where
    from nullpaper.workflow.tables import choose_table, read_tables

    sweep = collect(_folder(asked), name, asked.commit)
    _note(sweep.unfinished())
    table = read_tables(sweep.jobs, choose_table(sweep.jobs, asked.table), sweep.given)
    _note(*table.notes)
    keys = [*table.parameters.values(), *_keys(table, asked)]
    frame = where(table.frame, asked.where, table.fixed)
    if asked.over:
        _check_over(table, asked)
        averaged = over(frame, keys, asked.over, asked.value or None)
        if not asked.value and (words := left_out(frame, averaged, asked.over)):
            _note(f"left out, since it differs between runs: {', '.join(words)}.")
        return averaged, [key for key in keys if key in averaged]
    if asked.value:
        check_columns(frame, asked.value, "--value")
        bounded = [f"{name}{end}" for name in asked.value for end in ("", *BOUNDS)]
        chosen = [*keys, *(name for name in bounded if name in frame), "job", "commit"]
        frame = frame[list(dict.fromkeys(chosen))]
    return frame, keys


def _compared(name: str, asked: Asked) -> tuple[pd.DataFrame, list[str]]:
    """The differences of two sweeps, or of a sweep at two commits, and the columns that identify a row."""
    from nullpaper.workflow.aggregate import differences, over
    from nullpaper.workflow.collect import collect
    from nullpaper.workflow.columns import measured_columns, where
    from nullpaper.workflow.tables import choose_table, read_tables

    other = f"{name.partition('@')[0]}{asked.compare}" if asked.compare.startswith("@") else asked.compare
    sweeps = [collect(_folder(asked), name, asked.commit), collect(_folder(asked), other)]
    _note(*(sweep.unfinished() for sweep in sweeps))
    jobs = [job for sweep in sweeps for job in sweep.jobs]
    table = read_tables(jobs, choose_table(jobs, asked.table), [name for sweep in sweeps for name in sweep.given])
    _note(*table.notes)
    within, between = table.varied_within(len(sweeps[0].jobs))
    keys = [*within, *_keys(table, asked)]
    sides = [where(side, asked.where, table.fixed) for side in table.split(len(sweeps[0].jobs))]
    if asked.over:
        _check_over(table, asked)
    values = list(asked.value) or measured_columns(table.frame, [*table.parameters.values(), *keys])
    if not asked.value:  # a count that is the same everywhere was not measured
        values = [name for name in values if table.frame[name].dtype.kind != "i" or table.frame[name].nunique() > 1]
    frame, *alone = differences(*sides, keys, values)
    titles = [f"'{sweep.name}' at {sweep.commit or 'an unknown commit'}" for sweep in sweeps]
    _note(f"differences are {titles[0]} minus {titles[1]}, {len(frame):,} pairs.", *between)
    for title, count in zip(titles, alone, strict=True):
        _note(f"{count:,} rows are only in {title}." if count else "")
    if asked.over:
        frame = over(frame, keys, asked.over, [column for column in frame if column not in keys])
        ends = [f"{value}_{side}_{end}" for value in values for side in ("first", "second") for end in ("low", "high")]
        frame = frame.drop(columns=ends)  # the interval that counts is that of the pairs
    return frame, [key for key in keys if key in frame]


def _folder(asked: Asked) -> Path:
    from nullpaper.workflow.collect import default_folder

    return asked.folder or default_folder()


def _keys(table: Tidy, asked: Asked) -> list[str]:
    from nullpaper.workflow.columns import check_columns, key_columns

    for name in asked.value:
        if name in table.parameters.values():
            raise InputError(f"--value: '{name}' is a parameter, and was not measured.")
    if not asked.by:
        return key_columns(table.frame, [name for name in table.columns if name not in asked.value])
    check_columns(table.frame, asked.by, "--by")
    return [name for name in asked.by if name not in table.parameters.values()]


def _check_over(table: Tidy, asked: Asked) -> None:
    from nullpaper.workflow.columns import check_columns

    check_columns(table.frame, [name for name in asked.over if name not in table.fixed], "--over", also=table.fixed)


def _sorted(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    from nullpaper.workflow.columns import check_columns

    down = column.startswith("-") and column not in frame
    name = column[1:] if down else column
    check_columns(frame, [name], "--sort")
    return frame.sort_values(name, ascending=not down, kind="stable")


def _show(frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Print a table with nothing cut off; on a terminal in parts that fit its width, each with the keys in front."""
    from nullpaper.workflow.listing import cells, lines, parts

    columns = cells(frame)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown = []
    for part in parts(columns, keys, width) if width else [columns]:
        head, rule, *rows = lines(part)
        shown.append("\n".join([click.style(head, bold=True) if width else head, rule, *rows]))
    click.echo("\n\n".join(shown))


def _write(frame: pd.DataFrame, asked: Asked) -> None:
    from nullpaper.files import write_atomic

    contents: dict[Path, bytes] = {}
    if asked.csv:
        contents[asked.csv] = frame.to_csv(index=False, lineterminator="\n").encode()
    if asked.parquet:
        binary = io.BytesIO()
        frame.to_parquet(binary, index=False)
        contents[asked.parquet] = binary.getvalue()
    for path, content in contents.items():
        write_atomic(path, content)
        _note(f"{path}: {len(frame):,} rows, {len(frame.columns)} columns.")


def _note(*sentences: str) -> None:
    for sentence in filter(None, sentences):
        click.echo(sentence, err=True)
