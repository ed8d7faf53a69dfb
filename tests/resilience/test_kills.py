"""Any service, or Valkey, ended by SIGKILL at any moment: the same streams as if nothing happened.

Real processes over a simulated market with holes. `ITB_KILL_SEED=7` plays the kill times of seed 7
again (as far as a machine's timing is the same twice), `ITB_KILLS=50` sets the kills per service of
each run.
"""

import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.resilience import checks
from tests.resilience.conftest import FEATURES, kill_count, kill_seed
from tests.resilience.system import SERVICES, VALKEY, System, strike, strike_valkey
from tests.resilience.tape import Tape, record

_LAG = 400  # candles that may wait for their signals before the market pauses
_HISTORY = 1_600  # more than the longest window, so that most scores are valid


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run in which nobody was killed, and what it should have given."""

    tape: Tape
    kept: checks.Kept
    expected: checks.Expected


async def _undisturbed(folder: Path, models: Path, *, live: int, seed: int) -> Undisturbed:
    tape = record(folder, history=_HISTORY, live=live, seed=seed)
    async with System.running(folder / "undisturbed", tape, models, FEATURES) as system:
        await system.until_ready()
        kept = await _play_to_the_end(system)
        tails, log = system.tails(), system.log("notifier")
        assert not system.surprises, tails
    expected = checks.expect(tape, FEATURES, models)
    problems = checks.check_bus(kept, expected)
    problems.add(checks.check_printed(kept, log))
    assert problems.none(), f"undisturbed: {problems}\n{tails}"
    return Undisturbed(tape, kept, expected)


async def _play_to_the_end(system: System) -> checks.Kept:
    """The rest of the market, at a pace that everybody can follow, and what then is on the bus."""
    with system.client as client:
        if system.lock_step:
            await system.control("resume")
        else:
            await _play(system)
        finished = checks.is_finished(client, system.tape.last_ms)
        await system.until(finished, "the last candle's signal")
        return checks.read_bus(client)


async def _play(system: System) -> None:
    """The last candles go one by one: that a candle has closed is certain only to who hears it or
    sees a later one, and behind the last one there is none."""
    while (left := system.live - system.played) > 0:
        allowed = _LAG if left > 5 else 1
        await system.until(lambda most=allowed: system.behind <= most, "signals")  # type: ignore[misc]
        await system.advance(min(50, left - 5) if left > 5 else 1)


async def _storm(
    folder: Path,
    models: Path,
    undisturbed: Undisturbed,
    *,
    kills: int,
    seed: int,
    victims: tuple[str, ...] = (*SERVICES, VALKEY),
    lock_step: bool = False,
    lose: bool = False,
) -> None:
    """Ends each victim `kills` times while the market plays, then compares.

    lose: half of Valkey's ends take a part of the last second's writes with them.
    """
    sys.stderr.write(f"\nto replay: ITB_KILL_SEED={seed} ITB_KILLS={kills}\n")
    tape = undisturbed.tape
    async with System.running(folder, tape, models, FEATURES, lock_step=lock_step) as system:
        async with asyncio.TaskGroup() as tasks:
            done: Counter[str] = Counter()
            for name in victims:
                rng = _random(seed, name)
                if name == VALKEY:
                    tasks.create_task(strike_valkey(system, kills, rng, done, lose=lose))
                else:
                    tasks.create_task(strike(system, name, kills, rng, done))
            market = _in_lock_step if lock_step else _ahead
            total = kills * len(victims)
            tasks.create_task(market(system, done, total, _random(seed, "market")))
        await system.until_ready()
        kept = await _play_to_the_end(system)
        tails, log = system.tails(), system.log("notifier")
        problems = checks.check_bus(kept, undisturbed.expected)
        problems.add(checks.check_same(kept, undisturbed.kept))
        problems.add(await checks.check_explained(kept, system, _random(seed, "explain")))
        if VALKEY not in victims:
            problems.add(checks.check_printed(kept, log))
        for surprise in system.surprises:
            problems.say("ended by itself", surprise)
    assert problems.none(), f"seed {seed}: {problems}\n{tails}"
    assert set(victims) == {name for name, count in system.kills.items() if count == kills}
    assert system.lost_bytes > 0 or not lose or kills < 10, "no write was ever lost"


def _random(seed: int, name: str) -> random.Random:
    return random.Random(f"{seed} {name}")


async def _ahead(system: System, done: Counter[str], total: int, rng: random.Random) -> None:
    """The market goes on whoever is down, in pace with the kills; it stops only where too many
    candles wait for their signals."""
    while done.total() < total:
        wanted = int(system.live * (0.02 + 0.93 * done.total() / total))
        if system.played < wanted and system.behind <= _LAG:
            await system.advance(min(rng.randrange(1, 12), wanted - system.played))
        system.check_alive(f"kills: {dict(done)}")
        await asyncio.sleep(0.02)


async def _in_lock_step(
    system: System, done: Counter[str], total: int, _rng: random.Random
) -> None:
    """The market stands while somebody has not taken the last candle."""
    state = await system.control("pause")
    while done.total() < total:
        wanted = int(system.live * (0.02 + 0.93 * done.total() / total))
        command = "resume" if state["steps_done"] - system.tape.history < wanted else "pause"
        state = await system.control(command)
        system.check_alive(f"kills: {dict(done)}")
        await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_at_random_moments_all_streams_are_those_of_an_undisturbed_run(
    tmp_path: Path, models: Path
) -> None:
    undisturbed = await _undisturbed(tmp_path, models, live=400, seed=3)
    await _storm(
        tmp_path / "storm", models, undisturbed, kills=kill_count(3), seed=kill_seed(1), lose=True
    )


@pytest.fixture(scope="module")
def long_run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("long")
    return asyncio.run(_undisturbed(folder, models, live=4_000, seed=4))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", range(5))
async def test_killed_a_hundred_times_over_candles_that_do_not_wait(
    tmp_path: Path, models: Path, long_run: Undisturbed, run: int
) -> None:
    await _storm(
        tmp_path / "storm",
        models,
        long_run,
        kills=kill_count(35),
        seed=kill_seed(100 + run),
        lose=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_in_lock_step_with_the_market(
    tmp_path: Path, models: Path, long_run: Undisturbed
) -> None:
    await _storm(
        tmp_path / "storm",
        models,
        long_run,
        kills=kill_count(35),
        seed=kill_seed(200),
        lock_step=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_with_valkey_untouched_nobody_is_told_twice(
    tmp_path: Path, models: Path, long_run: Undisturbed
) -> None:
    await _storm(
        tmp_path / "storm",
        models,
        long_run,
        kills=kill_count(35),
        seed=kill_seed(300),
        victims=SERVICES,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_last_candle_of_the_data_comes_even_if_the_collector_was_down_when_it_closed(
    tmp_path: Path, models: Path
) -> None:
    tape = record(tmp_path, history=_HISTORY, live=60, seed=4)
    async with System.running(tmp_path / "run", tape, models, FEATURES, lock_step=True) as system:
        await system.until_ready()
        await system.control("pause")
        await system.advance(system.live - 1)
        await system.until(lambda: system.behind == 0, "signals")
        system.end("collector")
        await system.advance(1)
        system.start("collector")
        async with asyncio.timeout(20):
            await system.until(lambda: system.behind == 0, "the last signal")
