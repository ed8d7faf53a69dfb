"""Small real releases for tests, trained by the trainer itself on a seeded market."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
M = 60_000
START_MS = 28_000_000 * M
FEATURES = ("close_trend_5", "close_trend_15", "close_area_60")


def market(rows: int, seed: int = 5) -> dict[str, np.ndarray[Any, Any]]:
    """Columns of a random walk that moves by more than 1 % in a few hours, both ways."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, rows)))
    volume = rng.lognormal(2, 0.5, rows)
    taker = volume * rng.uniform(0.3, 0.7, rows)
    return {
        "open_time_ms": START_MS + M * np.arange(rows, dtype=np.int64),
        "open": close * (1 + rng.normal(0, 0.0005, rows)),
        "high": close * 1.002,
        "low": close * 0.998,
        "close": close,
        "volume": volume,
        "quote_volume": volume * close,
        "trades": np.floor(volume * 10) + 1,
        "taker_base": taker,
        "taker_quote": taker * close,
    }


def write_market(path: Path, rows: int, seed: int = 5) -> Path:
    pq.write_table(pa.table(market(rows, seed)), path)
    return path


def train(folder: Path, *, seed: int = 7, promote: bool = True, **keys: Any) -> str:
    """Trains into `folder / "models"`; returns the release's id."""
    data = folder / "TESTUSDT-1m.parquet"
    if not data.exists():
        write_market(data, 4000)
    config = folder / "train.json"
    settings = {
        "symbol": "TESTUSDT",
        "model_folder": str(folder / "models"),
        "data_folder": str(folder / "data"),
        "features_kline": FEATURES,
        "labels": ["high_10", "low_10"],
        "algorithms": ["gb", "lc"],
        "trainer": {"seed": seed},
    } | keys
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "trainer", "train", "-c", str(config), "--json"]
    command += ["--klines", str(data), *(["--promote"] if promote else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    release: str = json.loads(done.stdout.splitlines()[-1])["release"]
    return release
