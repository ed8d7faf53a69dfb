"""What the bot answers: one function a command, facts in, a message out."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notifier.bot import MENU, Asked, Handler
from notifier.channel import Button, Message
from notifier.chart import Picture, Trade, draw
from notifier.chats import Preferences, Recipient, preferences_key, with_preferences
from notifier.facts import Account, Facts
from notifier.messages import TEXT_UNITS, clean, price_text, score_text, units
from notifier.words import say
from shared.control import CONTROL_KEY, Word, text_of
from shared.errors import Failure
from shared.events import Order, OrderState, Signal
from shared.heartbeats import trading
from shared.ledger import DAY_MS, ZERO, fills_of
from shared.releases import Manifest, current_folder, parse_manifest
from shared.times import iso

if TYPE_CHECKING:
    from shared.explain import Explainer, Explanation

_HOURS, _MOST_HOURS = 24, 168
_DAYS, _MOST_DAYS = 7, 365
_MUTE_MINUTES, _MOST_MINUTES = 60, 10_080
_TRADES = 8
_TELLING = 8
_CONFIRM_S, _LOOK_S = 10.0, 0.2
_FILLED = (OrderState.FILLED, OrderState.PARTIAL, OrderState.CANCELED)


class Replies:
    """Answers to every command of the menu."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._settings = facts.settings
        self._explainer: Explainer | None = None

    def handlers(self) -> Mapping[str, Handler]:
        found: dict[str, Handler] = {name: getattr(self, name) for name in MENU}
        return found | {"start": self.help}

    # -- at a glance --------------------------------------------------------------------------

    async def help(self, asked: Asked) -> Message:
        lines = [f"/{name}  {asked.say(f'help_{name}')}" for name in MENU]
        return Message(text="\n".join(lines), buttons=_KEYBOARD)

    async def status(self, asked: Asked) -> Message:
        lines = [await self._services(asked)]
        for symbol in asked.recipient.symbols:
            lines.append(_score_line(await self._facts.newest_signal(symbol), symbol, asked))
            lines.append(_position_line(await self._facts.account(symbol), asked))
        return _message(lines, buttons=_KEYBOARD)

    async def health(self, asked: Asked) -> Message:
        beats = await self._facts.heartbeats()
        lines = [await self._services(asked)]
        for name, beat in sorted(beats.items()):
            ready = beat.get("ready") is True
            reason = asked.say("ready") if ready else clean(str(beat.get("reason", "")), 200)
            lines.append(f"{'🟢' if ready else '🔴'} {clean(name)}: {reason}")
        return _message(lines)

    async def _services(self, asked: Asked) -> str:
        beats = await self._facts.heartbeats()
        silent = await self._facts.silent(beats)
        not_ready = [n for n, beat in sorted(beats.items()) if beat.get("ready") is not True]
        if not silent and not not_ready:
            return f"🟢 {asked.say('all_ready')}"
        parts = [f"{clean(name)}: {asked.say('silent')}" for name in silent]
        parts += [f"{clean(name)}: {asked.say('not_ready')}" for name in not_ready]
        return "🔴 " + ", ".join(parts)

    # -- score --------------------------------------------------------------------------------

    async def score(self, asked: Asked) -> Message:
        lines = [
            _score_line(await self._facts.newest_signal(symbol), symbol, asked)
            for symbol in asked.recipient.symbols
        ]
        return _message(lines)

    async def why(self, asked: Asked) -> Message:
        signal_id = asked.arguments[0] if asked.arguments else await self._newest_id(asked)
        if signal_id is None:
            return Message(text=asked.say("no_signal"))
        try:
            found = await self._explain(signal_id)
        except Failure as error:
            return Message(text=asked.say("no_why", reason=clean(str(error), 400)))
        return _message(_why_lines(found, asked), mono=True)

    async def _newest_id(self, asked: Asked) -> str | None:
        newest = await self._facts.newest_signal(asked.recipient.symbols[0])
        return None if newest is None else newest.id

    async def _explain(self, signal_id: str) -> "Explanation":
        """Loads what computes features and models with the first question, and keeps it."""
        if self._explainer is None:

            def load() -> "Explainer":
                from shared.explain import Explainer  # noqa: PLC0415  # takes seconds, only here

                return Explainer(self._settings, data_folder=self._settings.data_folder)

            self._explainer = await asyncio.to_thread(load)
        return await self._explainer.explain(self._facts.bus, signal_id)

    async def chart(self, asked: Asked) -> Message:
        hours = asked.number(_HOURS, _MOST_HOURS)
        if hours is None:
            return Message(text=asked.say("chart_usage"))
        try:
            picture = await picture_of(
                self._facts, asked.recipient, asked.recipient.symbols[0], hours * 3_600_000
            )
        except Failure as error:
            return Message(text=asked.say("no_chart", reason=clean(str(error), 400)))
        newest = await self._facts.newest_signal(asked.recipient.symbols[0])
        text = _score_line(newest, asked.recipient.symbols[0], asked)
        return Message(text=text, picture=picture)

    # -- account ------------------------------------------------------------------------------

    async def position(self, asked: Asked) -> Message:
        lines = []
        for symbol in asked.recipient.symbols:
            account = await self._facts.account(symbol)
            lines.append(_position_line(account, asked))
            lines += [_order_line(order) for order in account.ledger.open.values()]
        return _message(lines)

    async def balance(self, asked: Asked) -> Message:
        trader = trading(await self._facts.heartbeats())
        if trader is None:
            return Message(text=asked.say("no_trader"))
        balances = trader.get("balances")
        if not isinstance(balances, dict) or not balances:
            return Message(text=asked.say("no_balances"))
        lines = [f"{asked.say('balance')} ({clean(str(trader.get('mode', '')))})"]
        for asset, amounts in sorted(balances.items()):
            free, locked = (Decimal(str(amounts[part])) for part in ("free", "locked"))
            line = f"{clean(asset)}: {asked.say('free')} {_amount(free)}"
            lines.append(line + (f", {asked.say('locked')} {_amount(locked)}" if locked else ""))
        return _message(lines)

    async def profit(self, asked: Asked) -> Message:
        days = asked.number(_DAYS, _MOST_DAYS)
        if days is None:
            return Message(text=asked.say("profit_usage"))
        lines = [f"{asked.say('profit')}, {asked.say('days', days=days)}"]
        for symbol in asked.recipient.symbols:
            account = await self._facts.account(symbol)
            newest = await self._facts.newest_signal(symbol)
            now_ms = newest.open_time_ms if newest is not None else int(time.time() * 1000)
            first = now_ms // DAY_MS - days + 1
            realised = sum((p for day, p in account.ledger.realised.items() if day >= first), ZERO)
            lines.append(
                f"{clean(symbol)}: {asked.say('realised')} {signed(realised)} {account.quote}, "
                f"{asked.say('unrealised')} {signed(account.unrealised)} {account.quote}"
            )
            fees: dict[str, Decimal] = {}
            for day, told in account.ledger.days.items():
                for asset, fee in told.fees.items() if day >= first else ():
                    fees[asset] = fees.get(asset, ZERO) + fee
            paid = [f"{_amount(fee)} {clean(asset)}" for asset, fee in sorted(fees.items())]
            if paid:
                lines.append(f"{asked.say('fees')}: {', '.join(paid)}")
        return _message(lines)

    async def trades(self, asked: Asked) -> Message:
        lines = []
        for symbol in asked.recipient.symbols:
            account = await self._facts.account(symbol)
            # Filled in parts, an order has a line for each, with all that was filled so far.
            filled: dict[str, Order] = {}
            for line in account.lines:
                if line.state in _FILLED and line.fills:
                    before = filled.pop(line.client_id, line)
                    filled[line.client_id] = replace(line, profit=line.profit or before.profit)
            newest = list(filled.values())[-_TRADES:]
            lines += [_trade_line(line, asked.recipient) for line in newest]
        return _message(lines or [asked.say("no_trades")])

    async def performance(self, asked: Asked) -> Message:
        lines = []
        for symbol in asked.recipient.symbols:
            account = await self._facts.account(symbol)
            ledger = account.ledger
            if not ledger.trips:
                lines.append(f"{clean(symbol)}: {asked.say('no_trades')}")
                continue
            # Without what the sale of a part has brought of a trip that is still under way.
            profit = ledger.profit - ledger.trip_profit
            lines.append(
                f"{clean(symbol)}: {asked.say('trades')} {ledger.trips}, {asked.say('won')} "
                f"{ledger.won}, {asked.say('lost')} {ledger.trips - ledger.won}, "
                f"{asked.say('profit')} {signed(profit)} {account.quote}"
            )
            if ended := [line for line in account.lines if line.profit]:
                profits = [Decimal(line.profit) for line in ended]
                text = (
                    f"{asked.say('best')} {signed(max(profits))}, "
                    f"{asked.say('worst')} {signed(min(profits))} {account.quote}"
                )
                if len(ended) < ledger.trips:  # of the others only the sums are kept
                    oldest = _clock(ended[0].market_ms, asked.recipient)
                    text += f" ({asked.say('since', time=oldest)})"
                lines.append(text)
        return _message(lines)

    # -- the machine --------------------------------------------------------------------------

    async def model(self, asked: Asked) -> Message:
        manifest = await asyncio.to_thread(_current, self._settings.model_folder)
        if manifest is None:
            return Message(text=asked.say("no_release"))
        training = manifest.training
        lines = [
            f"{asked.say('release')} {clean(manifest.id)}",
            f"{', '.join(clean(s) for s in manifest.symbols)} {manifest.interval}, "
            f"{len(manifest.models)} × {len(manifest.features)}",
            f"{asked.say('trained')} {iso(training.start_ms)} – {iso(training.end_ms)}",
        ]
        for name, metrics in manifest.metrics.items():
            if isinstance(auc := metrics.get("auc"), int | float):
                lines.append(f"{clean(name)}: AUC {auc:.3f}")
        return _message(lines)

    async def data(self, asked: Asked) -> Message:
        lines = []
        step_ms = self._settings.step_ms
        for symbol in asked.recipient.symbols:
            candles = await self._facts.candles(symbol, DAY_MS // step_ms)
            if not candles:
                lines.append(f"{clean(symbol)}: {asked.say('no_candles')}")
                continue
            gaps = sum(candle.gap for candle in candles)
            newest = _clock(candles[-1].open_time_ms, asked.recipient)
            lines.append(
                f"{clean(symbol)}: {asked.say('candles')} {len(candles)}, {asked.say('gaps')} "
                f"{gaps}, {asked.say('newest')} {newest}"
            )
        counts: dict[str, int] = {}
        since_ms = int(time.time() * 1000) - DAY_MS
        for notice in await self._facts.notices(since_ms):
            if notice.service == "collector":
                counts[notice.code] = counts.get(notice.code, 0) + 1
        lines += [f"{clean(code)}: {count}" for code, count in sorted(counts.items())]
        return _message(lines)

    async def latency(self, asked: Asked) -> Message:
        lines = []
        for symbol in asked.recipient.symbols:
            for stage, found in (await self._facts.latency(symbol)).items():
                what = asked.say("latency_of", stage=stage)
                lines.append(
                    f"{clean(symbol)}: {what}: p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms"
                )
        return _message(lines or [asked.say("no_signal")])

    # -- this chat ----------------------------------------------------------------------------

    async def mute(self, asked: Asked) -> Message:
        minutes = asked.number(_MUTE_MINUTES, _MOST_MINUTES, least=0)
        if minutes is None:
            return Message(text=asked.say("mute_usage"))
        until_ms = (int(time.time()) + 60 * minutes) * 1000 if minutes else 0
        await self._keep(asked, with_preferences(asked.recipient, muted_until_ms=until_ms))
        if not minutes:
            return self._of_chat(asked, asked.say("unmuted"))
        return self._of_chat(asked, asked.say("muted", time=_clock(until_ms, asked.recipient)))

    async def threshold(self, asked: Asked) -> Message:
        steps = asked.number(asked.recipient.threshold, 20, least=0)
        if steps is None:
            return Message(text=asked.say("threshold_usage"))
        if self._settings.notifier.bands is not None:
            return Message(text=asked.say("threshold_bands"))
        if asked.arguments:
            await self._keep(asked, with_preferences(asked.recipient, threshold=steps))
        score = f"{steps * 0.05:.2f}"
        return self._of_chat(asked, asked.say("threshold", threshold=steps, score=score))

    def _of_chat(self, asked: Asked, text: str) -> Message:
        """Whose setting it is, where somebody asks from a chat that gets no messages itself."""
        return Message(text=text if asked.is_own_chat else f"{asked.recipient.chat.chat}: {text}")

    async def _keep(self, asked: Asked, preferences: Preferences) -> None:
        """First on the bus, then in place."""
        key = preferences_key(asked.recipient.chat.chat)
        await self._facts.bus.put(key, preferences.to_json())
        asked.recipient.preferences = preferences

    # -- trading ------------------------------------------------------------------------------

    async def halt(self, asked: Asked) -> Message:
        return await self._command(asked, Word.HALT, "halted")

    async def pause(self, asked: Asked) -> Message:
        return await self._command(asked, Word.REDUCE_ONLY, "paused")

    async def resume(self, asked: Asked) -> Message:
        return await self._command(asked, Word.RESUME, "resumed")

    async def flatten(self, asked: Asked) -> Message:
        return await self._command(asked, Word.FLATTEN, "flattening")

    async def _command(self, asked: Asked, word: Word, phrase: str) -> Message:
        text = text_of(word, int(time.time() * 1000), f"telegram user {asked.user}")
        await self._facts.bus.put(CONTROL_KEY, text)
        return Message(text=f"{asked.say(phrase)}\n{await self._obeyed(asked, word, text)}")

    async def _obeyed(self, asked: Asked, word: Word, command: str) -> str:
        """What the trader says of the switch, as soon as it is what is wanted. Its journal is
        sooner than its heartbeat; but after a RESUME a file may still halt it."""
        deadline = time.monotonic() + _CONFIRM_S
        while True:
            trader = trading(await self._facts.heartbeats())
            if trader is None:
                return asked.say("no_trader_obeys")
            state = str(trader.get("switch", trader.get("mode", "?")))
            if state == _STATES[word] or (
                word is not Word.RESUME and await self._facts.has_obeyed(command)
            ):
                return asked.say("obeyed")
            if "switch" not in trader or time.monotonic() >= deadline:
                return asked.say("not_obeyed", state=clean(state))
            await asyncio.sleep(_LOOK_S)


_STATES = {
    Word.HALT: OrderState.HALTED,
    Word.REDUCE_ONLY: OrderState.REDUCED,
    Word.FLATTEN: OrderState.FLATTENED,
    Word.RESUME: OrderState.RESUMED,
}
_KEYBOARD = tuple(
    tuple(Button(name, f"/{name}") for name in row)
    for row in (
        ("status", "score", "chart"),
        ("position", "profit", "trades"),
        ("why", "model", "health"),
    )
)


async def picture_of(facts: Facts, recipient: Recipient, symbol: str, span_ms: int) -> bytes:
    """The chart of the last `span_ms` of a symbol.

    Raises:
        Failure: there is nothing to draw, or nothing to draw it with.
    """
    settings = facts.settings
    count = max(2, span_ms // settings.step_ms)
    candles = await facts.candles(symbol, count)
    if not candles:
        raise Failure(say("no_candles", recipient.chat.language))
    since_ms = candles[-1].open_time_ms - span_ms
    candles = [candle for candle in candles if candle.open_time_ms > since_ms]
    signals = await facts.signals(symbol, count)
    account = await facts.account(symbol)
    # A market that is replayed has another clock than its fills.
    trades = [
        Trade(line.market_ms, float(fill.price), 1 if fill.side == "BUY" else -1)
        for line in account.lines
        if line.fills and line.market_ms > since_ms
        for fill in fills_of(line)
    ]
    model = settings.signaler.model
    return await asyncio.to_thread(
        draw,
        Picture(
            title=f"{symbol} {settings.interval}",
            zone=recipient.zone,
            step_ms=settings.step_ms,
            candles=candles,
            signals=[s for s in signals if s.open_time_ms > since_ms],
            trades=trades,
            buy=model.buy_threshold,
            sell=model.sell_threshold,
        ),
    )


def _current(model_folder: Path) -> Manifest | None:
    """What the release in use was made from; None where there is none."""
    folder = current_folder(model_folder)
    return (
        None if folder is None else parse_manifest((folder / "manifest.json").read_bytes(), folder)
    )


def _message(lines: Sequence[str], **how: Any) -> Message:
    """As many lines as one message takes."""
    kept: list[str] = []
    for line in lines:
        if units("\n".join([*kept, line])) > TEXT_UNITS:
            break
        kept.append(line)
    return Message(text="\n".join(kept) or "…", **how)


def _score_line(signal: Signal | None, symbol: str, asked: Asked) -> str:
    if signal is None:
        return f"{clean(symbol)}: {asked.say('no_signal')}"
    base = asked.recipient.settings.base_of(signal.symbol)
    time_text = _clock(signal.open_time_ms + asked.recipient.settings.step_ms, asked.recipient)
    text = score_text(signal, base, 0, asked.language)
    if text is None:
        why = clean(signal.invalid) or asked.say("no_score")
        return f"{clean(symbol)}: {asked.say('no_score')} ({why}), {time_text}"
    return f"{text}{f'  {signal.side}' if signal.side else ''}  {time_text}"


def _why_lines(found: "Explanation", asked: Asked) -> list[str]:
    """An explanation for a phone: a few narrow columns."""
    signal, score = found.signal, found.signal["score"]
    shown = asked.say("no_score") if score is None else f"{score:+.4f} {signal['side']}".strip()
    lines = [
        f"{asked.say('why')} {clean(str(signal['id']))}",
        f"{asked.say('score')} {shown}, {asked.say('close')} {price_text(signal['close'])}",
    ]
    if signal["invalid"]:
        lines.append(clean(str(signal["invalid"]), 200))
    if found.score is not None:
        lines.append(clean(found.score.text, 200))
    lines += [f"  {clean(name):<16} {output:.4f}" for name, output in found.outputs.items()]
    for feature in found.top_features[:_TELLING]:
        lines.append(
            f"  {clean(feature.name):<18} {feature.value:>9.4g} ({feature.median:.4g}) "
            f"{feature.pull:+.3f}"
        )
    lines.append(f"{asked.say('release')} {clean(str(found.release.get('id', '')))}")
    if found.equal:
        lines.append(f"🟢 {asked.say('same_bits')}")
    else:
        lines.append(f"🔴 {asked.say('other_bits', reason=clean(str(found.difference), 200))}")
    return lines


def _position_line(account: Account, asked: Asked) -> str:
    ledger = account.ledger
    head = f"{clean(account.symbol)} ({account.mode}): "
    switch = "" if ledger.switch.state == OrderState.RESUMED else f", {ledger.switch.state}"
    if not ledger.position:
        return head + asked.say("no_position") + switch
    entry = ledger.entry_price
    at = "" if entry is None else f", {asked.say('entry')} {price_text(float(entry))}"
    return (
        f"{head}{_amount(ledger.position)} {clean(account.base)}{at}, {asked.say('unrealised')} "
        f"{signed(account.unrealised)} {account.quote}{switch}"
    )


def _order_line(order: Any) -> str:
    price = order.stop_price if order.stop_price is not None else order.price
    at = "" if price is None else f" @ {price_text(float(price))}"
    return f"  {order.leg} {order.side} {_amount(order.quantity)}{at} {order.state}"


def _trade_line(line: Order, recipient: Recipient) -> str:
    when = _clock(line.market_ms or line.time_ms, recipient)
    price = price_text(float(line.price)) if line.price else ""
    profit = f" {signed(Decimal(line.profit))}" if line.profit else ""
    return f"{when} {line.side} {line.quantity} @ {price} ({line.leg}){profit}"


def _clock(time_ms: int, recipient: Recipient) -> str:
    """A time as a chat's people read it: `27.11. 18:05` of its own zone."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    return f"{moment.astimezone(recipient.zone):%d.%m. %H:%M}"


def _amount(value: Decimal) -> str:
    """Up to 8 decimals, without trailing zeros."""
    text = f"{value.quantize(Decimal('1e-8'), rounding=ROUND_HALF_EVEN):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def signed(value: Decimal | None) -> str:
    """`+12.34`; `?` where it is not known."""
    if value is None or not math.isfinite(value):
        return "?"
    return f"{value:+.2f}"
