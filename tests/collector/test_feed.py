"""How long a silent stream is waited for, and how a connection ends."""

import asyncio
from typing import cast

import pytest

from collector.feed import LONGEST_PATIENCE_S, Feed, Patience, _Line


def test_patience_doubles_with_each_fruitless_replacement_up_to_a_limit() -> None:
    patience = Patience(4.0)
    waited = []
    for _ in range(8):
        waited.append(patience.of("a"))
        patience.exhausted("a")
    assert waited == [4, 8, 16, 32, 60, 60, 60, 60]
    assert LONGEST_PATIENCE_S == 60
    assert patience.of("b") == 4


def test_messages_in_time_bring_it_back_slowly() -> None:
    patience = Patience(4.0)
    patience.exhausted("a")
    patience.spoke("a", 3.0)
    assert 7.9 < patience.of("a") < 8
    for _ in range(100):
        patience.spoke("a", 2.0)
    assert patience.of("a") == 4


def test_an_illiquid_stream_does_not_reconnect_for_ever() -> None:
    """One message each 20 s: after three replacements its silence is understood."""
    patience = Patience(4.0)
    replaced = 0
    for _ in range(200):
        while patience.of("a") < 20:
            patience.exhausted("a")
            replaced += 1
        patience.spoke("a", 20.0)
    assert replaced == 3


async def test_a_cancelled_feed_ends_even_while_it_closes_a_connection() -> None:
    """A SIGTERM at that moment was taken for the end of the reader, and forgotten."""
    ends, may_end = asyncio.Event(), asyncio.Event()

    async def reads() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ends.set()
            await may_end.wait()
            raise

    line = _Line(cast(Feed, None))
    line.reader = asyncio.create_task(reads())
    await asyncio.sleep(0)
    closing = asyncio.create_task(line.close())
    await ends.wait()
    closing.cancel()
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.wait((line.reader,))
