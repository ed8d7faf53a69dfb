"""The synthetic market is reproducible, plausible and quick."""

import time

import numpy as np
import pytest

from simulator.synthetic import generate

DAY = 86_400_000
START = 1_704_067_200_000


def test_any_part_can_be_made_alone() -> None:
    whole = generate("BTCUSDT", "1m", START, START + 3 * DAY, seed=5)
    part = generate("BTCUSDT", "1m", START + DAY + 7 * 60_000, START + 2 * DAY, seed=5)
    assert np.array_equal(
        whole.between(START + DAY + 7 * 60_000, START + 2 * DAY).values, part.values
    )


def test_another_seed_is_another_market() -> None:
    one, two = (generate("BTCUSDT", "1m", START, START + DAY, seed=s) for s in (1, 2))
    assert not np.array_equal(one.values, two.values)


@pytest.mark.parametrize("interval", ["1m", "15m", "1h", "1d"])
def test_columns_agree_with_each_other(interval: str) -> None:
    o, high, low, close, volume, quote, trades, taker, taker_quote = generate(
        "ETHUSDT", interval, START, START + 20 * DAY
    ).values.T
    assert (low <= np.minimum(o, close)).all()
    assert (high >= np.maximum(o, close)).all()
    assert (low > 0).all()
    assert ((taker > 0) & (taker < volume)).all()
    assert (trades >= 40).all()
    tick = 0.01
    assert (quote >= volume * (low - tick)).all()
    assert (quote <= volume * (high + tick)).all()
    assert (taker_quote < quote).all()


def test_returns_cluster_and_volume_follows_volatility() -> None:
    table = generate("BTCUSDT", "1m", START, START + 60 * DAY)
    returns = np.diff(np.log(table.column("close")))
    size = np.abs(returns)
    assert 0.0001 < returns.std() < 0.003
    assert np.mean(returns**4) / returns.var() ** 2 > 5  # heavier tails than the normal's 3
    assert np.corrcoef(size[1:], size[:-1])[0, 1] > 0.1
    assert np.corrcoef(size, table.column("volume")[1:])[0, 1] > 0.3


def test_symbols_move_together_and_prices_stay_in_range_for_years() -> None:
    daily = {
        s: generate(s, "1d", START - 900 * DAY, START + 300 * DAY) for s in ("BTCUSDT", "ETHUSDT")
    }
    moves = [np.diff(np.log(t.column("close"))) for t in daily.values()]
    assert np.corrcoef(moves[0], moves[1])[0, 1] > 0.3
    close = daily["BTCUSDT"].column("close")
    assert close.min() > 1_000
    assert close.max() < 3_000_000


def test_a_hundred_thousand_candles_take_less_than_a_second() -> None:
    start = time.perf_counter()
    table = generate("BTCUSDT", "1m", START, START + 70 * DAY)
    assert len(table) > 100_000
    assert time.perf_counter() - start < 1.0
