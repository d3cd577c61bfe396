"""The command ``nullpaper``: run notebooks, make the whole paper, report, fetch data, show a figure's origin."""

from __future__ import annotations

import sys
from typing import Any

import click

from nullpaper import __version__
from nullpaper.cli_provenance import show, verify
from nullpaper.cli_report import report, verdict_table
from nullpaper.cli_sweep import sweep
from nullpaper.errors import InputError
from nullpaper.workflow.profiles import PROFILES, check_profile, default_profile

__all__ = ["main"]


class OneSentence(click.Group):
    """A command group that shows an `InputError` as one sentence on stderr and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            shown = click.ClickException(str(error))
            shown.exit_code = 2
            raise shown from error


def _run_options(command: Any) -> Any:
    options = (
        click.option("--profile", metavar="NAME", help=f"{', '.join(PROFILES)}; by default what fits the machine."),
        click.option("--force", is_flag=True, help="Compute everything anew, stored results too."),
        click.option("--redraw", is_flag=True, help="Execute again, but reuse stored results."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nullpaper")
def main() -> None:
    """An executable paper on the nullspace of Vision Transformers.

    Notebooks are sources under notebooks/; executed ones and their HTML appear under build/PROFILE/, figures under
    figures/PROFILE/, tables under results/PROFILE/.
    """


@main.command()
@click.argument("notebook")
@click.option("-p", "given", nargs=2, multiple=True, metavar="KEY VALUE", help="Set a parameter; may be repeated.")
@click.option("--label", metavar="NAME", help="Write to figures/NAME and results/NAME instead of the profile's.")
@click.option("--parameters", "listing", is_flag=True, help="List the notebook's parameters, and run nothing.")
@_run_options
def run(
    notebook: str,
    given: tuple[tuple[str, str], ...],
    label: str | None,
    listing: bool,
    profile: str | None,
    force: bool,
    redraw: bool,
) -> None:
    """Run one NOTEBOOK, a path or a name such as 01_existence.

    An equal run that is finished is not repeated. Exits with 1 if the notebook fails.
    """
    from nullpaper.workflow.grid import notebook_path
    from nullpaper.workflow.parameters import parameters
    from nullpaper.workflow.runs import run_notebook, summary

    path = notebook_path(notebook)
    if listing:
        for known in parameters(path).values():
            click.echo(f"{known.name}: {known.type} = {known.default!r}" + (f"  # {known.help}" if known.help else ""))
        return
    values = dict(given)
    chosen = profile or values.get("profile") or default_profile()
    report = run_notebook(path, values, profile=chosen, label=label, force=force, redraw=redraw, say=_say)
    click.echo(summary([report]))
    sys.exit(1 if report.error else 0)


@main.command()
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Notebooks at a time; by default one a core on a CPU, up to 4."
)
@click.option("--stale", is_flag=True, help="Only notebooks with figures or tables that `nullpaper verify` names.")
@_run_options
def paper(jobs: int | None, stale: bool, profile: str | None, force: bool, redraw: bool) -> None:
    """Run all numbered notebooks and say what was made.

    What is up to date is skipped. Exits with 1 if a notebook fails; the others still run.
    """
    from nullpaper.workflow.runs import paper as run_all
    from nullpaper.workflow.runs import summary

    chosen = check_profile(profile) if profile else default_profile()
    reports = run_all(chosen, force=force, redraw=redraw, stale=stale, jobs=jobs, say=_say)
    if not reports:
        return click.echo(f"all figures and tables at profile {chosen} are as they would be made today")
    click.echo(f"\n{summary(reports)}")
    if any(report.tables for report in reports):
        verdict_table(chosen)
        click.echo(f"Claims of the papers against these tables: results/{chosen}/verdicts.csv")
    sys.exit(1 if any(report.error for report in reports) else 0)


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


@main.command()
def doctor() -> None:
    """Say what this machine has, and what needs a remedy."""
    from nullpaper.workflow.doctor import diagnose

    for well, subject, found in diagnose():
        click.echo(f"{'ok  ' if well else 'LOOK'} {subject:<12} {found}")


main.add_command(report)
main.add_command(show)
main.add_command(sweep)
main.add_command(verify)


def _say(message: str) -> None:
    click.echo(message, err=True)
