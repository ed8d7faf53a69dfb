"""The exchange's memory on disk: one JSON line per transaction, only ever appended.

A transaction is one write before anybody is told of it, so it survives the end of the process
(SIGKILL), not that of the machine. A line that the end cut off is removed at the next start.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.errors import Failure
from simulator.exchange.effects import Effect, decode, encode


class Journal:
    """The file. Read it to its end before the first append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def read(self) -> Iterator[list[Effect]]:
        """The transactions so far, oldest first.

        Raises: Failure when a line that is not the last cannot be read.
        """
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entries = [decode(entry) for entry in json.loads(line)]
                except (ValueError, TypeError) as error:
                    raise Failure(
                        f"{self._path}:{number} cannot be read ({error}): remove the file to "
                        "start with a fresh exchange"
                    ) from error
                whole += len(line)
                yield entries
        os.ftruncate(self._fd, whole)

    def append(self, effects: Sequence[Effect]) -> None:
        line = json.dumps([encode(effect) for effect in effects], separators=(",", ":")) + "\n"
        data = line.encode()
        if os.write(self._fd, data) != len(data):
            raise Failure(f"{self._path} cannot be written: is the disk full?")

    def close(self) -> None:
        os.close(self._fd)
