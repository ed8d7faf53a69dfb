"""Run inside a container of the demo: what is on the bus, candle by candle, as one JSON line.

Counted are the candles from the first one on the bus to the newest that every stage is through
with, and from `--since MS` on the latency.
"""

import asyncio
import json

from deploy.tally import STAGES, Window, tally
from shared.bus import Bus, Source, id_ms
from shared.config import load
from shared.streams import KLINE, NOTIFICATION, ORDER
from shared.times import interval_ms

_EDGE = 5  # candles at the end that may be on their way


async def main() -> None:
    settings = load()
    symbol, interval = settings.symbols[0], settings.interval
    step_ms = interval_ms(interval)
    async with Bus.session(settings.bus_url, service="itb", exclusive=False) as bus:
        oldest = await bus.span(Source(KLINE, symbol, interval), after=None, count=1)
        newest = [await bus.last_id(Source(stream, symbol, interval)) for stream in STAGES]
        if not oldest or None in newest:
            print(json.dumps({"bars": 0}))
            return
        last_ms = min(id_ms(one) for one in newest if one) - _EDGE * step_ms
        window = Window(
            symbol=symbol,
            interval=interval,
            first_ms=oldest[0].time_ms,
            last_ms=last_ms,
            step_ms=step_ms,
        )
        found = await tally(bus, window)
    missing = {name: times[:5] for name, times in found.missing.items() if times}
    # Signals of the backfilled past are too old to be told or traded: both say so themselves.
    lost = sum(len(found.missing[stream.name]) for stream in STAGES)
    print(
        json.dumps(
            {
                "bars": window.bars,
                "counts": dict(found.counts),
                "lost": lost,
                "open_claims": len(found.missing[NOTIFICATION.name]),
                "undecided": len(found.missing[ORDER.name]),
                "doubled": found.doubled,
                "missing": missing,
                "last_ms": last_ms,
            }
        )
    )


asyncio.run(main())
