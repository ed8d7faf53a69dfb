"""What must stand on the bus when all is over: values, not only counts."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import redis

from shared import codec, score
from shared.bundle import Bundle, invalid_reason
from shared.bus import Bus
from shared.config import load
from shared.events import (
    Delivery,
    Feature,
    Kline,
    Meta,
    Notice,
    Notification,
    Order,
    Prediction,
    Signal,
)
from shared.explain import Explainer
from shared.features import FeatureSet
from shared.streams import FEATURE, KLINE, NOTICE, NOTIFICATION, ORDER, PREDICTION, SIGNAL
from tests.resilience.system import System
from tests.resilience.tape import SYMBOL, Tape

E = TypeVar("E")
DATA = (KLINE, FEATURE, PREDICTION, SIGNAL)
# What the services may tell while they are ended and a market with holes leaps and stands.
EXPECTED_NOTICES = frozenset(
    {"gap", "leap", "release", "rest", "stream_connection", "stream_silent", "trader_mode"}
)


@dataclass(frozen=True, slots=True)
class Kept:
    """Everything that stands on the bus. streams: by name, (id, data) in order."""

    streams: dict[str, list[tuple[str, bytes]]]
    alerts: list[tuple[str, bytes]]
    pending: dict[str, int]
    dead: list[str]

    def events(self, name: str, kind: type[E]) -> list[tuple[str, E]]:
        return [(i, codec.decode(kind, data).event) for i, data in self.streams[name]]


def read_bus(client: "redis.Redis") -> Kept:
    """Reads it all off the server, past `shared.bus`."""
    found: Any = {}
    for stream in (*DATA, NOTIFICATION, ORDER, NOTICE):
        found[stream.name] = _entries(client, stream.key(SYMBOL, "1m"))
    pending: dict[str, int] = {}
    dead = []
    keys: Any = client.keys("*")
    for key in sorted(keys):
        name = key.decode()
        if name.startswith("dead:"):
            dead += [f"{name}: {fields}" for _, fields in _raw(client, name)]
        if client.type(key) == b"stream":
            groups: Any = client.xinfo_groups(key)
            for group in groups:
                pending[f"{name} {group['name'].decode()}"] = group["pending"]
    return Kept(found, _entries(client, "alert"), pending, dead)


def read_orders(client: "redis.Redis") -> list[Order]:
    """The trader's journal as it stands on the bus now."""
    entries = _entries(client, ORDER.key(SYMBOL, "1m"))
    return [codec.decode(Order, data).event for _, data in entries]


def _raw(client: "redis.Redis", key: str) -> Any:
    return client.xrange(key)


def _entries(client: "redis.Redis", key: str) -> list[tuple[str, bytes]]:
    return [(i.decode(), fields[b"data"]) for i, fields in _raw(client, key)]


