"""From names in the TA manner to the tables that their kernel reads, and the state it works on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.features import ta_kernel as kernel
from shared.features.families import Source
from shared.features.plan import SPARE, Floats, Integers
from shared.features.ta import Series, Slot, TaSpec


@dataclass(frozen=True, slots=True, eq=False)
class TaPlan:
    """What the kernel computes from one source.

    table: that of `kernel.advance` before any row; longest: rows of the widest window;
    sorted_size: doubles of all sorted windows.
    """

    source: Source
    table: Integers
    longest: int
    sorted_size: int

    def state(self, chunk: int = 1) -> "TaState":
        """chunk: rows that the kernel takes at once; the values do not depend on it."""
        return TaState(self, chunk)


class TaState:
    """What the kernel keeps of one symbol and source; `advance` takes its next rows."""

    def __init__(self, plan: TaPlan, chunk: int) -> None:
        head = plan.table[0]
        self._table = plan.table.copy()
        rows = plan.longest + max(SPARE, chunk)
        self._history = np.full((head[kernel.N_SERIES], rows), np.nan)
        self._last = np.full(len(plan.source.columns), np.nan)
        self._sorted = np.zeros(plan.sorted_size)
        results = 2 * head[kernel.N_SLOTS]
        self._scratch = np.zeros((kernel.ACCUMULATORS + results, chunk))

    def start(self, first_index: int) -> None:
        """Forget all; the next row is the first one there is, and has this index."""
        head = self._table[0]
        head[kernel.FILL] = head[kernel.KEEP]
        head[kernel.INDEX] = head[kernel.FIRST] = first_index
        self._history[:] = np.nan
        self._last[:] = np.nan
        self._sorted[:] = 0.0

    def advance(self, rows: Floats, out: Floats) -> None:
        """rows: (n, columns), C-contiguous; writes this source's columns of out (n, n_features)."""
        if rows.flags.writeable:  # one array type, so that one compiled kernel serves all
            rows = rows.view()
            rows.flags.writeable = False
        kernel.advance(
            rows, out, self._table, self._history, self._last, self._sorted, self._scratch
        )

    @property
    def nbytes(self) -> int:
        arrays = (self._table, self._history, self._last, self._sorted, self._scratch)
        return sum(array.nbytes for array in arrays)


def make_ta_plan(source: Source, specs: Sequence[tuple[int, TaSpec]], rows_of_a_day: int) -> TaPlan:
    """The plan for the features of one source; each comes with its output column."""
    series: dict[Series, int] = {}
    slots: dict[Slot, int] = {}
    for _, spec in specs:
        for slot in (spec.slot, *([spec.base] if spec.base is not None else [])):
            slots.setdefault(slot, len(slots))
            for one in slot.series:
                series.setdefault(one, len(series))
    if not series:  # the clock alone: the kernel still wants a series to look at
        series[Series(kernel.COPY, source.columns[:1])] = 0

    recipes = np.zeros((len(series), kernel.ROW), dtype=np.int64)
    for one, at in series.items():
        recipes[at, kernel.RECIPE] = one.recipe
        columns = [source.columns.index(name) for name in one.columns]
        recipes[at, kernel.LEFT : kernel.LEFT + len(columns)] = columns

    table = np.zeros((len(slots), kernel.ROW), dtype=np.int64)
    sorted_size = 0
    for slot, at in slots.items():
        of = [series[one] for one in slot.series]
        windows = (*slot.windows, 1, 1, 1)[:3] if slot.windows else (rows_of_a_day, 1, 1)
        table[at, kernel.KIND] = slot.kind
        table[at, kernel.SERIES : kernel.SERIES + len(of)] = of
        table[at, kernel.ROWS] = slot.rows
        table[at, kernel.WINDOW : kernel.WINDOW + 3] = windows
        table[at, kernel.STATE] = sorted_size
        if slot.kind == kernel.QUANTILE:
            sorted_size += windows[0] + 1

    outputs = np.zeros((len(specs), kernel.ROW), dtype=np.int64)
    for at, (column, spec) in enumerate(specs):
        outputs[at, kernel.COLUMN] = column
        outputs[at, kernel.SLOT] = slots[spec.slot]
        outputs[at, kernel.BASE] = slots[spec.base if spec.base is not None else spec.slot]
        outputs[at, kernel.FORM] = spec.form
        outputs[at, kernel.PERCENT] = spec.percent
        outputs[at, kernel.LOGARITHM] = spec.logarithm

    longest = max(slot.rows for slot in slots)
    head = np.zeros((1, kernel.ROW), dtype=np.int64)
    head[0, kernel.FILL] = head[0, kernel.KEEP] = longest
    head[0, kernel.N_SERIES], head[0, kernel.N_SLOTS] = len(series), len(slots)
    head[0, kernel.N_OUTPUTS] = len(outputs)
    return TaPlan(
        source=source,
        table=np.concatenate([head, recipes, table, outputs]),
        longest=longest,
        sorted_size=sorted_size,
    )
