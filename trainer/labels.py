"""Labels: what the price does next, known only afterwards.

The seed's set, over a horizon of h rows (180 unless told):

* `high_10 15 20 25`: the highest high of rows t+1 .. t+h is at least 1.0 (1.5, 2.0, 2.5) percent
  above the close of row t; `high_01 02 03 04`: it is at most 0.1 (0.2, 0.3, 0.4) percent above it;
* `low_10 .. low_25`, `low_01 .. low_04`: the mirror image, of the lowest low;
* `high_max_W`, `low_min_W`: the percentage itself, over W rows; a value to regress on.

Thresholds in percent have no cases in a calm market and little else in a wild one. So there are two
that follow the volatility:

* `highv`: high_max_h >= 1.25 * 100 * sigma * sqrt(h);
* `lowv`: low_min_h <= -1.25 * 100 * sigma * sqrt(h), where sigma(t) is the population standard
  deviation of the log returns ln(close[r] / close[r - 1]) of the 720 rows r = t-719 .. t: a plain
  window, the same from wherever the data starts. Returns at a gap are not counted; NaN with fewer
  than 2 returns or where the window begins before the data (close[t - 720] is its first). The 1.25
  is from the reference on machine learning, sections 0 and 2, measured there with an exponentially
  weighted sigma. With this one it is a case in 17 to 20 percent of BTCUSDT's minutes in every year
  from 2021 to 2025 (high_10: in 14 to 41 percent);
* `highv_NNN`, `lowv_NNN`: the same with NNN hundredths of sigma, `highv_050` for 0.5.

What is not known is NaN, never False: the last h rows, and every row whose own candle or whose
window ahead holds a gap.
"""

import argparse
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.config import Settings
from shared.errors import Usage
from shared.klines import KlineTable
from trainer import rasters
from trainer.progress import Progress

Floats = npt.NDArray[np.float64]

