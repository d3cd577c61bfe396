"""Notebooks as one watches them run: one line for all of them above a line for each kernel.

On a terminal the lines stay in place; elsewhere a line is printed whenever a notebook ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = 60.0  # seconds expected of a notebook that never ran


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8.1 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


@dataclass
class Kernel:
    """A notebook under way: when it began, how far it is, and the last line of what it writes to stderr."""

    begun: float
    cell: int = 0
    said: str = ""


@dataclass
class Progress:
    """Of the notebooks in ``expected``, which has the seconds of an earlier run by name, as far as there was one."""

    expected: Mapping[str, float | None]
    jobs: int
    running: dict[str, Kernel] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    console: Any = None

    def begin(self, name: str) -> None:
        self.running[name] = Kernel(time.time())

    def cell(self, name: str, index: int) -> None:
        self.running[name].cell = index + 1

    def say(self, sentence: str) -> None:
        """Print a line above the others."""
        if self.console is not None:
            self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def said(self, name: str, text: str) -> None:
        """Keep the last line; a progress bar returns to its start by a carriage return."""
        if lines := text.replace("\r", "\n").strip("\n\x1b[A ").splitlines():
            self.running[name].said = lines[-1]

    def end(self, name: str, seconds: float, outcome: str) -> None:
        """Enter the end of a notebook, also of one that did not have to run (0 seconds), and print its line."""
        self.running.pop(name, None)
        self.ended[name] = seconds
        self.say(f"{name}: {outcome} ({self.overall()})")

    def overall(self) -> str:
        """``3 of 13, 18 min left``."""
        left = self.left()
        told = "" if not left else f", {max(1, round(left / 60))} min left" if left >= 45 else f", {left:.0f} s left"
        return f"{len(self.ended)} of {len(self.expected)}{told}"

    def left(self) -> float:
        """Seconds until the end: those of the earlier runs, in the proportion that today's have had to them."""
        known = [seconds for seconds in self.expected.values() if seconds]
        usual = sum(known) / len(known) if known else UNKNOWN
        expected = {name: seconds or usual for name, seconds in self.expected.items()}
        timed = {name: seconds for name, seconds in self.ended.items() if seconds}
        pace = sum(timed.values()) / sum(expected[name] for name in timed) if timed else 1.0
        now = time.time()
        begun = {name: kernel.begun for name, kernel in list(self.running.items())}
        open_ends = [
            max(0.0, pace * seconds - (now - begun.get(name, now)))
            for name, seconds in expected.items()
            if name not in self.ended
        ]
        return max(sum(open_ends) / self.jobs, *open_ends, 0.0) if open_ends else 0.0

    def lines(self) -> list[str]:
        """The overall line, and one for each kernel."""
        kernels = list(self.running.items())
        width = max((len(name) for name, _ in kernels), default=0)
        return [self.overall()] + [
            f"  {name:<{width}}  cell {kernel.cell:>2}  {duration(time.time() - kernel.begun):>12}  "
            f"{kernel.said}".rstrip()
            for name, kernel in kernels
        ]

    @contextlib.contextmanager
    def shown(self, really: bool = True) -> Iterator[None]:
        """Show the lines on stderr while the block runs, if ``really``."""
        if not really:
            yield
            return
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        def drawing() -> Group:
            return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in self.lines()))

        self.console = Console(stderr=True)
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=drawing, console=self.console, refresh_per_second=2, transient=True):
            yield
