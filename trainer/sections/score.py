"""The score: its distribution, what followed it, and where it stands beside the candles."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shared.klines import KLINE_COLUMNS
from shared.releases import Thresholds
from trainer import figures
from trainer.evidence import Evidence, SymbolEvidence
from trainer.page import Picture, Section, Table
from trainer.sections.draft import Draft
from trainer.sections.trading import trades_picture
from trainer.sections.words import (
    counted,
    horizon_of,
    interval,
    mapping,
    number,
    or_nan,
    percent,
    run_it,
    values_at,
    when,
    whole,
)

_LAST_CANDLES = 960


def scores(evidence: Evidence, draft: Draft) -> Section:
    """Distribution of the out-of-sample score, and what followed each tenth of it."""
    parts: list[Table | Picture | str] = []
    missing = []
    manifest = evidence.manifest
    horizon = horizon_of(manifest)
    buy, sell = manifest.thresholds.buy, manifest.thresholds.sell
    for one in evidence.symbols:
        if one.rolling is None:
            missing.append(run_it(one, "No out-of-sample score", "rolling"))
            continue
        score = one.rolling.score
        known = score[~np.isnan(score)]
        if not len(known):
            missing.append(run_it(one, "No row has a score", "rolling"))
            continue
        over, under = float((known > buy).mean()), float((known < sell).mean())
        parts.append(
            draft.picture(
                f"{one.symbol}-score",
                f"{one.symbol}: distribution of the score",
                lambda score=score: figures.histogram(  # type: ignore[misc]
                    score, "score (-1 .. +1)", {"buy above": buy, "sell below": sell}
                ),
                f"{percent(over)} of {len(known):,} rows lie above the buy threshold, "
                f"{percent(under)} below the sell threshold, half between "
                f"{np.quantile(known, 0.25):+.3f} and {np.quantile(known, 0.75):+.3f}.",
                "that a high score pays; see what followed.",
            )
        )
        if over + under == 0:
            draft.warn(
                f"{one.symbol}: no out-of-sample score crosses a threshold of this release: it "
                "would never signal."
            )
        parts += _direction(one, mapping(one.rolling.metrics, "score"), horizon, draft)
        parts += _formulas(one, one.rolling.metrics)
    return Section(
        id="score",
        title="Score",
        intro=(
            "The outputs of all models folded into one number between -1 (fall) and +1 (rise), on "
            "the rows of the walk-forward folds."
        ),
        parts=parts,
        missing=missing,
    )


def _direction(
    one: SymbolEvidence, found: Mapping[str, Any], horizon: int, draft: Draft
) -> Iterator[Table | Picture | str]:
    """What followed the score, as rolling measured it."""
    deciles = [d for d in found.get("deciles", ()) if d.get("mean_bp") is not None]
    if deciles:
        yield draft.picture(
            f"{one.symbol}-deciles",
            f"{one.symbol}: what followed, by tenth of the score",
            functools.partial(
                figures.steps,
                [str(at + 1) for at in range(len(deciles))],
                np.array([d["mean_bp"] for d in deciles]),
                np.array([or_nan(d.get("mean_bp_low")) for d in deciles]),
                np.array([or_nan(d.get("mean_bp_high")) for d in deciles]),
                np.array([or_nan(d.get("median_bp")) for d in deciles]),
                "tenth of the rows by score (1 = lowest)",
                f"return {horizon} candles later (bp)",
            ),
            f"Mean return after {horizon} candles, before fees: {deciles[0]['mean_bp']:+.1f} bp in "
            f"the lowest tenth, {deciles[-1]['mean_bp']:+.1f} bp in the highest (1 bp = 0.01 %). "
            "Buying and selling at a fee of 0.1 % costs 20 bp.",
            "what a trade earns. Where the lines of two tenths overlap, they cannot be told apart.",
        )
        yield Table(
            caption=f"{one.symbol}: tenths of the score",
            columns=(
                "tenth",
                "score from",
                "to",
                "mean return (bp)",
                "95 % interval",
                "median return (bp)",
                "up before down",
                "rows",
            ),
            rows=[
                (
                    str(at + 1),
                    f"{d['score_from']:+.3f}",
                    f"{d['score_to']:+.3f}",
                    f"{d['mean_bp']:+.1f}",
                    "–"
                    if d.get("mean_bp_low") is None or d.get("mean_bp_high") is None
                    else f"{d['mean_bp_low']:+.1f} .. {d['mean_bp_high']:+.1f}",
                    "–" if d.get("median_bp") is None else f"{d['median_bp']:+.1f}",
                    percent(d.get("up_first")),
                    whole(d.get("rows")),
                )
                for at, d in enumerate(deciles)
            ],
        )
    yield Table(
        caption=f"{one.symbol}: does the score know the direction?",
        columns=("measure", "value", "95 % interval", "band without knowledge", "rows"),
        rows=[
            (
                "AUC: up one sigma before down one sigma",
                number(found.get("auc")),
                interval(found.get("auc_low"), found.get("auc_high")),
                interval(found.get("null_low"), found.get("null_high")),
                whole(found.get("resolved")),
            ),
            (
                f"rank correlation with the return of {horizon} candles",
                number(found.get("rank")),
                interval(found.get("rank_low"), found.get("rank_high")),
                "–",
                whole(found.get("rows")),
            ),
        ],
    )
    value, high = found.get("auc"), found.get("null_high")
    if value is not None and high is not None and value <= high:
        draft.warn(
            f"{one.symbol}: the score does not tell up from down: its AUC of {value:.3f} is not "
            f"above what a score without knowledge reaches by luck ({high:.3f})."
        )


def _formulas(one: SymbolEvidence, metrics: Mapping[str, Any]) -> Iterator[Table | str]:
    """The ways to fold the outputs into a score, side by side."""
    found = mapping(metrics, "aggregates")
    if not found:
        return
    yield Table(
        caption=f"{one.symbol}: formulas of the score",
        columns=(
            "formula",
            "AUC of direction",
            "95 % interval",
            "band without knowledge",
            "rank correlation",
            "95 % interval",
        ),
        rows=[
            (
                name,
                number(each.get("auc")),
                interval(each.get("auc_low"), each.get("auc_high")),
                interval(each.get("null_low"), each.get("null_high")),
                number(each.get("rank")),
                interval(each.get("rank_low"), each.get("rank_high")),
            )
            for name, each in found.items()
        ],
    )
    best, used = metrics.get("best_aggregate"), metrics.get("aggregate")
    if best is not None:
        yield (
            f"Best out of sample: {best}; these rows were scored by {used}."
            + (" Their intervals overlap: no formula is shown to be better." * _overlap(found))
        )


def _overlap(found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all intervals of the AUC share a value."""
    lows = [or_nan(each.get("auc_low")) for each in found.values()]
    highs = [or_nan(each.get("auc_high")) for each in found.values()]
    return max(lows) <= min(highs)


