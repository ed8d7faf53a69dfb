"""What a replay computes and its text and pictures show: two runs over the same candles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shared.rules import Rules
from trainer import backtest
from trainer.grid import Market


class Decision(NamedTuple):
    """What was made of one candle. score: NaN where there is none."""

    score: float
    side: str
    invalid: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two runs that are compared: every candle's decision, and what they earn.

    decisions: per row of the market, None where no signal stands.
    """

    name: str
    decisions: Sequence[Decision | None]
    rules: Rules
    market: Market
    trading: backtest.Run
    performance: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Both runs. unequal: candles with other bits than recorded, None where something was changed
    on purpose; first: what differs first, in words. notes: what a reader must know."""

    symbol: str
    interval: str
    capital: float
    recorded: Side
    replayed: Side
    unequal: int | None
    first: str = ""
    notes: Sequence[str] = ()
