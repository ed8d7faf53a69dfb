"""How far the price moves within the rows ahead, and which rows' future is whole."""

import numpy as np
import numpy.typing as npt

from shared.klines import KlineTable

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def is_whole(table: KlineTable, window: int) -> Bools:
    """(n,) True where the rows t .. t+window are all in the data and none of them is a gap."""
    count = len(table)
    whole = np.zeros(count, bool)
    known = count - window
    if known <= 0:
        return whole
    missing = np.isnan(table.column("close"))
    missing |= np.isnan(table.column("high"))
    missing |= np.isnan(table.column("low"))
    gaps = np.concatenate([[0], np.cumsum(missing)])
    whole[:known] = gaps[window + 1 :] == gaps[:known]
    return whole


def extreme_move(table: KlineTable, side: str, window: int) -> Floats:
    """Percent from each close to the highest high (lowest low) of the next `window` rows."""
    move = np.full(len(table), np.nan)
    known = len(table) - window
    if known <= 0:
        return move
    close = table.column("close")[:known]
    if side == "high":
        extreme = _sliding_max(table.column("high")[1:], window)
    else:
        extreme = -_sliding_max(-table.column("low")[1:], window)
    move[:known] = 100 * (extreme - close) / close
    return move


def high_to_low(table: KlineTable, window: int) -> Floats:
    """2 * up / (up + down) - 1, in [-1, 1]; NaN where the price moves neither way.

    up, down: the two extreme moves, each 0 where it is on the other side of the close (the seed
    clips them, and negates the lower one).
    """
    up = np.maximum(extreme_move(table, "high", window), 0.0)
    down = np.maximum(-extreme_move(table, "low", window), 0.0)
    with np.errstate(invalid="ignore"):  # 0 / 0
        ratio: Floats = 2 * (up / (up + down)) - 1
    return ratio


def _sliding_max(values: Floats, window: int) -> Floats:
    """The maximum of values[i : i + window] for each i, NaN where one is NaN; O(n) at any window.

    Van Herk and Gil-Werman: cut into blocks of one window; every window is the tail of one block
    and the head of the next.
    """
    count = len(values)
    padded = np.full(-(-count // window) * window, -np.inf)
    padded[:count] = values
    blocks = padded.reshape(-1, window)
    heads = np.maximum.accumulate(blocks, axis=1).ravel()
    tails = np.maximum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.maximum(tails[: count - window + 1], heads[window - 1 : count])
