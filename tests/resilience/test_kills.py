"""Any service, or Valkey, ended by SIGKILL at any moment: the same streams as if nothing happened.

Real processes over a simulated market with holes. `ITB_KILL_SEED=7` plays the kill times of seed 7
again (as far as a machine's timing is the same twice), `ITB_KILLS=50` sets the kills per service of
each run.
"""

import asyncio
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.resilience import checks
from tests.resilience.conftest import FEATURES
from tests.resilience.system import SERVICES, VALKEY, System, strike, strike_valkey
from tests.resilience.tape import M, Tape, record

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
    with system.client as client:
        if system.lock_step:
            await system.control("resume")
        while not system.lock_step and await system.advance(50):
            pass
        finished = checks.is_finished(client, system.tape.last_ms)
        await system.until(finished, "the last candle's signal")
        return checks.read_bus(client)


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
            strikes = [
                tasks.create_task(
                    strike_valkey(system, kills, _random(seed, name), done, lose=lose)
                    if name == VALKEY
                    else strike(system, name, kills, _random(seed, name), done)
                )
                for name in victims
            ]
            market = _in_lock_step if lock_step else _ahead
            playing = tasks.create_task(
                market(system, done, kills * len(victims), _random(seed, "market"))
            )
            await asyncio.wait(strikes)
            playing.cancel()
        await system.until_ready()
        kept = await _play_to_the_end(system)
        tails, log = system.tails(), system.log("notifier")
        problems = checks.check_bus(kept, undisturbed.expected)
        problems.add(checks.check_same(kept, undisturbed.kept))
        if VALKEY not in victims:
            problems.add(checks.check_printed(kept, log))
        for surprise in system.surprises:
            problems.say("ended by itself", surprise)
    assert problems.none(), f"seed {seed}: {problems}\n{tails}"


def _random(seed: int, name: str) -> random.Random:
    return random.Random(f"{seed} {name}")


async def _ahead(system: System, done: Counter[str], total: int, rng: random.Random) -> None:
    """The market goes on whoever is down, in pace with the kills; it stops only where too many
    candles wait for their signals."""
    tape = system.tape
    there = [kline.open_time_ms for kline in tape.klines if not kline.gap]
    played = 0
    while True:
        wanted = int((tape.candles - tape.history) * (0.02 + 0.93 * done.total() / total))
        behind_ms = there[tape.history + played - 1] - system.signals_ms
        if played < wanted and behind_ms <= _LAG * M:
            played += await system.advance(min(rng.randrange(1, 12), wanted - played))
        system.check_alive(f"kills: {dict(done)}")
        await asyncio.sleep(0.02)


async def _in_lock_step(
    system: System, done: Counter[str], total: int, _rng: random.Random
) -> None:
    """The market stands while somebody has not taken the last candle."""
    tape = system.tape
    state = await system.control("pause")
    while True:
        wanted = int((tape.candles - tape.history) * (0.02 + 0.93 * done.total() / total))
        command = "resume" if state["steps_done"] - tape.history < wanted else "pause"
        state = await system.control(command)
        system.check_alive(f"kills: {dict(done)}")
        await asyncio.sleep(0.02)


def _seed(run: int) -> int:
    return int(os.environ.get("ITB_KILL_SEED", "1")) + run


def _kills(default: int) -> int:
    return int(os.environ.get("ITB_KILLS", default))


async def test_killed_at_random_moments_all_streams_are_those_of_an_undisturbed_run(
    tmp_path: Path, models: Path
) -> None:
    undisturbed = await _undisturbed(tmp_path, models, live=400, seed=3)
    await _storm(tmp_path / "storm", models, undisturbed, kills=_kills(3), seed=_seed(0), lose=True)


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
        tmp_path / "storm", models, long_run, kills=_kills(35), seed=_seed(100 + run), lose=True
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_in_lock_step_with_the_market(
    tmp_path: Path, models: Path, long_run: Undisturbed
) -> None:
    await _storm(
        tmp_path / "storm", models, long_run, kills=_kills(35), seed=_seed(200), lock_step=True
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_with_valkey_untouched_nobody_is_told_twice(
    tmp_path: Path, models: Path, long_run: Undisturbed
) -> None:
    await _storm(
        tmp_path / "storm", models, long_run, kills=_kills(35), seed=_seed(300), victims=SERVICES
    )
