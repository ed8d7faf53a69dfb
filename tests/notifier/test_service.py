"""The notifier between a real Valkey and a Telegram that misbehaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from notifier.messages import DUPLICATE
from notifier.service import Notifier
from shared.bus import Bus, Source
from shared.config import Settings
from shared.errors import OutOfSync
from shared.events import Delivery, Level, Notification
from shared.runtime import Session
from shared.streams import ALERT, NOTICE
from tests.fakes.telegram import (
    CHAT,
    TOKEN,
    Chat,
    FakeTelegram,
    Hang,
    Migrated,
    Page,
    Reset,
    RetryAfter,
    Status,
)
from tests.notifier.desk import SIGNALS, Desk, kline, notice, open_desk, serving, settings, signal
from tests.valkey import Server

LINE = "₿ 60,518 📉📉 Score: -0.26"
NOTIFICATIONS = "notification:{BTCUSDT}:1m"


@pytest.fixture
async def desk(valkey: Server) -> AsyncIterator[Desk]:
    async with open_desk(valkey.url) as desk:
        yield desk


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    async with FakeTelegram() as telegram:
        yield telegram


def told(telegram: FakeTelegram, *, url: str | None = None, **notifier: Any) -> Settings:
    return settings(
        redis_url=url,
        telegram_bot_token=TOKEN,
        telegram_chat_id=str(CHAT),
        telegram_url=telegram.url,
        notifier={"messages_per_minute": 1800, **notifier},
    )


def notifying(
    desk: Desk,
    config: Settings,
    *,
    answer_s: float = 30.0,
    durable_s: float = 5.0,
    reopen_s: float = 600.0,
) -> AbstractAsyncContextManager[Session]:
    notifier = Notifier(
        retry_s=(0.01, 0.05), answer_s=answer_s, durable_s=durable_s, reopen_s=reopen_s
    )
    return serving(desk.url, "notifier", notifier.serve, config)


async def alerts(desk: Desk) -> list[Notification]:
    entries = await desk.bus.tail(Source(ALERT), 1000)
    return [entry.event for entry in entries if entry.event is not None]


async def until_counted(session: Session, what: str, count: int) -> None:
    while session.health.facts.get("counts", {}).get(what, 0) < count:  # noqa: ASYNC110  # no event
        await asyncio.sleep(0.001)


async def test_scores_arrive_once_in_order_and_nothing_stays_pending(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(0)
    async with notifying(desk, told(telegram)):
        await desk.candles(3)
        texts = await telegram.until(3)
        entries = await desk.until(NOTIFICATIONS, 6)
    assert texts == [LINE] * 3
    assert [name[b"state"].decode() for _, name in entries] == ["sending", "sent"] * 3
    ids = [entry_id.decode().split("-") for entry_id, _ in entries]
    assert [sequence for _, sequence in ids] == ["0", "1"] * 3
    sent = [event for event in await desk.notifications() if event.state == Delivery.SENT]
    assert [event.message_id for event in sent] == [1, 2, 3]
    assert {(event.channel, event.chat) for event in sent} == {("telegram", str(CHAT))}
    assert await desk.pending("notifier") == 0
    call = telegram.sends()[0].params
    assert call["parse_mode"] == "HTML"
    assert call["link_preview_options"] == '{"is_disabled": true}'


async def test_scores_below_the_threshold_or_invalid_are_silent(
    desk: Desk, telegram: FakeTelegram
) -> None:
    async with notifying(desk, told(telegram)):
        await desk.candles(1, score=-0.19)
        await desk.bus.write(signal(1, None, invalid="gap"))
        await desk.candles(3, score=0.2)
        await telegram.until(1)
        await desk.until(NOTIFICATIONS, 2)
    assert telegram.texts() == ["₿ 60,518 📈 Score: +0.20"]
    assert await desk.pending("notifier") == 0


async def test_a_backlog_older_than_the_limit_stays_silent(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(30)
    async with notifying(desk, told(telegram)):
        await desk.until(NOTIFICATIONS, 6)
    # The market stands 40 ms after the last close: candles 27, 28 and 29 are younger than 180 s.
    assert telegram.texts() == [LINE] * 3
    assert await desk.pending("notifier") == 0


async def test_a_signal_without_its_candle_is_not_believed(
    desk: Desk, telegram: FakeTelegram
) -> None:
    async with notifying(desk, told(telegram)):
        await desk.bus.write(signal(0))
        await desk.until_read("notifier")
        await desk.candles(2)
        await telegram.until(1)
        await desk.until(NOTIFICATIONS, 2)
    assert {event.open_time_ms for event in await desk.notifications()} == {signal(1).open_time_ms}


@pytest.mark.parametrize(
    "fault",
    [
        Status(500),
        Status(500, "Internal Server Error: restart"),
        Page(502),
        Page(403),
        Status(429, "Too Many Requests"),
    ],
)
async def test_what_was_surely_not_sent_is_sent_again(
    desk: Desk, telegram: FakeTelegram, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notifier.telegram._SLOW_S", 0.05)
    telegram.faults.append(fault)
    async with notifying(desk, told(telegram)):
        await desk.candles(1)
        await desk.until(NOTIFICATIONS, 2)
    assert telegram.texts() == [LINE]
    assert len(telegram.sends()) == 2


async def test_retry_after_is_obeyed(desk: Desk, telegram: FakeTelegram) -> None:
    telegram.faults.append(RetryAfter(1))
    async with notifying(desk, told(telegram)):
        await desk.candles(1)
        await desk.bus.write(notice("an alert keeps the pause too"))
        await telegram.until(2)
    first, second, third = telegram.sends()
    assert second.time - first.time >= 1.0
    assert third.time >= second.time
    assert LINE in telegram.texts()


async def test_the_limits_of_a_strict_telegram_are_kept(desk: Desk) -> None:
    async with FakeTelegram(limits=True) as telegram:
        config = told(telegram, messages_per_minute=20)
        async with notifying(desk, config):
            await desk.candles(3)
            await desk.until(NOTIFICATIONS, 6)
        assert len(telegram.sends()) == 3  # not one was refused
        times = [call.time for call in telegram.sends()]
        assert times[2] - times[0] >= 2.0


@pytest.mark.parametrize("fault", [Hang(stored=True), Hang(stored=False), Reset(stored=True),
                                   Reset(stored=False), Page(504), Page(200)])  # fmt: skip
async def test_a_score_that_may_have_arrived_is_not_sent_again(
    desk: Desk, telegram: FakeTelegram, fault: Any
) -> None:
    telegram.faults.append(fault)
    async with notifying(desk, told(telegram), answer_s=0.2):
        await desk.candles(1)
        await desk.until(NOTIFICATIONS, 2)
        await desk.candles(2)
        await desk.until(NOTIFICATIONS, 4)
    assert len(telegram.sends()) == 2
    assert [event.state for event in await desk.notifications()] == [
        "sending", "unknown", "sending", "sent",
    ]  # fmt: skip


@pytest.mark.parametrize("fault", [Hang(stored=True), Reset(stored=False)])
async def test_an_alert_that_may_have_arrived_is_sent_again_and_says_so(
    desk: Desk, telegram: FakeTelegram, fault: Any
) -> None:
    telegram.faults.append(fault)
    async with notifying(desk, told(telegram), answer_s=0.2):
        await desk.bus.write(notice("boom"))
        await desk.until("alert", 2)
    texts = telegram.texts()
    assert len(texts) == (2 if fault.stored else 1)
    assert texts[-1].endswith("boom" + DUPLICATE)
    assert (await alerts(desk))[-1].state == Delivery.SENT


async def test_unreachable_telegram_is_tried_until_it_is_there(
    desk: Desk, telegram: FakeTelegram, unused_tcp_port: int
) -> None:
    config = told(telegram).model_copy(
        update={"telegram_url": f"http://127.0.0.1:{unused_tcp_port}"}
    )
    async with notifying(desk, config):
        await desk.candles(1)
        await desk.bus.write(notice("boom"))
        await desk.until("alert", 1)
        # New candles age the score: it is given up, the alert is not.
        await desk.candles(9, score=0.0)
    assert all(event.state == Delivery.SENDING for event in await alerts(desk))
    async with notifying(desk, told(telegram)):
        await desk.until("alert", 2)
    assert [text for text in telegram.texts() if "boom" in text] == [
        "🚨 collector gap (since 2023-11-14T22:14:00Z): boom" + DUPLICATE
    ]


@pytest.mark.parametrize(
    "refusal",
    [
        Status(401, "Unauthorized"),
        Status(403, "Forbidden: bot was blocked by the user"),
        Status(400, "Bad Request: chat not found"),
    ],
)
async def test_a_target_that_is_gone_is_left_alone_and_people_are_told(
    desk: Desk, telegram: FakeTelegram, refusal: Status
) -> None:
    telegram.faults.append(refusal)
    async with notifying(desk, told(telegram)):
        await desk.candles(1)
        await desk.until(NOTIFICATIONS, 2)
        await desk.candles(3)
        await desk.until(NOTIFICATIONS, 6)
        await desk.until("alert", 1)
    assert len(telegram.sends()) == 1
    assert {event.state for event in await desk.notifications()} == {"sending", "failed"}
    assert [event.state for event in await alerts(desk)] == ["sending"]  # that of the stop, kept
    (stopped,) = await desk.notices("notifier")
    assert stopped.code == "messages_stopped"
    assert refusal.description in stopped.text
    assert await desk.pending("notifier") == 0


async def test_a_chat_that_lets_us_in_again_gets_the_alerts_of_the_time_between(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.chats[CHAT].blocked = True
    async with notifying(desk, told(telegram), reopen_s=0.2):
        for text in ("first", "second", "third"):
            await desk.bus.write(notice(text, code=text))
            await desk.until_read("notifier", [Source(NOTICE)], acknowledged=False)
        await desk.until("alert", 1)
        await desk.candles(1)  # a score of that time is lost
        await desk.until(NOTIFICATIONS, 2)
        telegram.chats[CHAT].blocked = False
        async with telegram.stored:
            await telegram.stored.wait_for(
                lambda: any("messages_resumed" in text for text in telegram.texts())
            )
    codes = [one.code for one in await desk.notices("notifier")]
    assert codes == ["messages_stopped", "messages_resumed"]
    told_alerts = "\n".join(telegram.texts())
    names = [f": {text}" for text in ("first", "second", "third")]
    places = [told_alerts.index(name) for name in names]
    assert places == sorted(places)
    assert all(told_alerts.count(name) == 1 for name in names)
    assert LINE not in telegram.texts()
    assert not any(text.endswith(DUPLICATE) for text in telegram.texts())
    assert [event.state for event in await alerts(desk)][:2] == ["sending", "sent"]
    assert await desk.pending("notifier") == 0


async def test_a_restart_while_a_chat_is_shut_loses_no_alert(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.chats[CHAT].blocked = True
    async with notifying(desk, told(telegram)):
        await desk.bus.write(notice("first"))
        await desk.until("alert", 1)
        await desk.until("notice", 2)  # and that of the stop
        await desk.bus.write(notice("second"))
    telegram.chats[CHAT].blocked = False
    async with notifying(desk, told(telegram)), telegram.stored:
        await telegram.stored.wait_for(lambda: any("second" in t for t in telegram.texts()))
    texts = "\n".join(telegram.texts())
    assert (texts.count("first"), texts.count("second")) == (1, 1)


async def test_alerts_that_fill_the_box_of_a_shut_chat_push_out_the_oldest(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.chats[CHAT].blocked = True
    async with notifying(desk, told(telegram, queue=10)):
        for n in range(40):
            await desk.bus.write(notice(f"alert number {n:02}"))
        await desk.until_read("notifier", [Source(NOTICE)], acknowledged=False)
    found = await alerts(desk)
    assert found[-1].state == "sending"
    assert [e.state for e in found[:2]] == ["sending", "failed"]


async def test_a_bad_token_is_told_at_the_start(desk: Desk, telegram: FakeTelegram) -> None:
    telegram.token = "1:another"
    async with notifying(desk, told(telegram)):
        await desk.until("notice", 1)
    (stopped,) = await desk.notices("notifier")
    assert "check telegram_bot_token" in stopped.text


async def test_a_chat_that_moved_is_followed(desk: Desk, telegram: FakeTelegram) -> None:
    telegram.faults.append(Migrated(-1001))
    async with notifying(desk, told(telegram)):
        await desk.candles(2)
        await telegram.until(2, -1001)
        await desk.until(NOTIFICATIONS, 4)
    assert telegram.texts() == []
    assert (await desk.notifications())[-1].chat == "-1001"


async def test_refused_markup_is_sent_bare_once(desk: Desk, telegram: FakeTelegram) -> None:
    refusal = Status(400, "Bad Request: can't parse entities: Unsupported start tag")
    telegram.faults.append(refusal)
    async with notifying(desk, told(telegram)):
        await desk.candles(1)
        await telegram.until(1)
        telegram.faults += [refusal, refusal]
        await desk.candles(2)
        await desk.until(NOTIFICATIONS, 4)
    assert [call.params.get("parse_mode") for call in telegram.sends()] == [
        "HTML", None, "HTML", None,
    ]  # fmt: skip
    assert (await desk.notifications())[-1].state == Delivery.FAILED


async def test_markup_from_outside_is_text(desk: Desk, telegram: FakeTelegram) -> None:
    nasty = "<b>x</i> & <script>alert(1)</script> &lt; _*[]()~`>#+-=|{}.!"
    async with notifying(desk, told(telegram)):
        await desk.bus.write(notice(nasty, code="<a href='x'>"))
        (text,) = await telegram.until(1)
    assert nasty in text
    assert "<a href='x'>" in text


async def test_a_burst_of_alerts_is_few_messages_and_loses_none(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.bus.write(*(notice(f"gap {n}") for n in range(250)))
    await desk.bus.write(notice("quiet", code="quiet", level=Level.INFO))
    async with notifying(desk, told(telegram, queue=100)):
        await desk.until("alert", 2 * 3)
    counts = [int(text.split("×")[1].split(" ")[0]) for text in telegram.texts()]
    assert sum(counts) == 250
    assert len(counts) == 3
    assert await desk.pending("notifier") == 0


async def test_alerts_can_be_switched_off(desk: Desk, telegram: FakeTelegram) -> None:
    await desk.bus.write(notice("boom"))
    async with notifying(desk, told(telegram, alerts=False)):
        await desk.candles(1)
        await desk.until(NOTIFICATIONS, 2)
    assert telegram.texts() == [LINE]
    assert await desk.pending("notifier") == 0


async def test_a_hanging_telegram_does_not_slow_the_bus(desk: Desk, telegram: FakeTelegram) -> None:
    telegram.faults.append(Hang(stored=True))
    async with notifying(desk, told(telegram)) as session:
        await desk.candles(1)
        await telegram.until(1)
        await desk.bus.write(*(signal(n, 0.0) for n in range(1, 2000)))
        await desk.until_read("notifier")
        assert session.health.ready
        assert len(await desk.notifications()) == 1
        telegram.released.set()
        await desk.until(NOTIFICATIONS, 2)


async def test_a_full_queue_gives_up_old_scores_and_no_alert(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.faults.append(Hang(stored=True))
    config = told(telegram, queue=10, max_age_s=100_000)
    async with notifying(desk, config) as session:
        await desk.candles(1)
        await telegram.until(1)
        await desk.candles(31)
        await desk.bus.write(*(notice(f"n{n}", code=f"c{n}") for n in range(15)))
        # 30 scores have no place beside the alerts; 10 alerts wait here, 5 on the bus.
        await desk.until("notice", 15)
        await until_counted(session, "crowded_out", 30)
        telegram.released.set()
        await desk.until("alert", 4)
    told_lines = [line for text in telegram.texts() if "🚨" in text for line in text.split("\n")]
    assert sorted(line.split()[2] for line in told_lines) == sorted(f"c{n}" for n in range(15))
    assert telegram.texts().count(LINE) == 1
    assert await desk.pending("notifier") == 0


async def test_an_unfinished_alert_is_sent_again_after_a_crash(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.faults.append(Hang(stored=False))
    await desk.bus.write(notice("boom"))
    with pytest.raises(BaseExceptionGroup) as ended:
        async with notifying(desk, told(telegram), answer_s=30):
            await telegram.until_called(1)
            await desk.raw.xgroup_destroy("signal:{BTCUSDT}:1m", "notifier")
            await asyncio.Event().wait()
    assert ended.group_contains(OutOfSync, depth=None)
    async with notifying(desk, told(telegram)):
        await desk.until("alert", 2)
    (text,) = telegram.texts()
    assert text.endswith("boom" + DUPLICATE)


async def test_new_groups_send_nothing_twice(desk: Desk, telegram: FakeTelegram) -> None:
    await desk.bus.write(notice("boom"))
    await desk.candles(2)
    async with notifying(desk, told(telegram)):
        await desk.until(NOTIFICATIONS, 4)
        await desk.until("alert", 2)
    for stream in ("signal:{BTCUSDT}:1m", "notice"):
        await desk.raw.xgroup_destroy(stream, "notifier")
    async with notifying(desk, told(telegram)):
        await desk.candles(3)
        await desk.until(NOTIFICATIONS, 6)
    assert len(telegram.texts()) == 4
    assert await desk.pending("notifier") == 0


async def test_a_poison_signal_is_kept_apart_and_told(desk: Desk, telegram: FakeTelegram) -> None:
    await desk.raw.xadd("signal:{BTCUSDT}:1m", {"data": b"\xc1 garbage"}, id="5-0")
    async with notifying(desk, told(telegram)):
        await desk.until("dead:signal:{BTCUSDT}:1m", 1)
        (text,) = await telegram.until(1)
    assert "dead_letter" in text
    assert "not a msgpack map" in text
    assert await desk.pending("notifier") <= 1  # its own notice, while it is sent


async def test_waiting_for_long_makes_no_alert_a_dead_letter(
    desk: Desk, telegram: FakeTelegram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notifiers that take it in and are ended before its turn comes."""
    await desk.bus.write(notice("boom"))
    await desk.raw.xgroup_create("notice", "notifier", "0")
    await desk.raw.xreadgroup("notifier", "notifier", {"notice": ">"})
    source = Source(NOTICE)
    for life in range(9):
        monkeypatch.setattr("shared.bus._PROCESS", f"life-{life}")
        async with Bus.session(desk.url, service="notifier") as bus:
            async for (entry,) in bus.retries(await bus.own_pending(source)):
                assert entry.event is not None
    async with notifying(desk, told(telegram)):
        (text,) = await telegram.until(1)
    assert text.endswith("boom")


