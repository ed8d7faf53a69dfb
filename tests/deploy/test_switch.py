"""`itb halt`, `itb resume`, `itb flatten` against a trader at work, and without a bus."""

import asyncio
import sys
from pathlib import Path

from shared.control import CONTROL_FILE
from tests.trader.rig import BUY, HOLD, floor, trades, trading
from tests.valkey import Server, free_port


async def itb(folder: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, all that it said)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.cli", *arguments, "-c", str(folder / "config.json"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode().strip()


def config(folder: Path, url: str) -> None:
    (folder / "config.json").write_text(f'{{"redis_url": "{url}", "data_folder": "{folder}"}}')


async def test_a_command_is_obeyed_and_lasts_and_no_trader_is_needed_to_give_it(
    valkey: Server, tmp_path: Path
) -> None:
    config(tmp_path, valkey.url)
    async with floor(valkey.url) as market:
        await market.candle(HOLD)
        code, said = await itb(tmp_path, "halt")
        assert code == 1
        assert "no trader is there now" in said
        async with trades(valkey.url, trading(tmp_path, market.ex)):
            halted = await market.candle(BUY)
            lines = await market.until(
                lambda found: any(o.signal_id == halted.id for o in found), "its line"
            )
            assert "HALT" in next(o.reason for o in lines if o.signal_id == halted.id)
            await itb(tmp_path, "resume")
            await market.until_state("RESUMED")
            await market.candle(BUY)
            await market.until_state("FILLED")


async def test_without_a_bus_a_file_halts_and_a_resume_says_that_it_cannot(tmp_path: Path) -> None:
    config(tmp_path, f"redis://127.0.0.1:{free_port()}/0")
    code, said = await itb(tmp_path, "halt")
    file = tmp_path / "journal" / CONTROL_FILE
    assert code == 1
    assert str(file) in said
    assert file.read_text() == "HALT\n"
    code, said = await itb(tmp_path, "resume")
    assert code == 1
    assert "was not told to go on" in said
    assert not file.exists()
    assert len(said.splitlines()) == 1