@dataclass(slots=True)
class Problems:
    """Collects what is wrong, the first few of each kind in words."""

    counts: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)

    def say(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= 3:
            self.texts.append(f"{kind}: {text}")

    def add(self, other: "Problems") -> None:
        self.counts.update(other.counts)
        self.texts += other.texts

    def none(self) -> bool:
        return not self.counts

    def __str__(self) -> str:
        return "\n".join([str(dict(self.counts)), *self.texts])


@dataclass(frozen=True, slots=True)
class Expected:
    """What an independent computation over the tape gives, per candle."""

    klines: tuple[Kline, ...]
    features: list[Feature]
    predictions: list[Prediction]
    signals: list[Signal]


def expect(tape: Tape, names: Sequence[str], models: Path) -> Expected:
    """Batch over the whole tape, and the bundle on that, row by row."""
    chosen = FeatureSet.of(tuple(names))
    values = chosen.batch(tape.first_index, tape.rows)
    bundle = Bundle.load(models / "current")
    manifest = bundle.manifest
    features, predictions, signals = [], [], []
    for n, (kline, row) in enumerate(zip(tape.klines, values, strict=True)):
        covered = n + 1 >= chosen.lookback
        features.append(
            Feature(
                open_time_ms=kline.open_time_ms,
                schema=chosen.schema,
                values=row.astype("<f8").tobytes(),
                close=kline.close,
                gap=kline.gap,
                covered=covered,
            )
        )
        invalid = invalid_reason(row, manifest, kline.gap, covered, schema=chosen.schema)
        outputs: dict[str, float] = {}
        value: float | None = None
        if not invalid:
            result = bundle.run(row.reshape(1, -1))
            outputs, value = result.named(), float(result.score[0])
        thresholds = manifest.thresholds
        side = score.side(value, thresholds.buy, thresholds.sell)
        predictions.append(
            Prediction(
                open_time_ms=kline.open_time_ms,
                release=bundle.id,
                schema=chosen.schema,
                outputs=outputs,
            )
        )
        signals.append(
            Signal(
                open_time_ms=kline.open_time_ms,
                symbol=SYMBOL,
                interval="1m",
                close=kline.close,
                score=value,
                side=str(side),
                invalid=invalid,
                release=bundle.id,
                schema=chosen.schema,
                outputs=outputs,
            )
        )
    return Expected(tape.klines, features, predictions, signals)


def check_bus(
    kept: Kept,
    expected: Expected,
    *,
    forbidden: frozenset[str] | None = None,
    trades: bool = False,
) -> Problems:
    """Everything on the bus against the truth. trades: the trader sends orders, whose journal
    `tests.resilience.orders` judges; else it is judged here.

    forbidden: codes of notices that are none of what may be told (default: all but
    EXPECTED_NOTICES).
    """
    problems = Problems()
    truths: tuple[tuple[str, type[Any], Sequence[Any]], ...] = (
        ("kline", Kline, expected.klines),
        ("feature", Feature, expected.features),
        ("prediction", Prediction, expected.predictions),
        ("signal", Signal, expected.signals),
    )
    for name, kind, truth in truths:
        _compare(problems, name, kept.events(name, kind), truth)
    if not trades:
        _check_journal(problems, kept, expected)
    _check_messages(problems, kept, expected)
    for place, count in kept.pending.items():
        if count:
            problems.say("pending", f"{place}: {count}")
    for letter in kept.dead:
        problems.say("dead letter", letter)
    for entry_id, notice in kept.events("notice", Notice):
        code = notice.code
        if code not in EXPECTED_NOTICES if forbidden is None else code in forbidden:
            problems.say("notice", f"{entry_id} {notice}")
    return problems


def _compare(
    problems: Problems, name: str, found: Sequence[tuple[str, Any]], truth: Sequence[Any]
) -> None:
    ids = [entry_id for entry_id, _ in found]
    wanted = [f"{event.open_time_ms}-0" for event in truth]
    for entry_id in sorted(set(wanted) - set(ids)):
        problems.say(f"{name} lost", entry_id)
    for entry_id in sorted(set(ids) - set(wanted)):
        problems.say(f"{name} too many", entry_id)
    by_id = dict(zip(wanted, truth, strict=True))
    for entry_id, event in found:
        other = by_id.get(entry_id)
        if other is not None and not _equal(event, other):
            problems.say(f"{name} wrong", f"{entry_id}\n  is     {event}\n  should {other}")


async def check_explained(kept: Kept, system: System, rng: random.Random) -> Problems:
    """Of a thousand signals at most, all that led to them gives the same bits once more."""
    problems = Problems()
    ids = [signal.id for _, signal in kept.events("signal", Signal)]
    explainer = Explainer(load(system.config))
    async with Bus.session(system.server.url, service="itb", exclusive=False) as bus:
        for signal_id in rng.sample(ids, min(1_000, len(ids))):
            found = await explainer.explain(bus, signal_id)
            if not found.equal:
                problems.say("explained", f"{signal_id}: {found.difference}")
    return problems


def _equal(one: Any, other: Any) -> bool:
    """Equal bits, NaN included: what both encode to."""
    nobody = Meta(received_us=0, published_us=0)
    return codec.same_content(codec.encode(one, nobody), codec.encode(other, nobody))


def _check_journal(problems: Problems, kept: Kept, expected: Expected) -> None:
    lines = [line for _, line in kept.events("order", Order)]
    for signal_id, count in Counter(line.signal_id for line in lines).items():
        if count > 1:
            problems.say("order doubled", f"{signal_id} {count} times")
    wanted = {signal.id: signal for signal in expected.signals if signal.side}
    for missing in sorted(wanted.keys() - {line.signal_id for line in lines}):
        problems.say("order lost", missing)
    for line in lines:
        signal = wanted.get(line.signal_id)
        if signal is None:
            problems.say("order too many", str(line))
        elif (line.state, line.side, line.score) != ("OBSERVED", signal.side, signal.score):
            problems.say("order wrong", str(line))


def _check_messages(problems: Problems, kept: Kept, expected: Expected) -> None:
    """Every valid score was claimed once and has one outcome."""
    wanted = {signal.open_time_ms for signal in expected.signals if signal.score is not None}
    for name, entries in (("notification", kept.streams["notification"]), ("alert", kept.alerts)):
        ids = {entry_id for entry_id, _ in entries}
        for entry_id, data in entries:
            event = codec.decode(Notification, data).event
            ms, _, sequence = entry_id.partition("-")
            is_claim = int(sequence) % 2 == 0
            if is_claim != (event.state == Delivery.SENDING):
                problems.say(f"{name} wrong", f"{entry_id} {event}")
            if is_claim and f"{ms}-{int(sequence) + 1}" not in ids:
                problems.say(f"{name} without outcome", entry_id)
            if event.state == Delivery.FAILED:
                problems.say(f"{name} failed", f"{entry_id} {event.reason}")
    claimed = {int(i.split("-")[0]) for i, _ in kept.streams["notification"] if i.endswith("-0")}
    for open_time_ms in sorted(wanted ^ claimed):
        problems.say("notification", f"{open_time_ms} should be {open_time_ms in wanted}")


def check_same(kept: Kept, other: Kept) -> Problems:
    """Two runs over the same candles: the same content, entry for entry."""
    problems = Problems()
    for stream in DATA:
        one, two = kept.streams[stream.name], other.streams[stream.name]
        if [i for i, _ in one] != [i for i, _ in two]:
            problems.say(stream.name, f"{len(one)} entries, undisturbed {len(two)}")
        for (entry_id, mine), (_, theirs) in zip(one, two, strict=False):
            if not codec.same_content(mine, theirs):
                problems.say(stream.name, f"{entry_id} differs")
    for name, kind, what in (
        ("order", Order, _decision),
        ("notification", Notification, _claim),
    ):
        one_events = [what(event) for _, event in kept.events(name, kind)]
        two_events = [what(event) for _, event in other.events(name, kind)]
        if one_events != two_events:
            problems.say(name, f"{len(one_events)} and {len(two_events)} differ")
    return problems


def _decision(line: Any) -> tuple[Any, ...]:
    """A journal line without our own clock."""
    return (line.signal_id, line.state, line.side, line.quantity, line.price, line.reason,
            line.score, line.release, line.mode)  # fmt: skip


def _claim(event: Any) -> tuple[Any, ...]:
    """A message without its fate, which kills may change."""
    return (event.signal_id, event.text, event.state == Delivery.SENDING)


def printed(log: str) -> Counter[str]:
    """Lines that the console channel put before people."""
    return Counter(line for line in log.splitlines() if "Score: " in line and "{" not in line)


def check_printed(kept: Kept, log: str) -> Problems:
    """Nobody was told twice: every sent message is one line, every unknown one at most."""
    problems = Problems()
    sent: Counter[str] = Counter()
    maybe: Counter[str] = Counter()
    for _, event in kept.events("notification", Notification):
        if event.state == Delivery.SENT:
            sent[event.text] += 1
        elif event.state == Delivery.UNKNOWN:
            maybe[event.text] += 1
    lines = printed(log)
    for text in lines.keys() | sent.keys():
        if not sent[text] <= lines[text] <= sent[text] + maybe[text]:
            problems.say("told", f"{text}: {lines[text]} lines, {sent[text]} sent, {maybe[text]} ?")
    return problems


def is_finished(client: "redis.Redis", last_ms: int) -> Callable[[], bool]:
    """Whether every stream and group has come to the last candle and nothing is pending."""

    def finished() -> bool:
        try:
            for stream in DATA:
                newest: Any = client.xrevrange(stream.key(SYMBOL, "1m"), count=1)
                if not newest or int(newest[0][0].split(b"-")[0]) < last_ms:
                    return False
            for key in (*(s.key(SYMBOL, "1m") for s in DATA), NOTICE.key()):
                info: Any = client.xinfo_stream(key)
                groups: Any = client.xinfo_groups(key)
                for group in groups:
                    if group["pending"] or group["last-delivered-id"] != info["last-generated-id"]:
                        return False
            for key in (NOTIFICATION.key(SYMBOL, "1m"), "alert"):
                newest = client.xrevrange(key, count=1)
                if newest and int(newest[0][0].split(b"-")[1]) % 2 == 0:
                    return False  # a claim that waits for its outcome
        except redis.RedisError:
            return False
        return True

    return finished
