"""Structured logs: one JSON object a line on stderr, with every known secret taken out."""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any

from pydantic import SecretStr

from shared.config import SECRETS, Settings
from shared.times import iso

# Shapes that are secret wherever they stand: Telegram tokens, signatures and keys in URLs.
_SHAPES = (
    re.compile(r"(?<!\d)\d{6,12}:[A-Za-z0-9_-]{30,}"),
    re.compile(r"(?<=signature=)[^&\s\"']+"),
    re.compile(r"(?<=X-MBX-APIKEY: )\S+"),
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
)
_HIDDEN = "***"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Redactor:
    """Takes secrets out of text. The config's own are known by value, others by shape."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({s for s in secrets if len(s) >= 4}, key=len, reverse=True)

    @classmethod
    def of(cls, settings: Settings) -> "Redactor":
        values = [getattr(settings, name) for name in SECRETS] + [settings.notifier.dead_man_url]
        return cls(v.get_secret_value() for v in values if isinstance(v, SecretStr))

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        for shape in _SHAPES:
            text = shape.sub(_HIDDEN, text)
        return text


class _JsonLines(logging.Formatter):
    def __init__(self, service: str, redact: Redactor) -> None:
        super().__init__()
        self._service = service
        self.redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": iso(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "service": self._service,
            "event": record.getMessage(),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        line.update(extra)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return self.redact(json.dumps(line, default=str, ensure_ascii=False))


def set_up(service: str, *, level: str = "info", redact: Redactor | None = None) -> None:
    """Sends every logger of this process to stderr as redacted JSON lines."""
    redact = redact or Redactor()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(service, redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiohttp", "aiogram", "websockets", "asyncio", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def last_words(text: str) -> None:
    """The one plain line with which a process ends, on stderr, without secrets."""
    redact = Redactor()
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _JsonLines):
            redact = handler.formatter.redact
    sys.stderr.write(f"error: {redact(' '.join(text.split()))}\n")
    sys.stderr.flush()


class Quiet:
    """Lets a repeated line through once per `every_s`, with the number of those left out."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._last: dict[str, tuple[float, int]] = {}

    def allows(self, code: str) -> int | None:
        """None = stay silent; otherwise how many were left out since the last one."""
        now = time.monotonic()
        last, held = self._last.get(code, (-self._every_s, 0))
        if now - last < self._every_s:
            self._last[code] = (last, held + 1)
            return None
        self._last[code] = (now, 0)
        return held
