"""More rows than memory: the matrix of features lies in a file; memory does not grow with it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shared import klinefiles
from tests.releases import market

COLUMNS = 300
FEW, MANY = 60_000, 260_000  # of both, the parity gate looks at 50,000
MIB = 1024 * 1024


def peak_of_own_memory(folder: Path, rows: int, command: list[str]) -> float:
    """Most bytes that a command held in memory of its own, pages of files not counted."""
    folder.mkdir()
    source = folder / "TESTUSDT-1m.parquet"
    klinefiles.write_columns(source, market(rows, 3))
    days = rows / 1440
    config: dict[str, Any] = {
        "symbols": ["TESTUSDT"],
        "data_folder": str(folder / "data"),
        "model_folder": str(folder / "models"),
        "features_kline": [f"close_SMA_{window}" for window in range(2, COLUMNS + 2)],
        "labels": ["high_10", "low_10"],
        "algorithms": ["lc"],
        "trainer": {
            "threads": 1,
            "train_days": days,
            "stride": 50,
            "rolling": {"folds": 1, "train_days": days / 2},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    options = ["-c", str(folder / "config.json"), "--klines", str(source), "--backend", "threads"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(0.02)  # between two looks at a process that tells nobody
    assert process.returncode == 0
    return peak


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("command", ["rolling", "train"])
def test_memory_does_not_grow_with_the_matrix(command: str, tmp_path: Path) -> None:
    few, many = (peak_of_own_memory(tmp_path / str(rows), rows, [command]) for rows in (FEW, MANY))
    matrix = 4 * COLUMNS * (MANY - FEW)
    print(f"{command}: {few / MIB:.0f} and {many / MIB:.0f} MiB, matrix {matrix / MIB:.0f} more")
    assert many - few < 0.6 * matrix  # candles, labels and outcomes do lie in memory
