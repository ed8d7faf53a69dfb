"""One csv file beside what a command writes as parquet, for those who want to look at it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from shared import klinefiles
from trainer.progress import Progress

_BLOCK_ROWS = 100_000


def write_csv(path: Path, columns: Mapping[str, npt.NDArray[Any]], progress: Progress) -> None:
    """int64 and float64 columns, at once or not at all.

    Numbers have the fewest digits that read back as the same double; an empty cell is NaN.

    Raises:
        Failure: the disk is full, or the folder cannot be written.
    """
    import pyarrow as pa  # noqa: PLC0415 - slow to import
    import pyarrow.compute as pc  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    table = klinefiles.arrow_table(columns, {})
    for at, name in enumerate(table.column_names):
        if pa.types.is_floating(table[name].type):
            nothing = pa.scalar(None, pa.float64())
            cells = pc.if_else(pc.is_nan(table[name]), nothing, table[name])
            table = table.set_column(at, name, cells)
    with (
        klinefiles.replacing(path) as unfinished,
        csv.CSVWriter(
            unfinished, table.schema, write_options=csv.WriteOptions(quoting_header="none")
        ) as writer,
        progress.bar(f"writing {path.name}", table.num_rows) as bar,
    ):
        for start in range(0, table.num_rows, _BLOCK_ROWS):
            part = table.slice(start, _BLOCK_ROWS)
            writer.write_table(part)
            bar.advance(part.num_rows)
