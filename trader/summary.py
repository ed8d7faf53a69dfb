"""The day in one message."""

from collections.abc import Sequence
from decimal import Decimal

from shared.ledger import DAY_MS, ZERO, Day, Ledger
from shared.times import iso
from trader.orders import text

_CENT = Decimal("0.01")


def daily_summary(
    day: int,
    ledgers: Sequence[Ledger],
    closes: Sequence[float],
    opens: Sequence[float | None],
    worth: Decimal,
) -> str:
    """Of the market's day `day`. closes: last prices; opens: first of the day, None = not known.

    Profits are after the fees in base and quote; slippage is against the closes that decided.
    """
    days = [ledger.days.get(day, Day()) for ledger in ledgers]
    quote = ledgers[0].quote
    realised = sum((ledger.realised.get(day, ZERO) for ledger in ledgers), ZERO)
    unrealised, held = ZERO, []
    for ledger, close in zip(ledgers, closes, strict=True):
        if ledger.position > 0 and close > 0:
            unrealised += ledger.unrealised(Decimal(repr(close)))
            held.append(f"{text(ledger.position)} {ledger.base}")
    fees: dict[str, Decimal] = {}
    for one in days:
        for asset, fee in one.fees.items():
            fees[asset] = fees.get(asset, ZERO) + fee
    trips, won = sum(one.trips for one in days), sum(one.won for one in days)
    slippage = sum((one.slippage for one in days), ZERO)
    parts = [
        f"{iso(day * DAY_MS)[:10]}: holds {', '.join(held) or 'nothing'}",
        f"realised {_money(realised)} {quote} in {trips} round trips ({won} won)",
        f"unrealised {_money(unrealised)} {quote}",
        "fees " + (", ".join(f"{text(fee)} {asset}" for asset, fee in fees.items()) or "none"),
        f"slippage {_money(slippage)} {quote}",
        f"account {worth.quantize(_CENT)} {quote}",
    ]
    moves = [
        f"{ledger.base} {100 * (close / opened - 1):+.2f} %"
        for ledger, close, opened in zip(ledgers, closes, opens, strict=True)
        if opened is not None and close > 0
    ]
    if moves:
        parts.append(f"buy and hold {', '.join(moves)}")
    return "; ".join(parts)


def _money(amount: Decimal) -> str:
    return f"{amount.quantize(_CENT):+f}"
