"""What stands under `health:` and how others read it."""

import json
import logging

import pytest
import redis

from shared.bus import Bus
from shared.heartbeats import heartbeats, trading
from shared.streams import health_key
from tests.valkey import Server


async def test_beats_are_read_and_what_is_none_is_told(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis(port=valkey.port) as client:
        client.set(health_key("featurizer", "featurizer"), json.dumps({"ready": True, "lag": 2}))
        client.set(health_key("trader", "trader-1"), json.dumps({"ready": False}))
        client.set(health_key("stranger", "a"), "no json")
        client.set(health_key("stranger", "b"), "[1]")
    with caplog.at_level(logging.WARNING):
        async with Bus.session(valkey.url, service="itb", exclusive=False) as bus:
            found = await heartbeats(bus)
    assert found == {
        "featurizer:featurizer": {"ready": True, "lag": 2},
        "trader:trader-1": {"ready": False},
    }
    assert sum("cannot be read" in record.message for record in caplog.records) == 2


def test_the_trader_that_trades_is_told_from_those_that_stand_by() -> None:
    by, at_work = {"ready": False}, {"ready": True, "switch": "RESUMED"}
    assert trading({"collector:collector": at_work}) is None
    assert trading({"trader:a": by}) is by
    for beats in ({"trader:a": by, "trader:b": at_work}, {"trader:a": at_work, "trader:b": by}):
        assert trading(beats) is at_work
