"""Drift and outcomes over what real services left on a real bus."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from auditor import drifter as drifting
from auditor.drifter import Drifter
from auditor.tracker import Tracker
from shared.bundle import Bundle
from shared.bus import Bus, Source, Write
from shared.events import Drift, Feature, Level, Outcome
from shared.explain import Explainer
from shared.klines import KLINE_COLUMNS
from shared.reference import Reference
from shared.runtime import Health, Session
from shared.streams import DRIFT, FEATURE, KLINE, NOTICE, OUTCOME, SIGNAL
from tests.played import FEATURES, Played
from tests.resilience.tape import SYMBOL, M

SOURCE = Source(SIGNAL, SYMBOL, "1m")


@pytest.fixture
async def session(own: Played) -> AsyncIterator[Session]:
    async with Bus.session(own.server.url, service="auditor") as bus:
        yield Session(settings=own.settings, bus=bus, health=Health(), alive=lambda: None)


@pytest.fixture
def stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch as long as the played market, which is shorter than a day."""
    real = Reference.model_validate

    def shorter(told: Any) -> Reference:
        return real(told | {"stretch_rows": 40})

    monkeypatch.setattr(Reference, "model_validate", shorter)


async def drift(session: Session, own: Played) -> Drifter:
    one = Drifter(session, SOURCE, Explainer(own.settings))
    await one.rebuild()
    await one.step()
    return one


async def drifts(session: Session) -> list[Drift]:
    entries = await session.bus.tail(Source(DRIFT, SYMBOL, "1m"), 100)
    assert [e.problem for e in entries] == [""] * len(entries)
    return [e.event for e in entries if e.event is not None]


@pytest.mark.usefixtures("stretch")
async def test_the_newest_stretch_is_held_against_the_training_rows(
    session: Session, own: Played
) -> None:
    one = await drift(session, own)
    (found,) = await drifts(session)
    assert one.standing.last == found
    bundle = Bundle.load(own.models / "releases" / own.releases[1])
    assert bundle.reference is not None
    vectors = [e for e in own.events(FEATURE)[-40:] if not e.gap]
    x = np.array([np.frombuffer(e.values, "<f8") for e in vectors])
    assert (found.rows, found.release) == (len(x), own.releases[1])
    assert found.first_ms == own.tape.klines[-40].open_time_ms
    assert found.open_time_ms == own.tape.last_ms
    novelty = bundle.reference.novelty(x)
    assert found.novelty_median == pytest.approx(np.nanmedian(novelty))
    assert found.beyond == pytest.approx((novelty > 1).mean())
    assert set(found.psi) == set(found.usual) == set(FEATURES)
    for at, name in enumerate(FEATURES):
        bins = bundle.reference.features[name].bins
        assert found.psi[name] == pytest.approx(bins.psi(bins.counts(x[:, at])))
        assert (name in found.unusual) == (found.psi[name] > found.usual[name])
    assert found.score_psi is not None


@pytest.mark.usefixtures("stretch")
async def test_once_an_hour_of_the_market(session: Session, own: Played) -> None:
    await drift(session, own)
    await drift(session, own)  # another life
    (found,) = await drifts(session)
    with redis.Redis(port=own.server.port) as client:
        client.delete(DRIFT.key(SYMBOL, "1m"))
    async with Bus.session(own.server.url, service="itb", exclusive=False) as bus:
        source, hour_ago = Source(DRIFT, SYMBOL, "1m"), own.tape.last_ms - 60 * M
        event = replace(found, open_time_ms=hour_ago)
        await bus.write(Write(source=source, event=event, open_time_ms=hour_ago))
    await drift(session, own)
    assert [one.open_time_ms for one in await drifts(session)] == [hour_ago, own.tape.last_ms]


