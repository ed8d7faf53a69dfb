"""The market's clock on the bus."""

import pytest

from shared import bus as bus_module
from shared.bus import Bus, Source, Write
from shared.events import Kline
from shared.market import market_now_ms
from shared.streams import KLINE
from tests.valkey import Server

M = 60_000
SOURCE = Source(KLINE, "BTCUSDT", "1m")


@pytest.mark.parametrize(
    ("market_ms", "elapsed_us", "speed", "expected"),
    [
        (None, 0, 1.0, 2 * M),  # nothing but the candle: its close
        (2 * M + 1_500, 0, 1.0, 2 * M + 1_500),
        (M, 0, 1.0, 2 * M),  # a clock behind the candle's close cannot be right
        (2 * M + 1_500, 4_000_000, 1.0, 2 * M + 5_500),
        (2 * M + 1_500, 4_000_000, 60.0, 2 * M + 241_500),
    ],
)
async def test_it_is_the_newest_close_or_clock_plus_the_time_since(
    valkey: Server,
    monkeypatch: pytest.MonkeyPatch,
    market_ms: int | None,
    elapsed_us: int,
    speed: float,
    expected: int,
) -> None:
    clock = [1_000_000_000]
    monkeypatch.setattr(bus_module, "now_us", lambda: clock[0])
    monkeypatch.setattr("shared.market.now_us", lambda: clock[0])
    kline = Kline.gap_marker("BTCUSDT", "1m", M, 2 * M - 1)
    async with Bus.session(valkey.url, service="s") as bus:
        assert await market_now_ms(bus, "BTCUSDT", "1m", speed=speed) is None
        await bus.write(Write(source=SOURCE, event=kline, open_time_ms=M, market_ms=market_ms))
        clock[0] += elapsed_us
        assert await market_now_ms(bus, "BTCUSDT", "1m", speed=speed) == expected
