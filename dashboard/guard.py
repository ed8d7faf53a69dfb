"""Who may look and who may act: hosts, logins, one-time tickets, limits. Pure: times come in.

Whatever a stranger can make grow is bounded.
"""

import base64
import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TICKET_S = 600.0
CONFIRM_S = 60.0
FAILURES = 5
FAILURE_S = 900.0
_MOST_SESSIONS = 100
_MOST_QUESTIONS = 16
_MOST_ADDRESSES = 10_000
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104  # recognised, not listened on


# -- where from -----------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether what is served on `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(authority: str) -> str:
    """`localhost` of `localhost:8260`, `::1` of `[::1]:8260`; "" for what is no authority."""
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port
    except ValueError:
        return ""
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or "\\" in authority:
        return ""
    return (parts.hostname or "").rstrip(".")


def allowed_names(listen: str, names: Iterable[str]) -> frozenset[str]:
    """Host names by which the page may be asked for: ours, the configured ones, and no other.

    A site whose name a stranger points to our address (DNS rebinding) has another name.
    """
    configured = (host_name(name) or name.lower() for name in names)
    wildcard = listen in ANYWHERE
    return frozenset((*_LOCAL_NAMES, *configured, *(() if wildcard else (listen.lower(),))))


def is_same_origin(origin: str | None, authority: str) -> bool:
    """Whether a request with this Origin header comes from a page of ours.

    The scheme is not compared: a proxy may add TLS.
    """
    if not origin:
        return False
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == authority.lower()


# -- logins ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Question:
    """An action that waits to be confirmed. typed: what must be typed to do so, "" = nothing."""

    action: str
    argument: str
    typed: str
    until_s: float


@dataclass(slots=True)
class Login:
    """One login. csrf: goes into every request that changes something."""

    until_s: float
    csrf: str
    address: str
    questions: OrderedDict[str, Question] = field(default_factory=OrderedDict)

    def may_act(self, csrf: str | None) -> bool:
        return csrf is not None and hmac.compare_digest(csrf.encode(), self.csrf.encode())

    def ask(self, action: str, argument: str, typed: str, now_s: float) -> str:
        """Id under which the action can be confirmed, once and soon."""
        while len(self.questions) >= _MOST_QUESTIONS:
            self.questions.popitem(last=False)
        number = secrets.token_urlsafe(16)
        self.questions[number] = Question(action, argument, typed, now_s + CONFIRM_S)
        return number

    def confirm(self, number: str, now_s: float) -> Question | None:
        """The action asked for; None where it was confirmed before, is too old or unknown."""
        question = self.questions.pop(number, None)
        return question if question is not None and now_s < question.until_s else None


class Logins:
    """Those who are logged in, by the hash of their cookie. Beyond _MOST_SESSIONS the oldest go."""

    def __init__(self, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._logins: OrderedDict[bytes, Login] = OrderedDict()

    def open(self, address: str, now_s: float) -> tuple[str, Login]:
        """A new login and its cookie."""
        for key in [key for key, one in self._logins.items() if now_s >= one.until_s]:
            del self._logins[key]
        while len(self._logins) >= _MOST_SESSIONS:
            self._logins.popitem(last=False)
        cookie = secrets.token_urlsafe(32)
        login = Login(now_s + self._lifetime_s, secrets.token_urlsafe(32), address)
        self._logins[_digest(cookie)] = login
        return cookie, login

    def find(self, cookie: str | None, now_s: float) -> Login | None:
        if not cookie:
            return None
        login = self._logins.get(_digest(cookie))
        return login if login is not None and now_s < login.until_s else None

    def close(self, cookie: str | None) -> None:
        if cookie:
            self._logins.pop(_digest(cookie), None)

    def is_open(self, login: Login, now_s: float) -> bool:
        """Whether a page that was let in by this login may stay open."""
        return now_s < login.until_s and any(one is login for one in self._logins.values())


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()


class Tickets:
    """One-time tickets of the login form: a recorded login that is sent again has none.

    They are signed, not stored, so that asking for many costs us nothing; what is kept are those
    redeemed, and each of these cost its sender an attempt.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._redeemed: OrderedDict[str, float] = OrderedDict()

    def issue(self, now_s: float) -> str:
        body = f"{now_s + TICKET_S:.0f}.{secrets.token_urlsafe(16)}"
        return f"{body}.{self._sign(body)}"

    def redeem(self, ticket: str, now_s: float) -> bool:
        """Whether it is ours, still good, and redeemed for the first time."""
        body, _, signature = ticket.rpartition(".")
        signed = self._sign(body).encode()
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), signed):
            return False
        until_s = float(body.partition(".")[0])
        while self._redeemed and next(iter(self._redeemed.values())) <= now_s:
            self._redeemed.popitem(last=False)
        if now_s >= until_s or ticket in self._redeemed:
            return False
        self._redeemed[ticket] = now_s + TICKET_S
        return True

    def _sign(self, body: str) -> str:
        digest = hmac.digest(self._key, body.encode("utf-8", "replace"), "sha256")
        return base64.urlsafe_b64encode(digest).decode()


class Attempts:
    """Wrong passwords per address: after FAILURES within FAILURE_S that address waits."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds until the address may try again; 0 = now."""
        failures = self._failures.get(_network(address), deque())
        while failures and failures[0] <= now_s - FAILURE_S:
            failures.popleft()
        return failures[0] + FAILURE_S - now_s if len(failures) >= FAILURES else 0.0

    def failed(self, address: str, now_s: float) -> None:
        key = _network(address)
        self._failures.setdefault(key, deque(maxlen=FAILURES)).append(now_s)
        self._failures.move_to_end(key)
        if len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(_network(address), None)


def _network(address: str) -> str:
    """An IPv6 subscriber has 2^64 addresses: they count as one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address
