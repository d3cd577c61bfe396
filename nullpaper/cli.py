"""The command ``nullpaper``: run notebooks, make the paper, run sweeps, verify, and say where a figure is from."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullpaper import __version__
from nullpaper.errors import InputError

if TYPE_CHECKING:
    from nullpaper.workflow.runs import RunReport

INTERRUPTED = "Interrupted: finished runs and every stored result are kept; the same command goes on from here."
PROFILE = click.option(
    "--profile", metavar="NAME", help="smoke, cpu, gpu, imagenet or reference; by default what fits the machine."
)
FORCE = click.option("--force", is_flag=True, help="Compute everything anew, stored results too.")
JOBS = click.option(
    "--jobs", type=click.IntRange(min=1), help="Notebooks at a time; by default one a core on a CPU, up to 4."
)

FILE = click.Path(path_type=Path)
PEM = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)


class OneSentence(click.Group):
    """Shows an `InputError` as one sentence on stderr and exits with 2; an interrupt ends with a sentence and 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            sentence = click.ClickException(str(error))
            sentence.exit_code = 2
            raise sentence from error
        except KeyboardInterrupt:
            click.echo(INTERRUPTED, err=True)
            sys.stdout.flush()
            os._exit(130)  # nothing is left to wait for, and no thread may hold the end up


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nullpaper")
def main() -> None:
    """An executable paper on the nullspace of Vision Transformers.

    Notebooks are sources under notebooks/. What a run makes, executed notebooks, pages, figures and tables, appears
    under build/PROFILE/; figures/ and results/ hold the reference.
    """


@main.command()
@click.argument("notebook")
@click.option("-p", "given", nargs=2, multiple=True, metavar="KEY VALUE", help="Set a parameter; may be repeated.")
@click.option("--label", metavar="NAME", help="Write to build/NAME.")
@click.option("--parameters", "listing", is_flag=True, help="List the notebook's parameters, and run nothing.")
@PROFILE
@FORCE
def run(
    notebook: str,
    given: tuple[tuple[str, str], ...],
    label: str | None,
    listing: bool,
    profile: str | None,
    force: bool,
) -> None:
    """Run one NOTEBOOK, a path or a name such as 01_existence.

    With other parameters than the profile's it writes to a folder named after them. An equal run that is finished is
    not repeated. Exits with 1 if the notebook fails.
    """
    from nullpaper.workflow.parameters import parameters, profile_parameters
    from nullpaper.workflow.plan import notebook_path
    from nullpaper.workflow.runs import run_notebook

    path, profile = notebook_path(notebook), _profile(profile)
    if not listing:
        return _end([run_notebook(path, dict(given), profile=profile, label=label, force=force)])
    values = profile_parameters(path, profile)
    for parameter in parameters(path).values():
        value = values.get(parameter.name, parameter.default)
        click.echo(f"{parameter.name}: {parameter.type} = {value!r}" + f"  # {parameter.help}" * bool(parameter.help))


@main.command()
@JOBS
@PROFILE
@FORCE
def paper(jobs: int | None, profile: str | None, force: bool) -> None:
    """Run all numbered notebooks, say what was made, and hold it against the reference.

    What is up to date is skipped. Exits with 1 if a notebook fails; the others still run.
    """
    from nullpaper.workflow.agreement import agreement
    from nullpaper.workflow.provenance import project_root
    from nullpaper.workflow.runs import paper as run_all
    from nullpaper.workflow.runs import summary

    profile, build = _profile(profile), project_root() / "build"
    reports = run_all(profile, force=force, jobs=jobs)
    sentences = [summary(reports)]
    if (build / "book" / "index.html").is_file():
        sentences.append("The book: build/book/index.html (make book builds it anew).")
    if profile != "smoke":  # its numbers are not meant to be the paper's
        sentences.append(f"{agreement(build / profile)}")
    _end(reports, sentences)


