"""Progress of long work, on stderr: bars on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0


class Bar:
    """One piece of work that knows how much of it is done."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0

    def advance(self, count: int = 1, detail: str = "") -> None:
        """`count` more done; `detail` says what is being worked on."""
        self.done += count
        self._show(detail)

    def _show(self, detail: str) -> None:
        """Silent; the kinds below draw."""


class _TerminalBar(Bar):
    def __init__(
        self, label: str, total: int | None, unit: str, rich: RichProgress, task: TaskID
    ) -> None:
        super().__init__(label, total, unit)
        self._rich = rich
        self._task = task

    def _show(self, detail: str) -> None:
        self._rich.update(self._task, completed=self.done, detail=detail)


class _LineBar(Bar):
    def __init__(self, label: str, total: int | None, unit: str, out: TextIO) -> None:
        super().__init__(label, total, unit)
        self._out = out
        self._next_line = time.monotonic() + LINE_EVERY_S

    def _show(self, detail: str) -> None:
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + LINE_EVERY_S
        of = "" if self.total is None else f" of {self.total:,}"
        print(f"{self.label}: {self.done:,}{of} {self.unit} {detail}".rstrip(), file=self._out)
        self._out.flush()


class Progress:
    """What a command tells the person who waits. `quiet`: nothing at all."""

    def __init__(self, out: TextIO | None = None, *, quiet: bool = False) -> None:
        self._out = out or sys.stderr
        self._quiet = quiet
        self._console = Console(file=self._out)
        self._rich: RichProgress | None = None

    def note(self, text: str) -> None:
        """One line that stays."""
        if self._quiet:
            return
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._out, flush=True)

    @contextlib.contextmanager
    def bar(self, label: str, total: int | None = None, unit: str = "rows") -> Iterator[Bar]:
        """Shows a bar while the block runs; `total` None: how much there is to do is not known."""
        if self._quiet:
            yield Bar(label, total, unit)
        elif not self._console.is_terminal:
            yield _LineBar(label, total, unit, self._out)
        else:
            outermost = self._rich is None
            rich = self._rich or RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self._console,
            )
            if outermost:
                self._rich = rich
                rich.start()
            task = rich.add_task(label, total=total, unit=unit, detail="")
            try:
                yield _TerminalBar(label, total, unit, rich, task)
            finally:
                rich.update(task, detail="")
                if outermost:
                    rich.stop()
                    self._rich = None
