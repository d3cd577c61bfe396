"""The command ``nullpaper book``: executed notebooks and the verdicts as a static site."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["book"]


@click.command()
@click.option("--profile", metavar="NAME", help="Whose runs to show; by default what fits the machine.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the site, replaced whole; by default build/book."
)
@click.option("--stale", is_flag=True, hidden=True, help="Show runs that are out of date too.")
def book(profile: str | None, out: Path | None, stale: bool) -> None:
    """Build the book from the executed notebooks of a profile.

    A static site with search that needs no network. Run `nullpaper paper` first; nothing is executed here.
    """
    from nullpaper.workflow.book import build_book
    from nullpaper.workflow.profiles import check_profile, default_profile

    site = build_book(check_profile(profile) if profile else default_profile(), out, stale=stale)
    click.echo(f"the book is {site / 'index.html'}: open it in a browser")
