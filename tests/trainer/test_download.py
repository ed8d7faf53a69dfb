"""The download against a fake archive and REST on loopback; no real time passes."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.config import Settings
from shared.errors import Failure, Unavailable
from shared.klines import KlineTable
from tests.fakes.archive import FakeBinance, serving
from trainer import download, rasters
from trainer.progress import Progress

MINUTE = 60_000
DAY = 86_400_000
START = 1_738_281_600_000  # 2025-01-31T00:00Z: its zip is of microseconds


class Clock:
    """Time that passes only where the code sleeps."""

    def __init__(self) -> None:
        self.now_s = 1_750_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class Notes(Progress):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def candles(
    days: float,
    *,
    symbol: str = "BTCUSDT",
    interval: str = "1m",
    step: int = MINUTE,
    start: int = START,
) -> KlineTable:
    """Plausible candles with many digits."""
    count = int(days * DAY // step)
    random = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(random.normal(0, 1e-3, count)))
    open_ = np.concatenate([[100.0], close[:-1]])
    volume = random.lognormal(size=count)
    columns = [
        open_,
        np.maximum(open_, close) * 1.001,
        np.minimum(open_, close) * 0.999,
        close,
        volume,
        volume * close,
        random.integers(1, 900, count).astype(float),
        volume / 3,
        volume * close / 3,
    ]
    return KlineTable(
        symbol=symbol,
        interval=interval,
        open_time_ms=start + step * np.arange(count, dtype=np.int64),
        values=np.column_stack(columns),
    )


def without(table: KlineTable, first: int, rows: int) -> KlineTable:
    keep = np.ones(len(table), bool)
    keep[first : first + rows] = False
    return KlineTable(
        symbol=table.symbol,
        interval=table.interval,
        open_time_ms=table.open_time_ms[keep],
        values=table.values[keep],
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetch(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Downloads from a fake into tmp_path; returns the result and the notes."""
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)

    async def fetched(
        fake: FakeBinance, *, symbols: tuple[str, ...] = ("BTCUSDT",), **options: Any
    ) -> tuple[dict[str, Any], list[str]]:
        settings = Settings(
            data_folder=tmp_path,
            binance_rest_url=fake.url,
            futures_rest_url=fake.url,
            archive_url=options.pop("archive_url", fake.url),
        )
        notes = Notes()
        options = {"interval": "1m", "start_ms": 0} | options
        result = await download.download(
            settings, notes, symbols=symbols, sleep=clock.sleep, now=clock.now, **options
        )
        return result, notes.lines

    return fetched


def stored(tmp_path: Path, symbol: str = "BTCUSDT", interval: str = "1m") -> KlineTable:
    folder = klinefiles.klines_folder(tmp_path, symbol, interval)
    return klinefiles.read_history(folder, symbol=symbol, interval=interval)


def same(found: KlineTable, expected: KlineTable) -> bool:
    return np.array_equal(found.open_time_ms, expected.open_time_ms) and np.array_equal(
        found.values, expected.values, equal_nan=True
    )


async def test_months_come_from_the_archive_then_days_then_the_tail_from_rest(
    fetch: Any, tmp_path: Path
) -> None:
    whole = candles(5.2, start=START - 2 * DAY)  # 29 January to 3 February and a bit
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        result, _ = await fetch(fake)
    # The newest candle may still be open.
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))
    assert sorted(fake.asked_zips()) == [
        "BTCUSDT-1m-2025-01.zip",
        "BTCUSDT-1m-2025-02-01.zip",
        "BTCUSDT-1m-2025-02-02.zip",
    ]
    report = result["outputs"][0]
    assert report["from_rest"] == int(0.2 * 1440) - 1
    assert report["from_archive"] == 5 * 1440
    assert result["rows"] == result["new"] == len(whole) - 1
    assert result["missing"] == 0


async def test_a_second_run_asks_only_for_what_is_new(fetch: Any, tmp_path: Path) -> None:
    whole = candles(3)
    async with serving(FakeBinance(spot={"BTCUSDT": whole.rows(0, len(whole) - 60)})) as fake:
        await fetch(fake)
        fake.requests.clear()
        fake.spot["BTCUSDT"] = whole
        result, _ = await fetch(fake)
    assert result["new"] == 60
    assert fake.asked_zips() == []
    assert len(fake.asked_rest()) == 3  # newest, oldest, one page
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))


async def test_without_an_archive_all_comes_from_rest_and_a_line_says_so(
    fetch: Any, tmp_path: Path
) -> None:
    whole = candles(3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused at once
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
            result, notes = await fetch(fake, archive_url=nowhere)
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))
    assert result["outputs"][0]["from_archive"] == 0
    assert [line for line in notes if nowhere in line and "REST only" in line] == notes


