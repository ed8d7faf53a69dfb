"""Planted leaks are found and named; what is honest passes."""

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS, KlineTable
from tests.releases import START_MS, market
from tests.trainer.test_rolling import write
from trainer import labels, leaks, probes, rasters
from trainer.labels import Label
from trainer.progress import Progress

M = 60_000
ROWS = 3000
GAP = slice(2000, 2007)


def table(rows: int = ROWS) -> KlineTable:
    """A market with an outage."""
    columns = market(rows)
    keep = np.ones(rows, bool)
    keep[GAP] = False
    return KlineTable(
        symbol="TESTUSDT",
        interval="1m",
        open_time_ms=columns["open_time_ms"][keep],
        values=np.column_stack([columns[name] for name in KLINE_COLUMNS])[keep],
    )


def run(
    folder: Path, source: str | None, names: list[str], *options: str, rows: int = ROWS
) -> dict[str, Any]:
    path = write(folder / "TESTUSDT-1m.parquet", table(rows))
    file = None
    if source is not None:
        file = folder / "own.py"
        head = "import functools\nimport numpy as np\nfrom shared.features.user import feature\n"
        file.write_text(f"{head}PATH = {str(path)!r}\n{source}")
    settings = Settings(
        symbols=["TESTUSDT"],
        data_folder=folder / "data",
        model_folder=folder / "models",
        features_kline=names,
        features_file=file,
        labels=["high_10", "low_10"],
        algorithms=["lc"],
        trainer={"threads": 1, "label_horizon": 60},
    )
    parser = argparse.ArgumentParser()
    leaks.add_arguments(parser)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(["--klines", str(path), *options])
    return leaks.run(settings, args, Progress(io.StringIO(), quiet=True))


