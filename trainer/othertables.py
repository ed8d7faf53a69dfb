"""Tables that a user's file reads, as they would be had the candles after a row been others.

A file that reads candles as it is loaded may keep but a figure of them: a mean, a scaler, a highest
price. What it kept cannot be altered afterwards, so it is run again on another future.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Place = Callable[[Floats], int | None]

_READERS = {
    "pandas": ("read_csv", "read_feather", "read_json", "read_parquet", "read_pickle"),
    "pyarrow.parquet": ("read_table",),
    "pyarrow.feather": ("read_feather", "read_table"),
    "pyarrow.csv": ("read_csv",),
    "numpy": ("genfromtxt", "load", "loadtxt"),
}


@contextlib.contextmanager
def altered(place: Place, random: np.random.Generator) -> Iterator[list[str]]:
    """Within the block tables are read with other candles after a row.

    place: where in a column the row stands, None where it does not. Gives the readers that were
    asked for a table that has the row, as they are called for.
    """
    used: list[str] = []
    inside = False
    kept: list[tuple[Any, str, Any]] = []

    def wrapped(name: str, reader: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(reader)
        def read(*args: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:  # one reader that calls another
                return reader(*args, **options)
            inside = True
            try:
                table = reader(*args, **options)
            finally:
                inside = False
            other = _other(table, place, random)
            if other is None:
                return table
            used.append(name)
            return other

        return read

    for module_name, names in _READERS.items():
        with contextlib.suppress(ImportError):
            module = importlib.import_module(module_name)
            for name in names:
                if hasattr(module, name):
                    kept.append((module, name, getattr(module, name)))
    try:
        for module, name, reader in kept:
            setattr(module, name, wrapped(name, reader))
        yield used
    finally:
        for module, name, reader in kept:
            setattr(module, name, reader)


def _other(table: Any, place: Place, random: np.random.Generator) -> Any:
    """The table with other numbers after the row; None where it does not have the row."""
    if isinstance(table, np.ndarray):
        if table.dtype.kind != "f" or table.ndim not in (1, 2):
            return None
        columns = list(table.T) if table.ndim == 2 else [table]
        changed = _changed(columns, place, random)
        if changed is None:
            return None
        return np.column_stack(changed) if table.ndim == 2 else changed[0]
    kind = f"{type(table).__module__.partition('.')[0]}.{type(table).__name__}"
    if kind == "pandas.DataFrame":
        floats = [at for at, one in enumerate(table.dtypes) if getattr(one, "kind", "") == "f"]
        changed = _changed([table.iloc[:, at].to_numpy() for at in floats], place, random)
        if changed is None:
            return None
        other = table.copy()
        for at, column in zip(floats, changed, strict=True):
            other.isetitem(at, column)
        return other
    if kind == "pyarrow.Table":
        types = sys.modules["pyarrow"].types
        floats = [at for at, one in enumerate(table.schema.types) if types.is_floating(one)]
        changed = _changed([table.column(at).to_numpy() for at in floats], place, random)
        if changed is None:
            return None
        for at, column in zip(floats, changed, strict=True):
            table = table.set_column(at, table.schema.field(at), [column])
        return table
    return None


def _changed(
    columns: list[npt.NDArray[Any]], place: Place, random: np.random.Generator
) -> list[npt.NDArray[Any]] | None:
    for column in columns:
        at = place(np.asarray(column, np.float64))
        if at is None:
            continue
        found = []
        for one in columns:
            other = one.copy()
            other[at + 1 :] *= random.uniform(0.2, 3.0, len(other) - at - 1).astype(other.dtype)
            found.append(other)
        return found
    return None
