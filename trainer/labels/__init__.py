"""Labels: what the price does next, known only afterwards.

`forms` holds the names and their definitions, and computes them; `command` is `trainer labels`,
whose `--list` prints every form. What holds for all of them:

* A label of row t reads row t and later ones (and, where volatility scales it, earlier ones) and
  gives `Label(y, t1)`: t1 is the last row looked at. No row after t1 changes y's value.
* What is not known is NaN, never False: the last rows, whose window ahead is not over, and every
  row whose own candle or whose window ahead holds a gap.
* The window counts in whole, also where a label is decided early, by a touch in its third row: if
  rows were kept because they were decided before the data's end or before a gap, they would be the
  quick ones, and those are other rows than the slow ones. So only the end of the data and gaps
  decide which rows are known; what the price did does not.
* Rows do not depend on where the data starts, but for NaN where the history that a label needs
  (sigma, the first turning point) is not there.
"""

from trainer.labels.command import add_arguments, run, summary
from trainer.labels.forms import (
    HORIZON,
    SCALED_LABELS,
    Label,
    Spec,
    definition,
    is_value,
    known_labels,
    label,
    rows_ahead,
    side_of,
    sigmas,
    spec,
)
from trainer.labels.sigma import SIGMA_ROWS, trailing_sigma

__all__ = [
    "HORIZON",
    "SCALED_LABELS",
    "SIGMA_ROWS",
    "Label",
    "Spec",
    "add_arguments",
    "definition",
    "is_value",
    "known_labels",
    "label",
    "rows_ahead",
    "run",
    "side_of",
    "sigmas",
    "spec",
    "summary",
    "trailing_sigma",
]
