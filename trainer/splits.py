"""Which rows are tested on, and which may be trained on for them, by what each label looked at.

A label of the row at t has looked at the candles t .. t1. A row may teach a model that is tested on
later rows if t1 lies before the first of them; where rows after a test block are trained on too
(combinatorial cross-validation), they must lie behind all that the block's labels looked at, and an
embargo beyond. Source: Lopez de Prado, Advances in Financial Machine Learning (2018), chapters 7
and 12.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import Usage
from shared.times import iso

Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Test rows: those that open at or after start_ms and before stop_ms."""

    start_ms: int
    stop_ms: int

    def holds(self, open_ms: Times) -> Mask:
        return (open_ms >= self.start_ms) & (open_ms < self.stop_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One split of the combinatorial cross-validation: `groups` are tested, all others train."""

    groups: tuple[int, ...]
    blocks: tuple[Block, ...]


def walk_forward(
    first_ms: int,
    end_ms: int,
    candle_ms: int,
    *,
    start_ms: int | None = None,
    size_ms: int | None = None,
    folds: int | None = None,
    train_ms: int,
) -> list[Block]:
    """Test blocks one after the other, the last one up to the data's end.

    first_ms, end_ms: open times of the first usable candle and of the one after the last.
    Two of start, size and folds give the third, as the predecessor's prediction_start, _size and
    _steps. Otherwise a size is 30 days, or a quarter of what is tested where that is less; the
    start leaves `train_ms` to train on, or half of all where there is not so much.

    Raises:
        Usage: no fold fits.
    """
    span = end_ms - first_ms
    if size_ms is not None:
        size_ms = max(candle_ms, size_ms // candle_ms * candle_ms)
    if start_ms is None:
        if size_ms is not None and folds is not None:
            start_ms = end_ms - size_ms * folds
        else:
            start_ms = first_ms + (train_ms if train_ms <= span * 3 // 4 else span // 2)
        start_ms = start_ms // candle_ms * candle_ms
    left = end_ms - start_ms
    if start_ms <= first_ms or left < candle_ms:
        raise Usage(
            f"no fold fits: testing would start at {iso(start_ms)}, and there are usable candles "
            f"from {iso(first_ms)} to before {iso(end_ms)}; set trainer.rolling.start, "
            "step_days or folds"
        )
    if size_ms is None:
        size_ms = -(-left // (folds or 4))
        if folds is None:
            size_ms = min(30 * 86_400_000, size_ms)
        size_ms = -(-size_ms // candle_ms) * candle_ms
    starts = range(start_ms, end_ms, size_ms)[:folds]
    blocks = [Block(start_ms=at, stop_ms=min(at + size_ms, end_ms)) for at in starts]
    if folds is not None and len(blocks) < folds:
        raise Usage(
            f"{folds} folds of {size_ms / 86_400_000:g} days from {iso(start_ms)} on end after the "
            f"data ({iso(end_ms)}): {len(blocks)} fit"
        )
    return blocks


def before(open_ms: Times, t1_ms: Times, block: Block, first_ms: int) -> Mask:
    """Rows from `first_ms` on whose label has looked at nothing from the block's start on."""
    return (open_ms >= first_ms) & (t1_ms < block.start_ms)


def cpcv(open_ms: Times, groups: int, tested: int) -> list[Combination]:
    """All choices of `tested` among `groups` equal groups of neighbouring rows.

    open_ms: (n,) in time order; rows of one time stay in one group.

    Raises:
        Usage: the numbers make no split.
    """
    if not 1 <= tested < groups:
        raise Usage(
            f"trainer.rolling: {groups} groups, {tested} of them tested, leave nothing to train on"
        )
    edges = [int(open_ms[len(open_ms) * at // groups]) for at in range(groups)]
    edges.append(int(open_ms[-1]) + 1)
    if len(set(edges)) < len(edges):
        raise Usage(f"{len(open_ms):,} rows are too few for {groups} groups")
    return [
        Combination(
            groups=chosen,
            blocks=tuple(
                Block(start_ms=edges[first], stop_ms=edges[last + 1])
                for first, last in _runs(chosen)
            ),
        )
        for chosen in itertools.combinations(range(groups), tested)
    ]


def _runs(groups: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbours."""
    found: list[tuple[int, int]] = []
    for group in groups:
        if found and found[-1][1] == group - 1:
            found[-1] = (found[-1][0], group)
        else:
            found.append((group, group))
    return found


def around(open_ms: Times, t1_ms: Times, blocks: Sequence[Block], embargo_ms: int) -> Mask:
    """Rows that may train beside these test blocks.

    A row before a block must have looked at nothing from its start on; a row behind it must open
    later than the last candle that a label of the block looked at, and `embargo_ms` after that.
    """
    allowed = np.ones(len(open_ms), bool)
    for block in blocks:
        inside = block.holds(open_ms)
        if not inside.any():
            continue
        last_ms = max(int(t1_ms[inside].max()), int(open_ms[inside].max()))
        allowed &= (t1_ms < block.start_ms) | (open_ms > last_ms + embargo_ms)
    return allowed


def paths(groups: int, tested: int) -> npt.NDArray[np.int64]:
    """(n_paths, groups): which combination tests each group on each path.

    Every group is tested by C(groups - 1, tested - 1) combinations; the i-th path takes the i-th of
    them, so that each path covers all rows once, and each combination's groups are used once.
    """
    count = math.comb(groups - 1, tested - 1)
    found = np.empty((count, groups), np.int64)
    used = [0] * groups
    for number, chosen in enumerate(itertools.combinations(range(groups), tested)):
        for group in chosen:
            found[used[group], group] = number
            used[group] += 1
    return found