def evidence(folder: Path) -> dict[str, Any]:
    text = (folder / "data" / "TESTUSDT-1m-leaks" / "leaks.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


# --- a user's features ---------------------------------------------------------------------------

HONEST = """
WEIGHTS = np.exp(-np.arange(300.0) / 60)

@feature(lookback=5)
def move(window):
    return window[-1, 3] / window[0, 3] - 1

@feature(lookback=300)
def weighted(window):
    return float(np.nansum(window[:, 3] * WEIGHTS))

def counted(function):
    return functools.lru_cache(maxsize=None)(function)

@counted
def _power(exponent):
    return 2.0 ** exponent

@feature(lookback=3, jit=True)
def compiled(window):
    return window[-1, 3] - window[0, 3]

@feature(lookback=10)
def spread(window):
    return _power(3) * (np.nanmax(window[:, 1]) - np.nanmin(window[:, 2]))
"""


def test_what_is_honest_passes(tmp_path: Path) -> None:
    names = ["close_5", "close_std_15", "move", "weighted", "compiled", "spread"]
    found = run(tmp_path, HONEST, names, "--quick")
    assert found["leak"] is False
    assert found["verdict"].startswith("no leak found: 6 features and 2 labels")
    assert evidence(tmp_path)["findings"] == []


READ = """
import pyarrow.parquet as pq
TABLE = pq.read_table(PATH)
CLOSE = TABLE["close"].to_numpy()
"""
INDEX = "INDEX = {value: at for at, value in enumerate(CLOSE.tolist())}\n"
PEEK = """
@feature(lookback=2)
def peek(window):
    at = INDEX.get(float(window[-1, 3]))
    if at is None or at + 1 >= len(CLOSE):
        return float("nan")
    return CLOSE[at + 1] / window[-1, 3] - 1
"""
PLANTED = {
    "an array of closes": READ + INDEX + PEEK,
    "a table, read ahead of the last candle": f"""
import pandas as pd
DATA = pd.read_parquet(PATH)
{READ}{INDEX}
@feature(lookback=2)
def peek(window):
    at = INDEX.get(float(window[-1, 3]))
    if at is None or at + 1 >= len(DATA):
        return float("nan")
    return DATA["close"].iloc[at + 1]
""",
    "a dict from each close to the next": f"""{READ}
NEXT = dict(zip(CLOSE[:-1].tolist(), CLOSE[1:].tolist()))
@feature(lookback=2)
def peek(window):
    return NEXT.get(float(window[-1, 3]), float("nan"))
""",
    "a closure": f"""{READ}
def made(closes):
    index = {{value: at for at, value in enumerate(closes.tolist())}}
    def peek(window):
        at = index.get(float(window[-1, 3]))
        return float(closes[at + 1]) if at is not None and at + 1 < len(closes) else np.nan
    return peek
peek = feature(lookback=2, name="peek")(made(CLOSE))
del CLOSE, TABLE
""",
    "a cache filled at the first call": """
@functools.cache
def closes():
    import pyarrow.parquet as pq
    return pq.read_table(PATH)["close"].to_numpy()

@feature(lookback=2)
def peek(window):
    known = closes()
    at = np.flatnonzero(known == window[-1, 3])
    return known[at[0] + 1] if len(at) and at[0] + 1 < len(known) else np.nan
""",
    "a file read at every call": """
@feature(lookback=2)
def peek(window):
    import pyarrow.parquet as pq
    known = pq.read_table(PATH, columns=["close"])["close"].to_numpy()
    at = np.flatnonzero(known == window[-1, 3])
    return known[at[0] + 1] if len(at) and at[0] + 1 < len(known) else np.nan
""",
    "returns worked out before, by close": f"""{READ}
ahead = np.append(CLOSE[1:] / CLOSE[:-1] - 1, np.nan)
AHEAD = {{(f"{{value:.6f}}",): ahead[at] for at, value in enumerate(CLOSE.tolist())}}
del CLOSE, TABLE, ahead
@feature(lookback=2)
def peek(window):
    return float(AHEAD.get((f"{{window[-1, 3]:.6f}}",), np.nan))
""",
    "the frame of the caller": """
import sys
@feature(lookback=2)
def peek(window):
    frame = sys._getframe(1)
    while frame is not None and "kline" not in frame.f_locals:
        frame = frame.f_back
    if frame is None or "at" not in frame.f_locals:
        return np.nan
    kline, at = frame.f_locals["kline"], frame.f_locals["at"]
    return kline[at, 3] if at < len(kline) else 0.0
""",
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_feature_that_reads_one_row_ahead_is_named_with_the_row(tmp_path: Path, how: str) -> None:
    with pytest.raises(Failure, match=r"^LEAK: feature 'peek' at 20\d\d-"):
        run(tmp_path, PLANTED[how], ["close_5", "peek"], "--quick")
    [finding] = evidence(tmp_path)["findings"]
    assert finding["name"] == "peek"
    assert START_MS <= finding["row_ms"] < START_MS + ROWS * M


KEPT = {
    "a mean and a deviation": """
import pandas as pd
DATA = pd.read_parquet(PATH)
MEAN, DEVIATION = DATA["close"].mean(), DATA["close"].std()
del DATA
@feature(lookback=2)
def peek(window):
    return (window[-1, 3] - MEAN) / DEVIATION
""",
    "the highest price": """
from pyarrow.parquet import read_table
HIGHEST = float(np.max(read_table(PATH)["high"].to_numpy()))
@feature(lookback=2)
def peek(window):
    return window[-1, 3] / HIGHEST
""",
    "a scaler that is fitted at the first call": """
@functools.cache
def scaler():
    import pandas as pd
    from sklearn.preprocessing import StandardScaler
    return StandardScaler().fit(pd.read_parquet(PATH)[["close"]].to_numpy())

@feature(lookback=2)
def peek(window):
    return float(scaler().transform(window[-1:, 3:4])[0, 0])
""",
    "a mean of a csv": """
CLOSE = np.loadtxt(PATH + ".csv")
MEAN = float(np.mean(CLOSE))
del CLOSE
@feature(lookback=2)
def peek(window):
    return window[-1, 3] / MEAN
""",
}


@pytest.mark.parametrize("how", KEPT)
def test_a_figure_of_later_candles_is_named(tmp_path: Path, how: str) -> None:
    close = table().values[:, KLINE_COLUMNS.index("close")]
    np.savetxt(tmp_path / "TESTUSDT-1m.parquet.csv", close)
    with pytest.raises(Failure, match=r"^LEAK: feature 'peek' at 20\d\d-.*it looks ahead"):
        run(tmp_path, KEPT[how], ["close_5", "peek"], "--quick")
    [finding] = evidence(tmp_path)["findings"]
    assert START_MS <= finding["row_ms"] < START_MS + ROWS * M


def test_figures_of_earlier_candles_are_honest(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "earlier.csv", np.linspace(100.0, 120.0, 500))
    source = """
import os
MEAN = float(np.loadtxt(os.path.join(os.path.dirname(PATH), "earlier.csv")).mean())
@feature(lookback=2)
def own(window):
    return window[-1, 3] / MEAN
"""
    assert run(tmp_path, source, ["own"], "--quick")["leak"] is False


WHERE = {
    "in the last horizon": "at >= len(CLOSE) - 40",
    "around the gap": "1995 <= at <= 2001",
}


@pytest.mark.parametrize("where", WHERE)
def test_a_leak_in_few_rows_is_named_with_one_of_them(tmp_path: Path, where: str) -> None:
    source = f"""{READ}{INDEX}
@feature(lookback=2)
def peek(window):
    at = INDEX.get(float(window[-1, 3]), -1)
    if {WHERE[where]} and 0 <= at + 1 < len(CLOSE):
        return CLOSE[at + 1]
    return window[-1, 3]
"""
    with pytest.raises(Failure, match="feature 'peek'"):
        run(tmp_path, source, ["peek"], "--quick")
    [finding] = evidence(tmp_path)["findings"]
    row = (finding["row_ms"] - START_MS) // M
    if where == "around the gap":
        assert GAP.start - 5 <= row <= GAP.stop + 2
    else:
        assert row >= ROWS - 41


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "SEEN = []\n@feature(lookback=2)\ndef own(window):\n"
            "    SEEN.append(window[-1, 3])\n    return float(np.nanmean(SEEN[-50:]))\n",
            "differs",
        ),
        (
            "RANDOM = np.random.default_rng(0)\n@feature(lookback=2)\ndef own(window):\n"
            "    return RANDOM.normal()\n",
            "differs",
        ),
        (
            READ + INDEX + "@feature(lookback=2)\ndef own(window):\n"
            "    at = INDEX.get(float(window[-1, 3]), 0)\n"
            "    return float(np.mean(CLOSE[max(0, at - 99) : at + 1]))\n",
            "outside its window",
        ),
        (
            "@feature(lookback=2)\ndef own(window):\n"
            "    with open(PATH, 'rb') as file:\n"
            "        return float(len(file.read())) + window[-1, 3]\n",
            "it reads .*parquet while it is computed",
        ),
        (
            "import pyarrow as pa\n@feature(lookback=2)\ndef own(window):\n"
            "    with pa.memory_map(PATH) as file:\n"
            "        return float(file.size()) + window[-1, 3]\n",
            "it reads a file while it is computed",
        ),
        (
            "import pyarrow as pa\n@feature(lookback=2)\ndef own(window):\n"
            "    try:\n        pa.memory_map(PATH)\n"
            "    except OSError:\n        return 0.0\n    return window[-1, 3]\n",
            "it reads a file while it is computed",
        ),
    ],
    ids=[
        "state",
        "chance",
        "a longer past than it says",
        "a file",
        "a file mapped into memory",
        "a file whose absence is caught",
    ],
)
def test_what_is_more_than_its_window_is_named(tmp_path: Path, source: str, why: str) -> None:
    with pytest.raises(Failure, match=f"feature 'own' at .*{why}"):
        run(tmp_path, source, ["own"], "--quick")


