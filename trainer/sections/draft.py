"""What the sections share while they are written: warnings, and figures that get their names."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from trainer import figures
from trainer.page import Picture


@dataclass(slots=True)
class Draft:
    """What the sections share while they are written. png: folder for every figure, or None."""

    png: Path | None = None
    warnings: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def picture(
        self, name: str, title: str, draw: Callable[[], Figure], says: str, says_not: str
    ) -> Picture:
        name = self._fresh(name)
        if (
            self.png is not None
        ):  # drawn anew: what was laid out once is laid out a little otherwise
            figures.png(draw(), self.png / f"{name}.png")
        narrow = figures.svg(draw(), name, escape(f"{title}. {says}"))
        return Picture(title=title, says=says, says_not=says_not, narrow=narrow)

    def broad(
        self, name: str, title: str, draw: Callable[[bool], Figure], says: str, says_not: str
    ) -> Picture:
        """A figure over the page's whole width, drawn once more for narrow screens."""
        name = self._fresh(name)
        if self.png is not None:
            figures.png(draw(True), self.png / f"{name}.png")
        label = escape(f"{title}. {says}")
        return Picture(
            title=title,
            says=says,
            says_not=says_not,
            narrow=figures.svg(draw(False), f"{name}-narrow", label),
            wide=figures.svg(draw(True), name, label),
            is_broad=True,
        )

    def _fresh(self, name: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        name, number = base, 1
        while name in self.figures:
            number += 1
            name = f"{base}-{number}"
        self.figures.append(name)
        return name