@main.command()
@click.argument("notebooks", nargs=-1)
@JOBS
@FORCE
def figures(notebooks: Sequence[str], jobs: int | None, force: bool) -> None:
    """Bring figures/ and results/ up to date: run what is stale or missing at the profile reference, and no others.

    With NOTEBOOKS, those. Exits with 1 if a notebook fails, whose figures and tables then stay as they were.
    """
    from nullpaper.workflow.plan import notebook_path
    from nullpaper.workflow.reference import promote
    from nullpaper.workflow.runs import paper as run_all
    from nullpaper.workflow.verify import to_redraw

    paths = [notebook_path(name) for name in notebooks] or to_redraw()
    if not paths:
        return click.echo("All figures and tables are as they would be made today.")
    reports = run_all("reference", notebooks=paths, force=force, jobs=jobs)
    for report in reports:
        if report.error is None:
            promote(report.out, report.notebook.stem)
    _end(reports)


@main.command()
def verify() -> None:
    """Name the figures and tables of the reference that were edited, are missing, or are stale against the code.

    Exits with 1 if there are any.
    """
    from nullpaper.workflow.provenance import project_root
    from nullpaper.workflow.verify import verify as look

    findings = look(project_root())
    for finding in findings:
        click.echo(f"{finding.word:<8} {finding.path}: {finding.reason}")
    remedies = dict.fromkeys(finding.remedy for finding in findings if finding.remedy)
    lines = ["", "To mend this:", *(f"  {remedy}" for remedy in remedies)] if findings else ["All is well."]
    click.echo("\n".join(lines))
    sys.exit(1 if findings else 0)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the facts by file.")
def show(files: Sequence[Path], as_json: bool) -> None:
    """Say which run, parameters, device, data and weights a FILE comes from.

    A figure (PNG, PDF) and a LaTeX table tell it themselves, wherever they are; a CSV table, an executed notebook, its
    page and a folder of runs are looked up in the manifest beside them.
    """
    facts = {str(file): _facts(file) for file in files}
    if as_json:
        return click.echo(json.dumps(facts, indent=1))
    for file, known in facts.items():
        click.echo("\n".join([file] * (len(facts) > 1) + _told(known)))


def _facts(path: Path) -> Mapping[str, Any]:
    from nullpaper.workflow.figures import read_stamp
    from nullpaper.workflow.reference import read_manifest

    if not path.is_dir() and path.suffix not in (".ipynb", ".html"):
        return read_stamp(path)
    manifest = read_manifest(path if path.is_dir() else path.parent)
    known = manifest if path.is_dir() else manifest.get(path.stem.removesuffix(".failed"), {})
    if not known or not path.exists():
        raise InputError(f"there is no finished run {path}: name what `nullpaper run` or `nullpaper sweep` has made")
    return known


def _told(facts: Mapping[str, Any], indent: int = 0) -> list[str]:
    """One fact a line, what a mapping holds below it."""
    lines = []
    for name, value in facts.items():
        deeper = _told(value, indent + 2) if isinstance(value, Mapping) else []
        lines += [f"{'':{indent}}{name:<13} {'' if deeper else value}".rstrip(), *deeper]
    return lines


