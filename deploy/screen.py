"""What a person sees of a run, on stderr: lines that stay, and (on a terminal) a live table."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LINE_EVERY_S = 5.0
_RECENT = 8


@dataclass(slots=True)
class View:
    """What the live table shows. counts: entries so far per stage, of `total`."""

    title: str
    total: int
    counts: Mapping[str, int] = field(default_factory=dict)
    close: str = ""
    time: str = ""
    score: float | None = None
    side: str = ""
    invalid: str = ""


class Screen:
    """Lines for people; a live view between `open` and `close`, where stderr is a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._console = Console(file=out or sys.stderr, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._next_line = 0.0
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._started = time.monotonic()

    @property
    def is_terminal(self) -> bool:
        return self._console.is_terminal

    def say(self, text: str) -> None:
        """One line that stays, with the seconds since the start."""
        seconds = time.monotonic() - self._started
        self._console.print(Text(f"{seconds:6.1f} s  {text}"))

    def warn(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        self._console.print(Text(f"{seconds:6.1f} s  ! {text}", style="bold red"))

    def messages(self, texts: Sequence[str], *, quiet: bool) -> None:
        """Messages to people, as the notifier sends them: in the live view, else as lines.

        quiet: no lines.
        """
        self._recent.extend(texts)
        if self._live is None and not quiet:
            for text in texts:
                self._console.print(Text(f"          {text}"))

    def open(self) -> None:
        if self.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=10, transient=True)
            self._live.start()
        self._next_line = time.monotonic() + _LINE_EVERY_S

    def show(self, view: View) -> None:
        if self._live is not None:
            self._live.update(_draw(view, self._recent))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            counts = ", ".join(f"{name} {count}" for name, count in view.counts.items())
            self.say(f"{counts} of {view.total}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _draw(view: View, messages: Iterable[str]) -> Group:
    table = Table.grid(padding=(0, 2))
    for name, count in view.counts.items():
        bar = ProgressBar(total=max(1, view.total), completed=min(count, view.total), width=30)
        table.add_row(Text(name, style="cyan"), bar, f"{count}/{view.total}")
    if view.invalid:
        verdict = Text(f"no score: {view.invalid}", style="yellow")
    elif view.score is None:
        verdict = Text("")
    else:
        style = "green" if view.score >= 0 else "red"
        verdict = Text.assemble(_gauge(view.score), (f" {view.score:+.2f} {view.side}", style))
    head = Text.assemble((view.title, "bold"), f"   {view.time}   {view.close}")
    return Group(head, table, verdict, *(Text(text) for text in messages))


def _gauge(score: float, half: int = 15) -> Text:
    """A bar from the middle: right is up."""
    filled = round(min(1.0, abs(score)) * half)
    left = "█" * filled if score < 0 else ""
    right = "█" * filled if score >= 0 else ""
    return Text.assemble((left.rjust(half), "red"), "│", (right.ljust(half), "green"))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
