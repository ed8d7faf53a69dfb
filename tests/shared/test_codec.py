"""Events to bytes and back; an entry's checks."""

import math
import struct
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import codec
from shared.errors import BadInput
from shared.events import Feature, Kline, Meta, Order, Prediction, Signal

META = Meta(received_us=1, published_us=2, market_ms=3)
finite = st.floats(allow_infinity=False)
text = st.text(max_size=20)
klines = st.builds(
    Kline,
    symbol=text,
    interval=text,
    open_time_ms=st.integers(1, 2**53),
    close_time_ms=st.integers(1, 2**53),
    open=finite,
    high=finite,
    low=finite,
    close=finite,
    volume=finite,
    trades=finite,
    gap=st.booleans(),
)
signals = st.builds(
    Signal,
    open_time_ms=st.integers(1, 2**53),
    symbol=text,
    interval=text,
    close=finite,
    score=st.none() | st.floats(-1, 1),
    side=st.sampled_from(["BUY", "SELL", ""]),
    invalid=text,
    release=text,
    schema=text,
    outputs=st.dictionaries(text, st.floats(0, 1), max_size=4),
)
features = st.builds(
    Feature, open_time_ms=st.integers(1, 2**53), schema=text, values=st.binary(max_size=64)
)


def _bits(value: Any) -> Any:
    """NaN equals NaN, 0.0 differs from -0.0."""
    return struct.pack("<d", value) if isinstance(value, float) else value


@given(st.one_of(klines, signals, features))
def test_what_is_encoded_is_decoded_to_the_same_bits(event: Any) -> None:
    decoded = codec.decode(type(event), codec.encode(event, META))
    assert decoded.meta == META
    for name in event.__slots__:
        before, after = getattr(event, name), getattr(decoded.event, name)
        if not (isinstance(before, float) and math.isnan(before)):
            assert _bits(before) == _bits(after), name
        else:
            assert math.isnan(after)


def test_data_is_one_msgpack_map_with_version_meta_and_crc() -> None:
    body = msgpack.unpackb(codec.encode(_order(), META))
    crc = body.pop("crc")
    assert crc == zlib.crc32(msgpack.packb(body))
    assert body["v"] == 1
    assert body["meta"] == {"received_us": 1, "published_us": 2, "market_ms": 3}
    assert body["state"] == "OBSERVED"


def test_equality_leaves_out_our_own_clocks() -> None:
    one = codec.encode(_order(), META)
    other = codec.encode(_order(), Meta(received_us=9, published_us=9))
    assert one != other
    assert codec.same_content(one, other)
    assert not codec.same_content(one, codec.encode(_order(price="2"), META))


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    body = {"v": 1, "open_time_ms": 60_000, "schema": "s", "values": b"", "new": 1}
    decoded = codec.decode(Feature, _seal(body)).event
    assert decoded == Feature(open_time_ms=60_000, schema="s", values=b"", close=decoded.close)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "no `data`"),
        (b"", "not a msgpack map"),
        (b"\xc1garbage", "not a msgpack map"),
        (b"\xdf\xff\xff\xff\xff", "not a msgpack map"),
        (b"\x91" * 5000, "not a msgpack map"),
        (b"x" * (1 << 20) + b"y", "the limit is"),
    ],
)
def test_what_is_no_entry_is_refused(data: bytes | None, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        codec.decode(Kline, data)


def test_a_flipped_bit_is_found() -> None:
    data = bytearray(codec.encode(_order(), META))
    for place in range(0, len(data) * 8, 37):
        data[place // 8] ^= 1 << (place % 8)
        with pytest.raises(BadInput):
            codec.decode(Order, bytes(data))
        data[place // 8] ^= 1 << (place % 8)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"v": 2}, "shape version 2"),
        ({"outputs": {"a": math.inf}}, "`outputs.a` is infinite"),
        ({"outputs": [1]}, "`outputs` is not a map"),
        ({"release": 5}, "`release` is not str"),
        ({"open_time_ms": 1.5}, "`open_time_ms` is not a whole number"),
        ({"open_time_ms": None}, "`open_time_ms` is not a whole number"),
    ],
)
def test_fields_of_another_type_are_refused(change: dict[str, Any], problem: str) -> None:
    body = {"v": 1, "open_time_ms": 1, "release": "r", "schema": "s", "outputs": {"a": 1.0}}
    assert codec.decode(Prediction, _seal(body)).event.outputs == {"a": 1.0}
    with pytest.raises(BadInput, match=problem):
        codec.decode(Prediction, _seal(body | change))
    missing = {k: v for k, v in body.items() if k != "schema"}
    with pytest.raises(BadInput, match="`schema` is missing"):
        codec.decode(Prediction, _seal(missing))


def _seal(body: dict[str, Any]) -> bytes:
    return msgpack.packb(body | {"crc": zlib.crc32(msgpack.packb(body))})  # type: ignore[no-any-return]


def _order(price: str = "1.5") -> Order:
    return Order(
        signal_id="BTCUSDT-1m-60000",
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=60_000,
        time_ms=1,
        state="OBSERVED",
        side="BUY",
        quantity="",
        price=price,
        reason="",
        score=0.2,
        release="r",
        mode="observe",
    )


def test_a_journal_line_of_before_orders_were_sent_is_still_read() -> None:
    """Recorded when the trader only observed."""
    decoded = codec.decode(Order, bytes.fromhex(_OBSERVED)).event
    assert (decoded.state, decoded.signal_id, decoded.score) == ("OBSERVED", "S-1m-60000", 0.2)
    assert (decoded.leg, decoded.client_id, decoded.fills, decoded.number) == ("", "", {}, 0)


_OBSERVED = (
    "de0010a17601a97369676e616c5f6964aa532d316d2d3630303030a673796d626f6ca153a8696e7465727661"
    "6ca2316dac6f70656e5f74696d655f6d73cdea60a774696d655f6d7301a57374617465a84f42534552564544"
    "a473696465a3425559a87175616e74697479a0a57072696365a3312e35a6726561736f6ebb6f627365727665"
    "3a206e6f206f7264657273206172652073656e74a573636f7265cb3fc999999999999aa772656c65617365a1"
    "72a46d6f6465a76f627365727665a46d65746182ab72656365697665645f757301ac7075626c69736865645f"
    "757302a3637263ce0a8e6c5a"
)
