"""`itb streams` and `itb tail` show what stands on the bus, decoded, and take nothing from it."""

import io
import json
import math

import pytest

from deploy import cli
from deploy.streams import describe, describe_text, source_of, tail
from shared.bus import Bus, Source, Write
from shared.errors import Usage
from shared.events import Kline, Notification, Signal
from shared.streams import ALERT, KLINE, SIGNAL, of_chat
from tests.valkey import Server

_KLINES = Source(KLINE, "BTCUSDT", "1m")
_SIGNALS = Source(SIGNAL, "BTCUSDT", "1m")


async def _fill(server: Server) -> None:
    async with Bus.session(server.url, service="featurizer") as bus:
        await bus.join([_KLINES])
        for i in (1, 2, 3):
            kline = Kline(
                symbol="BTCUSDT", interval="1m", open_time_ms=i * 60_000,
                close_time_ms=i * 60_000 + 59_999, open=1.0, high=4.0, low=0.5, close=1.25 * i,
                volume=10.0,
            )  # fmt: skip
            await bus.write(Write(source=_KLINES, event=kline, open_time_ms=i * 60_000))
        signal = Signal(
            open_time_ms=60_000, symbol="BTCUSDT", interval="1m", close=1.25, score=0.5, side="BUY",
            invalid="", release="r", schema="s", outputs={"high_10_k_gb": 0.75},
        )  # fmt: skip
        await bus.write(Write(source=_SIGNALS, event=signal, open_time_ms=60_000))
        await bus.read({_KLINES.key: _KLINES}, count=1)


async def test_streams_are_listed_with_length_and_lag(valkey: Server) -> None:
    await _fill(valkey)
    async with Bus.session(valkey.url, service="itb", exclusive=False) as bus:
        found = await describe(bus)
    assert found == [
        {
            "stream": "kline:{BTCUSDT}:1m",
            "length": 3,
            "last_id": "180000-0",
            "groups": {"featurizer": {"delivered": "60000-0", "lag": 2, "pending": 1}},
        },
        {"stream": "signal:{BTCUSDT}:1m", "length": 1, "last_id": "60000-0", "groups": {}},
    ]
    assert "featurizer 2 (1)" in describe_text(found)


async def test_tail_prints_the_last_entries_of_every_symbol(valkey: Server) -> None:
    await _fill(valkey)
    out = io.StringIO()
    await tail(valkey.url, "kline", count=2, follow=False, as_json=False, out=out)
    first, second = out.getvalue().splitlines()
    assert first.startswith("1970-01-01T00:02:00Z  kline:{BTCUSDT}:1m  120000-0  ")
    assert "close=2.5" in first
    assert "trades" not in first  # NaN: the source has no such value
    assert "close=3.75" in second


async def test_tail_as_json_holds_every_field_and_no_nan(valkey: Server) -> None:
    await _fill(valkey)
    out = io.StringIO()
    await tail(valkey.url, _KLINES.key, count=1, follow=False, as_json=True, out=out)
    entry = json.loads(out.getvalue())
    assert entry["event"]["close"] == 3.75
    assert entry["event"]["trades"] is None
    assert entry["meta"]["published_us"] > 0
    assert not any(isinstance(v, float) and math.isnan(v) for v in entry["event"].values())


async def test_a_name_that_no_stream_has_is_bad_usage(valkey: Server) -> None:
    with pytest.raises(Usage, match="no stream is called 'candles'"):
        await tail(valkey.url, "candles", count=1, follow=False, as_json=False, out=io.StringIO())


@pytest.mark.parametrize(
    "key",
    ["kline:{BTCUSDT}:1m", "order:{BTCUSDT}", "notice", "dead:kline:{BTCUSDT}:1m"],
)
def test_a_key_names_its_stream(key: str) -> None:
    source = source_of(key)
    assert source is not None
    assert source.key == key


async def test_the_streams_of_a_further_chat_are_listed_and_read(valkey: Server) -> None:
    alerts = Source(of_chat(ALERT, "-100123"))
    event = Notification(
        signal_id="", symbol="", interval="", open_time_ms=60_000, state="sent",
        channel="telegram", chat="-100123", text="boom",
    )  # fmt: skip
    async with Bus.session(valkey.url, service="itb", exclusive=False) as bus:
        await bus.write(Write(source=alerts, event=event, open_time_ms=60_000))
        assert [one["stream"] for one in await describe(bus)] == ["alert@-100123"]
    for name in ("alert@-100123", "alert"):
        out = io.StringIO()
        await tail(valkey.url, name, count=2, follow=False, as_json=False, out=out)
        assert ("boom" in out.getvalue()) is (name != "alert")
    for key in ("notification@@my_channel:{BTCUSDT}:1m", "daily@-100123"):
        source = source_of(key)
        assert source is not None
        assert source.key == key
    assert source_of("kline@-100123:{BTCUSDT}:1m") is None


def test_schema_names_every_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["streams", "--schema"]) == 0
    names = {entry["stream"] for entry in json.loads(capsys.readouterr().out)}
    assert {"kline:{SYMBOL}:INTERVAL", "order:{SYMBOL}", "notice"} <= names


def test_bad_usage_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tail"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("itb: ")
    assert len(error.splitlines()) == 1