@pytest.mark.parametrize("about", ["score", "alert"])
async def test_nothing_is_sent_before_its_claim_is_on_disk(
    desk: Desk, telegram: FakeTelegram, caplog: pytest.LogCaptureFixture, about: str
) -> None:
    """With `appendfsync no` the server never says that it is."""
    await desk.candles(0)
    await desk.raw.config_set("appendfsync", "no")
    stream = NOTIFICATIONS if about == "score" else "alert"
    async with notifying(desk, told(telegram), durable_s=0.05) as session:
        await (desk.candles(1) if about == "score" else desk.bus.write(notice("a hole")))
        await desk.until(stream, 1)
        while "claim" not in session.health.facts.get("trouble", ""):  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.001)
        await desk.bus.write(signal(50, 0.01), signal(51, 0.01))  # silent ones are still read
        await until_counted(session, "silent", 2)
        await asyncio.sleep(0.3)  # six more answers that it is not
        assert telegram.texts() == []
        assert [await desk.raw.xlen(stream), await desk.pending("notifier")] == [1, 0]
        await desk.raw.config_set("appendfsync", "everysec")
        await telegram.until(1)
        await desk.until(stream, 2)
        assert session.health.facts["trouble"] == ""
    assert len(telegram.texts()) == 1
    told_so = [r.message for r in caplog.records if "has not written a claim" in r.message]
    assert len(told_so) == 1


