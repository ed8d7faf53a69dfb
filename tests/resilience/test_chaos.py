"""`make chaos`: CHAOS_MINUTES (10) of faults, at least two a second, over all processes at once,
the exchange and a trader that trades there among them.

CHAOS_SEED (drawn and printed if not given) and CHAOS_ROUND play a round again, as far as a
machine's timing is the same twice.
"""

import os
import secrets
import sys
from pathlib import Path

import pytest

from tests.resilience import chaos

MINUTES = float(os.environ.get("CHAOS_MINUTES", "10"))
_SEED = os.environ.get("CHAOS_SEED")
_ROUND = os.environ.get("CHAOS_ROUND")


@pytest.mark.chaos
@pytest.mark.timeout(60 * MINUTES + 900)
async def test_whatever_breaks_whenever_nothing_is_lost_doubled_or_wrong(
    tmp_path: Path, models: Path
) -> None:
    seed = int(_SEED) if _SEED else secrets.randbelow(2**31)
    only = int(_ROUND) if _ROUND else None
    report = await chaos.run(tmp_path, models, minutes=MINUTES, seed=seed, only=only)
    sys.stderr.write(f"\nchaos: {report.line()}\n")
    assert report.problems.none(), f"CHAOS_SEED={seed}: {report.problems}"
    assert report.faults.total() / report.storm_s >= 2, "too few faults to say anything"
    assert report.entries > 0
    assert report.traded.counts["entries"] > 0, "nothing was traded"