@pytest.mark.usefixtures("stretch")
async def test_a_market_that_is_all_new_is_told(session: Session, own: Played) -> None:
    def far(feature: Feature) -> Feature:
        values = np.frombuffer(feature.values, "<f8") + 9.0
        return replace(feature, values=values.tobytes())

    for row in range(len(own.tape.klines) - 40, len(own.tape.klines)):
        own.change(FEATURE, row, far)
    await drift(session, own)
    (found,) = await drifts(session)
    assert found.beyond > 0.9
    assert len(found.unusual) == len(FEATURES)
    entries = await session.bus.tail(Source(NOTICE), 100)
    (told,) = [e.event for e in entries if e.event is not None and e.event.code == "novelty"]
    assert told.level == Level.WARNING
    assert f"release {own.releases[1]}" in told.text


async def test_too_few_candles_are_not_judged(session: Session, own: Played) -> None:
    one = await drift(session, own)
    assert await drifts(session) == []
    assert "of the 1,440 candles of a stretch" in one.standing.problem


@pytest.mark.usefixtures("stretch")
async def test_a_release_without_a_reference_says_so(session: Session, own: Played) -> None:
    last = len(own.tape.klines) - 1
    own.change(SIGNAL, last, lambda signal: replace(signal, release=own.releases[0]))
    one = await drift(session, own)
    assert await drifts(session) == []
    assert "does not know what it was trained on" in one.standing.problem
    assert drifting._HOUR_MS == 60 * M


async def test_every_signal_gets_its_outcome_once_the_horizon_is_over(
    session: Session, own: Played
) -> None:
    """As if the releases looked 20 candles ahead."""
    explainer = Explainer(own.settings)
    one = Tracker(session, SOURCE, explainer)
    one._releases.update(dict.fromkeys(own.releases, (20, 0)))
    await one.rebuild()
    while await one.step():
        pass
    entries = await session.bus.tail(Source(OUTCOME, SYMBOL, "1m"), 1_000)
    found = [e.event for e in entries if e.event is not None]
    rows = len(own.tape.klines)
    assert [e.open_time_ms for e in found] == [k.open_time_ms for k in own.tape.klines[: rows - 20]]
    close = own.tape.rows[:, KLINE_COLUMNS.index("close")]
    signals = own.events(SIGNAL)
    for row, event in enumerate(found):
        assert isinstance(event, Outcome)
        assert (event.score, event.side) == (signals[row].score, signals[row].side)
        future = close[row + 20] / close[row] - 1
        if np.isnan(future):
            assert event.future_return is None
        else:
            assert event.future_return == pytest.approx(future)
    again = Tracker(session, SOURCE, explainer)
    again._releases.update(dict.fromkeys(own.releases, (20, 0)))
    await again.rebuild()
    assert await again.step() == 0
    assert again.summary == one.summary
    assert again.summary.rows > 20


async def test_candles_that_a_release_was_trained_on_are_in_no_summary(
    session: Session, own: Played
) -> None:
    one = Tracker(session, SOURCE, Explainer(own.settings))
    end_ms = own.tape.klines[80].open_time_ms
    one._releases.update(dict.fromkeys(own.releases, (20, end_ms)))
    await one.rebuild()
    while await one.step():
        pass
    signals = own.events(SIGNAL)
    close = own.tape.rows[:, KLINE_COLUMNS.index("close")]
    known = [
        row
        for row in range(81, len(signals) - 20)
        if signals[row].score is not None and not np.isnan(close[row + 20])
    ]
    assert one.summary.rows == len(known) > 0


async def test_outcomes_whose_candles_are_trimmed_are_left_out(
    session: Session, own: Played
) -> None:
    with redis.Redis(port=own.server.port) as client:
        first_ms = own.tape.klines[30].open_time_ms
        client.xtrim(KLINE.key(SYMBOL, "1m"), minid=first_ms, approximate=False)
    one = Tracker(session, SOURCE, Explainer(own.settings))
    one._releases.update(dict.fromkeys(own.releases, (5, 0)))
    await one.rebuild()
    while await one.step():
        pass
    entries = await session.bus.tail(Source(OUTCOME, SYMBOL, "1m"), 1_000)
    times = [kline.open_time_ms for kline in own.tape.klines[30:-5]]
    assert [entry.time_ms for entry in entries] == times
