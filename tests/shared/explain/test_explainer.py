"""Explanations of what real services left on a real bus."""

import json
import math
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from collector.archive import Archive
from shared import codec, score
from shared.bundle import Bundle
from shared.bus import Bus, Source, Write
from shared.errors import BadInput, Failure, Usage
from shared.events import Feature, Order, OrderState, Prediction, Signal
from shared.exchange import Fill, Side
from shared.explain import Explainer, Explanation, signal_place
from shared.explain.picture import png
from shared.features import FeatureSet
from shared.ledger import packed
from shared.streams import FEATURE, KLINE, ORDER, PREDICTION, SIGNAL
from tests.played import FEATURES, LOOKBACK, Played
from tests.resilience.tape import SYMBOL

SET = FeatureSet.of(FEATURES)


@pytest.fixture
async def bus(played: Played) -> AsyncIterator[Bus]:
    async with Bus.session(played.server.url, service="itb", exclusive=False) as session:
        yield session


async def explain(played: Played, row: int) -> Explanation:
    async with Bus.session(played.server.url, service="itb", exclusive=False) as session:
        return await Explainer(played.settings).explain(session, played.signal_id(row))


async def test_every_signal_has_equal_bits_through_restarts_holes_and_another_release(
    bus: Bus, played: Played
) -> None:
    explainer = Explainer(played.settings)
    rows = np.random.default_rng(3).permutation(len(played.tape.klines)).tolist()
    found = [await explainer.explain(bus, played.signal_id(row)) for row in rows]
    assert [one.difference for one in found if not one.equal] == []
    assert {one.release["id"] for one in found} == set(played.releases)
    kinds = {str(one.signal["invalid"]).partition(":")[0] for one in found}
    assert {"", "gap", "warm-up"} <= kinds  # all of these were among them
    assert sum(one.signal["score"] is not None for one in found) > 150


async def test_what_is_told_is_what_stands_on_the_bus(bus: Bus, played: Played) -> None:
    row = max(n for n, kline in enumerate(played.tape.klines) if not kline.gap)
    found = await Explainer(played.settings).explain(bus, played.signal_id(row))
    signal = played.events(SIGNAL)[row]
    assert isinstance(signal, Signal)
    assert found.signal["id"] == signal.id
    assert found.signal["score"] == signal.score
    assert found.outputs == signal.outputs
    assert set(found.models) == set(signal.outputs)
    batch = SET.batch(played.tape.first_index, played.tape.rows)[row]
    assert [one.value for one in found.features] == batch.tolist()
    assert [one.name for one in found.features] == list(FEATURES)
    assert found.candles.rows == found.candles.lookback == LOOKBACK
    closes = [candle[found.candles.columns.index("close")] for candle in found.candles.newest]
    expected = [kline.close for kline in played.tape.klines[row + 1 - LOOKBACK : row + 1]]
    assert closes == pytest.approx(expected, nan_ok=True)
    assert found.candles.gaps == sum(math.isnan(close) for close in expected)


async def test_the_steps_lead_from_the_outputs_to_the_score(bus: Bus, played: Played) -> None:
    found = await Explainer(played.settings).explain(bus, played.signal_id(290))
    steps = found.score
    assert steps is not None
    sides = {
        side: np.mean([v for name, v in found.outputs.items() if name.startswith(side)])
        for side in ("high", "low")
    }
    assert (steps.high, steps.low) == pytest.approx((sides["high"], sides["low"]))
    assert steps.score == pytest.approx(2 * sides["high"] / (sides["high"] + sides["low"]) - 1)
    assert steps.side == str(score.side(steps.score, steps.buy, steps.sell))


async def test_top_features_are_ranked_and_say_what_their_median_would_change(
    bus: Bus, played: Played
) -> None:
    found = await Explainer(played.settings).explain(bus, played.signal_id(290))
    pulls = [abs(one.pull) for one in found.top_features]
    assert pulls == sorted(pulls, reverse=True)
    assert len(pulls) == len(FEATURES)
    bundle = Bundle.load(played.models / "releases" / str(found.release["id"]))
    row = SET.batch(played.tape.first_index, played.tape.rows)[290]
    for one in found.top_features:
        changed = row.copy()
        changed[FEATURES.index(one.name)] = one.median
        assert one.score_at_median == bundle.run(changed[None]).score[0]
    weights = {name: one.weight for name, one in found.models.items()}
    for one in found.top_features:
        expected = sum(w * found.models[n].contributions[one.name] for n, w in weights.items())
        assert one.pull == pytest.approx(expected)
    for share in found.models.values():
        total = share.base + sum(share.contributions.values()) + share.remainder
        assert total == pytest.approx(share.logit)
    assert {one.method for one in found.models.values()} == {"treeshap", "linear"}