def test_a_feature_that_knows_the_next_return_is_named_however_it_does_it() -> None:
    raster = rasters.join(table())
    close = raster.kline[:, 3]
    ahead = dict(zip(close[:-1].tolist(), np.diff(close).tolist(), strict=True))
    random = np.random.default_rng(0)
    feature = SimpleNamespace(
        lookback=2, value=lambda w: ahead.get(float(w[-1, 3]), np.nan) + random.normal(0, 0.1)
    )
    probe: Any = probes._Probe(raster=raster, feature=feature, cuts=())  # type: ignore[arg-type]
    found = probes._knows_too_much(probe, "oracle", 0)
    assert found is not None and "foretells" in found.why
    feature.value = lambda w: w[-1, 3] / w[0, 3] + random.normal(0, 0.1)
    assert probes._knows_too_much(probe, "honest", 0) is None


# --- the kernel's features and labels ------------------------------------------------------------


class Centred:
    """A feature set whose third column is a mean over rows on both sides."""

    def __init__(self) -> None:
        self._honest = FeatureSet.of(["close_5", "span_15"])
        self.names = (*self._honest.names, "centred")
        self.lookback = self._honest.lookback

    def batch(self, first_index: int, kline: np.ndarray, **others: Any) -> np.ndarray:
        values = self._honest.batch(first_index, kline)
        padded = np.concatenate([kline[:, 3], [0.0] * 3])
        centred = np.mean([padded[at : at + len(kline)] for at in range(4)], axis=0)
        return np.column_stack([values, centred])