HORIZON = 180
# name: (side, percent, True: at least so far / False: at most so far)
_THRESHOLDS: dict[str, tuple[str, float, bool]] = {
    f"{side}_{digits}": (side, int(digits) / 10, int(digits) >= 10)
    for side in ("high", "low")
    for digits in ("01", "02", "03", "04", "10", "15", "20", "25")
}
_EXTREMES = tuple(
    f"{side}_{window}" for side in ("high_max", "low_min") for window in (60, 120, 180)
)
_EXTREME = re.compile(r"(high)_max_([1-9]\d{0,4})|(low)_min_([1-9]\d{0,4})")
SIGMA_ROWS = 720
_SIGMAS = 1.25
_SCALED = re.compile(r"(high|low)v(?:_(?!000)(\d{3}))?")
# side: its volatility-scaled labels, rarest first
SCALED_LABELS: Mapping[str, tuple[str, ...]] = {
    side: (f"{side}v", f"{side}v_100", f"{side}v_075", f"{side}v_050") for side in ("high", "low")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """y: (n,) float64: 0, 1 or percent, NaN = not known. t1: (n,) int64, the last row looked at."""

    y: Floats
    t1: npt.NDArray[np.int64]


def known_labels() -> tuple[str, ...]:
    """All names, but for the other W of `high_max_W` and NNN of `highv_NNN`."""
    return (*_THRESHOLDS, *_EXTREMES, *SCALED_LABELS["high"], *SCALED_LABELS["low"])


def sigmas(name: str) -> float | None:
    """How many sigma a volatility-scaled label asks for; None for every other name."""
    found = _SCALED.fullmatch(name)
    if found is None:
        return None
    return _SIGMAS if found[2] is None else int(found[2]) / 100


def label(
    name: str, table: KlineTable, horizon: int = HORIZON, sigma: Floats | None = None
) -> Label:
    """One label of each row.

    table: on its regular raster, gaps as rows of NaN.
    horizon: rows that the label looks ahead; `high_max_W` and `low_min_W` bring their own.
    sigma: `trailing_sigma` of the table's closes, where it is at hand.

    Raises:
        Usage: there is no such label.
    """
    extreme = _EXTREME.fullmatch(name)
    if extreme is not None:
        side, horizon = extreme[1] or extreme[3], int(extreme[2] or extreme[4])
        y = _move(table, side, horizon)
    elif (scale := sigmas(name)) is not None:
        side = "high" if name.startswith("high") else "low"
        move = _move(table, side, horizon)
        if sigma is None:
            sigma = trailing_sigma(table.column("close"))
        threshold = scale * 100 * sigma * math.sqrt(horizon)
        hit = move >= threshold if side == "high" else move <= -threshold
        y = np.where(np.isnan(move) | np.isnan(threshold), np.nan, hit.astype(np.float64))
    elif name in _THRESHOLDS:
        side, percent, far = _THRESHOLDS[name]
        move = _move(table, side, horizon)
        if side == "high":
            hit = move >= percent if far else move <= percent
        else:
            hit = move <= -percent if far else move >= -percent
        y = np.where(np.isnan(move), np.nan, hit.astype(np.float64))
    else:
        close = difflib.get_close_matches(name, known_labels(), n=1, cutoff=0.0)
        raise Usage(f"no label {name!r}; did you mean {close[0]!r}?")
    rows = np.arange(len(table), dtype=np.int64)
    return Label(y=y, t1=np.minimum(rows + horizon, max(len(table) - 1, 0)))


def _move(table: KlineTable, side: str, horizon: int) -> Floats:
    """Percent from each close to the highest high (lowest low) of the next `horizon` rows."""
    move = np.full(len(table), np.nan)
    known = len(table) - horizon
    if known <= 0:
        return move
    close = table.column("close")[:known]
    if side == "high":
        extreme = _sliding_max(table.column("high")[1:], horizon)
    else:
        extreme = -_sliding_max(-table.column("low")[1:], horizon)
    move[:known] = 100 * (extreme - close) / close
    return move


@dataclass(frozen=True, slots=True)
class _Spread:
    """Of runs of rows, one run starting at each row: how many numbers, their mean, and the sum of
    their squared distances from it."""

    count: Floats
    mean: Floats
    squares: Floats

    def followed_by(self, other: "_Spread", rows: int) -> "_Spread":
        """Each run of `rows` rows, and the other's run that begins after it, as one.

        The pairwise merge of Chan, Golub and LeVeque (1979): no difference of large sums.
        """
        size = len(other.count) - rows
        count_a, mean_a = self.count[:size], self.mean[:size]
        count_b, mean_b = other.count[rows:], other.mean[rows:]
        count, apart = count_a + count_b, mean_b - mean_a
        share = count_b / np.maximum(count, 1)
        return _Spread(
            count=count,
            mean=mean_a + apart * share,
            squares=self.squares[:size] + other.squares[rows:] + apart**2 * count_a * share,
        )


def trailing_sigma(close: Floats, window: int = SIGMA_ROWS) -> Floats:
    """Population standard deviation of the log returns of the last `window` rows, at each row.

    close: (n,), NaN in gaps. Result: (n,), NaN where the module's docstring says so. Runs of 1, 2,
    4, ... rows are merged into those of `window`: a row's value depends on nothing but the
    window + 1 closes up to it, bit for bit, and each row costs about 2 log2(window) merges.
    """
    sigma = np.full(len(close), np.nan)
    if len(close) <= window:
        return sigma
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        returns = np.log(close[1:] / close[:-1])
    is_known = np.isfinite(returns)
    run = _Spread(
        count=is_known.astype(np.float64),
        mean=np.where(is_known, returns, 0.0),
        squares=np.zeros(len(returns)),
    )
    whole, rows, size = None, 0, 1
    while True:
        if window & size:
            whole = run if whole is None else whole.followed_by(run, rows)
            rows += size
            if rows == window:
                break
        run = run.followed_by(run, size)
        size *= 2
    enough = whole.count >= 2
    sigma[window:][enough] = np.sqrt(whole.squares[enough] / whole.count[enough])
    return sigma


def _sliding_max(values: Floats, window: int) -> Floats:
    """The maximum of values[i : i + window] for each i, NaN where one is NaN; O(n) at any window.

    Van Herk and Gil-Werman: cut into blocks of one window; every window is the tail of one block
    and the head of the next.
    """
    count = len(values)
    padded = np.full(-(-count // window) * window, -np.inf)
    padded[:count] = values
    blocks = padded.reshape(-1, window)
    heads = np.maximum.accumulate(blocks, axis=1).ravel()
    tails = np.maximum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.maximum(tails[: count - window + 1], heads[window - 1 : count])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rasters.add_options(parser)
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="these instead of the config's")
    parser.add_argument(
        "--horizon", type=int, metavar="ROWS", help="rows to look ahead, instead of the config's"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    names = rasters.listed(args.labels) or settings.labels
    horizon = settings.trainer.label_horizon if args.horizon is None else args.horizon
    if horizon < 1:
        raise Usage(f"--horizon {horizon}: a label looks at least one row ahead")
    outputs = []
    for read, raster, out in rasters.selected(settings, args, "labels"):
        columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": raster.open_time_ms}
        means: dict[str, float | None] = {}
        with progress.bar(f"labels of {raster.symbol}", len(names), "labels") as bar:
            for name in names:
                columns[name] = label(name, raster.kline_table(), horizon).y
                known = columns[name][~np.isnan(columns[name])]
                means[name] = round(float(known.mean()), 6) if len(known) else None
                bar.advance(detail=name)
        out.write([columns], {"horizon": str(horizon)})
        outputs.append(rasters.span(raster) | {"read": read, "wrote": [out.path], "mean": means})
    return {
        "command": "labels",
        "rows": sum(output["rows"] for output in outputs),
        "labels": list(names),
        "horizon": horizon,
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    places = ", ".join(str(output["wrote"][0]) for output in result["outputs"])
    return f"labels: {len(result['labels'])} labels of {result['rows']:,} rows in {places}"
