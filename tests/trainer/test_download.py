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
from shared.errors import Failure, Unavailable, Usage
from shared.klines import KlineTable
from tests.fakes.archive import FakeBinance, serving
from trainer import bookdepth, download, funding, rasters
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
    stored_rates = klinefiles.read_columns(
        funding.folder_of(tmp_path, "BTCUSDT") / "2025-02.parquet"
    )
    assert stored_rates["funding_time_ms"].tolist() == [time_ms - 7 for time_ms, _ in rates]
    assert stored_rates["funding_rate"].tolist() == [float(rate) for _, rate in rates]
    assert len(result["outputs"]) == 4


HOUR = 3_600_000


def settlements(days: range, *, late_ms: int = 7) -> list[tuple[int, str]]:
    """Three a day, each with a rate that tells its time, stamped some milliseconds late."""
    return [
        (START + day * DAY + hour * HOUR + late_ms, f"0.{day + 50:03}{hour:02}")
        for day in days
        for hour in (0, 8, 16)
    ]


def stored_rates(tmp_path: Path) -> dict[int, float]:
    folder = funding.folder_of(tmp_path, "BTCUSDT")
    found: dict[int, float] = {}
    for month in klinefiles.kline_months(folder):
        columns = klinefiles.read_columns(folder / f"{month}.parquet")
        found |= dict(
            zip(columns["funding_time_ms"].tolist(), columns["funding_rate"].tolist(), strict=True)
        )
    return found


def exact(rates: list[tuple[int, str]]) -> dict[int, float]:
    return {time_ms - 7: float(rate) for time_ms, rate in rates}


async def test_funding_comes_from_the_archive_its_holes_and_its_tail_from_rest(
    fetch: Any, tmp_path: Path
) -> None:
    perpetual = candles(35, interval="1h", step=HOUR)  # 31 January to 7 March
    rates = settlements(range(35))
    archived = [rate for rate in rates if rate[0] < START + 29 * DAY]  # January and February
    holed = archived[:20] + archived[22:]
    fake = FakeBinance(
        spot={"BTCUSDT": perpetual},
        futures={"BTCUSDT": perpetual},
        funding={"BTCUSDT": rates},
        funding_zips={"BTCUSDT": holed},
    )
    async with serving(fake):
        result, _ = await fetch(fake, interval="1h", with_futures=True)
        # The newest candle is open: what settles in it is not asked for, and nothing later is.
        assert stored_rates(tmp_path) == exact(rates)
        asked = [request for request in fake.requests if "fundingRate" in request]
        zips = [request for request in asked if request.endswith(".zip")]
        assert [request.rsplit("-", 2)[1:] for request in zips] == [
            ["2025", "01.zip"],
            ["2025", "02.zip"],
        ]
        queries = [request for request in asked if "startTime" in request]
        assert len(queries) == 2  # the hole and March
        assert result["funding"][0]["missing"] == 0
        fake.requests.clear()
        result, _ = await fetch(fake, interval="1h", with_futures=True)
        assert result["funding"][0]["new"] == 0
        again = [request for request in fake.requests if "fundingRate" in request]
        assert len(again) == 1  # the month that is not over


async def test_settlements_that_nobody_has_are_said_and_not_asked_for_again(
    fetch: Any, tmp_path: Path
) -> None:
    perpetual = candles(35, interval="1h", step=HOUR)
    rates = settlements(range(35))
    holed = rates[:20] + rates[23:]  # one whole day of February
    fake = FakeBinance(
        spot={"BTCUSDT": perpetual},
        futures={"BTCUSDT": perpetual},
        funding={"BTCUSDT": holed},
        funding_zips={"BTCUSDT": holed},
    )
    async with serving(fake):
        result, notes = await fetch(fake, interval="1h", with_futures=True)
        found = result["funding"][0]
        after = klinefiles.iso(rates[19][0] - 7)
        assert found["missing"] == 1
        assert found["missing_ranges"] == [{"after": after, "hours": 32.0}]
        assert any("32 hours after " + after in line for line in notes)
        fake.requests.clear()
        await fetch(fake, interval="1h", with_futures=True)
    assert len([request for request in fake.requests if "fundingRate" in request]) == 1
    assert stored_rates(tmp_path) == exact(holed)


