"""The bot between a real Valkey, people and strangers, over the wire."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from notifier.bot import MENU
from notifier.daily import newest_due_ms
from notifier.service import Notifier
from notifier.words import LANGUAGES, say
from shared.bus import Source, Write
from shared.config import Settings
from shared.control import CONTROL_KEY, Word, command_of, reason_of
from shared.events import Delivery, Order, OrderState
from shared.ledger import ledger_of
from shared.streams import DAILY, ORDER, SIGNAL, WATCHED_KEY, health_key
from tests.fakes.telegram import BOT, CHAT, TOKEN, Chat, FakeTelegram, Hang, RetryAfter, Status
from tests.notifier.desk import START, Desk, open_desk, serving, settings
from tests.played import Played
from tests.valkey import Server
from tests.waiting import until

PNG = b"\x89PNG\r\n\x1a\n"
STRANGER = 666
MODE = settings().trader.mode


@pytest.fixture
async def desk(valkey: Server) -> AsyncIterator[Desk]:
    async with open_desk(valkey.url) as desk:
        yield desk


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    # Dates of messages begin at 1_700_000_000: the clock says how much later it is.
    async with FakeTelegram(clock=lambda: time.time() - 1_700_000_000) as telegram:
        yield telegram


def commanded(telegram: FakeTelegram, desk: Desk, **notifier: Any) -> Settings:
    return settings(
        redis_url=desk.url,
        telegram_bot_token=TOKEN,
        telegram_chat_id=str(CHAT),
        telegram_url=telegram.url,
        signaler={"notification_threshold": 20},
        notifier={"messages_per_minute": 1800, "users": [CHAT], "watch": [], **notifier},
    )


def listening(desk: Desk, config: Settings, *, reopen_s: float = 600.0) -> Any:
    notifier = Notifier(retry_s=(0.01, 0.05), reopen_s=reopen_s)
    return serving(desk.url, "notifier", notifier.serve, config)


async def answer(
    telegram: FakeTelegram, text: str, *, chat: int = CHAT, user: int = CHAT
) -> dict[str, Any]:
    """What the bot says to a text."""
    before = len(_ours(telegram, chat))
    await telegram.say(text, user=user, chat=chat)
    async with telegram.stored:
        await telegram.stored.wait_for(lambda: len(_ours(telegram, chat)) > before)
    return _ours(telegram, chat)[before]


def _ours(telegram: FakeTelegram, chat: int) -> list[dict[str, Any]]:
    return [m for m in telegram.chats[chat].messages.values() if m["from"]["is_bot"]]


async def test_every_command_of_the_menu_is_answered_with_facts(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(30)
    await desk.bus.write(*(Write(source=Source(ORDER, "BTCUSDT"), event=e) for e in trip()))
    async with listening(desk, commanded(telegram, desk)):
        help_text = (await answer(telegram, "/help"))["text"]
        assert [line.split()[0][1:] for line in help_text.splitlines()] == list(MENU)
        assert {c["command"] for c in telegram.commands} == set(MENU)
        assert "₿ 60,518 📉📉📉📉📉📉 Score: -0.26" in (await answer(telegram, "/score"))["text"]
        status = (await answer(telegram, "/status"))["text"]
        assert status.startswith("🟢 All services are ready.")
        assert f"BTCUSDT ({MODE}): no position" in status
        # Bought 1 for 100 and sold it for 110, 0.1 + 0.11 fees: 9.79.
        assert "realised +9.79 USDT" in (await answer(telegram, "/profit 365"))["text"]
        assert (
            "won 1, lost 0, Profit +9.79 USDT" in (await answer(telegram, "/performance"))["text"]
        )
        trades = (await answer(telegram, "/trades"))["text"].splitlines()
        assert [line.split(maxsplit=2)[2] for line in trades] == [
            "BUY 1 @ 100 (entry)", "SELL 1 @ 110 (exit) +9.79",
        ]  # fmt: skip
        assert "gaps 0" in (await answer(telegram, "/data"))["text"]
        assert "candles 30" in (await answer(telegram, "/data"))["text"]
        assert "no release" in (await answer(telegram, "/model"))["text"].lower()
        assert "signal: p50" in (await answer(telegram, "/latency"))["text"]
        assert "/help" in (await answer(telegram, "/nonsense"))["text"]
        picture = await answer(telegram, "/chart 1")
        assert picture["caption"].startswith("₿ 60,518")
        sent = next(call for call in telegram.calls if call.method == "sendphoto")
        assert next(iter(sent.files.values()))[1].startswith(PNG)
    assert telegram.commands[0]["description"] != ""


async def test_a_button_does_what_its_command_does(desk: Desk, telegram: FakeTelegram) -> None:
    await desk.candles(1)
    async with listening(desk, commanded(telegram, desk)):
        message = await answer(telegram, "/help")
        rows = message["reply_markup"]["inline_keyboard"]
        data = next(b["callback_data"] for row in rows for b in row if b["text"] == "score")
        before = len(_ours(telegram, CHAT))
        query = await telegram.press(data, message["message_id"])
        async with telegram.stored:
            await telegram.stored.wait_for(lambda: len(_ours(telegram, CHAT)) > before)
        assert "Score: -0.26" in _ours(telegram, CHAT)[-1]["text"]
        assert telegram._queries[query], "its spinner has ended"


async def test_strangers_groups_and_old_words_do_nothing(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.chats[STRANGER] = Chat(STRANGER)
    telegram.chats[-5] = Chat(-5, "group")
    async with listening(desk, commanded(telegram, desk)) as session:
        await telegram.say("/halt", user=STRANGER, chat=STRANGER)
        await telegram.say("/halt", user=STRANGER, chat=CHAT)
        await telegram.say("/status", chat=-5)
        telegram.clock = lambda: time.time() - 1_700_000_000 - 120
        await telegram.say("/halt")
        telegram.clock = lambda: time.time() - 1_700_000_000
        await until(lambda: session.health.facts.get("commands", {}).get("ignored") == 4)
        assert (await answer(telegram, "/score"))["text"]
    assert await desk.bus.get(CONTROL_KEY) is None
    assert not _ours(telegram, STRANGER)
    assert not _ours(telegram, -5)


async def test_halt_needs_one_word_and_resume_a_code_that_works_once(
    desk: Desk, telegram: FakeTelegram
) -> None:
    async with listening(desk, commanded(telegram, desk)):
        assert "HALT" in (await answer(telegram, "/halt"))["text"]
        assert _word(await desk.bus.get(CONTROL_KEY)) == Word.HALT
        asked = (await answer(telegram, "/resume"))["text"]
        code = next(word for word in asked.split() if word.isdigit() and len(word) == 6)
        assert _word(await desk.bus.get(CONTROL_KEY)) == Word.HALT
        wrong = f"{(int(code) + 1) % 1_000_000:06d}"
        assert "not valid" in (await answer(telegram, f"/resume {wrong}"))["text"]
        assert "not valid" in (await answer(telegram, f"/resume {code}"))["text"]
        asked = (await answer(telegram, "/resume"))["text"]
        code = next(word for word in asked.split() if word.isdigit() and len(word) == 6)
        assert "not valid" in (await answer(telegram, f"/flatten {code}"))["text"]
        assert "goes on" in (await answer(telegram, f"/resume {code}"))["text"]
        assert _word(await desk.bus.get(CONTROL_KEY)) == Word.RESUME
        assert "not valid" in (await answer(telegram, f"/resume {code}"))["text"]


async def test_an_update_that_comes_again_after_a_restart_is_not_followed_again(
    desk: Desk, telegram: FakeTelegram
) -> None:
    config = commanded(telegram, desk)
    async with listening(desk, config):
        await answer(telegram, "/mute 5")
    seen = list(telegram._updates)
    async with listening(desk, config):
        telegram._updates[:0] = seen  # the server forgot that they were confirmed
        assert (await answer(telegram, "/threshold"))["text"]
    assert sum("muted" in message.get("text", "") for message in _ours(telegram, CHAT)) == 1


async def test_what_a_chat_has_set_outlives_the_notifier(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(0)
    config = commanded(telegram, desk)
    async with listening(desk, config):
        assert "2 steps" in (await answer(telegram, "/threshold 2"))["text"]
        assert "0 to 20" in (await answer(telegram, "/threshold 21"))["text"]
    async with listening(desk, config):
        await desk.candles(1)
        await telegram.until(len(telegram.chats[CHAT].messages) + 1)
    assert telegram.texts()[-1] == "₿ 60,518 📉📉📉📉 Score: -0.26"
    stored = json.loads(await desk.bus.get(f"chat:{CHAT}") or b"{}")
    assert stored == {"muted_until_ms": 0, "threshold": 2}


async def test_a_flood_limit_delays_an_answer_and_loses_none(
    desk: Desk, telegram: FakeTelegram
) -> None:
    async with listening(desk, commanded(telegram, desk)):
        telegram.faults.append(RetryAfter(1))
        assert (await answer(telegram, "/score"))["text"]
        telegram.faults.append(Status(502, "Bad Gateway"))
        assert (await answer(telegram, "/score"))["text"]


async def test_answers_come_in_the_language_of_their_chat(
    desk: Desk, telegram: FakeTelegram
) -> None:
    chats = [{"chat": str(CHAT), "language": "zh", "time_zone": "Asia/Shanghai"}]
    async with listening(desk, commanded(telegram, desk, chats=chats)):
        assert (await answer(telegram, "/trades"))["text"] == "尚无成交。"


async def test_the_picture_of_the_day_comes_once_whatever_dies(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(30)
    # Due a minute ago, in UTC.
    due = datetime.fromtimestamp(time.time() - 60, UTC)
    config = commanded(telegram, desk, daily=f"{due:%H:%M}")
    for _ in range(2):
        async with listening(desk, config):
            assert (await answer(telegram, "/score"))["text"]
            await until(lambda: any("photo" in m for m in _ours(telegram, CHAT)))
    pictures = [m for m in _ours(telegram, CHAT) if "photo" in m]
    assert len(pictures) == 1
    assert pictures[0]["caption"].startswith("The day: ₿ 60,518 (+0.00 %)")
    entries = await desk.bus.tail(Source(DAILY), 10)
    assert [e.event.state for e in entries if e.event] == [Delivery.SENDING, Delivery.SENT]


@pytest.mark.parametrize(
    ("now", "zone", "due"),
    [
        ("2026-03-29T06:30:00+00:00", "Europe/Berlin", "2026-03-29T06:00:00+00:00"),
        ("2026-03-29T05:30:00+00:00", "Europe/Berlin", "2026-03-28T07:00:00+00:00"),
        ("2026-01-01T00:00:00+00:00", "Asia/Shanghai", "2026-01-01T00:00:00+00:00"),
    ],
)
def test_a_day_is_due_at_the_hour_of_its_zone(now: str, zone: str, due: str) -> None:
    from zoneinfo import ZoneInfo

    now_ms = int(datetime.fromisoformat(now).timestamp() * 1000)
    expected = int(datetime.fromisoformat(due).timestamp() * 1000)
    assert newest_due_ms("08:00", ZoneInfo(zone), now_ms) == expected


def _word(text: bytes | None) -> Word | None:
    found = command_of(text)
    return None if found is None else found.word


async def test_performance_counts_the_round_trips_that_are_no_longer_on_the_stream(
    desk: Desk, telegram: FakeTelegram
) -> None:
    journal = Source(ORDER, "BTCUSDT")
    carried = ledger_of(trip(), "BTC", "USDT", MODE).carried()
    first = order_line(4, OrderState.CARRIED, "", "", client_id="", carried=carried)
    await desk.bus.write(Write(source=journal, event=first))
    async with listening(desk, commanded(telegram, desk)):
        assert (await answer(telegram, "/performance"))["text"].splitlines() == [
            "BTCUSDT: Trades 1, won 1, lost 0, Profit +9.79 USDT"
        ]
        # Bought 1 for 100 and sold it for 90, 0.1 + 0.11 fees: -10.21.
        lost = [
            order_line(
                11, OrderState.FILLED, "BUY", "entry", client_id="k2-entry",
                fills={"11": trip_fill(11, "BUY", "100", "0.1")},
            ),
            order_line(
                12, OrderState.FILLED, "SELL", "exit", client_id="k2-exit", price="90",
                profit="-10.21", fills={"12": trip_fill(12, "SELL", "90", "0.11")},
            ),
        ]  # fmt: skip
        await desk.bus.write(*(Write(source=journal, event=event) for event in lost))
        # The clock shows UTC: START is 22:14 of the 14th of November.
        assert (await answer(telegram, "/performance"))["text"].splitlines() == [
            "BTCUSDT: Trades 2, won 1, lost 1, Profit -0.42 USDT",
            "best -10.21, worst -10.21 USDT (since 14.11. 22:14)",
        ]


def order_line(number: int, state: str, side: str, leg: str, **more: Any) -> Order:
    values: dict[str, Any] = {
        "signal_id": f"BTCUSDT-1m-{START}", "symbol": "BTCUSDT", "interval": "1m",
        "open_time_ms": START, "time_ms": START, "state": state, "side": side,
        "quantity": "1", "price": "100", "reason": "", "score": 0.3, "release": "r",
        "mode": MODE, "leg": leg, "client_id": f"k1-{leg}", "order_id": number,
        "type": "MARKET", "order_quantity": "1", "market_ms": START, "number": number,
    }  # fmt: skip
    return Order(**(values | more))


def trip() -> list[Order]:
    """A round trip: 1 BTC bought for 100 and sold for 110, fees in the quote asset."""
    line, fill = order_line, trip_fill
    return [
        line(1, OrderState.INTENT, "BUY", "entry"),
        line(1, OrderState.FILLED, "BUY", "entry", fills={"1": fill(1, "BUY", "100", "0.1")}),
        line(2, OrderState.INTENT, "SELL", "exit", price="110"),
        line(
            2, OrderState.FILLED, "SELL", "exit", price="110", profit="9.79",
            fills={"2": fill(2, "SELL", "110", "0.11")},
        ),
    ]  # fmt: skip


def trip_fill(order: int, side: str, price: str, fee: str) -> bytes:
    return json.dumps(
        {
            "order_id": order, "side": side, "price": price, "quantity": "1",
            "quote": price, "fee": fee, "fee_asset": "USDT", "time_ms": START,
            "maker": False,
        }
    ).encode()  # fmt: skip


async def test_why_says_what_moved_the_score_and_that_the_bits_are_the_same(
    own: Played, telegram: FakeTelegram
) -> None:
    async with open_desk(own.server.url) as desk:
        asked = commanded(telegram, desk)
        told = {name: getattr(asked, name) for name in asked.model_fields_set}
        config = own.settings.model_copy(update=told | {"symbols": own.settings.symbols})
        async with listening(desk, config):
            text = (await answer(telegram, f"/why {own.signal_id(100)}"))["text"]
            signal = own.events(SIGNAL)[100]
            assert f"Score {signal.score:+.4f}" in text
            assert all(name in text for name in signal.outputs)
            assert "the same bits" in text
            assert "Cannot explain it" in (await answer(telegram, "/why BTCUSDT-1m-60000"))["text"]


async def test_after_a_week_of_silence_updates_that_are_numbered_anew_are_heard(
    desk: Desk, telegram: FakeTelegram
) -> None:
    """Telegram numbers them at random then; what lies below the offset counts as confirmed."""
    config = commanded(telegram, desk)
    key = f"telegram:{TOKEN.partition(':')[0]}:offset"
    await desk.bus.put(key, f"900000000 {time.time() - 7 * 86_400:.0f}")
    async with listening(desk, config):
        assert (await answer(telegram, "/score"))["text"]
    assert int((await desk.bus.get(key) or b"").split()[0]) < 900_000_000
    await desk.bus.put(key, f"900000000 {time.time() - 86_400:.0f}")
    telegram._update_id = 900_000_000  # a day is no week: the numbers go on
    async with listening(desk, config):
        assert (await answer(telegram, "/score"))["text"]


async def test_an_update_that_nobody_can_read_takes_no_command_with_it(
    desk: Desk, telegram: FakeTelegram
) -> None:
    odd = {"update_id": 1, "message": {"message_id": 1, "date": "no date", "chat": 5}}
    telegram._update_id = 1
    telegram._updates.append(odd)
    before = len(_ours(telegram, CHAT))
    await telegram.say("/halt")
    async with listening(desk, commanded(telegram, desk)), telegram.stored:
        await telegram.stored.wait_for(lambda: len(_ours(telegram, CHAT)) > before)
    assert _word(await desk.bus.get(CONTROL_KEY)) == Word.HALT


async def test_another_reader_of_the_bot_is_told_once_and_commands_go_on(
    desk: Desk, telegram: FakeTelegram
) -> None:
    url = f"{telegram.url}/bot{TOKEN}/getUpdates?offset=999999&timeout=0"
    async with listening(desk, commanded(telegram, desk)), aiohttp.ClientSession() as other:
        for _ in range(3):
            assert (await answer(telegram, "/score"))["text"]
            await until(lambda: telegram._poller is not None and not telegram._poller.done())
            async with other.get(url):
                pass
        assert (await answer(telegram, "/score"))["text"]
        notices = [n for n in await desk.notices("notifier") if n.code == "bot_conflict"]
        assert len(notices) == 1
        assert "only one bot with this token" in notices[0].text


async def test_an_answer_that_may_have_arrived_is_not_sent_again(
    desk: Desk, telegram: FakeTelegram
) -> None:
    notifier = Notifier(retry_s=(0.01, 0.05), answer_s=1.0)
    async with serving(desk.url, "notifier", notifier.serve, commanded(telegram, desk)):
        await answer(telegram, "/threshold")
        telegram.faults.append(Hang(stored=True))
        assert "No trades" in (await answer(telegram, "/trades"))["text"]
        assert "No signal" in (await answer(telegram, "/score"))["text"]
    texts = [message["text"] for message in _ours(telegram, CHAT)]
    assert len(texts) == 3, texts


@pytest.mark.parametrize("language", LANGUAGES)
async def test_every_command_answers_in_every_language(
    desk: Desk, telegram: FakeTelegram, language: str
) -> None:
    """An answer is there and is a sentence of that language's column, if it has a sentence."""
    chats = [{"chat": str(CHAT), "language": language}]
    expected = {
        "status": "all_ready", "score": "no_signal", "why": "no_signal", "position": "no_position",
        "balance": "no_trader", "trades": "no_trades", "performance": "no_trades",
        "model": "no_release", "data": "no_candles", "latency": "no_signal", "health": "all_ready",
        "mute 0": "unmuted", "pause": "paused", "halt": "halted", "resume 1": "bad_code",
        "flatten 1": "bad_code", "profit": "realised", "nonsense": "unknown_command",
        "chart x": "chart_usage", "help": "help_flatten", "mute x": "mute_usage",
    }  # fmt: skip
    assert {command.split()[0] for command in expected} >= set(MENU) - {"threshold"}
    async with listening(desk, commanded(telegram, desk, chats=chats)):
        for command, phrase in expected.items():
            text = (await answer(telegram, f"/{command}"))["text"]
            assert say(phrase, language) in text, command
        text = (await answer(telegram, "/threshold 3"))["text"]
        assert text == say("threshold", language, threshold=3, score="0.15")


