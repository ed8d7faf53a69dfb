"""The maps behind models: lines through logits and values, and isotonic steps, as nodes."""

from collections.abc import Sequence

import numpy as np

from trainer.export.graph import Graph
from trainer.models.calibration import Isotonic, Map, Platt, Rescale


def add_lines(
    graph: Graph, values: str, maps: Sequence[Map | None], *, negated: bool = False
) -> str:
    """`slope * value + offset` of each column that has a Platt or Rescale map.

    values: name of a (n, len(maps)) double; negated: it holds the negated values, and so does the
    result (its bits are those of the plain result with the other sign).
    """
    lines = [m if isinstance(m, Platt | Rescale) else None for m in maps]
    if not any(lines):
        return values
    slopes = np.array([[1.0 if line is None else line.slope for line in lines]])
    offsets = np.array([[0.0 if line is None else line.offset for line in lines]])
    steep = graph.add("Mul", values, graph.constant(slopes, np.float64))
    return graph.add("Sub" if negated else "Add", steep, graph.constant(offsets, np.float64))


def add_isotonic(
    graph: Graph, values: str, maps: Sequence[Isotonic | None], called: str | None = None
) -> str:
    """The columns with a map through its knots, the others as they are, in their places.

    values: name of a (n, len(maps)) double in [0, 1].
    """
    columns = [values]
    if len(maps) > 1:
        first = graph.add("Split", values, axis=1, num_outputs=len(maps), outputs=len(maps))
        columns = [first, *(f"{first}_{i}" for i in range(1, len(maps)))]
    found = [
        column if steps is None else _add_steps(graph, column, steps)
        for column, steps in zip(columns, maps, strict=True)
    ]
    return graph.add("Concat", *found, axis=1, called=called)


def _add_steps(graph: Graph, x: str, steps: Isotonic) -> str:
    """calibration.Isotonic.apply, node by node; x: (n, 1). NaN stays NaN."""
    passed = graph.add("GreaterOrEqual", x, graph.constant([steps.at], np.float64))
    count = graph.add(
        "ReduceSum", graph.cast(passed, np.int64), graph.constant([1], np.int64), keepdims=1
    )
    place = graph.add("Sub", count, graph.constant(1, np.int64))
    at, value, slope = (
        graph.add("Gather", graph.constant(part, np.float64), place)
        for part in (steps.at, steps.value, steps.slope)
    )
    along = graph.add("Mul", graph.add("Sub", x, at), slope)
    return graph.add("Add", value, along)