def test_a_centred_window_is_found_at_the_row_before_the_cut() -> None:
    raster = rasters.join(table(3000))
    raster.kline[np.isnan(raster.kline)] = 1.0  # no warning of an empty mean
    cuts = [1600, 2500]
    [found] = probes.features(raster, Centred(), cuts, 1, lambda: None)  # type: ignore[arg-type]
    assert found.name == "centred"
    assert found.row_ms is not None
    assert 1600 - 3 < (found.row_ms - START_MS) // M <= 1600
    assert "candles end" in found.why


def test_the_cuts_are_in_the_last_horizon_and_around_gaps() -> None:
    raster = rasters.join(table())
    found = probes.cuts(raster, 1439, 60, 10, 3)
    assert found == sorted(set(found))
    assert {ROWS - 1, ROWS - 2, ROWS - 61, ROWS - 62} <= set(found)
    assert {GAP.start - 1, GAP.start, GAP.stop - 1, GAP.stop, GAP.stop + 1} <= set(found)
    assert min(found) >= 1439


def test_the_past_stays_as_it_is_in_another_future() -> None:
    values = rasters.join(table()).kline
    other = probes.another_future(values, 1000, 5)
    np.testing.assert_array_equal(other[:1001], values[:1001])
    assert not np.isclose(other[1001:], values[1001:]).any(axis=1).all()


def test_every_label_is_honest_about_what_it_looked_at() -> None:
    raster = rasters.join(table())
    names = [name for name in labels.known_labels() if "topbot" not in name]
    cuts = [1500, 1999, 2006, 2007, ROWS - 61, ROWS - 1]
    assert probes.labels(raster, names, 60, cuts, 3, lambda: None) == []


def test_a_label_that_looked_further_than_it_says_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(name: str, part: KlineTable, horizon: int) -> Label:
        found = labels.label("high_10", part, horizon)
        return Label(y=found.y, t1=np.maximum(found.t1 - 1, np.arange(len(part))))

    def early(name: str, part: KlineTable, horizon: int) -> Label:
        """The predecessor's: what is not known yet is False."""
        found = labels.label("high_10", part, horizon)
        return Label(y=np.nan_to_num(found.y), t1=found.t1)

    raster = rasters.join(table())
    for bad in (lying, early):
        monkeypatch.setattr(probes, "label", bad)
        cuts = list(range(1500, 1960, 20))
        [found] = probes.labels(raster, ["high_10"], 60, cuts, 3, lambda: None)
        assert (found.kind, found.name) == ("label", "high_10")
        assert found.row_ms is not None


# --- training ------------------------------------------------------------------------------------


def test_more_figures_are_given_more_room() -> None:
    assert leaks.limit_of(1, 0.05) == pytest.approx(1.959964, abs=1e-6)
    assert leaks.limit_of(36, 0.01) == pytest.approx(3.6326, abs=2e-3)


