"""The command: ``python -m benchmarks``, or ``make bench``."""

from __future__ import annotations

import json
import platform
import re
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from benchmarks import rows  # noqa: F401
from benchmarks.measure import ROOT, ROWS, Row, Setup, Skip, measure

PACKAGES = {
    "adv-lib",
    "daqp",
    "foolbox",
    "imagecorruptions-imaug",
    "papermill",
    "peft",
    "pyautoattack",
    "timm",
    "torchattacks",
}
FORM = "{:<44} {:<26} {:>17}  {:<21} {:<19} {:>6}  {}"


def machine(setup: Setup) -> dict[str, Any]:
    """What numbers of another day or machine are to be compared with."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    card = {"card": torch.cuda.get_device_name(setup.device)} if setup.device.type == "cuda" else {}
    facts = {"processor": names[0] if names else platform.processor(), **card, "torch": torch.__version__}
    facts |= {"threads": torch.get_num_threads(), "clock": setup.clock}
    return facts | {"Gflop/s": round(setup.flops / 1e9, 1), "GB/s": round(setup.bandwidth / 1e9, 1)}


def text(row: Row, result: dict[str, Any]) -> str:
    """A line of the table; a median stands before the least and the greatest of the pairs."""
    bound = f"{row.goal:.0%} of limit" if row.of == "share" else f"{row.goal}"
    goal = "" if row.goal is None else f"{'>=' if row.at_least else '<='} {bound}"
    if "value" not in result:
        return FORM.format(row.work, row.reference, "", "", goal, "", *result.values())
    ours, spread = f"{result['value']:.3g} {row.unit}", f"[{result['low']:.3g}, {result['high']:.3g}]"
    ratio = f"{result['ratio']:.3g} {spread}" if row.reference else spread
    goal += {True: " met", False: " missed", None: ""}[result.get("met")]
    share = f"{result['share']:.1%}" if result["share"] else ""
    return FORM.format(row.work, row.reference, ours, ratio, goal, share, result["note"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, metavar="WORDS", help="Rows in whose name or reference WORDS stand; repeatable.")
@click.option("--list", "listing", is_flag=True, help="Name the rows, and about how long each takes.")
@click.option("--quick", is_flag=True, help="One pair, without a warm-up: does everything run?")
@click.option("--pairs", type=click.IntRange(min=1), default=5, show_default=True, help="Measurements of each side.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--json", "path", type=Path, default=ROOT / "build" / "bench.json", help="build/bench.json by default.")
def main(only: tuple[str, ...], listing: bool, quick: bool, pairs: int, device: str, path: Path) -> None:
    """Print one table of speed, ours beside what a reader would use otherwise, and write it as JSON.

    Both sides alternate in one process. A ratio is the median over the pairs, with the least and the greatest; time is
    the CPU's where one thread computes (OMP_NUM_THREADS=1), else the wall's. "limit" is the share of what the measured
    rate of products of matrices, or the bandwidth, allows. Exits with 1 if a row failed; a missed goal fails nothing.
    """
    chosen = [row for row in ROWS if any(part.lower() in f"{row.work} {row.reference}".lower() for part in only)]
    if only and not chosen:
        raise click.BadParameter("no row has these words; --list names them.", param_hint="--only")
    if listing:
        lines = (f"{row.seconds:>6.0f} s  {row.work:<44} {row.reference}" for row in chosen or ROWS)
        return click.echo("\n".join(lines))
    chosen = chosen or [row for row in ROWS if not row.on_request]
    setup, pairs, failed = Setup(torch.device(device)), 1 if quick else pairs, False
    installed = {one.name.lower(): one.version for one in metadata.distributions() if one.name.lower() in PACKAGES}
    report = {"machine": machine(setup), "pairs": pairs, "packages": installed, "rows": []}
    click.echo(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    click.echo(FORM.format("work", "reference", "ours", "ours / reference", "goal", "limit", ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "{desc} {percentage:.0f} %, {remaining} left"
    with tqdm(total=sum(row.seconds for row in chosen), bar_format=form, leave=False) as bar:
        for row in chosen:
            bar.set_description_str(row.work)
            try:
                result = measure(row, setup, pairs)
            except Skip as reason:
                result = {"skipped": f"skipped, {reason}"}
            except Exception as error:  # the others still run
                failed, result = True, {"failed": f"failed: {error!r}"}
                traceback.print_exc()
            bar.write(text(row, result).rstrip(), file=sys.stdout)
            bar.update(row.seconds)
            report["rows"].append({name: value for name, value in vars(row).items() if name != "make"} | result)
            path.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
