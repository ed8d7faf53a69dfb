"""What a candle must be, wherever it comes from."""

import math

from shared.events import Kline


def problem_of(kline: Kline, step_ms: int) -> str:
    """Why a row cannot be a candle; "" when it can. Columns after volume may be NaN."""
    prices = (kline.open, kline.high, kline.low, kline.close)
    if kline.open_time_ms % step_ms:
        return "its open time is off the raster"
    if not all(map(math.isfinite, prices)) or not math.isfinite(kline.volume):
        return "a price or the volume is not a finite number"
    if min(prices) <= 0:
        return "a price is zero or negative"
    if kline.high < kline.low:
        return "high is below low"
    if kline.high < max(kline.open, kline.close) or kline.low > min(kline.open, kline.close):
        return "open or close lies outside low .. high"
    rest = (kline.volume, kline.quote_volume, kline.trades, kline.taker_base, kline.taker_quote)
    if any(value < 0 or math.isinf(value) for value in rest):
        return "a volume is negative or infinite"
    return ""
