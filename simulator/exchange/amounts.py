"""Amounts as the engine counts them: integers of 1e-8, Binance's precision, exact under + and -.

Prices, quantities, notionals, balances, fees and rates are all such integers ("units").
"""

DIGITS = 8
UNIT = 100_000_000


def units(value: str) -> int:
    """Units of a plain decimal text.

    Raises: ValueError when the text is no plain number, or has more than eight decimals that count.
    """
    whole, _, part = value.partition(".")
    if not (value.isascii() and whole.isdigit() and (part or "0").isdigit()):
        raise ValueError(f"{value!r} is no plain decimal number")
    if len(part) > DIGITS:
        if part[DIGITS:].strip("0"):
            raise ValueError(f"{value!r} has more than {DIGITS} decimals")
        part = part[:DIGITS]
    return int(whole) * UNIT + int(part.ljust(DIGITS, "0"))


def text(amount: int) -> str:
    """Eight decimals, as Binance prints."""
    if amount < 0:
        return "-" + text(-amount)
    whole, part = divmod(amount, UNIT)
    return f"{whole}.{part:08d}"


def times(price: int, quantity: int) -> int:
    """price * quantity, rounded down to a unit (exact wherever tick and lot have eight decimals
    together, as Binance's symbols have)."""
    return price * quantity // UNIT