async def test_an_archive_that_answers_with_errors_is_left_alone(
    fetch: Any, tmp_path: Path
) -> None:
    whole = candles(3)
    async with serving(FakeBinance(spot={"BTCUSDT": whole}, archive_status=503)) as fake:
        _, notes = await fetch(fake)
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))
    assert len(notes) == 1
    assert "HTTP 503" in notes[0]


async def test_binances_archive_is_not_mixed_with_another_exchange(
    fetch: Any, tmp_path: Path
) -> None:
    whole = candles(1)
    default = Settings.model_fields["archive_url"].default
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        _, notes = await fetch(fake, archive_url=default)
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))
    assert len(notes) == 1
    assert "REST only" in notes[0]


@pytest.mark.parametrize("fault", ["damaged", "mismatched", "unpublished"])
async def test_a_bad_zip_is_replaced_from_days_or_rest(
    fetch: Any, tmp_path: Path, fault: str
) -> None:
    whole = candles(3)
    bad = {"BTCUSDT-1m-2025-01.zip", "BTCUSDT-1m-2025-02-01.zip"}
    async with serving(FakeBinance(spot={"BTCUSDT": whole}, **{fault: bad})) as fake:
        result, notes = await fetch(fake)
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))
    assert result["outputs"][0]["from_archive"] == 1440  # 31 January by its day
    assert (len(notes) == 2) is (fault != "unpublished")


async def test_holes_are_asked_for_and_those_of_the_exchange_itself_are_said(
    fetch: Any, tmp_path: Path
) -> None:
    whole = candles(2)
    exchange = without(whole, 700, 80)
    folder = klinefiles.klines_folder(tmp_path, "BTCUSDT", "1m")
    klinefiles.add_klines(folder, without(exchange, 200, 33).rows(0, 2000))
    async with serving(FakeBinance(spot={"BTCUSDT": exchange})) as fake:
        result, notes = await fetch(fake)
    assert same(stored(tmp_path), exchange.rows(0, len(exchange) - 1))
    assert result["missing"] == 80
    first_missing = klinefiles.iso(int(whole.open_time_ms[700]))
    assert result["outputs"][0]["missing_ranges"] == [{"from": first_missing, "rows": 80}]
    assert any("80" in line and first_missing in line for line in notes)


async def test_stored_candles_are_not_replaced(fetch: Any, tmp_path: Path) -> None:
    whole = candles(1)
    changed = whole.rows(0, 500)
    changed.values[:, 4] += 1
    kept = KlineTable(
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=changed.open_time_ms,
        values=changed.values.copy(),
    )
    klinefiles.add_klines(klinefiles.klines_folder(tmp_path, "BTCUSDT", "1m"), kept)
    whole.values[:500, 4] -= 1
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        await fetch(fake)
    assert same(stored(tmp_path).rows(0, 500), kept)


@pytest.mark.parametrize("fault", [500, "html", "garbage", 502])
async def test_rest_faults_are_outlasted(
    fetch: Any, tmp_path: Path, clock: Clock, fault: int | str
) -> None:
    whole = candles(1)
    async with serving(FakeBinance(spot={"BTCUSDT": whole}, rest_faults=[fault] * 4)) as fake:
        await fetch(fake)
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))
    assert len(clock.slept) == 4
    assert clock.slept == sorted(clock.slept) or max(clock.slept) > 1  # backs off


async def test_retry_after_is_honoured(fetch: Any, tmp_path: Path, clock: Clock) -> None:
    whole = candles(0.5)
    async with serving(FakeBinance(spot={"BTCUSDT": whole}, rest_faults=[429])) as fake:
        await fetch(fake)
    assert sum(clock.slept) == pytest.approx(7)
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))


async def test_a_ban_ends_the_download_with_how_long_it_lasts(fetch: Any) -> None:
    fake = FakeBinance(spot={"BTCUSDT": candles(0.5)}, rest_faults=[418], retry_after="7200")
    async with serving(fake):
        with pytest.raises(Failure, match=r"refuses requests for 7200 s.*again"):
            await fetch(fake)


async def test_the_weight_budget_is_kept(fetch: Any, clock: Clock) -> None:
    fake = FakeBinance(spot={"BTCUSDT": candles(0.2)}, used_weight="2999")
    async with serving(fake):
        await fetch(fake, archive_url="")
    # Half of 6000 is ours: every further request waits for the next minute.
    assert len(clock.slept) == len(fake.asked_rest()) - 1
    assert all(0 < wait <= 60.5 for wait in clock.slept)


