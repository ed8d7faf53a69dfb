"""The picture of the day: when it is due, and what stands below it."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from notifier.channel import Message
from notifier.chats import Recipient
from notifier.facts import Facts
from notifier.messages import SIGNS, clean, price_text
from notifier.replies import picture_of, signed
from notifier.words import say
from shared.errors import Failure
from shared.ledger import DAY_MS, ZERO

LATE_MS = 6 * 3_600_000
"""A day that could not be told for so long is not told any more."""
_LOOK_S = 20.0


def newest_due_ms(at: str, zone: ZoneInfo, now_ms: int) -> int:
    """The last time that it was `at` (08:00) in a zone, at or before now."""
    hour, minute = map(int, at.split(":"))
    now = datetime.fromtimestamp(now_ms / 1000, zone)
    due = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due > now:
        due = (now - timedelta(days=1)).replace(hour=hour, minute=minute, second=0, microsecond=0)
    return int(due.timestamp()) * 1000


async def days(recipient: Recipient, told_ms: int, due: Callable[[int], None]) -> None:
    """Calls `due` with each time that the day is to be told, for ever. told_ms: the last one."""
    at = recipient.settings.notifier.daily
    if at is None or recipient.chat.loudness.daily == "off":
        return
    while True:
        now_ms = time.time_ns() // 1_000_000
        newest_ms = newest_due_ms(at, recipient.zone, now_ms)
        if told_ms < newest_ms and now_ms - newest_ms < LATE_MS:
            told_ms = newest_ms
            due(newest_ms)
        await asyncio.sleep(_LOOK_S)


async def day_message(facts: Facts, recipient: Recipient, symbol: str) -> Message | None:
    """The last 24 hours of a symbol; None where there is no candle. Without a picture where there
    is nothing to draw it with."""
    settings, language = facts.settings, recipient.chat.language
    candles = await facts.candles(symbol, max(2, DAY_MS // settings.step_ms))
    closes = [candle.close for candle in candles if not candle.gap]
    if not closes:
        return None
    account = await facts.account(symbol)
    sign = SIGNS.get(settings.base_of(symbol)) or clean(settings.base_of(symbol))
    day = candles[-1].open_time_ms // DAY_MS
    realised = account.ledger.realised.get(day, ZERO)
    lines = [
        f"{say('today', language)}: {sign} {price_text(closes[-1])} "
        f"({100 * (closes[-1] / closes[0] - 1):+.2f} %)",
        f"{say('realised', language)} {signed(realised)}, {say('unrealised', language)} "
        f"{signed(account.unrealised)} {account.quote} ({account.mode})",
    ]
    try:
        picture = await picture_of(facts, recipient, symbol, DAY_MS)
    except Failure as error:
        lines.append(say("no_chart", language, reason=clean(str(error), 400)))
        picture = None
    silent = recipient.chat.loudness.daily == "silent"
    return Message(text="\n".join(lines), silent=silent, picture=picture)