async def test_the_distance_from_the_training_rows_is_told_where_the_release_knows_it(
    bus: Bus, played: Played
) -> None:
    explainer = Explainer(played.settings)
    found = await explainer.explain(bus, played.signal_id(290))
    bundle = Bundle.load(played.models / "releases" / played.releases[1])
    assert bundle.reference is not None
    row = SET.batch(played.tape.first_index, played.tape.rows)[290]
    z = [
        (float(np.float32(value)) - bundle.reference.features[name].median)
        / bundle.reference.features[name].spread
        for name, value in zip(FEATURES, row, strict=True)
    ]
    far = found.novelty
    assert far is not None
    assert far.distance == pytest.approx(np.sqrt(np.mean(np.square(z))))
    assert far.own == pytest.approx(far.distance / bundle.reference.distances["0.99"])
    assert bundle.reference.combination is not None
    w = bundle.reference.combination.matrix
    most = bundle.reference.combination.distances["0.99"]
    assert far.joint == pytest.approx(np.sqrt(np.mean(np.square(w @ z))) / most)
    assert far.value == max(far.own, far.joint)
    assert [one.spreads for one in found.features] == pytest.approx(z)
    assert dict(far.farthest) == pytest.approx(dict(zip(FEATURES, z, strict=True)))
    assert [one.median for one in found.features] == [
        one.median for one in bundle.reference.features.values()
    ]
    old = await explainer.explain(bus, played.signal_id(130))
    assert (old.release["id"], old.novelty) == (played.releases[0], None)
    assert any("not known: the release was made by an earlier version" in n for n in old.notes)
    assert [guard.name for guard in old.guards].count("novelty") == 0


async def test_a_warm_up_signal_says_which_guard_it_did_not_pass(bus: Bus, played: Played) -> None:
    found = await Explainer(played.settings).explain(bus, played.signal_id(10))
    assert found.equal
    assert found.signal["invalid"].startswith("warm-up")
    assert (found.outputs, found.score, found.top_features) == ({}, None, ())
    guards = {guard.name: guard.passed for guard in found.guards}
    assert (guards["candle"], guards["coverage"], guards["missing"]) == (True, False, None)
    assert found.candles.rows == 11


async def test_latency_is_the_difference_of_the_stamps(bus: Bus, played: Played) -> None:
    found = await Explainer(played.settings).explain(bus, played.signal_id(290))
    time_ms = played.tape.klines[290].open_time_ms
    with redis.Redis(port=played.server.port) as client:
        stamps = {}
        for stream in (KLINE, FEATURE, SIGNAL):
            ((_, fields),) = client.xrange(stream.key(SYMBOL, "1m"), time_ms, time_ms)
            stamps[stream.name] = codec.decode(stream.event, fields[b"data"]).meta.published_us
    assert found.latency_ms["featurizer"] == (stamps["feature"] - stamps["kline"]) / 1000
    assert found.latency_ms["predictor"] == (stamps["signal"] - stamps["feature"]) / 1000


