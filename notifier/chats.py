"""One chat: what the config says of it, and what its people have changed since. Pure."""

import json
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from notifier import bands
from notifier.channel import Message
from notifier.messages import band_text, is_alert, score_text
from shared.bus import Source
from shared.config import Chat, Settings
from shared.events import Notice, Notification, Signal
from shared.streams import ALERT, DAILY, NOTIFICATION, Stream, of_chat

SERVICE = "notifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What commands have changed, kept under `preferences_key`. None: as the config says."""

    muted_until_ms: int = 0
    threshold: int | None = None

    def to_json(self) -> str:
        return json.dumps({"muted_until_ms": self.muted_until_ms, "threshold": self.threshold})

    @classmethod
    def from_json(cls, text: bytes | None) -> "Preferences":
        """Nothing, or what cannot be read, is no preference."""
        try:
            found = json.loads(text or b"{}")
            threshold = found.get("threshold")
            return cls(
                muted_until_ms=int(found.get("muted_until_ms", 0)),
                threshold=None if threshold is None else int(threshold),
            )
        except (ValueError, TypeError, AttributeError):
            return cls()


def preferences_key(chat: str) -> str:
    return f"chat:{chat}"


def updates_key(bot: object) -> str:
    """How far a bot has read what people wrote to it: `<offset> <when, s since the epoch>`."""
    return f"telegram:{bot}:offset"


@dataclass(slots=True)
class Recipient:
    """A chat with its place on the bus: a group of its own, so that one that is away or blocked
    holds up no other. The first one has the plain names."""

    settings: Settings
    chat: Chat
    first: bool
    preferences: Preferences = Preferences()

    @property
    def group(self) -> str:
        return SERVICE if self.first else f"{SERVICE}@{self.chat.chat}"

    @property
    def symbols(self) -> tuple[str, ...]:
        """What it is told of, in the order of the config."""
        wanted = self.chat.symbols
        return tuple(s for s in self.settings.symbols if not wanted or s in wanted)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.chat.time_zone)

    @property
    def threshold(self) -> int:
        for given in (self.preferences.threshold, self.chat.notification_threshold):
            if given is not None:
                return given
        return self.settings.signaler.notification_threshold

    def notifications(self, symbol: str) -> Source[Notification]:
        return Source(self._own(NOTIFICATION), symbol, self.settings.interval)

    @property
    def alerts(self) -> Source[Notification]:
        return Source(self._own(ALERT))

    @property
    def days(self) -> Source[Notification]:
        return Source(self._own(DAILY))

    def _own(self, stream: Stream[Notification]) -> Stream[Notification]:
        return stream if self.first else of_chat(stream, self.chat.chat)

    # -- what it is told ----------------------------------------------------------------------

    def score_message(self, signal: Signal, before: int, *, now_ms: int) -> Message | None:
        """The message about a score; None = silent.

        before: the band of the signal before (see `band_of`). now_ms: our own clock.
        """
        loudness = self.chat.loudness.score
        if loudness == "off" or now_ms < self.preferences.muted_until_ms:
            return None
        base = self.settings.base_of(signal.symbol)
        given = self.settings.notifier.bands
        bold = False
        if given is None:
            text = score_text(signal, base, self.threshold, self.chat.language)
        else:
            now = bands.place_of(signal.score, given)
            close_ms = signal.open_time_ms + self.settings.step_ms
            if not bands.is_told(before, now, given, close_time_ms=close_ms):
                return None
            arrow = bands.arrow(before, now.number)
            text = band_text(signal, base, now.band, arrow, self.chat.language)
            bold = now.band is not None and now.band.bold
        if text is None:
            return None
        return Message(text=text, bold=bold, silent=loudness == "silent")

    def band_of(self, signal: Signal, before: int) -> int:
        """The band that the next signal comes after: of a valid score, else the one before."""
        given = self.settings.notifier.bands
        if given is None or signal.score is None or signal.invalid:
            return before
        return bands.place_of(signal.score, given).number

    def loudness_of(self, notice: Notice) -> str:
        """`loud`, `silent` or `off`: whether and how this chat is told a notice."""
        if notice.symbol in self.settings.symbols and notice.symbol not in self.symbols:
            return "off"
        if is_alert(notice):
            return self.chat.loudness.alert if self.settings.notifier.alerts else "off"
        if notice.code in TRADES:
            return self.chat.loudness.trade
        if notice.code == SUMMARY:
            return self.chat.loudness.daily
        return "off"


# Notices of level info that people are told all the same: what became of our orders.
TRADES = frozenset(("order_placed", "order_filled", "order_ended", "foreign_order", "reconciled"))
SUMMARY = "daily_summary"


def recipients(settings: Settings) -> list[Recipient]:
    """Who gets messages; without a chat the console does, as the first one."""
    chats = settings.chats() or (Chat.model_construct(chat=""),)
    return [
        Recipient(settings=settings, chat=chat, first=number == 0)
        for number, chat in enumerate(chats)
    ]


def with_preferences(recipient: Recipient, **changes: int | None) -> Preferences:
    """Its preferences with some changed; they still have to be kept and put in place."""
    return replace(recipient.preferences, **changes)  # type: ignore[arg-type]  # fields of it