FORWARDED: list[dict[str, Any]] = [
    {"forward_origin": {"type": "hidden_user", "sender_user_name": "x", "date": 1_700_000_000}},
    {"forward_date": 1_700_000_000, "forward_sender_name": "x"},
    {"forward_date": 1_700_000_000, "forward_from": {"id": 5, "is_bot": False, "first_name": "x"}},
    {"forward_date": 1_700_000_000, "forward_from_chat": {"id": -5, "type": "channel"}},
]


@pytest.mark.parametrize("fields", FORWARDED)
async def test_what_was_forwarded_is_not_followed_whichever_way_the_server_tells_it(
    desk: Desk, telegram: FakeTelegram, fields: dict[str, Any]
) -> None:
    async with listening(desk, commanded(telegram, desk)) as session:
        await telegram.say("/halt", **fields)
        await until(lambda: session.health.facts.get("commands", {}).get("ignored") == 1)
    assert await desk.bus.get(CONTROL_KEY) is None


async def test_the_balance_is_what_the_trader_that_trades_has_told(
    desk: Desk, telegram: FakeTelegram
) -> None:
    balances = {
        "USDT": {"free": "9000.50", "locked": "100.00"},
        "BTC": {"free": "0.01500000", "locked": "0"},
    }
    async with listening(desk, commanded(telegram, desk)):
        await beat(desk, "trader", "a", ready=False, reason="stands by")
        assert "no balances" in (await answer(telegram, "/balance"))["text"]
        await beat(desk, "trader", "b", mode="paper", switch="RESUMED", balances=balances)
        assert (await answer(telegram, "/balance"))["text"].splitlines() == [
            "Balance (paper)", "BTC: free 0.015", "USDT: free 9000.5, locked 100",
        ]  # fmt: skip


