"""Where orders go, and with which key: paper money never to a real exchange, real money never to
a play one."""

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from shared import rules
from shared.config import Settings
from shared.errors import Usage
from trader.core import Limits

LIVE, PAPER, OBSERVE = "live", "paper", "observe"
SIMULATOR = "http://127.0.0.1:8290"
BINANCE = "https://api.binance.com"
_DEMO = "demo"
_WS_PATH = "/ws-api/v3"
_DATA_ONLY = frozenset(("data-api.binance.vision",))
_REAL = ("binance.com", "binance.us", "binance.vision")
_WS_HOSTS = {
    "testnet.binance.vision": "wss://ws-api.testnet.binance.vision",
    "api1.testnet.binance.vision": "wss://ws-api.testnet.binance.vision",
    "demo-api.binance.com": "wss://demo-ws-api.binance.com",
}
_LIVE_DAILY_LOSS = Decimal("0.05")
_LIVE_DRAWDOWN = Decimal("0.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One account at one exchange. secret and key do not show."""

    mode: str
    rest_url: str
    ws_url: str
    key: str = field(repr=False)
    secret: str = field(repr=False)

    @property
    def host(self) -> str:
        parts = urlsplit(self.rest_url)
        return parts.netloc


def host_of(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def is_play(host: str) -> bool:
    """One of Binance's exchanges for play money."""
    return "testnet" in host.split(".") or host.startswith("demo-")


def is_real(host: str) -> bool:
    """One of Binance's exchanges for real money (or its data host)."""
    is_theirs = any(host == name or host.endswith(f".{name}") for name in _REAL)
    return is_theirs and not is_play(host)


def place_of(settings: Settings) -> Place:
    """Raises: Usage where mode, address and key do not belong together."""
    mode = settings.trader.mode
    rest = settings.account_rest_url or settings.binance_rest_url
    if host_of(rest) in _DATA_ONLY:
        rest = SIMULATOR if mode == PAPER else BINANCE
    host = host_of(rest)
    if mode == PAPER and is_real(host):
        raise Usage(
            f"trader.mode is paper, but orders would go to {host}: set account_rest_url to the "
            f"simulator ({SIMULATOR}) or a testnet, or trader.mode to live"
        )
    if mode == LIVE and is_play(host):
        raise Usage(f"trader.mode is live, but {host} is a testnet: set trader.mode to paper")
    if mode == LIVE and is_real(host) and not rest.startswith("https://"):
        raise Usage(f"{rest}: orders go over https only")
    key, secret = _text(settings.api_key), _text(settings.api_secret)
    if mode == PAPER and not is_play(host):
        key, secret = key or _DEMO, secret or _DEMO
    if not key or not secret:
        raise Usage(
            f"api_key and api_secret are missing: orders at {host} are signed; put them into files "
            "that ITB_API_KEY_FILE and ITB_API_SECRET_FILE name"
        )
    return Place(mode=mode, rest_url=rest, ws_url=_ws(settings, rest), key=key, secret=secret)


def _ws(settings: Settings, rest: str) -> str:
    """Where the user stream is: beside the orders, unless the config names a place of its own."""
    url = settings.binance_ws_api_url
    host = host_of(rest)
    if is_real(host_of(url)) != is_real(host) or is_play(host_of(url)) != is_play(host):
        if is_real(host):
            raise Usage(f"orders go to {host}, but binance_ws_api_url is {url}")
        known = _WS_HOSTS.get(host)
        parts = urlsplit(rest)
        scheme = "wss" if parts.scheme == "https" else "ws"
        url = (known or f"{scheme}://{parts.netloc}") + _WS_PATH
    return url if urlsplit(url).path.strip("/") else url + _WS_PATH


def _text(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()


def journal_folder(settings: Settings) -> Path:
    return settings.trader.journal_folder or settings.data_folder / "journal"


def limits_of(settings: Settings) -> Limits:
    """The config's limits; live, those on losses hold even where it does not name them."""
    named = settings.trader.limits
    live = settings.trader.mode == LIVE
    daily, drawdown = _share(named.daily_loss), _share(named.drawdown)
    if live:
        daily = _LIVE_DAILY_LOSS if daily is None else daily
        drawdown = _LIVE_DRAWDOWN if drawdown is None else drawdown
    return Limits(
        max_age_ms=settings.trader.max_age_s * 1000,
        max_notional=Decimal(repr(named.max_notional)) if named.max_notional else None,
        open_orders=named.open_orders,
        open_positions=named.open_positions,
        orders_per_minute=named.orders_per_minute,
        daily_loss=daily,
        drawdown=drawdown,
        losses=named.consecutive_losses,
        refusals=named.refused_orders,
        skew_ms=named.clock_skew_ms,
        releases=frozenset(settings.trader.releases),
    )


def _share(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(repr(value))


def rule_of(settings: Settings) -> rules.Rules:
    """The rules of the config.

    Raises:
        Usage: they contradict each other, or want what a spot account cannot do.
    """
    if settings.trader.rules.direction != "long":
        raise Usage(
            f"trader.rules.direction is {settings.trader.rules.direction!r}: short positions need "
            "futures; on spot the trader goes long only"
        )
    rule = rules.configured(settings, settings.step_ms)
    problem = rules.problem_of(rule)
    if problem:
        raise Usage(f"trader.rules: {problem}")
    return rule


def what_it_may(place: Place, settings: Settings, limits: Limits) -> str:
    """One sentence for people: what this trader may do."""
    money = "REAL MONEY" if place.mode == LIVE else "play money"
    most = "no limit" if limits.max_notional is None else f"{limits.max_notional}"
    parts = [
        f"{place.mode}: trades {', '.join(settings.symbols)} with {money} at {place.host}",
        f"at most {settings.trader.rules.percentage_used_for_trade:g} % of the account and "
        f"{most} {settings.quote_asset} per entry",
    ]
    halts = [
        f"{name} {value}"
        for name, value in (
            ("a loss of the day of", _percent(limits.daily_loss)),
            ("a drawdown of", _percent(limits.drawdown)),
            ("losses in a row:", limits.losses),
            ("orders a minute:", limits.orders_per_minute),
            ("refused orders in a row:", limits.refusals),
            ("open orders:", limits.open_orders),
        )
        if value
    ]
    parts.append("halts at " + ", ".join(halts) if halts else "no limit halts it")
    protection = settings.trader.rules
    rests = [
        f"{name} {100 * value:g} %"
        for name, value in (
            ("stop-loss", protection.stop_loss),
            ("take-profit", protection.take_profit),
            ("trailing stop", protection.trailing_stop),
        )
        if value
    ]
    parts.append("at the exchange rest " + ", ".join(rests) if rests else "no stop at the exchange")
    return "; ".join(parts)


def _percent(share: Decimal | None) -> str:
    return f"{100 * share:g} %" if share else ""
