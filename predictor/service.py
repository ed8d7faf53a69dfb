"""The predictor: `feature` to `prediction` and `signal`, by the promoted release."""

import asyncio
from typing import Any

from predictor.releases import ReleaseInUse
from predictor.scoring import Judge, Scorer
from shared.bus import Source, Write
from shared.config import Settings
from shared.events import Signal
from shared.metrics import SCORE, SIGNALS
from shared.runtime import Session
from shared.stage import Stage, dead_letter_janitor, janitor
from shared.streams import FEATURE, PREDICTION, SIGNAL


async def serve(session: Session) -> None:
    """Waits for a release, catches up, then one prediction and one signal per feature entry."""
    settings = session.settings
    release = ReleaseInUse(session)
    judge = Judge(
        release,
        nan_share=settings.limits.nan_share,
        novelty_limit=settings.signaler.novelty_limit,
    )

    def measure(write: Write[Any]) -> None:
        signal = write.event
        if isinstance(signal, Signal):
            session.metrics.add(SIGNALS, "invalid" if signal.invalid else signal.side or "none")
            if signal.score is not None:
                session.metrics.observe(SCORE, signal.score)

    sources = [Source(FEATURE, symbol, settings.interval) for symbol in settings.symbols]
    stage = Stage(
        session,
        sources,
        outputs=lambda source: [
            Source(PREDICTION, source.symbol, source.interval),
            Source(SIGNAL, source.symbol, source.interval),
        ],
        core=lambda source: Scorer(judge, source),
        look=judge.look,
        told=measure,
    )
    await release.first()
    session.health.facts["novelty"] = judge.novelty
    await stage.rebuild()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(release.watch())
        tasks.create_task(janitor(session, trimmed(settings), least_rows=1))
        tasks.create_task(dead_letter_janitor(session, sources))
        await stage.work(between=release.swap)


def trimmed(settings: Settings) -> list[Source[Any]]:
    """The streams that the predictor writes and keeps short."""
    return [
        Source(stream, symbol, settings.interval)
        for stream in (PREDICTION, SIGNAL)
        for symbol in settings.symbols
    ]
