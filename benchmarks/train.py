"""`trainer train` of the default 18 models on 1,000,000 candles: peak memory, and time of its fits
against bare LightGBM and scikit-learn calls on the same arrays.

The command runs as a user runs it, in a process of its own; its peak resident memory is the
system's figure. Then, in one process of their own, on the same rows: `train`'s fits (each model
twice: without the test rows to be measured, then on all; metrics and scores included), and the
bare calls for the same 36 models with the same parameters, one after the other, LightGBM on all
cores, on arrays that are filled and scaled beforehand. CPU seconds count on a busy machine.

    python -m benchmarks.train [--data FILE ...] [--rows 1000000] [--stride N] [--json]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from shared import klinefiles
from shared.config import Settings
from shared.features import KLINE_51, FeatureSet
from shared.klines import KLINE_COLUMNS
from tests.releases import market

DAY_ROWS = 1440


def write_candles(path: Path, data: list[Path], rows: int) -> None:
    """The last `rows` candles of the data, or of a made-up market."""
    if data:
        (table,) = klinefiles.read_klines(data)
        table = table.tail(rows)
        columns = {name: table.column(name) for name in KLINE_COLUMNS}
        times = table.open_time_ms
    else:
        made = market(rows)
        columns, times = {name: made[name] for name in KLINE_COLUMNS}, made["open_time_ms"]
    klinefiles.write_columns(path, {"open_time_ms": times} | columns, {})


def config_of(folder: Path, rows: int, stride: int | None) -> dict[str, Any]:
    trainer: dict[str, Any] = {"train_days": rows / DAY_ROWS + 1}
    if stride is not None:
        trainer["stride"] = stride
    return {
        "symbols": ["BTCUSDT"],
        "data_folder": str(folder / "data"),
        "model_folder": str(folder / "models"),
        "trainer": trainer,
    }


def command(folder: Path, klines: Path) -> dict[str, Any]:
    """The command in a process of its own: its JSON line, and what it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trainer", "train", "-c", str(folder / "config.json")),
            *("--klines", str(klines), "--json"),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "models": len(result["models"]),
        "candles": result["candles"],
        "rows": result["rows"],
        "seconds": seconds,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": after.ru_maxrss / 1024**2,
    }


def fits(folder: Path, klines: Path) -> dict[str, Any]:
    """Our fits and the bare calls on the same rows: wall and CPU seconds of each."""
    import lightgbm
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    from trainer import rasters, train
    from trainer.fanout import Fanout
    from trainer.fits import matrix
    from trainer.models import gb, lc, nn
    from trainer.models.cases import labels_to_compute
    from trainer.models.fit import recipes
    from trainer.models.rows import chosen, gather
    from trainer.models.scaling import Scaling
    from trainer.progress import Bar

    warnings.simplefilter("ignore")
    settings = Settings(**json.loads((folder / "config.json").read_text()))
    features, threads = FeatureSet.of(KLINE_51), os.cpu_count() or 1
    data = [rasters.join(table) for table in klinefiles.read_klines([klines])]
    rows = gather(
        data,
        features,
        labels_to_compute(settings),
        horizon=settings.trainer.label_horizon,
        train_days=settings.trainer.train_days,
        nan_share=settings.limits.nan_share,
        workers=threads,
        advance=lambda count: None,
        file=matrix(folder, "x"),
    )

    def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        return found, time.perf_counter() - wall, time.process_time() - cpu

    plan = recipes(settings.algorithms)
    bar, fan = Bar("", None, ""), Fanout(workers=threads, backend="threads")
    found, ours_s, ours_cpu = timed(
        lambda: train.train(rows, plan, settings, features, data, folder, fan, bar)
    )
    base = chosen(rows, 60_000, found.stride)
    labels = list(dict.fromkeys(model.label for model in found.models))
    bare_s = bare_cpu = 0.0
    for before in (found.test_start_ms, None):
        ready: dict[bytes, tuple[Any, Any]] = {}
        for label in labels:
            keep = base[~np.isnan(rows.y[label][base])]
            if before is not None:
                keep = keep[rows.t1_ms[label][keep] < before]
            if keep.tobytes() not in ready:
                x = rows.x[keep][:, ~rows.left_out]
                ready = {keep.tobytes(): (x, Scaling.fit(x).apply(x))}
            x, scaled = ready[keep.tobytes()]
            scaled32, y = scaled.astype(np.float32), rows.y[label][keep]
            parameters, rounds = gb.parameters(
                gb.Options(preset="default", train={}), len(y), threads, 7
            )
            layers = MLPClassifier(
                nn.LAYERS,
                alpha=nn.ALPHA,
                batch_size=nn.batch_size(len(y)),
                max_iter=nn.EPOCHS,
                random_state=7,
            )
            calls: list[Callable[[], Any]] = [
                lambda x=x, y=y, p=parameters, n=rounds: lightgbm.train(
                    p, lightgbm.Dataset(x, y), n
                ),
                lambda x=scaled, y=y: LogisticRegression(**lc.DEFAULTS).fit(x, y),
                lambda x=scaled32, y=y, layers=layers: layers.fit(x, y),
            ]
            for call in calls:
                _, wall, cpu = timed(call)
                bare_s, bare_cpu = bare_s + wall, bare_cpu + cpu
    return {
        "fitted_rows": len(base),
        "train": {"seconds": ours_s, "cpu_s": ours_cpu},
        "bare": {"seconds": bare_s, "cpu_s": bare_cpu},
        "ratio": ours_s / bare_s,
        "cpu_ratio": ours_cpu / bare_cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--rows", type=int, default=1_000_000, help="trailing candles")
    parser.add_argument("--stride", type=int, help="train on every n-th; default: the trainer's")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fits-in", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fits_in is not None:
        print(json.dumps(fits(args.fits_in, args.fits_in / "BTCUSDT-1m.parquet")))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        klines = folder / "BTCUSDT-1m.parquet"
        write_candles(klines, args.data, args.rows)
        config = config_of(folder, args.rows, args.stride)
        (folder / "config.json").write_text(json.dumps(config))
        whole = command(folder, klines)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train", "--fits-in", temporary],
            stdout=subprocess.PIPE,
            check=True,
        )
        result = {"command": whole, "fits": json.loads(done.stdout)}
    if args.json:
        print(json.dumps(result))
        return 0
    fitted = result["fits"]
    print(
        f"train, the command: {whole['models']} models, {whole['rows']:,} of {whole['candles']:,} "
        f"candles fitted: peak {whole['peak_gb']:.2f} GB (limit 4), {whole['seconds']:.1f} s, "
        f"{whole['cpu_s']:.1f} CPU s"
    )
    for name in ("train", "bare"):
        figures = fitted[name]
        print(f"  {name:6} {figures['seconds']:8.1f} s  {figures['cpu_s']:8.1f} CPU s")
    print(f"  train / bare calls: {fitted['ratio']:.2f}x wall, {fitted['cpu_ratio']:.2f}x CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
