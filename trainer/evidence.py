"""What a report is made from: a release, and what the other commands measured of its symbols.

Everything but the release may be missing; then its place is None. What is there must be whole: a
damaged file is an error that names it, never a figure left out in silence.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.errors import BadInput, Failure
from shared.releases import Manifest
from trainer import rasters

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolling:
    """Out-of-sample rows of `rolling`.

    times: (n,) epoch ms; close, score: (n,); fold: (n,). outputs: model -> (n,) probabilities,
    labels: label -> (n,) what happened; NaN = none. metrics: its metrics.json.
    """

    folder: Path
    times: Times
    close: Floats
    fold: npt.NDArray[np.int64]
    outputs: Mapping[str, Floats]
    score: Floats
    labels: Mapping[str, Floats]
    metrics: Mapping[str, Any]

    def label_of(self, model: str) -> str:
        """`high_10` of `high_10_k_gb`.

        Raises:
            BadInput: there is no such label among the columns.
        """
        fitting = [label for label in self.labels if model.startswith(f"{label}_")]
        if not fitting:
            raise BadInput(f"{self.folder}: no label column for {model}; run rolling again")
        return max(fitting, key=len)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What `signals` wrote: rows, the grid of thresholds and its summary (signals.json)."""

    folder: Path
    rows: Mapping[str, npt.NDArray[Any]]
    grid: Mapping[str, npt.NDArray[Any]]
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """What `backtest` wrote: equity rows, trades (a mapping of text each) and backtest.json."""

    folder: Path
    rows: Mapping[str, npt.NDArray[Any]]
    trades: Sequence[Mapping[str, str]]
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolEvidence:
    """What there is of one symbol."""

    symbol: str
    interval: str
    rolling: Rolling | None = None
    signals: Signals | None = None
    backtest: Backtest | None = None
    raster: rasters.Raster | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """metrics: the release's metrics.json, empty where it has none."""

    manifest: Manifest
    metrics: Mapping[str, Any]
    symbols: Sequence[SymbolEvidence]


def gather(
    release: Path,
    manifest: Manifest,
    data_folder: Path,
    symbols: Sequence[str],
    bare: Mapping[str, rasters.Raster],
) -> Evidence:
    """Reads it all. bare: symbol -> candles to take instead of the merged ones.

    Raises:
        Failure: a file is damaged or does not hold what it must.
    """
    found = []
    for symbol in symbols:
        if Path(symbol).name != symbol or symbol.startswith("."):
            raise Failure(f"{symbol!r} is no symbol; give the right one by --symbol")
        stem = f"{symbol}-{manifest.interval}"
        raster = bare.get(symbol)
        folder = rasters.merged_folder(data_folder, symbol, manifest.interval)
        if raster is None and folder.is_dir():
            raster = rasters.read_merged(data_folder, symbol, manifest.interval)
        found.append(
            SymbolEvidence(
                symbol=symbol,
                interval=manifest.interval,
                rolling=_rolling(data_folder / f"{stem}-features-rolling"),
                signals=_signals(data_folder / f"{stem}-signals"),
                backtest=_backtest(data_folder / f"{stem}-backtest"),
                raster=raster,
            )
        )
    metrics = release / "metrics.json"
    return Evidence(
        manifest=manifest,
        metrics=_json(metrics, "train") if metrics.exists() else {},
        symbols=tuple(found),
    )


def _rolling(folder: Path) -> Rolling | None:
    columns = rasters.read_months(folder)
    if not columns:
        return None
    names = list(columns)
    try:
        after = names.index("score")
        fold = columns["fold"]
        times, close = columns["open_time_ms"], columns["close"]
    except (ValueError, KeyError):
        raise BadInput(
            f"{folder}: its files lack open_time_ms, close, fold or score; run rolling again"
        ) from None
    leading = ("open_time_ms", "close", "fold")
    return Rolling(
        folder=folder,
        times=times,
        close=close,
        fold=fold.astype(np.int64),
        outputs={name: columns[name] for name in names[:after] if name not in leading},
        score=columns["score"],
        labels={name: columns[name] for name in names[after + 1 :]},
        metrics=_json(folder / rasters.ABOUT / "metrics.json", "rolling"),
    )


def _signals(folder: Path) -> Signals | None:
    rows = rasters.read_months(folder)
    if not rows:
        return None
    return Signals(
        folder=folder,
        rows=rows,
        grid=klinefiles.read_columns(folder / rasters.ABOUT / "grid.parquet"),
        summary=_json(folder / rasters.ABOUT / "signals.json", "signals"),
    )


def _backtest(folder: Path) -> Backtest | None:
    rows = rasters.read_months(folder)
    if not rows:
        return None
    return Backtest(
        folder=folder,
        rows=rows,
        trades=_csv(folder / rasters.ABOUT / "trades.csv"),
        summary=_json(folder / rasters.ABOUT / "backtest.json", "backtest"),
    )


def _json(path: Path, command: str) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not JSON"
        raise BadInput(f"{path}: {why}; run `python -m trainer {command}` again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: not one JSON object; run `python -m trainer {command}` again")
    return found


def _csv(path: Path) -> Sequence[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "not CSV"
        raise BadInput(f"{path}: {why}; run `python -m trainer backtest` again") from None
