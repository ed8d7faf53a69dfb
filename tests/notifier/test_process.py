"""The notifier as its supervisor and its users see it: a process, its output, its exit code."""

import asyncio
import contextlib
import os
import signal as signals
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from tests.fakes.telegram import CHAT, TOKEN, FakeTelegram, Hang, Status
from tests.notifier.desk import Desk, notice, open_desk
from tests.valkey import Server

NOTHING: Mapping[str, str] = {}
NOTIFICATIONS = "notification:{BTCUSDT}:1m"


@pytest.fixture
async def desk(valkey: Server) -> AsyncIterator[Desk]:
    async with open_desk(valkey.url) as desk:
        yield desk


@contextlib.contextmanager
def process(
    folder: Path, url: str, variables: Mapping[str, str] = NOTHING, *, out: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
    environment |= {"ITB_REDIS_URL": url} | dict(variables)
    with (folder / "out").open("wb") as file, (folder / "err").open("wb") as err:
        started = subprocess.Popen(
            [sys.executable, "-m", "notifier"],
            env=environment,
            stdout=file if out is None else out,
            stderr=err,
        )
        try:
            yield started
        finally:
            if started.poll() is None:
                started.kill()
            started.wait()


async def ended(started: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(started.wait, 20)


async def test_without_a_token_the_same_line_is_printed(desk: Desk, tmp_path: Path) -> None:
    await desk.candles(0)
    # A terminal that claims to know no such characters gets them all the same.
    with process(tmp_path, desk.url, {"PYTHONIOENCODING": "ascii"}) as started:
        await desk.candles(2)
        await desk.bus.write(notice("a hole\x1b[2J in the data"))
        await desk.until(NOTIFICATIONS, 4)
        await desk.until("alert", 2)
        started.send_signal(signals.SIGTERM)
        assert await ended(started) == 0
    lines = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
    assert lines.count("₿ 60,518 📉📉 Score: -0.26") == 2
    assert [line for line in lines if "hole" in line] == [
        "🚨 collector gap (since 2023-11-14T22:14:00Z): a hole[2J in the data"
    ]
    assert len(lines) == 3
    assert {event.channel for event in await desk.notifications()} == {"console"}


async def test_a_console_that_went_away_does_not_stop_the_consumer(
    desk: Desk, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with process(tmp_path, desk.url, out=writing) as started:
        await desk.candles(3)
        await desk.until(NOTIFICATIONS, 6)
        assert started.poll() is None
    os.close(writing)
    assert {event.state for event in await desk.notifications()} == {"sending", "failed"}


async def test_a_token_without_a_chat_is_one_line_and_exit_code_two(
    desk: Desk, tmp_path: Path
) -> None:
    with process(tmp_path, desk.url, {"ITB_TELEGRAM_BOT_TOKEN": TOKEN}) as started:
        assert await ended(started) == 2
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert last == "error: telegram_chat_id is missing: whom should the bot write to?"


async def test_the_process_shows_its_token_nowhere_and_ends_behind_its_last_message(
    desk: Desk, tmp_path: Path
) -> None:
    async with FakeTelegram() as telegram:
        # The server may repeat our own request to us.
        telegram.faults.append(Status(500, f"broken bot{TOKEN}"))
        telegram.faults.append(Status(400, f"Bad Request: /bot{TOKEN}/sendMessage"))
        variables: dict[str, str] = {
            "ITB_TELEGRAM_BOT_TOKEN": TOKEN,
            "ITB_TELEGRAM_CHAT_ID": str(CHAT),
            "ITB_TELEGRAM_URL": telegram.url,
            "ITB_LOG_LEVEL": "debug",
            "ITB_NOTIFIER__MESSAGES_PER_MINUTE": "1800",
        }
        with process(tmp_path, desk.url, variables) as started:
            await desk.bus.write(notice("one", code="one"))
            await desk.until("alert", 2)
            telegram.faults.append(Hang(stored=True))
            await desk.candles(1)
            await telegram.until(1)
            started.send_signal(signals.SIGTERM)
            await desk.raw.ping()
            telegram.released.set()
            assert await ended(started) == 0
    assert [event.state for event in await desk.notifications()] == ["sending", "sent"]
    secret = TOKEN.split(":")[1].encode()
    for name in ("out", "err"):
        assert secret not in (tmp_path / name).read_bytes()
    assert b"broken bot***" in (tmp_path / "err").read_bytes()
    assert secret not in await desk.everything()


def test_the_console_notifier_loads_quickly_and_without_the_trainers_stack() -> None:
    program = (
        "import sys, notifier.__main__, trader.__main__\n"
        "heavy = {'aiogram', 'pandas', 'lightgbm', 'sklearn', 'scipy', 'onnx', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