async def test_the_journal_of_the_trader_is_told(bus: Bus, played: Played) -> None:
    explainer = Explainer(played.settings)
    with redis.Redis(port=played.server.port) as client:
        entries: Any = client.xrange(ORDER.key(SYMBOL))
        lines = [codec.decode(ORDER.event, fields[b"data"]).event for _, fields in entries]
    assert lines
    for line in lines[:: max(1, len(lines) // 10)]:
        found = await explainer.explain(bus, line.signal_id)
        assert [(one["state"], one["reason"]) for one in found.orders] == [
            (str(line.state), line.reason)
        ]
    quiet = next(event for event in played.events(SIGNAL) if not event.side)
    assert (await explainer.explain(bus, quiet.id)).orders == ()


async def test_it_can_be_written_as_json(bus: Bus, played: Played) -> None:
    explainer = Explainer(played.settings)
    for row in (10, 290):
        found = (await explainer.explain(bus, played.signal_id(row))).as_dict()
        again = json.loads(json.dumps(found, allow_nan=False))
        assert again["equal"] is True
        assert again["difference"] is None
        assert {"signal", "outputs", "top_features", "latency_ms", "guards", "release"} <= set(
            again
        )


async def test_an_order_is_told_with_its_fills(own: Played) -> None:
    signal = own.events(SIGNAL)[100]
    fill = Fill(
        symbol=SYMBOL,
        trade_id=7,
        order_id=3,
        side=Side.BUY,
        price=Decimal("101.5"),
        quantity=Decimal("0.25"),
        quote_quantity=Decimal("25.375"),
        fee=Decimal("0.0002"),
        fee_asset="TEST",
        time_ms=1_700_000_000_000,
        is_maker=False,
    )
    line = Order(
        signal_id=signal.id,
        symbol=SYMBOL,
        interval="1m",
        open_time_ms=signal.open_time_ms,
        time_ms=1_700_000_000_100,
        state=OrderState.FILLED,
        side="BUY",
        quantity="0.25",
        price="101.5",
        reason="",
        score=signal.score,
        release=signal.release,
        mode="live",
        fills={"7": packed(fill)},
    )
    async with Bus.session(own.server.url, service="trader", exclusive=False) as bus:
        await bus.write(Write(source=Source(ORDER, SYMBOL), event=line))
    found = json.loads(json.dumps((await explain(own, 100)).as_dict(), allow_nan=False))
    told = found["orders"][-1]
    assert (told["state"], told["mode"]) == ("FILLED", "live")
    assert told["fills"] == [
        {
            "symbol": SYMBOL,
            "trade_id": 7,
            "order_id": 3,
            "side": "BUY",
            "price": "101.5",
            "quantity": "0.25",
            "quote_quantity": "25.375",
            "fee": "0.0002",
            "fee_asset": "TEST",
            "time_ms": 1_700_000_000_000,
            "is_maker": False,
        }
    ]


@pytest.mark.parametrize("row", [10, 290])
async def test_the_picture_is_a_png(bus: Bus, played: Played, row: int) -> None:
    content = png(await Explainer(played.settings).explain(bus, played.signal_id(row)))
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1100, 792)


async def test_without_matplotlib_one_line_says_so(
    bus: Bus, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await Explainer(played.settings).explain(bus, played.signal_id(290))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Failure, match="matplotlib is not installed"):
        png(found)


# -- what differs ---------------------------------------------------------------------------------


def other_value(feature: Feature) -> Feature:
    """The last bit of the second feature."""
    values = np.frombuffer(feature.values, "<u8").copy()
    values[1] ^= 1
    return replace(feature, values=values.tobytes())


def other_output(event: Prediction) -> Prediction:
    name = list(event.outputs)[2]
    return replace(event, outputs=event.outputs | {name: math.nextafter(event.outputs[name], 1)})


def other_score(signal: Signal) -> Signal:
    assert signal.score is not None
    return replace(signal, score=math.nextafter(signal.score, 2))


async def test_one_changed_bit_is_found_and_named(own: Played) -> None:
    row = 100
    assert (await explain(own, row)).equal
    own.change(SIGNAL, row, other_score)
    found = await explain(own, row)
    assert not found.equal
    assert found.difference is not None
    assert (found.difference.stage, found.difference.field) == ("signal", "score")
    own.change(PREDICTION, row, other_output)
    found = await explain(own, row)
    assert found.difference is not None
    name = list(own.events(PREDICTION)[row].outputs)[2]
    assert (found.difference.stage, found.difference.field) == ("prediction", name)
    own.change(FEATURE, row, other_value)
    found = await explain(own, row)
    assert found.difference is not None
    assert (found.difference.stage, found.difference.field) == ("feature", FEATURES[1])
    assert found.difference.bus != found.difference.recomputed
    assert (await explain(own, row - 1)).equal


async def test_a_changed_candle_is_noticed_in_what_was_made_of_it(own: Played) -> None:
    row = 100
    own.change(KLINE, row - 2, lambda kline: replace(kline, close=kline.high))
    found = await explain(own, row)
    assert found.difference is not None
    assert found.difference.stage == "feature"


# -- what cannot be explained ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "BTCUSDT", "BTCUSDT-1m", "BTCUSDT-1m-x", "BTCUSDT-1m-60001", "BTCUSDT-2m-60000",
             "btcusdt-1m-60000", "A{B}-1m-60000", "-1m-60000", "BTCUSDT-1m--60000",
             "BTCUSDT-1m-9999999999999960000", "BTCUSDT-1m-٦٠٠٠٠"],
)  # fmt: skip
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="is no signal's id"):
        signal_place(text)