async def test_a_dead_exchange_ends_in_unavailable_and_leaves_what_was_stored(
    fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MONTHS_AT_ONCE", 1)
    whole = candles(5, start=START - 2 * DAY)
    fake = FakeBinance(
        spot={"BTCUSDT": whole}, unpublished={"BTCUSDT-1m-2025-02-01.zip"}, rest_dies_after=2
    )
    async with serving(fake):
        with pytest.raises(Unavailable, match="no good reply"):
            await fetch(fake)
    found = stored(tmp_path)
    assert len(found) >= 1440
    assert np.isin(found.open_time_ms, whole.open_time_ms).all()


async def test_an_unknown_symbol_is_one_clear_failure(fetch: Any) -> None:
    async with serving(FakeBinance(spot={"BTCUSDT": candles(0.1)})) as fake:
        with pytest.raises(Failure, match=r"NOPEUSDT \(spot\).*Invalid symbol"):
            await fetch(fake, symbols=("NOPEUSDT",))


async def test_several_symbols_and_the_futures_with_funding(fetch: Any, tmp_path: Path) -> None:
    eth = candles(1.5, symbol="ETHUSDT")
    perpetual = candles(1.5, symbol="BTCUSDT", start=START + DAY // 2)
    rates = [(START + DAY + hours * 3_600_000 + 7, f"0.000{hours + 1:02}") for hours in (0, 8, 16)]
    fake = FakeBinance(
        spot={"BTCUSDT": candles(1.5), "ETHUSDT": eth},
        futures={"BTCUSDT": perpetual, "ETHUSDT": eth},
        funding={"BTCUSDT": rates},
    )
    async with serving(fake):
        result, _ = await fetch(fake, symbols=("BTCUSDT", "ETHUSDT"), with_futures=True)
    assert same(stored(tmp_path, "ETHUSDT"), eth.rows(0, len(eth) - 1))
    folder = rasters.futures_folder(tmp_path, "BTCUSDT", "1m")
    found = klinefiles.read_history(folder, symbol="BTCUSDT", interval="1m")
    assert same(found, perpetual.rows(0, len(perpetual) - 1))
    funding = klinefiles.read_columns(
        download.funding_folder(tmp_path, "BTCUSDT") / "2025-02.parquet"
    )
    assert funding["funding_time_ms"].tolist() == [time_ms - 7 for time_ms, _ in rates]
    assert funding["funding_rate"].tolist() == [float(rate) for _, rate in rates]
    assert len(result["outputs"]) == 4


async def test_long_candles_come_by_pages_rather_than_by_files(fetch: Any, tmp_path: Path) -> None:
    hour = 3_600_000
    whole = candles(200, interval="1h", step=hour)
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        await fetch(fake, interval="1h")
    assert fake.asked_zips() == []
    assert same(stored(tmp_path, interval="1h"), whole.rows(0, len(whole) - 1))


async def test_start_and_end_bound_what_is_fetched(fetch: Any, tmp_path: Path) -> None:
    whole = candles(3)
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        await fetch(fake, start_ms=START + DAY, end_ms=START + DAY + 90 * MINUTE)
    assert same(stored(tmp_path), whole.rows(1440, 1440 + 90))


async def test_by_default_training_and_a_month_more_are_fetched(fetch: Any, tmp_path: Path) -> None:
    whole = candles(800, interval="1d", step=DAY)
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        await fetch(fake, interval="1d", start_ms=None)
    found = stored(tmp_path, interval="1d")
    assert 548 + 31 <= len(found) <= 548 + 31 + 31
    assert found.open_time_ms[-1] == whole.open_time_ms[-2]


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("survived", range(4))
async def test_killed_while_writing_it_goes_on_where_it_stopped(
    fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """The first run is cut off in its n-th write, half of the file written."""
    whole = candles(2.2)
    expected = whole.rows(0, len(whole) - 1)
    real = klinefiles.replacing
    done = 0

    @contextlib.contextmanager
    def cut(path: Path) -> Iterator[Path]:
        nonlocal done
        with real(path) as unfinished:
            yield unfinished
            if done == survived:
                unfinished.write_bytes(unfinished.read_bytes()[:100])
                raise Killed
            done += 1

    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        with monkeypatch.context() as patched:
            patched.setattr(klinefiles, "replacing", cut)
            with pytest.raises(Killed):
                await fetch(fake)
        left = stored(tmp_path)  # every file that is there is whole
        assert np.isin(left.open_time_ms, expected.open_time_ms).all()
        await fetch(fake)
    assert same(stored(tmp_path), expected)
    assert not list(tmp_path.rglob(".*"))  # noqa: ASYNC240 - a test may wait
