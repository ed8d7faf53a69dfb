"""Rows of one matrix as the algorithms want them; what fits on the same rows share, made once."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.models import gb
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Positions = npt.NDArray[np.intp]


class RowSet:
    """Threads may share one; each thing is made when the first fit asks for it."""

    def __init__(
        self,
        x: Float32Array,
        positions: Positions,
        seed: int,
        *,
        columns: Positions | None = None,
    ) -> None:
        """x: (n, n_columns), of which `positions` are the rows and `columns` (None: all) are used;
        in memory or a memory-mapped file."""
        self._x = x
        self._columns = None
        if columns is not None and len(columns) < x.shape[1]:
            self._columns = columns
        self._positions = positions
        self._seed = seed
        self._lock = threading.RLock()
        self._rows: Float32Array | None = None
        self._scalings: dict[bool, Scaling] = {}
        self._scaled: dict[tuple[bool, str], npt.NDArray[Any]] = {}
        self._parts: dict[bytes, RowSet] = {}
        # Binned rows carry the label that is being fitted: each thread has its own.
        self._of_thread = threading.local()

    @property
    def rows(self) -> Float32Array:
        with self._lock:
            if self._rows is None:
                self._rows = self.others(self._positions)
            return self._rows

    def others(self, positions: Positions) -> Float32Array:
        """Other rows of the same matrix, in memory."""
        rows = np.asarray(self._x[positions])
        return rows if self._columns is None else np.ascontiguousarray(rows[:, self._columns])

    def scaling(self, is_scale: bool) -> Scaling:
        with self._lock:
            if is_scale not in self._scalings:
                self._scalings[is_scale] = Scaling.fit(self.rows, is_identity=not is_scale)
            return self._scalings[is_scale]

    def scaled(self, is_scale: bool) -> FloatArray:
        return self._apply(is_scale, np.dtype(np.float64))

    def scaled32(self, is_scale: bool) -> Float32Array:
        return self._apply(is_scale, np.dtype(np.float32))

    def binned(self) -> gb.Trainer:
        """This thread's own."""
        trainer: gb.Trainer | None = getattr(self._of_thread, "trainer", None)
        if trainer is None:
            trainer = self._of_thread.trainer = gb.Trainer(self.rows, 1, self._seed)
        return trainer

    def part(self, chosen: Positions) -> "RowSet":
        """Some of these rows by their places among them, a row set like this one."""
        key = chosen.tobytes()
        with self._lock:
            if key not in self._parts:
                self._parts[key] = RowSet(
                    self._x, self._positions[chosen], self._seed, columns=self._columns
                )
            return self._parts[key]

    def _apply(self, is_scale: bool, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        with self._lock:
            key = (is_scale, dtype.str)
            if key not in self._scaled:
                self._scaled[key] = self.scaling(is_scale).apply(self.rows, dtype)
            return self._scaled[key]
