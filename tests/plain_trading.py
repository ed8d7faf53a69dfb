"""The trading rules once more, as one plain loop from their description: the tests' oracle.

Nothing is taken from `shared.rules` but the names of its settings.
"""

import math
from typing import Any


def trade(candles: list[tuple[float, ...]], r: Any, c: Any, capital: float, step_ms: int) -> Any:
    """candles: (open, high, low, close, score, volatility) each, NaN prices = gap.

    Returns (worth at each close, trades): a trade is a dict; the last may lack its exit.
    """
    cash, coins = capital, 0.0
    wanted: dict[str, Any] = {}  # what was decided at the last close: sell / buy and at what price
    trades: list[dict[str, Any]] = []
    worth, last_close, free_from = [], math.nan, 0
    best = math.nan  # highest high (short: lowest low) since the entry

    def leave(i: int, price: float, why: str) -> None:
        nonlocal cash, coins, free_from
        cash += coins * price - abs(coins) * price * c.fee
        cash = max(cash, 0.0)
        coins = 0.0
        trades[-1].update(exit=i, exit_price=price, why=why, profit=cash - trades[-1]["before"])
        free_from = i + r.cool_down

    def slipped(price: float, buying: bool) -> float:
        return price * (1 + c.slippage) if buying else price * (1 - c.slippage)

    for i, (opened, high, low, close, score, volatility) in enumerate(candles):
        if any(map(math.isnan, (opened, high, low, close))):
            wanted.pop("enter", None)  # stale by the next candle; an exit waits
            worth.append(cash + (coins * last_close if coins else 0.0))
            continue
        last_close = close
        entered_inside = False

        # 1. orders of the last close at the open
        if "leave" in wanted:
            buying = coins < 0
            limit = wanted["limit"]
            price = slipped(opened, buying)
            if limit is None:
                leave(i, price, wanted.pop("leave"))
            elif buying and opened <= limit:
                leave(i, min(price, limit), wanted.pop("leave"))
            elif not buying and opened >= limit:
                leave(i, max(price, limit), wanted.pop("leave"))
        if "enter" in wanted and coins == 0:
            long, limit = wanted["enter"] == "long", wanted["limit"]
            price = slipped(opened, long)
            if limit is not None:
                if long and opened <= limit:
                    price = min(price, limit)
                elif not long and opened >= limit:
                    price = max(price, limit)
                elif (long and low < limit) or (not long and high > limit):
                    price, entered_inside = limit, True
                else:
                    price = math.nan
            if not math.isnan(price):
                stake = min(wanted["budget"], cash)
                before = cash
                if not long:
                    coins = -stake / price
                    cash += stake * (1 - c.fee)
                elif c.from_received:
                    coins = stake / price * (1 - c.fee)
                    cash -= stake
                else:
                    coins = stake / (price * (1 + c.fee))
                    cash -= stake
                best = price
                trades.append({"entry": i, "entry_price": price, "long": long, "before": before})

        # 2. what rests on the exchange
        if coins:
            long = coins > 0
            paid = trades[-1]["entry_price"]
            stops = []
            sign = 1 if long else -1
            if r.stop_loss:
                stops.append((paid * (1 - sign * r.stop_loss), "stop-loss"))
            if r.trailing_stop:
                stops.append((best * (1 - sign * r.trailing_stop), "trailing stop"))
            if not long:
                stops.append((cash / (-coins * (1 + c.fee)), "liquidated"))
            stop, why = math.nan, ""
            if stops:  # the nearest; of equals the one named first
                stop, why = max(stops, key=lambda s: sign * s[0])
            target = paid * (1 + sign * r.take_profit) if r.take_profit else math.nan
            if (long and low <= stop) or (not long and high >= stop):
                beyond = opened < stop if long else opened > stop
                price = opened if beyond and not entered_inside else stop
                leave(i, slipped(price, not long), why)
            elif "leave" in wanted and (high > wanted["limit"] if long else low < wanted["limit"]):
                leave(i, wanted["limit"], wanted["leave"])
            elif not entered_inside and ((long and high > target) or (not long and low < target)):
                leave(i, target, "take-profit")
        if coins > 0:
            best = max(best, close if entered_inside else high)
        if coins < 0:
            best = min(best, close if entered_inside else low)

        # 3. decide
        wanted = {}
        if coins:
            long = coins > 0
            held = i - trades[-1]["entry"] + 1
            if (long and score < r.exit_long) or (not long and score > r.exit_short):
                wanted["leave"] = "score"
                if r.cool_down == 0 and long and r.shorts and score < r.sell:
                    wanted["enter"] = "short"
                if r.cool_down == 0 and not long and r.longs and score > r.buy:
                    wanted["enter"] = "long"
            elif r.max_candles and held >= r.max_candles:
                wanted["leave"] = "time"
            buying = not long
        else:
            if i >= free_from:
                if r.longs and score > r.buy:
                    wanted["enter"] = "long"
                elif r.shorts and score < r.sell:
                    wanted["enter"] = "short"
            buying = wanted.get("enter") == "long"
        if "enter" in wanted:
            part = r.share
            if r.volatility:
                part = math.nan if math.isnan(volatility) else part
                if volatility > 0:
                    part = min(part, r.volatility / volatility)
            wanted["budget"] = part * (cash + coins * close)
            if r.fixed:
                wanted["budget"] = min(r.fixed, wanted["budget"])
            if not wanted["budget"] > 0:
                del wanted["enter"]
        if math.isnan(r.limit):
            wanted["limit"] = None
        else:
            wanted["limit"] = close * (1 - r.limit) if buying else close * (1 + r.limit)
        worth.append(cash + coins * close)
    return worth, trades
