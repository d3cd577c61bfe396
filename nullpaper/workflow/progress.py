"""Notebooks as one watches them run: one line for all of them above a line for each kernel.

On a terminal the lines stay in place; elsewhere a line is printed whenever a notebook ends.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from nullpaper.errors import InputError

UNKNOWN = 60.0  # seconds expected of a notebook where none ever ran


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8.1 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def seconds(text: str) -> float:
    """``90s``, ``8m`` or ``1h30m`` in seconds.

    Raises:
        InputError: anything else, or no time at all.
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    hours, minutes, rest = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    if not (total := 3600 * hours + 60 * minutes + rest):
        raise InputError(f"'{text}' is no duration: write hours, minutes and seconds as in 90s, 8m or 1h30m")
    return float(total)


class Progress:
    """Of notebooks by name: which run, which have ended, and when all of them will have.

    Args:
        earlier: the seconds of an earlier run, as far as there was one.
        jobs: how many run at a time.
    """

    def __init__(self, earlier: Mapping[str, float | None], jobs: int) -> None:
        usual = fmean([seconds for seconds in earlier.values() if seconds] or [UNKNOWN])
        self.expected = {name: seconds or usual for name, seconds in earlier.items()}
        self.jobs = jobs
        self.begun: dict[str, float] = {}
        self.heard: dict[str, str] = {}
        self.ended: dict[str, float] = {}
        self.console = Console(stderr=True)

    def shown(self) -> Live:
        """A context that shows the lines on stderr, if that is a terminal."""
        return Live(console=self.console, get_renderable=self._drawing, refresh_per_second=2, transient=True)

    def say(self, sentence: str) -> None:
        """Print a line above the others."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str) -> None:
        """A kernel begins this notebook."""
        self.heard[name], self.begun[name] = "", time.time()

    def hear(self, name: str, text: str) -> None:
        """Keep the last line of news; a progress bar returns to its start by a carriage return."""
        if lines := text.replace("\r", "\n").strip("\n\x1b[A ").splitlines():
            self.heard[name] = lines[-1]

    def end(self, name: str, seconds: float, sentence: str) -> None:
        """Enter the end of a notebook, also of one that did not have to run (0 seconds), and print the sentence."""
        self.begun.pop(name, None)
        self.ended[name] = seconds
        self.say(f"{sentence} ({self.overall()})")

    def overall(self) -> str:
        """``3 of 13, 18 min left``: by the earlier runs, in the proportion that today's have had to them."""
        timed = [name for name, seconds in self.ended.items() if seconds]
        pace = sum(self.ended[name] for name in timed) / sum(self.expected[name] for name in timed) if timed else 1.0
        now, begun = time.time(), self.begun.copy()
        rests = [
            max(0.0, pace * seconds - (now - begun.get(name, now)))
            for name, seconds in self.expected.items()
            if name not in self.ended
        ]
        left = max(sum(rests) / self.jobs, *rests, 0.0) if rests else 0.0
        return f"{len(self.ended)} of {len(self.expected)}" + f", {duration(left)} left" * (left > 0)

    def lines(self) -> list[str]:
        """The overall line, and one for each kernel."""
        kernels = [(name, duration(time.time() - begun)) for name, begun in self.begun.copy().items()]
        return [self.overall(), *(f"  {name:<26}  {took:>12}  {self.heard[name]}" for name, took in kernels)]

    def _drawing(self) -> Group:
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in self.lines()))
