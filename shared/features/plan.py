"""From feature names to the tables that the kernel reads, and the state that it works on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.features import kernel
from shared.features.families import Family, Series, Source, Spec

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CHUNK = 256
"""Rows that the kernel takes at once in batch: its scratch then fits into the level-2 cache."""

SPARE = 512
"""Rows that live takes before it moves its history to the front of the buffer."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the kernel computes from one source; the tables are those of `kernel.advance`.

    longest: rows of the widest window; suffix_size, result_count: sizes of state and scratch.
    """

    source: Source
    recipes: Integers
    slots: Integers
    outputs: Integers
    longest: int
    suffix_size: int
    result_count: int

    def state(self, chunk: int) -> "State":
        return State(self, chunk)


class State:
    """What the kernel keeps of one symbol and source; `advance` takes its next rows."""

    def __init__(self, plan: Plan, chunk: int) -> None:
        self._plan = plan
        rows = plan.longest + max(SPARE, chunk)
        self._clock = np.array([0, 0, 0, plan.longest], dtype=np.int64)
        self._series = np.empty((len(plan.recipes), rows))
        self._counts = np.zeros((len(plan.recipes), rows + 1))
        self._suffixes = np.zeros(plan.suffix_size)
        self._heads = np.zeros((len(plan.slots), kernel.HEAD_FIELDS))
        self._results = np.empty((plan.result_count, chunk))
        self._sums = np.empty((2, kernel.BLOCK))

    def start(self, first_index: int) -> None:
        """Forget all; the next row is the first one there is, and has this index."""
        self._clock[:] = (0, first_index, first_index, self._plan.longest)
        self._counts[:, 0] = 0.0
        self._heads[:] = 0.0

    def advance(self, rows: Floats, out: Floats) -> None:
        """rows: (n, columns), C-contiguous; writes this source's columns of out (n, n_features)."""
        rows = rows.view()
        rows.flags.writeable = False  # one array type, so that one compiled kernel serves all
        plan = self._plan
        kernel.advance(
            rows,
            out,
            plan.recipes,
            plan.slots,
            plan.outputs,
            self._clock,
            self._series,
            self._counts,
            self._suffixes,
            self._heads,
            self._results,
            self._sums,
        )

    @property
    def nbytes(self) -> int:
        return sum(
            array.nbytes
            for array in (
                self._clock,
                self._series,
                self._counts,
                self._suffixes,
                self._heads,
                self._results,
                self._sums,
            )
        )


def make_plan(source: Source, specs: Sequence[tuple[int, Spec]]) -> Plan:
    """The plan for the built-in features of one source; each comes with its output column."""
    series: dict[Series, int] = {}
    wanted: dict[tuple[int, tuple[Series, ...], int], None] = {}  # quantity, series, window

    def want(family: Family, window: int) -> tuple[int, tuple[Series, ...], int]:
        for one in family.series:
            series.setdefault(one, len(series))
        key = (family.quantity, family.series, window)
        wanted[key] = None
        return key

    uses = []
    for column, spec in specs:
        slot = want(spec.family, spec.window)
        base = want(spec.family, source.base) if spec.family.relative else None
        uses.append((column, spec.family, slot, base))

    order = sorted(wanted, key=lambda key: (key[0], [series[one] for one in key[1]], key[2]))
    slots = np.zeros((len(order), kernel.SLOT_FIELDS), dtype=np.int64)
    number = {key: at for at, key in enumerate(order)}
    suffix = result = 0
    for at, (quantity, of, window) in enumerate(order):
        slots[at, kernel.KIND] = quantity
        slots[at, kernel.SERIES : kernel.SERIES + len(of)] = [series[one] for one in of]
        slots[at, kernel.WINDOW] = window
        slots[at, kernel.SUFFIX] = suffix
        slots[at, kernel.RESULT] = result
        suffix += kernel.SUFFIX_SUMS[quantity] * window
        result += kernel.RESULTS[quantity]

    outputs = np.zeros((len(uses), kernel.OUTPUT_FIELDS), dtype=np.int64)
    for at, (column, family, slot, base) in enumerate(uses):
        form = kernel.PLAIN if base is None else kernel.RELATIVE
        base_slot = 0 if base is None else number[base]
        outputs[at] = (column, form, number[slot], family.part, base_slot)

    recipes = np.zeros((len(series), 3), dtype=np.int64)
    for at, one in enumerate(series):
        columns = [source.columns.index(name) for name in one.columns]
        recipes[at] = (one.recipe, columns[0], columns[-1])

    return Plan(
        source=source,
        recipes=recipes,
        slots=slots,
        outputs=outputs,
        longest=max(key[2] for key in order),
        suffix_size=suffix,
        result_count=result,
    )
