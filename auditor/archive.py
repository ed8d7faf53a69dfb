"""The track record on disk: `{data_folder}/{symbol}-{interval}-record/2026-11-27.txt`, a file for
each day (UTC) that is over, a line for each signal. Written whole, never changed."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import BadInput
from shared.events import Record
from shared.klinefiles import replacing
from shared.record import files_of, line_of, record_of


class Archive:
    """The folder of one symbol and interval."""

    def __init__(self, data_folder: Path, symbol: str, interval: str) -> None:
        self._data_folder = data_folder
        self._symbol, self._interval = symbol, interval
        self._folder = data_folder / f"{symbol}-{interval}-record"

    def has(self, day_ms: int) -> bool:
        return self._path(day_ms).exists()

    def write(self, day_ms: int, records: Sequence[Record]) -> None:
        """
        Raises:
            Failure: it cannot be written.
        """
        text = "".join(f"{line_of(record)}\n" for record in records)
        with replacing(self._path(day_ms)) as unfinished:
            unfinished.write_text(text, encoding="ascii")

    def newest(self) -> Record | None:
        """The last line of the last day.

        Raises:
            BadInput: it is not what was written.
        """
        files = files_of(self._data_folder, self._symbol, self._interval)
        if not files:
            return None
        lines = files[-1].read_text(encoding="ascii", errors="replace").splitlines()
        try:
            return record_of(lines[-1]) if lines else None
        except BadInput as error:
            raise BadInput(f"{files[-1]}: its last line: {error}; restore the file") from None

    def _path(self, day_ms: int) -> Path:
        return self._folder / f"{datetime.fromtimestamp(day_ms / 1000, UTC):%Y-%m-%d}.txt"
