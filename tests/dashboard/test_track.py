"""The window of one symbol: columns, changes, what the rules did, latencies, what is missing."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from dashboard.account import Account
from dashboard.track import FIELDS, Track
from dashboard.whatif import WhatIf
from shared.bus import Entry, Source
from shared.config import Settings
from shared.events import Kline, Meta, Signal
from shared.rules import Costs, configured
from shared.streams import FEATURE, KLINE, SIGNAL
from tests.dashboard.recorded import MINUTE, MODELS, START, Recording
from tests.plain_trading import trade


def entry(stream: Any, event: Any, *, us: int = 0, late_ms: int | None = 40) -> Entry[Any]:
    """As it comes from the bus, `us` after its candle was received."""
    open_ms = event.open_time_ms
    received_us = (open_ms + MINUTE) * 1000
    market_ms = None if late_ms is None else open_ms + MINUTE + late_ms
    return Entry(
        source=Source(stream, "BTCUSDT", "1m"),
        id=f"{open_ms}-0",
        event=event,
        meta=Meta(received_us=received_us, published_us=received_us + us, market_ms=market_ms),
    )


def entries(recording: Recording, number: int, **keys: Any) -> list[Entry[Any]]:
    return [
        entry(KLINE, recording.kline(number), us=100, **keys),
        entry(FEATURE, recording.feature(number), us=400),
        entry(SIGNAL, recording.signal(number), us=1_000),
    ]


def make(most: int = 1_000, **keys: Any) -> Track:
    settings = Settings(**keys)
    account = Account("BTCUSDT", "BTC", "USDT", settings.trader.mode)
    return Track("BTCUSDT", MINUTE, most, WhatIf(settings), account)


def filled(recording: Recording, most: int = 1_000, **keys: Any) -> Track:
    track = make(most, **keys)
    for number in range(recording.rows):
        for one in entries(recording, number):
            track.apply(one)
    return track


def column(track: Track, name: str) -> list[Any]:
    found: list[Any] = track.snapshot()["columns"][name]
    return found


def test_a_snapshot_has_every_candle_with_its_score_by_columns() -> None:
    recording = Recording(50, gap_every=10, warm_up=3)
    track = filled(recording)
    snapshot = track.snapshot()
    assert tuple(snapshot["columns"]) == FIELDS
    assert snapshot["models"] == list(MODELS)
    assert column(track, "time") == [START + n * MINUTE for n in range(50)]
    klines = [recording.kline(n) for n in range(50)]
    assert column(track, "close") == [None if k.gap else k.close for k in klines]
    assert column(track, "gap") == [k.gap for k in klines]
    signals = [recording.signal(n) for n in range(50)]
    assert column(track, "side") == [s.side for s in signals]
    assert column(track, "score") == [
        None if s.score is None else round(s.score, 5) for s in signals
    ]
    assert column(track, "invalid")[9].startswith("gap")
    assert column(track, "total_us") == [None if k.gap else 1_000 for k in klines]
    assert column(track, "late_ms") == [40] * 50


def test_changes_are_the_rows_touched_and_make_up_the_snapshot() -> None:
    recording = Recording(30)
    track = make()
    by_time: dict[int, list[Any]] = {}
    for number in range(30):
        for one in entries(recording, number):
            track.apply(one)
            for row in track.changes():
                by_time[row[0]] = row
        assert track.changes() == []
    assert [row[: len(FIELDS)] for row in by_time.values()] == [
        list(row) for row in zip(*track.snapshot()["columns"].values(), strict=True)
    ]
    assert [row[len(FIELDS) :] for row in by_time.values()] == [
        list(row) for row in zip(*track.outputs()["outputs"].values(), strict=True)
    ]


def test_only_the_newest_candles_are_kept() -> None:
    recording = Recording(30)
    track = filled(recording, most=12)
    assert column(track, "time") == [START + n * MINUTE for n in range(18, 30)]
    assert len(track) == len(track.vectors) == 12
    assert [row[0] for row in track.changes()] == column(track, "time")


def test_what_is_derived_from_candles_before_the_window_is_left_out() -> None:
    recording = Recording(5)
    track = make()
    for one in entries(recording, 0)[1:]:
        track.apply(one)
    assert len(track) == 0
    for one in entries(recording, 1):
        track.apply(one)
    for one in entries(recording, 0):
        track.apply(one)
    assert column(track, "time") == [START + MINUTE]
    assert track.unreadable == 0


def test_entries_that_nobody_of_ours_wrote_are_counted_and_left_out() -> None:
    recording = Recording(2)
    track = filled(recording)
    good = entries(recording, 1)[0]
    for bad in (
        dataclasses.replace(good, event=None, problem="not msgpack"),
        dataclasses.replace(good, id=f"{START + 2 * MINUTE}-1"),
        dataclasses.replace(good, id=f"{START + 2 * MINUTE + 1}-0"),
    ):
        track.apply(bad)
    assert track.unreadable == 3
    assert track.ledger()["counts"]["unreadable"] == 3
    assert len(track) == 2


def test_a_second_signal_of_a_candle_changes_nothing() -> None:
    recording = Recording(3)
    track = filled(recording)
    before = track.snapshot()
    other = dataclasses.replace(recording.signal(2), score=0.9, side="BUY", outputs={"x": 1.0})
    track.apply(entry(SIGNAL, other))
    assert track.snapshot() == before


def test_models_of_a_new_release_come_behind_those_known() -> None:
    recording = Recording(3)
    track = filled(recording)
    kline = recording.kline(2)
    later = Recording(4)
    for one in entries(later, 3)[:2]:
        track.apply(one)
    signal = dataclasses.replace(later.signal(3), outputs={"high_5_k_gb": 0.7, MODELS[0]: 0.25})
    track.apply(entry(SIGNAL, signal))
    assert kline.close == column(track, "close")[2]
    assert track.models == [*MODELS, "high_5_k_gb"]
    outputs = track.outputs()["outputs"]
    assert outputs["high_5_k_gb"] == [None, None, None, 0.7]
    assert outputs[MODELS[0]][3] == 0.25
    assert outputs[MODELS[1]][3] is None


@pytest.mark.parametrize("fee_from", ["received", "quote"])
def test_the_rules_make_of_the_scores_what_an_independent_loop_makes(fee_from: str) -> None:
    recording = Recording(400, gap_every=37)
    keys = {
        "trader": {"rules": {"stop_loss": 0.01, "take_profit": 0.02}},
        "trainer": {"backtest": {"fee_from": fee_from}},
    }
    settings = Settings(**keys)
    track = filled(recording, **keys)
    rules = configured(settings, MINUTE)
    costs = Costs(0.001, 0.0002, fee_from == "received")
    candles = []
    for n in range(400):
        kline, score = recording.kline(n), recording.signal(n).score
        prices = (kline.open, kline.high, kline.low, kline.close)
        candles.append((*prices, math.nan if score is None else score, math.nan))
    worth, trades = trade(candles, rules, costs, 10_000.0, MINUTE)
    assert np.allclose(column(track, "equity"), worth, rtol=0, atol=0.006)
    assert len(trades) >= 3
    opened = [t for t in track.whatif.trades if t.profit is None]
    left = [t for t in track.whatif.trades if t.profit is not None]
    assert [t.open_time_ms for t in opened] == [START + t["entry"] * MINUTE for t in trades]
    done = [t for t in trades if "exit" in t]
    assert [t.open_time_ms for t in left] == [START + t["exit"] * MINUTE for t in done]
    assert [t.profit for t in left] == pytest.approx([t["profit"] for t in done])
    assert track.whatif.since_ms == START


def test_buy_and_hold_buys_at_the_open_after_the_first_score() -> None:
    recording = Recording(20, warm_up=4)
    track = filled(recording)
    held = column(track, "held")
    assert held[:4] == [None] * 4
    assert held[4] == 10_000
    quantity = 10_000 / (recording.kline(5).open * 1.0002) * 0.999
    assert held[5:] == pytest.approx(
        [quantity * recording.kline(n).close for n in range(5, 20)], abs=0.006
    )
    assert track.whatif.since_ms == START + 4 * MINUTE


def test_rules_that_contradict_each_other_are_told_and_not_run() -> None:
    keys = {"trader": {"rules": {"buy_threshold": 0.1, "exit_long": 0.2}}}
    track = filled(Recording(20), **keys)
    assert "exit_long" in track.whatif.problem
    assert column(track, "equity") == [None] * 20


def test_latency_is_told_per_stage_and_of_live_candles_alone() -> None:
    recording = Recording(10)
    track = make()
    assert track.latency() == {"candles": 0, "stages": {}}
    for number in range(5):
        for one in entries(recording, number, late_ms=3_600_000):  # backfilled
            track.apply(one)
    assert track.latency()["candles"] == 0
    for number in range(5, 10):
        for one in entries(recording, number):
            track.apply(one)
    found = track.latency()
    assert found["candles"] == 5
    assert {stage: one["p50"] for stage, one in found["stages"].items()} == {
        "collector": 0.1, "featurizer": 0.3, "predictor": 0.6, "total": 1.0,
    }  # fmt: skip


def test_the_ledger_counts_gaps_holes_and_backfilled_candles_in_runs() -> None:
    recording = Recording(40)
    track = make()
    for number in range(40):
        kline: Kline = recording.kline(number)
        if 10 <= number < 13 or number == 20:
            kline = Kline.gap_marker("BTCUSDT", "1m", kline.open_time_ms, kline.close_time_ms)
        if number in (30, 31):
            continue
        late_ms = 10 * MINUTE if number < 5 else 25
        track.apply(entry(KLINE, kline, late_ms=late_ms))
    found = track.ledger()
    assert found["counts"] == {
        "candles": 29, "gap": 4, "hole": 2, "backfilled": 5, "unreadable": 0,
    }  # fmt: skip
    at = [START + n * MINUTE for n in range(40)]
    assert found["runs"] == [
        ["hole", at[30], at[31], 2], ["gap", at[20], at[20], 1], ["gap", at[10], at[12], 3],
    ]  # fmt: skip
    assert (found["first"], found["last"]) == (at[0], at[39])
    assert found["late_ms"] == {"p50": 25, "max": 25}
    assert make().ledger()["late_ms"] is None


def test_an_empty_window_has_empty_columns() -> None:
    track = make()
    assert set(track.snapshot()["columns"]) == set(FIELDS)
    assert column(track, "time") == []
    assert track.outputs() == {"symbol": "BTCUSDT", "time": [], "outputs": {}}
    signal = Signal(
        open_time_ms=START, symbol="BTCUSDT", interval="1m", close=1.0, score=None, side="",
        invalid="x", release="r", schema="s",
    )  # fmt: skip
    track.apply(entry(SIGNAL, signal))
    assert column(track, "time") == []
