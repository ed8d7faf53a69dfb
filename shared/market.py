"""The market's clock, as the newest candle on the bus tells it."""

from shared.bus import Bus, Source, now_us
from shared.streams import KLINE


async def market_now_ms(bus: Bus, symbol: str, interval: str, *, speed: float) -> int | None:
    """Close of the newest candle, or the market's clock when it was published if that is later,
    plus the time since then at `speed` market seconds per second; None where there is no candle.
    """
    newest = await bus.tail(Source(KLINE, symbol, interval), 1)
    if not newest or newest[0].event is None:
        return None
    meta = newest[0].meta
    then_ms = max(newest[0].event.close_time_ms + 1, meta.market_ms or 0)
    elapsed_ms = max(0, now_us() - meta.published_us) / 1000 if meta.published_us else 0.0
    return then_ms + int(elapsed_ms * speed)
