"""Many viewers of one board: each message is encoded once, and none of them can slow the reader.

A viewer that does not keep up loses what waits for it and gets the whole again.
"""

import asyncio
import json
from collections import deque

from dashboard.account import Json
from dashboard.board import Board

_WAITING = 64  # messages; at ten a second this is six seconds of a stalled phone


def encode(message: Json) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Viewer:
    """One open page and what waits to be sent to it."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self._waiting: deque[str] = deque()
        self._behind = True  # needs the whole
        self._wake = asyncio.Event()

    def put(self, text: str) -> None:
        if self._behind:
            return  # the whole that it will get holds this
        if len(self._waiting) >= _WAITING:
            self.restart()
            return
        self._waiting.append(text)
        self._wake.set()

    def restart(self) -> None:
        """Begins with the whole again, as for another symbol."""
        self._waiting.clear()
        self._behind = True
        self._wake.set()

    async def next(self, hub: "Hub") -> list[str]:
        """What to send now; waits until there is something."""
        while True:
            if self._behind and (whole := hub.whole(self.symbol)):
                self._behind = False
                return whole
            if self._waiting:
                texts = list(self._waiting)
                self._waiting.clear()
                return texts
            self._wake.clear()
            await self._wake.wait()


class Hub:
    """The viewers, and the board as the bus has it; None while there is no bus."""

    def __init__(self) -> None:
        self.viewers: set[Viewer] = set()
        self.board: Board | None = None
        self.trouble = "starting"
        self._wholes: dict[str, list[str]] = {}

    def open(self, board: Board) -> None:
        """The board is complete: everyone gets the whole of it."""
        self.board, self.trouble = board, ""
        self._wholes.clear()
        board.changes()
        for viewer in self.viewers:
            viewer.restart()

    def close(self, trouble: str) -> None:
        """The bus is gone: the pages keep what they show, and say so."""
        self.board, self.trouble = None, trouble
        self._wholes.clear()
        text = encode({"kind": "trouble", "text": trouble})
        for viewer in self.viewers:
            viewer.put(text)

    def publish(self) -> None:
        """Tells the viewers what is new on the board."""
        assert self.board is not None  # noqa: S101  # open() gave one
        messages = self.board.changes()
        if not messages:
            return
        self._wholes.clear()
        for symbol, message in messages:
            text = ""
            for viewer in self.viewers:
                if not symbol or viewer.symbol == symbol:
                    text = text or encode(message)
                    viewer.put(text)

    def whole(self, symbol: str) -> list[str]:
        """What a page begins with; made once for all who come before the next change."""
        if self.board is None:
            return []
        if symbol not in self._wholes:
            self._wholes[symbol] = [encode(one) for one in self.board.whole(symbol)]
        return self._wholes[symbol]
