"""The models: one candle through all 18, and training, each against the bare libraries.

Live: the bundle of a real release (18 default models and the score in one graph) for one row,
against 18 sessions of single files, against LightGBM's own predict of its six boosters. Training:
`trainer train`'s fits, measured models and all, against the same fits by bare LightGBM and
scikit-learn calls on the same arrays, one after the other. All in one run; ratios count.

    python -m benchmarks.models [--data FILE ...] [--rows 200000] [--steps 5000] [--json]
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import lightgbm
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from shared.bundle import Bundle, open_session
from shared.config import Settings
from shared.features import KLINE_51, FeatureSet
from shared.klinefiles import read_klines
from shared.klines import KLINE_COLUMNS
from shared.releases import write_release
from tests.releases import market
from trainer import rasters, release, train
from trainer.models import gb
from trainer.models.fit import recipes
from trainer.models.rows import Rows, chosen, gather
from trainer.progress import Bar

LABELS = ("high_10", "high_15", "high_20", "low_10", "low_15", "low_20")


def timed(call: Callable[[int], object], steps: int) -> tuple[float, float]:
    """p50 and p99 in microseconds."""
    for step in range(min(500, steps)):
        call(step)
    taken = np.empty(steps)
    for step in range(steps):
        start = time.perf_counter_ns()
        call(step)
        taken[step] = time.perf_counter_ns() - start
    return float(np.median(taken)) / 1e3, float(np.quantile(taken, 0.99)) / 1e3


def rasters_of(files: list[Path], rows: int) -> list[rasters.Raster]:
    if files:
        return [rasters.join(table.tail(rows)) for table in read_klines(files)]
    columns = market(rows)
    values = np.column_stack([columns[name] for name in KLINE_COLUMNS])
    times = columns["open_time_ms"]
    return [rasters.Raster(symbol="TESTUSDT", interval="1m", open_time_ms=times, kline=values)]


def live(bundle: Bundle, folder: Path, trained: release.Trained, x: np.ndarray, steps: int) -> Any:
    sessions = [open_session((folder / f"{name}.onnx").read_bytes()) for name in bundle.models]
    boosters = [m.fitted.booster for m in trained.models if isinstance(m.fitted, gb.Boosting)]
    columns = list(trained.models[0].columns)
    rows = [np.ascontiguousarray(x[i % len(x)][None], np.float64) for i in range(steps)]
    narrow = [row[:, columns] for row in rows]

    def separate(step: int) -> None:
        for session in sessions:
            session.run(None, {"features": rows[step]})

    def native(step: int) -> None:
        for booster in boosters:
            booster.predict(narrow[step], num_threads=1)

    found = {
        "bundle": timed(lambda step: bundle.run(rows[step]), steps),
        f"{len(sessions)} sessions": timed(separate, steps),
        f"LightGBM, {len(boosters)} boosters only": timed(native, steps),
    }
    return {name: {"p50_us": p50, "p99_us": p99} for name, (p50, p99) in found.items()}


def bare_fits(rows: Rows, found: release.Trained) -> float:
    """Seconds of the libraries alone: each label's three models twice, as `train` does."""
    start = time.perf_counter()
    base = chosen(rows, 60_000, found.stride)
    used = ~rows.left_out
    options = gb.Options(preset="default", train={})
    for before in (found.test_start_ms, None):
        for label in {model.label for model in found.models}:
            keep = base[~np.isnan(rows.y[label][base])]
            if before is not None:
                keep = keep[rows.t1_ms[label][keep] < before]
            x, y = rows.x[keep][:, used], rows.y[label][keep]
            parameters, rounds = gb.parameters(options, len(y), os.cpu_count() or 1, 7)
            lightgbm.train(parameters, lightgbm.Dataset(x, y, params=parameters), rounds)
            scaled = np.clip(StandardScaler().fit_transform(np.nan_to_num(x)), -5, 5)
            LogisticRegression(C=0.1).fit(scaled, y)
            MLPClassifier(
                (64, 32), alpha=1e-2, batch_size=min(1024, len(y)), max_iter=6, random_state=7
            ).fit(scaled, y)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--rows", type=int, default=200_000, help="trailing candles")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    data = rasters_of(args.data, args.rows)
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(model_folder=Path(temporary), labels=LABELS)
        features = FeatureSet.of(KLINE_51)
        start = time.perf_counter()
        rows = gather(
            data,
            features,
            LABELS,
            horizon=180,
            train_days=548,
            nan_share=0.2,
            workers=threads,
            advance=lambda count: None,
        )
        gathered = time.perf_counter()
        plan = recipes(settings.algorithms)
        found = train.train(rows, plan, settings, features, data, threads, Bar("", None, ""))
        fitted = time.perf_counter()
        manifest, files = release.build(settings, features, rows, found, data, threads)
        built = time.perf_counter()
        folder = write_release(settings.model_folder, manifest, files)
        bundle = Bundle.load(folder)
        x = rows.x[np.linspace(0, len(rows) - 1, 2_000).astype(int)]
        result = {
            "models": len(bundle.models),
            "one_row": live(bundle, folder, found, x, args.steps),
            "training": {
                "candles": len(rows),
                "rows": found.rows,
                "features_s": gathered - start,
                "fits_and_metrics_s": fitted - gathered,
                "export_and_gate_s": built - fitted,
                "bare_fits_s": bare_fits(rows, found),
            },
        }
    if args.json:
        print(json.dumps(result))
        return 0
    one = result["one_row"]
    print(f"one row through {result['models']} models and the score, us:")
    for name, figures in one.items():
        ratio = figures["p50_us"] / one["bundle"]["p50_us"]
        print(
            f"  {name:32} p50 {figures['p50_us']:8.1f}  p99 {figures['p99_us']:8.1f}  {ratio:5.2f}x"
        )
    print(f"training, {result['training']['rows']:,} of {result['training']['candles']:,} candles:")
    for name, value in result["training"].items():
        if name.endswith("_s"):
            print(f"  {name:32} {value:8.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
