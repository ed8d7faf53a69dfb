"""Names of our orders, and the journal lines about them."""

import base64
import hashlib
from decimal import Decimal

from shared.exchange import OrderReport, Status

PREFIX = "k1-"


def client_id(signal_id: str, leg: str, attempt: int = 1) -> str:
    """The order's name at the exchange: the same for the same purpose, whoever computes it, so
    that an order can be found again without a journal. Matches `^[a-zA-Z0-9-_]{1,36}$`."""
    what = leg if attempt == 1 else f"{leg}|{attempt}"
    digest = hashlib.sha256(f"{signal_id}|{what}".encode()).digest()
    return PREFIX + base64.b32encode(digest).decode()[:26]


def list_id(signal_id: str, leg: str, attempt: int = 1) -> str:
    """The name of a pair of orders."""
    return client_id(signal_id, f"{leg}|list", attempt)


def is_ours(client_id: str) -> bool:
    return client_id.startswith(PREFIX)


def text(value: Decimal | None) -> str:
    """A decimal without exponent or needless zeros; "" for none."""
    if value is None:
        return ""
    plain = f"{value:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def why_ended(report: OrderReport) -> str:
    """What the exchange says about an order that ended unfilled."""
    if report.status in (Status.CANCELED, Status.FILLED):
        return report.reason
    return f"{report.status}: {report.reason}" if report.reason else str(report.status)