def test_a_symbol_may_hold_dashes() -> None:
    assert signal_place("BTC-USD-1m-1700000040000") == ("BTC-USD", "1m", 1_700_000_040_000)


async def test_what_is_not_there_is_told_in_one_line(bus: Bus, played: Played) -> None:
    explainer = Explainer(played.settings)
    first, last = played.tape.klines[0].open_time_ms, played.tape.last_ms
    with pytest.raises(BadInput, match=r"no signal .* yet: signal:\{TESTUSDT\}:1m holds"):
        await explainer.explain(bus, f"{SYMBOL}-1m-{last + 60_000}")
    with pytest.raises(BadInput, match="it is trimmed, or never was"):
        await explainer.explain(bus, f"{SYMBOL}-1m-{first - 60_000}")
    with pytest.raises(BadInput, match=r"signal:\{NOPE\}:1m is empty"):
        await explainer.explain(bus, f"NOPE-1m-{last}")


async def test_trimmed_candles_are_told_and_never_guessed(own: Played) -> None:
    with redis.Redis(port=own.server.port) as client:
        first_ms = own.tape.klines[50].open_time_ms
        client.xtrim(KLINE.key(SYMBOL, "1m"), minid=first_ms, approximate=False)
    assert (await explain(own, 50 + LOOKBACK - 1)).equal
    with pytest.raises(BadInput, match="are trimmed; the bus begins at"):
        await explain(own, 50 + LOOKBACK - 2)
    with pytest.raises(BadInput, match=r"its candle is trimmed from kline:\{TESTUSDT\}:1m"):
        await explain(own, 20)


async def test_a_release_that_is_gone_is_named(own: Played) -> None:
    (own.models / "releases" / own.releases[0]).rename(own.models / "elsewhere")
    with pytest.raises(BadInput, match=f"release {own.releases[0]} is not in .*there are"):
        await explain(own, 30)


async def test_a_signal_that_names_a_folder_opens_none(own: Played, tmp_path: Path) -> None:
    own.change(SIGNAL, 100, lambda signal: replace(signal, release="../../" + tmp_path.name))
    with pytest.raises(BadInput, match="which is no release"):
        await explain(own, 100)


async def test_trimmed_candles_come_from_the_archive_and_the_bits_are_equal(
    own: Played, tmp_path: Path
) -> None:
    archive = Archive(tmp_path, SYMBOL, "1m", futures=False)
    archive.add(own.tape.klines)
    archive.flush(*archive.take())
    rows = len(own.tape.klines)
    key = KLINE.key(SYMBOL, "1m")
    with redis.Redis(port=own.server.port) as client:
        client.xtrim(key, minid=own.tape.klines[rows - 50].open_time_ms, approximate=False)
    explainer = Explainer(own.settings, data_folder=tmp_path)
    async with Bus.session(own.server.url, service="itb", exclusive=False) as bus:
        for row in np.random.default_rng(5).permutation(np.arange(LOOKBACK - 1, rows)).tolist():
            found = await explainer.explain(bus, own.signal_id(row))
            assert found.equal, found.difference
            if row - LOOKBACK + 1 < rows - 50:
                assert any("archive" in note for note in found.notes)
        with pytest.raises(BadInput, match="of the warm-up"):
            await explainer.explain(bus, own.signal_id(LOOKBACK - 2))
        with pytest.raises(BadInput, match="is trimmed"):
            await Explainer(own.settings).explain(bus, own.signal_id(rows - 60))


async def test_other_bits_of_an_archive_with_holes_are_no_verdict(
    own: Played, tmp_path: Path
) -> None:
    archive = Archive(tmp_path, SYMBOL, "1m", futures=False)
    rows = len(own.tape.klines)
    archive.add(own.tape.klines[: rows - 55])  # five were lost
    archive.flush(*archive.take())
    with redis.Redis(port=own.server.port) as client:
        first_ms = own.tape.klines[rows - 50].open_time_ms
        client.xtrim(KLINE.key(SYMBOL, "1m"), minid=first_ms, approximate=False)
    async with Bus.session(own.server.url, service="itb", exclusive=False) as bus:
        with pytest.raises(BadInput, match=r"cannot be computed again: .* missing in the archive"):
            await Explainer(own.settings, data_folder=tmp_path).explain(
                bus, own.signal_id(rows - 48)
            )
