"""What a candle and an order-book row must be, wherever they come from."""

import math
import struct

from shared.events import Depth, Kline
from shared.klines import DEPTH_COLUMNS

_DEPTH = struct.Struct(f"<{len(DEPTH_COLUMNS)}d")


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


def gap_problem_of(kline: Kline) -> str:
    """Why an entry cannot be a gap marker; "" when it can."""
    return "" if all(map(math.isnan, kline.row())) else "a gap marker with values"


def depth_problem_of(depth: Depth) -> str:
    """Why `values` cannot be a row of DEPTH_COLUMNS; "" when it can. NaN = no such bin."""
    if len(depth.values) != _DEPTH.size:
        return f"its values are not {len(DEPTH_COLUMNS)} float64"
    if any(map(math.isinf, _DEPTH.unpack(depth.values))):
        return "a value is infinite"
    return ""