async def test_a_service_that_has_fallen_silent_is_not_called_ready(
    desk: Desk, telegram: FakeTelegram
) -> None:
    """The trader is in no `notifier.watch`, but it has been heard."""
    async with listening(desk, commanded(telegram, desk, watch=["collector"])):
        await beat(desk, "collector", "collector")
        known = {"collector:collector": False, "trader:trader": False, "featurizer:f-1": True}
        await desk.bus.put(WATCHED_KEY, json.dumps(known))
        for command in ("/status", "/health"):
            text = (await answer(telegram, command))["text"]
            assert text.splitlines()[0] == "🔴 featurizer:f-1: silent, trader: silent"
        await beat(desk, "trader", "trader")
        await beat(desk, "featurizer", "f-1")
        assert "🟢 All services are ready." in (await answer(telegram, "/status"))["text"]


async def test_fees_are_those_of_the_days_that_were_asked_for(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(30)
    early = START - 10 * 86_400_000
    lines = [replace(line, market_ms=early, client_id=f"k0-{line.leg}") for line in trip()]
    await desk.bus.write(*(Write(source=Source(ORDER, "BTCUSDT"), event=e) for e in lines))
    async with listening(desk, commanded(telegram, desk)):
        assert "fees: 0.21 USDT" in (await answer(telegram, "/profit 30"))["text"]
        week = (await answer(telegram, "/profit 7"))["text"]
    assert "realised +0.00" in week
    assert "fees" not in week


async def test_an_order_that_filled_in_parts_is_one_trade(
    desk: Desk, telegram: FakeTelegram
) -> None:
    """Each of its lines tells all that was filled so far, at the average price."""
    part = json.loads(trip_fill(1, "BUY", "100", "0.1")) | {"quantity": "0.4", "quote": "40"}
    rest = part | {"price": "110", "quantity": "0.6", "quote": "66"}
    lines = [
        order_line(1, OrderState.INTENT, "BUY", "entry"),
        order_line(
            1, OrderState.PARTIAL, "BUY", "entry", quantity="0.4",
            fills={"1": json.dumps(part).encode()},
        ),
        order_line(
            1, OrderState.FILLED, "BUY", "entry", quantity="1", price="106",
            fills={"2": json.dumps(rest).encode()},
        ),
    ]  # fmt: skip
    await desk.bus.write(*(Write(source=Source(ORDER, "BTCUSDT"), event=e) for e in lines))
    async with listening(desk, commanded(telegram, desk)):
        trades = (await answer(telegram, "/trades"))["text"].splitlines()
    assert [line.split(maxsplit=2)[2] for line in trades] == ["BUY 1 @ 106 (entry)"]


async def test_a_halt_says_whether_the_trader_has_confirmed_it(
    desk: Desk, telegram: FakeTelegram
) -> None:
    async with listening(desk, commanded(telegram, desk)):
        assert "No trader is there now" in (await answer(telegram, "/halt"))["text"]
        await beat(desk, "trader", "trader", mode="observe")
        assert "NOT confirmed it; it says observe" in (await answer(telegram, "/halt"))["text"]
        await beat(desk, "trader", "trader", mode="paper", switch="HALTED")
        assert "has confirmed it" in (await answer(telegram, "/halt"))["text"]
        # Its journal tells it before its next heartbeat does.
        asked = asyncio.create_task(answer(telegram, "/pause"))
        command = await ordered(desk, Word.REDUCE_ONLY)
        line = order_line(0, OrderState.REDUCED, "", "", client_id="", reason=reason_of(command))
        await desk.bus.write(Write(source=Source(ORDER, "BTCUSDT"), event=line))
        assert "has confirmed it" in (await asked)["text"]


async def test_where_bands_decide_no_threshold_is_promised(
    desk: Desk, telegram: FakeTelegram
) -> None:
    bands = {"positive": [{"edge": 0.05, "frequency": 1, "sign": "x", "text": "weak"}]}
    async with listening(desk, commanded(telegram, desk, bands=bands)):
        assert "notifier.bands" in (await answer(telegram, "/threshold 3"))["text"]
    assert await desk.bus.get(f"chat:{CHAT}") is None


async def test_a_setting_that_is_made_from_elsewhere_names_the_chat_that_it_is_of(
    desk: Desk, telegram: FakeTelegram
) -> None:
    """A channel has nobody who could write a command in it."""
    telegram.chats[-100] = Chat(-100, "channel")
    config = commanded(telegram, desk, chats=[{"chat": "-100"}]).model_copy(
        update={"telegram_chat_id": None}
    )
    async with listening(desk, config):
        assert (await answer(telegram, "/mute 0"))["text"] == "-100: Scores are told again."
        assert (await answer(telegram, "/threshold 2"))["text"].startswith("-100: Scores are told")
    assert await desk.bus.get(f"chat:{CHAT}") is None
    stored = json.loads(await desk.bus.get("chat:-100") or b"{}")
    assert stored["threshold"] == 2


async def test_in_a_group_a_command_to_another_bot_is_left_to_it(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.chats[-5] = Chat(-5, "group")
    chats = [{"chat": str(CHAT)}, {"chat": "-5"}]
    async with listening(desk, commanded(telegram, desk, chats=chats)):
        await telegram.say("/mute@other_bot 5", chat=-5)
        assert (await answer(telegram, f"/mute@{BOT['username']} 0", chat=-5))["text"]
    assert len(_ours(telegram, -5)) == 1


async def test_a_text_of_full_length_is_answered(desk: Desk, telegram: FakeTelegram) -> None:
    """What was asked for is in the answer, but not all of it."""
    async with listening(desk, commanded(telegram, desk)):
        text = (await answer(telegram, f"/why {'9' * 4000}"))["text"]
    assert text.startswith("Cannot explain it: '999")


async def test_a_halt_waits_for_no_answer_to_what_was_asked_before(
    desk: Desk, telegram: FakeTelegram
) -> None:
    """Else it would be older than a minute when its turn comes, and ignored."""
    async with listening(desk, commanded(telegram, desk)):
        telegram.faults.append(RetryAfter(600))
        await telegram.say("/status")
        await telegram.say("/halt")
        assert (await ordered(desk, Word.HALT)).endswith(f"telegram user {CHAT}")
        assert not _ours(telegram, CHAT)


async def test_a_token_that_is_refused_for_a_while_is_told_and_tried_again(
    desk: Desk, telegram: FakeTelegram
) -> None:
    async with listening(desk, commanded(telegram, desk), reopen_s=0.1):
        assert (await answer(telegram, "/score"))["text"]
        telegram.token = "1:another"
        await telegram.say("/score")  # ends the poll that is under way
        async with asyncio.timeout(60):
            while not any(n.code == "commands_stopped" for n in await desk.notices("notifier")):
                await desk.until("notice", len(await desk.notices("notifier")) + 1)
        telegram.token = TOKEN
        await telegram.say("/halt")
        assert await ordered(desk, Word.HALT)
    codes = [one.code for one in await desk.notices("notifier")]
    assert codes.count("commands_stopped") == 1


async def beat(desk: Desk, service: str, instance: str, **facts: Any) -> None:
    told = {"service": service, "instance": instance, "ready": True, "reason": ""} | facts
    await desk.bus.put(health_key(service, instance), json.dumps(told))


async def ordered(desk: Desk, word: Word) -> str:
    """The command, once it is on the bus."""
    async with asyncio.timeout(60):
        while _word(text := await desk.bus.get(CONTROL_KEY)) != word:  # noqa: ASYNC110  # a key tells nobody
            await asyncio.sleep(0.01)
    return (text or b"").decode()