@main.command()
@click.argument("grid", type=FILE)
@PROFILE
@click.option("--dry-run", is_flag=True, help="List the jobs and which are finished, and run nothing.")
@click.option("--folder", type=FILE, help="For the results; build/sweeps/GRID by default.")
@click.option("--retries", type=click.IntRange(min=0), default=1, show_default=True, help="New attempts at a failure.")
@click.option("--workers", type=COUNT, help="Jobs at a time on this machine; by default as many as threads allow.")
@click.option("--threads", type=COUNT, help="CPU threads a job; 1 by default, with GPUs an even share of the cores.")
@click.option("--gpus", metavar="0,1", help="GPUs to use; all by default, none with ''.")
@click.option("--per-gpu", type=COUNT, default=1, show_default=True, help="Jobs at a time on each GPU.")
@click.option("--scheduler", metavar="ADDRESS", help="Dask's: tcp://host:port, tls://host:port or its file (JSON).")
@click.option("--tls-ca", type=PEM, help="Certificate of the authority that signed the cluster's (PEM).")
@click.option("--tls-cert", type=PEM, help="Certificate of this client (PEM).")
@click.option("--tls-key", type=PEM, help="Its key (PEM).")
@click.option("--insecure", is_flag=True, help="Use a scheduler on another machine without TLS.")
def sweep(grid: Path, profile: str | None, dry_run: bool, folder: Path | None, retries: int, **place: Any) -> None:
    """Run the jobs of a GRID file: papermill runs of one notebook on Dask's workers, here or on a cluster.

    What is finished is not repeated, so the same command goes on after an interruption, and two of them share the work.
    A failed job keeps its notebook and stops no other. Exits with 1 if a job failed.
    """
    from nullpaper.workflow.sweep import plan_sweep, run_sweep
    from nullpaper.workflow.workers import chosen_gpus, local_workers, scheduler_workers, share

    gpus = [] if dry_run or place["scheduler"] else chosen_gpus(place["gpus"])
    count, threads = share(place["workers"], place["threads"], gpus, place["per_gpu"])
    planned = plan_sweep(grid, profile=profile, folder=folder, threads=threads)
    if dry_run:
        click.echo("\n".join(planned.lines()))
        return click.echo(f"{len(planned.jobs)} jobs, {len(planned.finished)} of them finished", err=True)
    tls = tuple(place[f"tls_{part}"] for part in ("ca", "cert", "key"))
    where = (
        scheduler_workers(place["scheduler"], tls=tls, insecure=place["insecure"])
        if place["scheduler"]
        else local_workers(min(count, len(planned.jobs)), gpus)
    )
    with where as client:
        _say(f"{len(planned.jobs)} jobs at profile {planned.profile}; dashboard: {client.dashboard_link or 'none'}")
        report = run_sweep(planned, client, retries=retries)
    click.echo(str(report))
    sys.exit(1 if report.failed else 0)


@main.command()
@click.argument("sweep")
@click.option("--table", metavar="NAME", help="Which table of the jobs, if they have several.")
@click.option("--over", metavar="PARAMETER", help="Print mean and 95 % interval over it, such as seed.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Columns that tell the rows of a job apart; repeatable.")
def report(sweep: str, table: str | None, over: str | None, by: tuple[str, ...]) -> None:
    """Make one tidy table of the jobs of a SWEEP: a name, a grid file or a folder. Nothing is run.

    Writes it as Parquet and CSV beside the jobs, for pandas: notebook 13 shows how to pivot, filter and plot it.
    """
    from nullpaper.workflow.tables import collect, mean_over, sweep_folder, text, write

    folder = sweep_folder(sweep)
    frame = collect(folder, table)
    if unfinished := frame.attrs["unfinished"]:
        _say(f"{unfinished} jobs of {folder} are not finished; nullpaper sweep goes on with them")
    click.echo(text(mean_over(frame, over, by or None) if over else frame))
    for path in write(frame, folder / frame.attrs["table"]):
        _say(f"{path}: {len(frame):,} rows")


@main.group()
def data() -> None:
    """Fetch data sets into the cache (NULLPAPER_HOME)."""


@data.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Fetch again even if it is there.")
def fetch(name: str, force: bool) -> None:
    """Fetch the data set NAME, unless it is in the cache."""
    from nullpaper.data.fetch import fetch as fetch_data

    click.echo(f"{name} is in {fetch_data(name, force=force, progress=True)}")


@data.command(name="list")
def list_data() -> None:
    """List the known data sets and which are in the cache."""
    from nullpaper.data.fetch import DATASETS, folder_of

    for name, dataset in DATASETS.items():
        folder = folder_of(name)
        where = str(folder) if folder.is_dir() else f"not fetched (needs {dataset.megabytes} MB)"
        click.echo(f"{name:<12} {len(dataset.classes):>4} classes  {where}")


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _profile(name: str | None) -> str:
    from nullpaper.workflow.parameters import check_profile, default_profile

    return check_profile(name) if name else default_profile()


def _end(reports: Sequence[RunReport], sentences: Sequence[str] = ()) -> None:
    """Print what was made, or the ``sentences`` that say it; exit with 1 if something failed."""
    from nullpaper.workflow.runs import summary

    click.echo("\n".join(sentences or [summary(reports)]))
    sys.exit(1 if any(report.error for report in reports) else 0)
