"""The command ``nullpaper``: run notebooks, make the paper, run sweeps, verify, and say where a figure is from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nullpaper.errors import InputError

if TYPE_CHECKING:
    from nullpaper.workflow.runs import RunReport

INTERRUPTED = "Interrupted: finished runs and every stored result are kept; the same command goes on from here."
PROFILES = "smoke, cpu, gpu, imagenet, photographs or reference; by default what fits the machine."
PROFILE = click.option("--profile", metavar="NAME", help=PROFILES)
GIVEN = click.option("-p", "given", nargs=2, multiple=True, metavar="KEY VALUE", help="Set a parameter; repeatable.")
Given = tuple[tuple[str, str], ...]
FORCE = click.option("--force", is_flag=True, help="Compute everything anew, stored results too.")
FILE = click.Path(path_type=Path)
PEM = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)


class BadInput(click.ClickException):
    exit_code = 2


class OneSentence(click.Group):
    """Shows an `InputError` as one sentence on stderr and exits with 2; an interrupt ends with a sentence and 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise BadInput(str(error)) from error
        except KeyboardInterrupt:
            click.echo(INTERRUPTED, err=True)
            sys.stdout.flush()
            os._exit(130)  # nothing is left to wait for, and no thread may hold the end up


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nullpaper")
def main() -> None:
    """An executable paper on the nullspace of Vision Transformers.

    Notebooks are sources under notebooks/. What a run makes, executed notebooks, pages, figures and tables, appears
    under build/PROFILE/; figures/ and results/ hold the reference.
    """


@main.command()
@click.argument("notebook")
@GIVEN
@click.option("--label", metavar="NAME", help="Write to build/NAME.")
@click.option("--parameters", "listing", is_flag=True, help="List the notebook's parameters, and run nothing.")
@click.option("--dry-run", is_flag=True, help="Say what it reads and would cost, and run nothing.")
@PROFILE
@FORCE
def run(notebook: str, given: Given, label: str | None, profile: str | None, **how: bool) -> None:
    """Run one NOTEBOOK, a path or a name such as 01_existence.

    With other parameters than the profile's it writes to a folder named after them. An equal run that is finished is
    not repeated. Exits with 1 if the notebook fails.
    """
    from nullpaper.workflow import preview
    from nullpaper.workflow.plan import notebook_path, plan_run
    from nullpaper.workflow.runs import run_notebooks

    path, profile = notebook_path(notebook), _profile(profile)
    if how["listing"]:
        return click.echo("\n".join(preview.listed(path, profile)))
    if not how["dry_run"]:
        _end(run_notebooks([path], dict(given), profile=profile, label=label, force=how["force"]))
    ahead = plan_run(path, dict(given), profile=profile, label=label)
    click.echo("\n".join(preview.facts(ahead)))
    if (names := preview.planned(ahead)) is not None:
        from nullpaper.studies.estimates import estimate

        click.echo(f"\n{estimate(names['plan'], names['workers'])}")


@main.command()
@click.option("--jobs", type=COUNT, help="Notebooks at a time; by default one a core on a CPU, up to 4.")
@click.option("--budget", metavar="TIME", help="Stop after so long: 90s, 8m, 1h30m. A later call goes on.")
@GIVEN
@PROFILE
@FORCE
def paper(jobs: int | None, budget: str | None, given: Given, profile: str | None, force: bool) -> None:
    """Run all numbered notebooks, say what was made, and hold it against the reference.

    Those are the notebooks that have part in the profile; -p weights FILE and -p root FOLDER are for photographs.
    What is up to date is skipped. Exits with 1 if a notebook fails; the others still run. Within a budget the shortest
    notebooks come first, the one that it stops keeps its finished trials, and the exit status is 3 if any is left.
    """
    from nullpaper.workflow.agreement import agreement
    from nullpaper.workflow.plan import paper_notebooks
    from nullpaper.workflow.progress import seconds
    from nullpaper.workflow.runs import run_notebooks

    profile, limit = _profile(profile), budget and seconds(budget)
    notebooks = paper_notebooks(profile)
    reports = run_notebooks(notebooks, dict(given), profile=profile, force=force, jobs=jobs, budget=limit or None)
    if left := [path.stem for path in notebooks if path not in [report.notebook for report in reports]]:
        again = "the same command" + " without --force" * force
        _end(reports, f"Out of time after {budget}, left are {', '.join(left)}; {again} goes on from here.", status=3)
    # the numbers of smoke are not meant to be the paper's
    numbers = "" if profile == "smoke" else f"{agreement(reports[0].out, profile)}\n"
    _end(reports, f"{numbers}`make book PROFILE={profile}` makes a book of these runs: build/book/index.html")


