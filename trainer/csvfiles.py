"""One csv file beside what a command writes as parquet, for those who want to look at it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from shared import klinefiles
from trainer import rasters
from trainer.progress import Progress

_BLOCK_ROWS = 100_000


def write_beside(out: rasters.Output, progress: Progress, *, rows: int) -> Path:
    """What `out` holds, read back month by month: FILE.csv beside FILE.parquet, and beside the
    monthly folder FILE. Returns that path; rows: how many `out` holds.

    Raises:
        Failure: the disk is full, or the folder cannot be written.
    """
    files = [out.path]
    if isinstance(out, rasters.MonthFolder):
        files = [out.path / f"{month}.parquet" for month in klinefiles.kline_months(out.path)]
    path = out.path.with_name(f"{out.path.name.removesuffix('.parquet')}.csv")
    write_csv_blocks(path, _read(files), progress, rows=rows)
    return path


def _read(files: Iterable[Path]) -> Iterator[rasters.Columns]:
    for file in files:
        yield klinefiles.read_columns(file)


def write_csv(path: Path, columns: Mapping[str, npt.NDArray[Any]], progress: Progress) -> None:
    """int64 and float64 columns, at once or not at all.

    Numbers have the fewest digits that read back as the same double; an empty cell is NaN.

    Raises:
        Failure: the disk is full, or the folder cannot be written.
    """
    write_csv_blocks(path, [columns], progress, rows=len(next(iter(columns.values()))))


def write_csv_blocks(
    path: Path,
    blocks: Iterable[Mapping[str, npt.NDArray[Any]]],
    progress: Progress,
    *,
    rows: int,
) -> None:
    """The same of rows that come block by block, `rows` in all."""
    import pyarrow as pa  # noqa: PLC0415 - slow to import
    import pyarrow.compute as pc  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    nothing = pa.scalar(None, pa.float64())
    options = csv.WriteOptions(quoting_header="none")
    with (
        klinefiles.replacing(path) as unfinished,
        contextlib.ExitStack() as open_files,
        progress.bar(f"writing {path.name}", rows) as bar,
    ):
        writer = None
        for columns in blocks:
            table = klinefiles.arrow_table(columns, {})
            if writer is None:
                writer = open_files.enter_context(
                    csv.CSVWriter(unfinished, table.schema, write_options=options)
                )
            for start in range(0, table.num_rows, _BLOCK_ROWS):
                part = table.slice(start, _BLOCK_ROWS)
                for at, name in enumerate(part.column_names):
                    if pa.types.is_floating(part[name].type):
                        cells = pc.if_else(pc.is_nan(part[name]), nothing, part[name])
                        part = part.set_column(at, name, cells)
                writer.write_table(part)
                bar.advance(part.num_rows)
