"""L0: every fate of every request, with the process killed before or after every operation, once
and twice, over the trader's real core: no order twice, none that the journal does not know.

The whole enumeration (`make test-slow`) is more than 200,000 scenarios; the default run takes every
83rd of them.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from shared.rules import Rules
from tests.trader.world import (
    BUY,
    DONE_5XX,
    FATES,
    NOT_5XX,
    OK,
    REPLY_LOST,
    REQUEST_LOST,
    RULES,
    SELL,
    World,
    bar,
    signal,
)

Crashes = frozenset[tuple[int, str]]
_THREE = {"signals": [signal(0, BUY), signal(1, 0.0), signal(2, SELL)],
          "bars": [bar(0, BUY), bar(1, 0.0), bar(2, SELL)]}  # fmt: skip
_SLICES = 12
_CANCELS = (OK, REPLY_LOST, REQUEST_LOST, DONE_5XX, NOT_5XX)
_LIMIT = RULES._replace(limit=0.001)
_PAIRS = RULES._replace(stop_loss=0.02, take_profit=0.03)
_TRAILING = RULES._replace(trailing_stop=0.02, stop_loss=0.05)


def crash_plans(operations: int) -> Iterator[Crashes]:
    """None, one before or after every operation, and two of them."""
    points = [(n, when) for n in range(1, operations + 1) for when in ("before", "after")]
    yield frozenset()
    for point in points:
        yield frozenset([point])
    for (n, when), after, other in itertools.product(points, (1, 2, 3, 6), ("before", "after")):
        yield frozenset([(n, when), (n + after, other)])


def at_market() -> Iterator[dict[str, Any]]:
    """Bought and sold at market: every fate of both, and of the sale's second attempt."""
    for first, second in itertools.product(FATES, FATES):
        for lag_ms, unavailable in ((0, 0), (3_000, 1)):
            for disk in ("safe", "lies"):
                yield {
                    "fates": (first, second), "lag_ms": lag_ms, "unavailable": unavailable,
                    "disk": disk,
                }  # fmt: skip


def told() -> Iterator[dict[str, Any]]:
    """The user stream is faster than the reply, which says something else."""
    for first, second in itertools.product(FATES, FATES):
        yield {"fates": (first, second), "deaf": False}
    for stop_after_ms in (None, 20_000):
        yield {"rule": _PAIRS, "deaf": False, "stop_after_ms": stop_after_ms, **_THREE}


def waiting() -> Iterator[dict[str, Any]]:
    """A limit entry that the next candle replaces: the cancel races a fill."""
    for fate, cancel in itertools.product(FATES, _CANCELS):
        for fill in ("none", "part", "all"):
            yield {"rule": _LIMIT, "fates": (fate,), "cancels": (cancel,), "fill": fill,
                   "lag_ms": 3_000 if fill == "part" else 0, **_THREE}  # fmt: skip


def protected() -> Iterator[dict[str, Any]]:
    """Stop and target at the exchange, the stop reached or not before the rule's exit."""
    for fate, stop_after_ms in itertools.product(FATES, (None, 20_000)):
        for cancel in (OK, REPLY_LOST, NOT_5XX):
            yield {"rule": _PAIRS, "fates": (OK, fate), "cancels": (cancel,),
                   "stop_after_ms": stop_after_ms, **_THREE}  # fmt: skip
    for fate in FATES:
        yield {"rule": _TRAILING, "fates": (OK, OK, fate), **_THREE,
               "bars": [bar(0, BUY), bar(1, 0.0, high=104.0), bar(2, SELL)]}  # fmt: skip


def scenarios() -> Iterator[tuple[dict[str, Any], Crashes]]:
    for world in itertools.chain(at_market(), told(), waiting(), protected()):
        operations = World(**world).run().operations
        for crashes in crash_plans(operations):
            yield world, crashes


def check(every: int, start: int = 0) -> Counter[str]:
    """Runs every n-th scenario; what was seen, by kind."""
    seen: Counter[str] = Counter()
    for world, crashes in itertools.islice(scenarios(), start, None, every):
        done = World(crashes, **world).run()
        problems = done.problems()
        assert not problems, f"{problems} in {world} crashed at {sorted(crashes)}"
        seen["scenarios"] += 1
        seen["orders"] += len(done.orders)
        seen["crashes"] += done.lives - 1
        assert done.core is not None
        states = {order.state for order in done.core.desks["BTCUSDT"].ledger.orders.values()}
        seen.update(states)
        seen["halted"] += done.core.switch == "HALTED"
    return seen


@pytest.mark.parametrize(("lag_ms", "unavailable"), [(0, 0), (3_000, 5)])
@pytest.mark.parametrize("rule", [RULES, _PAIRS], ids=["market", "protected"])
def test_at_a_candle_a_minute_no_signal_is_lost_to_an_order_whose_fate_is_not_known_yet(
    rule: Rules, lag_ms: int, unavailable: int
) -> None:
    """Whatever becomes of the requests, and with questions that fail for a while: all is resolved
    before the next candle closes."""
    scores = (BUY, SELL, BUY, SELL)
    for fates in itertools.product(FATES, FATES):
        done = World(
            fates=fates, lag_ms=lag_ms, unavailable=unavailable, rule=rule,
            signals=[signal(n, score) for n, score in enumerate(scores)],
            bars=[bar(n, score) for n, score in enumerate(scores)],
        ).run()  # fmt: skip
        assert not done.problems(), fates
        dropped = [line.reason for line in done.file if line.state == "DROPPED"]
        assert not [why for why in dropped if "came first" in why or "unknown fate" in why], fates
        assert {line.signal_id for line in done.file} >= {one.id for one in done.signals}


def test_no_order_is_doubled_and_none_is_forgotten_wherever_it_crashes() -> None:
    seen = check(every=83, start=7)
    assert seen["scenarios"] > 2_500
    assert {"FILLED", "CANCELED", "REJECTED", "NOT_PLACED"} <= seen.keys()
    assert seen["crashes"] > seen["scenarios"]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("start", range(_SLICES))
def test_all_of_more_than_200_000_scenarios(start: int) -> None:
    """In slices, of which two run at once."""
    seen = check(every=_SLICES, start=start)
    assert seen["scenarios"] >= 200_000 / _SLICES