@main.command()
@click.argument("notebooks", nargs=-1)
@click.option("--profile", metavar="NAME", default="reference", help="reference, or photographs, which needs -p root.")
@GIVEN
def figures(notebooks: Sequence[str], profile: str, given: Given) -> None:
    """Bring figures/ and results/ up to date: run what is stale or missing at the profile reference, and no others.

    The verdicts of all notebooks are collected into results/verdicts.csv; their pages take today's text.

    With NOTEBOOKS, those. With --profile photographs, figures/photographs and results/photographs. Exits with 1 if a
    notebook fails, whose figures and tables then stay as they were.
    """
    from nullpaper.workflow.plan import notebook_path
    from nullpaper.workflow.reference import promote, write_verdicts
    from nullpaper.workflow.runs import run_notebooks
    from nullpaper.workflow.verify import check_reference, left_to_readers, to_redraw, write_pages

    check_reference(profile, dict(given))
    paths = [notebook_path(name) for name in notebooks] or to_redraw(profile)
    if others := not notebooks and profile == "reference" and left_to_readers():
        _say(others)
    write_verdicts()
    write_pages()
    if not paths:
        return click.echo(f"All {'other ' * bool(others)}figures and tables are as they would be made today.")
    reports = run_notebooks(paths, dict(given), profile=profile)
    for report in reports:
        if report.error is None:
            promote(report.out, report.notebook.stem)
    _end(reports)


@main.command()
@click.option("--adopt", "kept", metavar="NAME", help="A notebook whose figures and tables today's code would make.")
@click.option("--note", default="", metavar="SENTENCE", help="Where they are from, and how that was shown.")
@click.option("--profile", metavar="NAME", default="reference", help="Whose to adopt: reference or photographs.")
def verify(kept: str | None, note: str, profile: str) -> None:
    """Name what of the reference was edited, is missing, or is stale: figures, tables, pages of notebooks.

    Exits with 1 if there are any. After a change that alters no number, --adopt says so of a notebook that takes hours.
    """
    from nullpaper.workflow.verify import adopt, left_to_readers
    from nullpaper.workflow.verify import verify as look

    if kept:
        adopt(kept, note, profile)
    findings = look()
    for finding in findings:
        click.echo(f"{finding.word:<8} {finding.path}: {finding.reason}")
    click.echo(
        "\n`git checkout FILE` brings a file back; `make figures` runs what is stale again, and no other notebook."
        if findings
        else "All is well."
    )
    if any(finding.profile == "photographs" for finding in findings):
        click.echo(left_to_readers())
    sys.exit(1 if findings else 0)


@main.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
def show(files: Sequence[Path]) -> None:
    """Say which run, parameters, device, data and weights a FILE comes from.

    What a run has made is looked up in the manifest beside it; a figure (PNG, PDF) that was taken elsewhere tells it
    itself.
    """
    from nullpaper.workflow.figures import read_stamp
    from nullpaper.workflow.reference import entry_of, told

    for file in files:
        click.echo("\n".join([f"{file}", *told(entry_of(file) or read_stamp(file))]))


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
        else local_workers(min(count, len(planned.jobs)), gpus, deaths=max(3, retries))
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
    """Fetch the data set NAME (cifar10, cifar100, imagenette), unless it is in the cache."""
    from nullpaper.data.fetch import fetch as fetch_data

    click.echo(f"{name} is in {fetch_data(name, force=force)}")


@main.group()
def store() -> None:
    """Carry stored results and runs from one machine to another."""


@store.command()
@click.argument("file", type=FILE)
@click.option("--light", is_flag=True, help="Without weights, of which tables and figures need few or none.")
@PROFILE
def pack(file: Path, light: bool, profile: str | None) -> None:
    """Write FILE (a .tar.gz): every stored result, and the finished runs of one profile."""
    from nullpaper.workflow.archive import pack as write

    profile = _profile(profile)
    counts = write(file, profile, 2**20 if light else None)
    click.echo(f"{file} holds {counts['results']} stored results and {counts['runs']} runs of profile {profile}.")


@store.command()
@click.argument("file", type=FILE)
def unpack(file: Path) -> None:
    """Put the results and runs of a packed FILE into build/, where they are missing, for later runs to use.

    All checksums are verified first. What is there already is never replaced.
    """
    from nullpaper.workflow.archive import unpack as read

    counts = read(file)
    sentence = f"{counts['new']} results and runs are new, {counts['there']} were there already."
    if counts["different"]:
        sentence += f" {counts['different']} differ from those here, which stay: delete these to take the others."
    click.echo(sentence)


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _profile(name: str | None) -> str:
    from nullpaper.workflow.parameters import check_profile, default_profile

    return check_profile(name) if name else default_profile()


def _end(reports: Sequence[RunReport], sentence: str = "", status: int = 0) -> NoReturn:
    """Say how many ran, and the ``sentence``; exit with 1 if something failed, else with ``status``."""
    failed = sum(report.error is not None for report in reports)
    click.echo(f"{len(reports)} notebook{'s' * (len(reports) != 1)}, {failed} failed.")
    if sentence:
        click.echo(sentence)
    sys.exit(1 if failed else status)