@pytest.mark.parametrize("fault", ["damaged", "mismatched"])
async def test_a_bad_funding_zip_is_replaced_by_rest(
    fetch: Any, tmp_path: Path, fault: str
) -> None:
    perpetual = candles(35, interval="1h", step=HOUR)
    rates = settlements(range(35))
    bad: dict[str, Any] = {fault: {"BTCUSDT-fundingRate-2025-02.zip"}}
    fake = FakeBinance(
        spot={"BTCUSDT": perpetual},
        futures={"BTCUSDT": perpetual},
        funding={"BTCUSDT": rates},
        funding_zips={"BTCUSDT": [(time_ms, "0.5") for time_ms, _ in rates[3:]]},
        **bad,
    )
    async with serving(fake):
        _, notes = await fetch(fake, interval="1h", with_futures=True)
    assert stored_rates(tmp_path) == exact(rates)
    assert len([line for line in notes if "BTCUSDT-fundingRate-2025-02.zip" in line]) == 1


def book(day: int, *, snapshots: int = 4, sign: str = "") -> tuple[str, str]:
    """(day, csv) of order-book levels, in the archive's form."""
    date = klinefiles.iso(START + day * DAY)[:10]
    lines = ["timestamp,percentage,depth,notional"]
    for at in range(snapshots):
        for level in (-5, -1, 1, 5):
            lines.append(
                f"{date} 0{at}:00:0{at},{level}{sign},{day * 100 + at}.25,{level * 1000}.5"
            )
    return date, "\n".join(lines) + "\n"


def expected_book(days: list[int]) -> list[tuple[int, float, float, float]]:
    return [
        (START + day * DAY + at * (HOUR + 1000), level, day * 100 + at + 0.25, level * 1000 + side)
        for day in days
        for at in range(4)
        for level, side in ((-5.0, -0.5), (-1.0, -0.5), (1.0, 0.5), (5.0, 0.5))
    ]


def stored_book(tmp_path: Path) -> list[tuple[int, float, float, float]]:
    folder = bookdepth.folder_of(tmp_path, "BTCUSDT")
    rows: list[tuple[int, float, float, float]] = []
    for month in klinefiles.kline_months(folder):
        columns = klinefiles.read_columns(folder / f"{month}.parquet")
        assert list(columns) == ["time_ms", "percentage", "depth", "notional"]
        rows += zip(*(column.tolist() for column in columns.values()), strict=True)
    return rows


async def test_order_book_levels_are_kept_as_they_are_and_go_on_where_they_stopped(
    fetch: Any, tmp_path: Path
) -> None:
    whole = candles(20, interval="1h", step=HOUR)
    days = [day for day in range(19) if day not in (3, 17)]
    books = dict(book(day, sign=".00" if day > 9 else "") for day in days)
    late = dict([book(17)])
    fake = FakeBinance(spot={"BTCUSDT": whole}, books={"BTCUSDT": dict(books)})
    async with serving(fake):
        result, notes = await fetch(fake, interval="1h", with_depth=True)
        assert stored_book(tmp_path) == expected_book(days)
        found = result["depth"][0]
        assert (found["rows"], found["new"]) == (16 * len(days), 16 * len(days))
        assert found["missing"] == [klinefiles.iso(START + day * DAY)[:10] for day in (3, 17)]
        assert any("nothing of 2 of 19 days" in line for line in notes)
        fake.requests.clear()
        fake.books["BTCUSDT"] |= late
        result, _ = await fetch(fake, interval="1h", with_depth=True)
    # The day that is long over is not asked for again, the one of yesterday is.
    assert fake.asked_zips() == [f"BTCUSDT-bookDepth-{next(iter(late))}.zip"]
    assert stored_book(tmp_path) == expected_book(sorted([*days, 17]))
    assert not list(klinefiles.klines_folder(tmp_path, "BTCUSDT", "1h").glob("*depth*"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("timestamp,percentage,depth\n2025-01-31 00:00:00,1,2\n", "not the csv that it should be"),
        ("timestamp,percentage,depth,notional\nyesterday,1,2,3\n", "not the csv that it should"),
        ("timestamp,percentage,depth,notional\n2025-02-01 00:00:00,1,2,3\n", "of another day"),
        ("timestamp,percentage,depth,notional\n2025-01-31 00:00:00,1,,3\n", "1 empty cells"),
        ("timestamp,percentage,depth,notional\n2025-01-31 00:00:00,1,inf,3\n", "no finite number"),
        ("timestamp,percentage,depth,notional\n", "of another day, or none"),
    ],
)
async def test_a_bad_file_of_levels_is_said_and_left_out(
    fetch: Any, tmp_path: Path, text: str, reason: str
) -> None:
    whole = candles(3, interval="1h", step=HOUR)
    books = {"2025-01-31": text} | dict([book(1)])
    async with serving(FakeBinance(spot={"BTCUSDT": whole}, books={"BTCUSDT": books})) as fake:
        _, notes = await fetch(fake, interval="1h", with_depth=True)
    assert stored_book(tmp_path) == expected_book([1])
    assert any("BTCUSDT-bookDepth-2025-01-31.zip" in line and reason in line for line in notes)