def test_an_oracle_has_skill_and_chance_has_none() -> None:
    random = np.random.default_rng(0)
    happened = np.repeat(random.random(100) < 0.3, 20)
    oracle = happened + random.normal(0, 0.5, 2000)
    chance = np.repeat(random.normal(0, 1, 100), 20)
    assert leaks.skill("t", "oracle", happened, oracle, 40, 0).z > 5
    assert abs(leaks.skill("t", "chance", happened, chance, 40, 0).z) < 3
    # single rows would promise far too narrow a band
    narrow = leaks.skill("t", "chance", happened, chance, 1, 0).sd
    assert leaks.skill("t", "chance", happened, chance, 40, 0).sd > 3 * narrow


def test_nothing_is_learned_where_there_is_nothing_to_learn(tmp_path: Path) -> None:
    options = ("--walks", "1", "--walk-rows", "24000")
    found = run(tmp_path, None, ["close_5", "close_std_15"], *options, rows=24_000)
    assert (found["leak"], found["enough"]) == (False, True)
    tests = {(one["test"], one["model"]) for one in found["skills"]}
    models = {"high_10_k_lc", "low_10_k_lc", leaks.TOGETHER}
    assert tests == {(t, m) for t in ("permuted labels", "random walk 7") for m in models}
    assert found["notes"] == []
    for one in found["skills"]:
        assert one["low"] <= one["auc"] <= one["high"]
        assert one["low"] < 0.5 < one["high"]


def test_too_little_data_to_tell_is_no_pass(tmp_path: Path) -> None:
    options = ("--walks", "1", "--walk-rows", "24000")
    with pytest.raises(Failure, match=r"^NOT ENOUGH DATA .* have to be off by 0\.\d\d of AUC"):
        run(tmp_path, None, ["close_5", "close_std_15"], *options, rows=4500)
    found = evidence(tmp_path)
    assert (found["leak"], found["enough"]) == (False, False)
    assert found["noticed_from"] > leaks.WIDEST
    with pytest.raises(
        Failure, match=r"^NOT ENOUGH DATA .* permuted labels: not tested: .* too few"
    ):
        run(tmp_path, None, ["close_5", "close_std_15"], *options, rows=1900)
    quick = run(tmp_path, None, ["close_5", "close_std_15"], "--quick", rows=1900)
    assert quick["enough"] is True
    assert "nothing was trained" in quick["verdict"]


def test_all_models_together_show_what_none_shows_alone() -> None:
    """A little knowledge in each of twelve labels that know nothing of each other."""
    random = np.random.default_rng(2)
    skills = []
    for at in range(12):
        happened = np.repeat(random.random(60) < 0.3, 20)
        said = 0.4 * happened + np.repeat(random.normal(0, 1, 60), 20)
        skills.append(leaks.skill("t", f"m{at}", happened, said, 20, at))
    limit = leaks.limit_of(len(skills) + 1)
    assert all(abs(one.z) < limit for one in skills)
    found = leaks.together(skills)
    assert found.z > limit
    weights = np.array([1 / np.var(one.drawn) for one in skills])
    aucs = np.array([one.auc for one in skills])
    assert found.auc == pytest.approx(np.sum(weights * aucs) / np.sum(weights))
    assert found.sd < min(one.sd for one in skills)


def test_models_that_say_the_same_are_no_surer_together() -> None:
    random = np.random.default_rng(4)
    happened = np.repeat(random.random(60) < 0.3, 20)
    said = np.repeat(random.normal(0, 1, 60), 20)
    one = leaks.skill("t", "m", happened, said, 20, 0)
    for same in (one, replace(one, block=40)):  # the second: of blocks of its own
        found = leaks.together([one, same])
        assert (found.auc, found.sd) == (pytest.approx(one.auc), pytest.approx(one.sd))


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="--cuts"):
        run(tmp_path, None, ["close_5"], "--cuts", "0")
    with pytest.raises(Failure, match="give more history"):
        run(tmp_path, None, ["close_5"], "--quick", "--until", str(START_MS + 900 * M))
