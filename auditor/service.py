"""The auditor: the track record and the parity certificate, beside everything else.

It reads without consumer groups: nothing waits for it, and nothing is kept for it. What it has done
stands on its own streams, from which it goes on after any end.
"""

import asyncio
from typing import Any

from auditor.archive import Archive
from auditor.certifier import Certifier
from auditor.drifter import Drifter
from auditor.recorder import Recorder
from auditor.tracker import Tracker
from shared.bus import Source, by_key
from shared.config import Settings
from shared.explain import Explainer
from shared.explain.explanation import plain
from shared.metrics import PARITY_BEHIND, PARITY_LAST, PARITY_SIGNALS
from shared.runtime import Session
from shared.stage import janitor
from shared.streams import DRIFT, OUTCOME, PARITY, RECORD, SIGNAL


async def serve(session: Session) -> None:
    """Catches up, then records every signal at once and certifies it a little later, for ever."""
    settings = session.settings
    sources = [Source(SIGNAL, symbol, settings.interval) for symbol in settings.symbols]
    recorders = [
        Recorder(session, source, Archive(settings.data_folder, source.symbol, source.interval))
        for source in sources
    ]
    explainer = Explainer(settings)
    certifiers = [
        Certifier(session, source, explainer, settings.auditor.chunk) for source in sources
    ]
    for recorder in recorders:
        session.alive()
        await recorder.rebuild()
        while await recorder.step():
            session.alive()
        _tell_record(session, recorder)
    for certifier, recorder in zip(certifiers, recorders, strict=True):
        await certifier.rebuild()
        oldest = await session.bus.span(certifier.source, after=None, count=1)
        _tell_parity(session, certifier)
        _tell_behind(session, certifier, recorder, oldest[0].time_ms if oldest else None)
    drifters = [Drifter(session, source, explainer) for source in sources]
    trackers = [Tracker(session, source, explainer) for source in sources]
    for drifter, tracker in zip(drifters, trackers, strict=True):
        session.alive()
        await drifter.rebuild()
        await tracker.rebuild()
    session.health.is_ready()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_record(session, recorders))
        tasks.create_task(_certify(session, certifiers, drifters, trackers))
        tasks.create_task(
            janitor(session, trimmed(settings), least_rows=2 * 86_400_000 // settings.step_ms)
        )


def trimmed(settings: Settings) -> list[Source[Any]]:
    """The streams that the auditor writes and keeps short."""
    return [
        Source(stream, symbol, settings.interval)
        for symbol in settings.symbols
        for stream in (RECORD, PARITY, DRIFT, OUTCOME)
    ]


async def _record(session: Session, recorders: list[Recorder]) -> None:
    """As soon as a signal stands on the bus."""
    by_source = {recorder.source.key: recorder for recorder in recorders}
    sources = by_key(recorder.source for recorder in recorders)
    while True:
        session.alive()
        after = {key: recorder.after for key, recorder in by_source.items()}
        entries = await session.bus.follow(sources, after)
        for key in dict.fromkeys(entry.source.key for entry in entries):
            while await by_source[key].step():
                session.alive()
            _tell_record(session, by_source[key])


async def _certify(
    session: Session,
    certifiers: list[Certifier],
    drifters: list[Drifter],
    trackers: list[Tracker],
) -> None:
    """Round and round, a chunk of each symbol at a time."""
    while True:
        busy = False
        for certifier, drifter, tracker in zip(certifiers, drifters, trackers, strict=True):
            busy = bool(await certifier.step()) or busy
            _tell_parity(session, certifier)
            await drifter.step()
            _tell_drift(session, drifter)
            busy = bool(await tracker.step()) or busy
            _tell_outcomes(session, tracker)
        if not busy:
            await asyncio.sleep(session.settings.auditor.pause_s)


def _tell_record(session: Session, recorder: Recorder) -> None:
    facts = session.health.facts.setdefault("record", {})
    facts[recorder.source.symbol] = {"last_ms": recorder.after_ms, "hash": recorder.head}
    session.health.last_ids[recorder.source.key] = recorder.after


def _tell_parity(session: Session, certifier: Certifier) -> None:
    totals = certifier.totals
    facts = session.health.facts.setdefault("parity", {})
    facts[certifier.source.symbol] = {
        "last_ms": certifier.last_ms,
        "equal": totals.equal,
        "unequal": totals.unequal,
        "unchecked": totals.unchecked,
    }
    metrics, symbol = session.metrics, certifier.source.symbol
    metrics.set(PARITY_SIGNALS, totals.equal, symbol, "equal")
    metrics.set(PARITY_SIGNALS, totals.unequal, symbol, "unequal")
    metrics.set(PARITY_SIGNALS, totals.unchecked, symbol, "unchecked")
    if certifier.last_ms is not None:
        metrics.set(PARITY_LAST, certifier.last_ms / 1000, symbol)


def _tell_behind(
    session: Session, certifier: Certifier, recorder: Recorder, first_ms: int | None
) -> None:
    """Computed when somebody asks: signals are recorded at once, whatever the certifier does.

    first_ms: of the oldest signal on the bus, with which a new certifier begins.
    """
    step_ms = session.settings.step_ms

    def behind() -> float:
        nonlocal first_ms
        newest_ms, last_ms = recorder.after_ms, certifier.last_ms
        if newest_ms is None:
            return 0.0
        if last_ms is None:
            first_ms = newest_ms if first_ms is None else first_ms
            last_ms = first_ms - step_ms
        return max(0.0, (newest_ms - last_ms) / step_ms)

    session.metrics.set(PARITY_BEHIND, behind, certifier.source.symbol)


def _tell_drift(session: Session, drifter: Drifter) -> None:
    standing = drifter.standing
    told: dict[str, Any] = {"problem": standing.problem}
    if (last := standing.last) is not None:
        told |= {
            "last_ms": last.open_time_ms,
            "features": len(last.psi),
            "unusual": len(last.unusual),
            "novelty_median": last.novelty_median,
            "beyond": last.beyond,
            "score_psi": last.score_psi,
            "score_usual": last.score_usual,
        }
    session.health.facts.setdefault("drift", {})[drifter.source.symbol] = plain(told)


def _tell_outcomes(session: Session, tracker: Tracker) -> None:
    found = tracker.summary
    session.health.facts.setdefault("outcomes", {})[tracker.source.symbol] = {
        "last_ms": tracker.last_ms,
        "rows": found.rows,
        "auc": found.auc,
        "counts": found.counts,
        "mean_return": found.mean_return,
    }
