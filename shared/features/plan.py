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
    """What the kernel computes from one source.

    table: that of `kernel.advance` before any row; longest: rows of the widest window.
    stack_size: doubles of all stacks.
    """

    source: Source
    table: Integers
    longest: int
    stack_size: int

    def state(self, chunk: int = kernel.BLOCK) -> "State":
        """chunk: rows that the kernel takes at once; the values do not depend on it."""
        return State(self, chunk)


class State:
    """What the kernel keeps of one symbol and source; `advance` takes its next rows."""

    def __init__(self, plan: Plan, chunk: int) -> None:
        head = plan.table[0]
        self._table = plan.table.copy()
        self._slots = self._table[1 + head[kernel.N_SERIES] :][: head[kernel.N_SLOTS]]
        rows = plan.longest + max(SPARE, chunk)
        self._history = np.zeros((2 * head[kernel.N_SERIES], rows + 1))
        self._stacks = np.zeros(plan.stack_size)
        results = head[kernel.N_RESULTS] + head[kernel.N_OUTPUTS]
        self._scratch = np.zeros((results + 2, chunk))

    def start(self, first_index: int) -> None:
        """Forget all; the next row is the first one there is, and has this index."""
        head = self._table[0]
        head[kernel.FILL] = 0
        head[kernel.INDEX] = head[kernel.FIRST] = first_index
        self._slots[:, kernel.PHASE] = first_index % self._slots[:, kernel.WINDOW]
        self._history[:, 0] = 0.0
        self._stacks[:] = 0.0

    def advance(self, rows: Floats, out: Floats) -> None:
        """rows: (n, columns), C-contiguous; writes this source's columns of out (n, n_features)."""
        if rows.flags.writeable:  # one array type, so that one compiled kernel serves all
            rows = rows.view()
            rows.flags.writeable = False
        kernel.advance(rows, out, self._table, self._history, self._stacks, self._scratch)

    @property
    def nbytes(self) -> int:
        arrays = (self._table, self._history, self._stacks, self._scratch)
        return sum(array.nbytes for array in arrays)


def make_plan(source: Source, specs: Sequence[tuple[int, Spec]]) -> Plan:
    """The plan for the built-in features of one source; each comes with its output column."""
    series: dict[Series, int] = {}
    wanted: set[tuple[int, tuple[Series, ...], int]] = set()  # quantity, series, window

    def want(family: Family, window: int) -> tuple[int, tuple[Series, ...], int]:
        for one in family.series:
            series.setdefault(one, len(series))
        key = (family.quantity, family.series, window)
        wanted.add(key)
        return key

    uses = []
    for column, spec in specs:
        slot = want(spec.family, spec.window)
        base = want(spec.family, source.base) if spec.family.relative else slot
        uses.append((column, spec.family, slot, base))

    recipes = np.zeros((len(series), kernel.ROW), dtype=np.int64)
    for one, at in series.items():
        columns = [source.columns.index(name) for name in one.columns]
        recipes[at, kernel.RECIPE] = one.recipe
        recipes[at, kernel.LEFT], recipes[at, kernel.RIGHT] = columns[0], columns[-1]

    order = sorted(wanted, key=lambda key: (key[0], [series[one] for one in key[1]], key[2]))
    slots = np.zeros((len(order), kernel.ROW), dtype=np.int64)
    stack = result = 0
    for at, (quantity, of, window) in enumerate(order):
        slots[at, kernel.KIND] = quantity
        slots[at, kernel.SERIES : kernel.SERIES + len(of)] = [series[one] for one in of]
        slots[at, kernel.WINDOW] = window
        slots[at, kernel.STACK] = stack
        slots[at, kernel.RESULT] = result
        stack += kernel.SUMS[quantity] * window + kernel.HEAD
        result += kernel.RESULTS[quantity]

    number = {key: at for at, key in enumerate(order)}
    outputs = np.zeros((len(uses), kernel.ROW), dtype=np.int64)
    for at, (column, family, slot, base) in enumerate(uses):
        outputs[at, kernel.COLUMN] = column
        outputs[at, kernel.FORM] = kernel.RELATIVE if family.relative else kernel.PLAIN
        outputs[at, kernel.SLOT], outputs[at, kernel.BASE] = number[slot], number[base]
        outputs[at, kernel.PART] = family.part

    longest = max(window for _, _, window in order)
    head = np.zeros((1, kernel.ROW), dtype=np.int64)
    head[0, kernel.KEEP] = longest
    head[0, kernel.N_SERIES], head[0, kernel.N_SLOTS] = len(series), len(order)
    head[0, kernel.N_OUTPUTS], head[0, kernel.N_RESULTS] = len(uses), result
    table = np.concatenate([head, recipes, slots, outputs])
    return Plan(source=source, table=table, longest=longest, stack_size=stack)
