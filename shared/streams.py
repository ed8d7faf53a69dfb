"""Every stream, named once with its one event type. `itb streams --schema` prints this file."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from shared.events import (
    DeadLetter,
    Depth,
    Drift,
    Feature,
    Funding,
    Kline,
    Notice,
    Notification,
    Order,
    Outcome,
    Parity,
    Prediction,
    Record,
    Signal,
)

E = TypeVar("E")


def number_text(value: float | None) -> str:
    """A float for people's eyes: shortest text, "" for nothing."""
    if value is None or value != value:  # noqa: PLR0124  # NaN
        return ""
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


@dataclass(frozen=True, slots=True)
class Stream(Generic[E]):
    """One kind of stream.

    keyed_by: what the key carries besides the name: symbol and interval, the symbol, or nothing.
    event_time: entry ids are `<open_time_ms>-0`; otherwise Redis numbers them (`*`).
    summary: the plain text fields that redis-cli shows.
    """

    name: str
    event: type[E]
    keyed_by: str
    event_time: bool
    summary: Callable[[E], dict[str, str]]

    def key(self, symbol: str = "", interval: str = "") -> str:
        """`kline:{BTCUSDT}:1m`; the braces put one symbol's keys into one cluster slot."""
        if self.keyed_by == "symbol+interval":
            return f"{self.name}:{{{symbol}}}:{interval}"
        if self.keyed_by == "symbol":
            return f"{self.name}:{{{symbol}}}"
        return self.name


KLINE = Stream(
    "kline",
    Kline,
    "symbol+interval",
    True,
    lambda e: (
        {"gap": "1"} if e.gap else {"close": number_text(e.close), "volume": number_text(e.volume)}
    ),
)
FUTURES_KLINE = Stream("fkline", Kline, "symbol+interval", True, KLINE.summary)
DEPTH = Stream("depth", Depth, "symbol", True, lambda e: {"update": str(e.last_update_id)})
FUNDING = Stream("funding", Funding, "symbol", True, lambda e: {"rate": number_text(e.rate)})
FEATURE = Stream(
    "feature",
    Feature,
    "symbol+interval",
    True,
    lambda e: {"close": number_text(e.close), "schema": e.schema},
)
PREDICTION = Stream(
    "prediction",
    Prediction,
    "symbol+interval",
    True,
    lambda e: {"release": e.release, "models": str(len(e.outputs))},
)


def _signal_summary(event: Signal) -> dict[str, str]:
    score = "" if event.score is None else f"{event.score:+.4f}"
    shown = {"score": score, "side": event.side, "close": number_text(event.close)}
    return shown | {"invalid": event.invalid} if event.invalid else shown


SIGNAL = Stream("signal", Signal, "symbol+interval", True, _signal_summary)
ORDER = Stream(
    "order",
    Order,
    "symbol",
    False,
    lambda e: {"state": e.state, "side": e.side, "quantity": e.quantity, "price": e.price},
)
NOTIFICATION = Stream(
    "notification",
    Notification,
    "symbol+interval",
    True,
    lambda e: {"state": e.state, "text": e.text},
)
# Messages about notices: a claim covering notices up to `<ms>-<n>` is `<ms>-<2n>`, what became of
# it `<ms>-<2n+1>`.
ALERT = Stream("alert", Notification, "", True, NOTIFICATION.summary)
# A picture of the day: the claim is `<when it is due>-0`, what became of it `-1`.
DAILY = Stream("daily", Notification, "", True, NOTIFICATION.summary)
RECORD = Stream("record", Record, "symbol+interval", True, lambda e: {"hash": e.hash})
PARITY = Stream(
    "parity",
    Parity,
    "symbol+interval",
    True,
    lambda e: {
        "equal": str(e.equal),
        "unequal": str(e.unequal),
        "unchecked": str(e.unchecked),
        **({"first": e.first} if e.first else {}),
    },
)
DRIFT = Stream(
    "drift",
    Drift,
    "symbol+interval",
    True,
    lambda e: {
        "unusual": f"{len(e.unusual)} of {len(e.psi)}",
        "novelty": f"{e.novelty_median:.2f}",
    },
)
OUTCOME = Stream(
    "outcome",
    Outcome,
    "symbol+interval",
    True,
    lambda e: {"score": number_text(e.score), "return": number_text(e.future_return)},
)
NOTICE = Stream(
    "notice", Notice, "", False, lambda e: {"level": e.level, "code": e.code, "text": e.text}
)
STREAMS: tuple[Stream[Any], ...] = (
    KLINE,
    FUTURES_KLINE,
    DEPTH,
    FUNDING,
    FEATURE,
    PREDICTION,
    SIGNAL,
    ORDER,
    NOTIFICATION,
    ALERT,
    DAILY,
    RECORD,
    PARITY,
    DRIFT,
    OUTCOME,
    NOTICE,
)


def dead_letters(stream_key: str) -> Stream[DeadLetter]:
    """`dead:<stream>`: what could not be processed there."""
    return Stream(
        f"dead:{stream_key}",
        DeadLetter,
        "",
        False,
        lambda e: {"reason": e.reason, "id": e.entry_id, "service": e.service},
    )


def of_chat(stream: Stream[Notification], chat: str) -> Stream[Notification]:
    """The messages of a further chat: `notification@-100123:{BTCUSDT}:1m`, `alert@-100123`."""
    return replace(stream, name=f"{stream.name}@{chat}")


def schema_key(schema: str) -> str:
    """Plain key that holds the JSON list of feature names of a schema hash."""
    return f"schema:{schema}"


def health_key(service: str, instance: str) -> str:
    """Plain key, with a time to live, that holds a service's last heartbeat as JSON."""
    return f"health:{service}:{instance}"


# Plain key: who the notifier waits for, `{"service:instance": people know that it is silent}`.
WATCHED_KEY = "watched"


def intent_key(symbol: str, client_id: str) -> str:
    """Plain key, with a time to live, that the one trader sets who may send this order."""
    return f"intent:{{{symbol}}}:{client_id}"


def schema_text() -> str:
    """Every stream with its key, its ids and its fields, as JSON."""
    shapes = []
    for stream in (*STREAMS, dead_letters("<stream>")):
        described = {
            "stream": stream.key("SYMBOL", "INTERVAL"),
            "id": "<open_time_ms>-0" if stream.event_time else "*",
            "data": {
                field.name: getattr(field.type, "__name__", str(field.type))
                for field in fields(stream.event)
            },
        }
        shapes.append(described)
    return json.dumps(shapes, indent=2)