async def test_levels_without_an_archive_are_refused(fetch: Any) -> None:
    whole = candles(2, interval="1h", step=HOUR)
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        with pytest.raises(Usage, match="from the archive alone"):
            await fetch(fake, interval="1h", with_depth=True, with_archive=False)
        with pytest.raises(Usage, match="from the archive alone"):
            await fetch(fake, interval="1h", with_depth=True, archive_url="")


async def test_months_that_are_wrong_in_the_archive_come_by_days(
    fetch: Any, tmp_path: Path
) -> None:
    start, end = klinefiles.month_bounds("2021-09")
    whole = candles(4, start=end - 2 * DAY)
    async with serving(FakeBinance(spot={"BTCUSDT": whole})) as fake:
        await fetch(fake, start_ms=start)
    assert "BTCUSDT-1m-2021-09.zip" not in fake.asked_zips()
    assert "BTCUSDT-1m-2021-09-29.zip" in fake.asked_zips()
    assert same(stored(tmp_path), whole.rows(0, len(whole) - 1))


async def test_everything_is_written_as_csv_where_asked_for(fetch: Any, tmp_path: Path) -> None:
    whole = candles(3, interval="1h", step=HOUR)
    rates = settlements(range(3))
    fake = FakeBinance(
        spot={"BTCUSDT": whole},
        futures={"BTCUSDT": whole},
        funding={"BTCUSDT": rates},
        books={"BTCUSDT": dict([book(0)])},
    )
    async with serving(fake):
        result, _ = await fetch(
            fake, interval="1h", with_futures=True, with_depth=True, with_csv=True
        )
    for name in ("BTCUSDT-1h-klines.csv", "BTCUSDT-1h-futures-klines.csv"):
        table = klinefiles.read_klines([tmp_path / name], interval="1h")[0]
        assert same(table, whole.rows(0, len(whole) - 1))
    lines = (tmp_path / "BTCUSDT-funding.csv").read_text().splitlines()
    assert lines[0] == "funding_time_ms,funding_rate,mark_price"
    assert lines[1:] == [f"{t},{rate!r}," for t, rate in exact(rates).items()]
    lines = (tmp_path / "BTCUSDT-bookdepth.csv").read_text().splitlines()
    assert [tuple(map(float, line.split(","))) for line in lines[1:]] == expected_book([0])
    assert str(tmp_path / "BTCUSDT-1h-klines.csv") in map(str, result["outputs"][0]["wrote"])


async def test_a_damaged_month_on_disk_is_one_line_with_the_remedy(
    fetch: Any, tmp_path: Path
) -> None:
    folder = klinefiles.klines_folder(tmp_path, "BTCUSDT", "1m")
    folder.mkdir(parents=True)
    (folder / "2025-01.parquet").write_bytes(b"PAR1 and no more")
    async with serving(FakeBinance(spot={"BTCUSDT": candles(2)})) as fake:
        with pytest.raises(Failure, match=r"2025-01\.parquet: damaged.*remove the file and run"):
            await fetch(fake)


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