async def test_a_score_that_grew_old_while_it_was_held_is_not_sent(
    desk: Desk, telegram: FakeTelegram
) -> None:
    await desk.candles(0)
    await desk.raw.config_set("appendfsync", "no")
    async with notifying(desk, told(telegram, max_age_s=90), durable_s=0.05) as session:
        await desk.candles(1)
        while "claim" not in session.health.facts.get("trouble", ""):  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.001)
        await desk.bus.write(kline(3))
        await desk.raw.config_set("appendfsync", "everysec")
        await desk.until(NOTIFICATIONS, 2)
    (_, outcome) = await desk.notifications()
    assert outcome.state == Delivery.FAILED
    assert outcome.reason.startswith("too old before its claim was on disk")
    assert telegram.texts() == []


async def test_the_console_does_not_wait_for_the_disk(
    desk: Desk, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    await desk.candles(0)
    await desk.raw.config_set("appendfsync", "no")
    async with notifying(desk, settings(), durable_s=0.05):
        await desk.candles(1)
        await desk.until(NOTIFICATIONS, 2)
    assert LINE.encode() in capfdbinary.readouterr().out


GROUP = -100123


async def test_every_chat_is_told_its_own_way(desk: Desk, telegram: FakeTelegram) -> None:
    telegram.chats[GROUP] = Chat(GROUP, "supergroup")
    group = {
        "chat": str(GROUP), "language": "de", "notification_threshold": 2,
        "loudness": {"score": "silent", "alert": "off"},
    }  # fmt: skip
    config = told(telegram, url=desk.url, chats=[group])
    await desk.candles(0)
    async with notifying(desk, config):
        await desk.candles(1, score=-0.11)
        await desk.bus.write(kline(1), signal(1, -0.26), notice("a hole"))
        mine = await telegram.until(2)
        theirs = await telegram.until(2, GROUP)
    assert sorted(mine) == [LINE, "🚨 collector gap (since 2023-11-14T22:14:00Z): a hole"]
    assert theirs == ["₿ 60,518 📉 Score: -0.11", "₿ 60,518 📉📉📉📉 Score: -0.26"]
    quiet = {c.params["chat_id"]: c.params.get("disable_notification") for c in telegram.sends()}
    assert quiet == {str(CHAT): None, str(GROUP): "true"}


async def test_a_chat_that_is_gone_holds_up_no_other(desk: Desk, telegram: FakeTelegram) -> None:
    telegram.chats[GROUP] = Chat(GROUP, "supergroup")
    await telegram.block(CHAT)
    await desk.candles(0)
    async with notifying(desk, told(telegram, url=desk.url, chats=[{"chat": str(GROUP)}])):
        await desk.candles(3)
        texts = await telegram.until(4, GROUP)
    assert sum(text == LINE for text in texts) == 3
    assert any("bot was blocked by the user" in text for text in texts), "the others are told"


async def test_a_restart_doubles_nothing_in_any_chat_and_forgets_chats_that_are_gone(
    desk: Desk, telegram: FakeTelegram
) -> None:
    telegram.chats[GROUP] = Chat(GROUP, "supergroup")
    await desk.candles(0)
    both = told(telegram, url=desk.url, chats=[{"chat": str(GROUP)}])
    async with notifying(desk, both):
        await desk.candles(2)
        await telegram.until(2, GROUP)
        await telegram.until(2)
    async with notifying(desk, both):
        await desk.bus.write(kline(2), signal(2))
        assert await telegram.until(3, GROUP) == [LINE] * 3
        assert await telegram.until(3) == [LINE] * 3
    async with notifying(desk, told(telegram)):
        await desk.bus.write(kline(3), signal(3))
        assert await telegram.until(4) == [LINE] * 4
    assert set(await desk.bus.group_position(SIGNALS)) == {"notifier"}
    assert len(telegram.texts(GROUP)) == 3
