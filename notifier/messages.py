"""What people read: the line about a score and the message about alerts. Plain text, pure.

Nothing that comes from outside can break a line or a terminal: whitespace becomes one blank and
what cannot be printed is left out. Markup is the channel's business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from notifier.words import say
from shared.config import Band
from shared.events import Level, Notice, Signal
from shared.times import iso

STEP = 0.05
SIGNS = {"BTC": "₿", "ETH": "Ξ"}
UP, DOWN = "📈", "📉"
# Telegram takes 4096 UTF-16 units; the rest is room for DUPLICATE.
TEXT_UNITS = 4_000
DUPLICATE = " (possible duplicate)"
_NOTICE_CHARACTERS = 600
_NOTICES = 100
_OLD_MS = 120_000


def steps(score: float) -> int:
    """Whole steps of 0.05 in |score|; the 1e-9 keeps 0.15 / 0.05 at 3."""
    return math.floor(abs(score) / STEP + 1e-9)


def price_text(price: float) -> str:
    """A price for people: `60,518` (whole, cut off as the seed did) from 1,000 on; below, up to
    five significant digits without trailing zeros: `150.37`, `0.0812`, `0.00000812`.
    """
    if not 1e-12 < price < 1e15:
        return f"{price:.5g}"
    if price >= 1_000:
        return f"{math.floor(price):,}"
    digits = 4 - math.floor(math.log10(price))
    text = f"{price:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def score_text(signal: Signal, base_asset: str, threshold: int, language: str = "en") -> str | None:
    """`₿ 60,518 📉📉📉 Score: -0.26`; None = silent: no valid score, or below `threshold` steps.

    There is one icon at the threshold and one more per step above it; it points where the printed
    sign does (so with threshold 0 a score of zero, `+0.00`, has one that points up).
    """
    score = _valid(signal)
    if score is None or (above := steps(score) - threshold) < 0:
        return None
    icon = DOWN if math.copysign(1, score) < 0 else UP
    head = f"{_sign(base_asset)} {price_text(signal.close)}"
    return f"{head} {icon * (above + 1)} {say('score', language)}: {score:+.2f}"


def band_text(
    signal: Signal, base_asset: str, band: Band | None, arrow: str, language: str = "en"
) -> str | None:
    """`〉〉〉📈 ₿ 60,518 Score: +0.26 ↑ BUY ZONE`; band None: the score has left all of them.

    arrow: whether the score has got stronger (`↑`, in either direction). None = no valid score.
    """
    score = _valid(signal)
    if score is None:
        return None
    parts = [
        "" if band is None else clean(band.sign),
        f"{_sign(base_asset)} {price_text(signal.close)}",
        f"{say('score', language)}: {score:+.2f}",
        arrow,
        "" if band is None else clean(band.text),
    ]
    return " ".join(part for part in parts if part)


def _valid(signal: Signal) -> float | None:
    """The score that people may be told; None where there is none."""
    score = signal.score
    if signal.invalid or score is None or not -1 <= score <= 1:
        return None
    return score if math.isfinite(signal.close) and signal.close > 0 else None


def _sign(base_asset: str) -> str:
    return SIGNS.get(base_asset) or clean(base_asset)


def is_alert(notice: Notice) -> bool:
    """Whether people are told. A level that we do not know is rather told than lost."""
    return notice.level != Level.INFO


@dataclass(frozen=True, slots=True)
class AlertText:
    """One message about the first `notices` of those that wait."""

    text: str
    notices: int


def alert_text(notices: Sequence[Notice], now_ms: int) -> AlertText:
    """One message about as many waiting notices as fit, oldest first: a line per service and code
    with the first one's text and, for a burst, `×` how many. now_ms: our own clock.
    """
    lines: dict[tuple[str, str, int], list[Notice]] = {}
    shown, taken = "", 0
    for notice in notices[:_NOTICES]:
        own = taken + 1 if notice.level == Level.INFO else 0  # what we did: a line each
        lines.setdefault((notice.service, notice.code, own), []).append(notice)
        text = "\n".join(_line(group, now_ms) for group in lines.values())
        if taken and units(text) > TEXT_UNITS:
            break
        shown, taken = text, taken + 1
    return AlertText(shown, taken)


def _line(group: Sequence[Notice], now_ms: int) -> str:
    first = group[0]
    if first.level == Level.INFO:
        return f"💰 {clean(first.text, _NOTICE_CHARACTERS)}"
    loud = any(notice.level != Level.WARNING for notice in group)
    times = f" ×{len(group)}" if len(group) > 1 else ""
    since = f" (since {_time(first.time_ms)})" if now_ms - first.time_ms > _OLD_MS else ""
    head = f"{'🚨' if loud else '⚠️'} {clean(first.service, 40)} {clean(first.code, 40)}"
    return f"{head}{times}{since}: {clean(first.text, _NOTICE_CHARACTERS)}"


def _time(time_ms: int) -> str:
    try:
        return iso(time_ms - time_ms % 1000)
    except (ValueError, OverflowError, OSError):
        return "an impossible time"


def clean(text: str, characters: int = 100) -> str:
    """One line of printable characters, cut with an ellipsis where it is too long."""
    if len(text) > 2 * characters:
        text = text[: 2 * characters]
    words = " ".join(text.split())
    printable = "".join(c for c in words if c.isprintable())
    return printable if len(printable) <= characters else printable[: characters - 1] + "…"


def units(text: str) -> int:
    """Length as Telegram counts it."""
    return len(text.encode("utf-16-le")) // 2