def candles(evidence: Evidence, draft: Draft) -> Section:
    """Signals on the last candles that have a score."""
    parts: list[Table | Picture | str] = []
    missing = []
    thresholds = evidence.manifest.thresholds
    for one in evidence.symbols:
        raster, rolling = one.raster, one.rolling
        if raster is None:
            missing.append(run_it(one, "No candles", "merge"))
            continue
        if rolling is None:
            missing.append(run_it(one, "No out-of-sample score", "rolling"))
            continue
        scored = rolling.times[~np.isnan(rolling.score)]
        if not len(scored):
            missing.append(run_it(one, "No row has a score", "rolling"))
            continue
        # side by side on the raster, from the last scored candle backwards
        stop = int(np.searchsorted(raster.open_time_ms, scored[-1])) + 1
        start = max(0, stop - _LAST_CANDLES)
        times = raster.open_time_ms[start:stop]
        if stop > len(raster) or not stop:
            missing.append(
                f"The candles of {one.symbol} end before its score: run `trainer merge` again."
            )
            continue
        score = values_at(times, rolling.times, rolling.score)
        sides = np.where(score > thresholds.buy, 1, np.where(score < thresholds.sell, -1, 0))
        before = np.concatenate([[0], sides[:-1]])
        prices = {
            name: raster.kline[start:stop, KLINE_COLUMNS.index(name)]
            for name in ("open", "high", "low", "close")
        }
        bought, sold = (np.flatnonzero((sides == side) & (before != side)) for side in (1, -1))
        marks = [
            figures.Marks(
                name="BUY begins", times=times[bought], prices=prices["low"][bought], marker="^"
            ),
            figures.Marks(
                name="SELL begins", times=times[sold], prices=prices["high"][sold], marker="v"
            ),
        ]
        line = figures.Line(name="score", times=times, values=score)
        parts.append(
            draft.broad(
                f"{one.symbol}-signals",
                f"{one.symbol}: signals over the last {len(times):,} scored candles",
                functools.partial(
                    _candles_figure, figures.Candles(times=times, **prices), marks, line, thresholds
                ),
                f"{counted(len(bought), 'stretch', 'stretches')} above the buy threshold and "
                f"{len(sold)} below the sell threshold begin between {when(int(times[0]))} and "
                f"{when(int(times[-1]))} UTC. Candles are joined so that they can be told apart; "
                "marks stand at the exact time.",
                "how signals fare in general: this is one stretch of time, the latest.",
            )
        )
        if one.backtest is not None and one.backtest.trades:
            parts.append(trades_picture(one.symbol, raster, one.backtest.trades, draft))
    return Section(
        id="signals",
        title="Signals over the candles",
        intro=(
            "The out-of-sample score of the folds beside the price, and where it crosses this "
            "release's thresholds."
        ),
        parts=parts,
        missing=missing,
    )


def _candles_figure(
    rows: figures.Candles,
    marks: Sequence[figures.Marks],
    score: figures.Line,
    thresholds: Thresholds,
    wide: bool,
) -> Figure:
    lines = {"buy above": thresholds.buy, "sell below": thresholds.sell}
    return figures.candles(rows, marks, score, lines, wide=wide)
