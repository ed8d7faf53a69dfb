"""Walk-forward, as the command does it."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from shared import klinefiles
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.score import PLAIN_KINDS, ScoreFormula, ScoreKind, score
from tests.releases import market
from tests.waiting import wait_until
from trainer import fits, folds, inputs, leaks, rasters, rolling
from trainer import train as train_command
from trainer.fanout import Fanout
from trainer.labels import label
from trainer.models.fit import recipes
from trainer.models.rows import candidates, gather, usable
from trainer.outcomes import after
from trainer.progress import Progress

M = 60_000
NAMES = ("close_5", "close_std_15", "volume_5", "span_60", "close_trend_15", "close_area_60")
ROWS = 6000


def candles(rows: int = ROWS, seed: int = 5, symbol: str = "TESTUSDT") -> KlineTable:
    columns = market(rows, seed)
    keep = np.ones(rows, bool)
    keep[rows - 700 : rows - 690] = False  # an outage among the tested rows
    return KlineTable(
        symbol=symbol,
        interval="1m",
        open_time_ms=columns["open_time_ms"][keep],
        values=np.column_stack([columns[name] for name in KLINE_COLUMNS])[keep],
    )


def write(path: Path, table: KlineTable) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: table.column(name) for name in KLINE_COLUMNS}
    klinefiles.write_columns(path, {"open_time_ms": table.open_time_ms} | columns, {})
    return path


def config(folder: Path, **keys: Any) -> dict[str, Any]:
    return {
        "symbols": ["TESTUSDT"],
        "data_folder": str(folder / "data"),
        "model_folder": str(folder / "models"),
        "features_kline": NAMES,
        "labels": ["high_10", "low_10"],
        "algorithms": ["gb", "lc"],
        "trainer": {"train_days": 1.5, "threads": 1, "label_horizon": 60},
    } | keys


def run(settings: Settings, *options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    rolling.add_arguments(parser)
    result = rolling.run(settings, parser.parse_args(options), Progress(io.StringIO(), quiet=True))
    assert rolling.summary(result)
    return result


def walk(folder: Path, *options: str, **keys: Any) -> dict[str, Any]:
    path = write(folder / "TESTUSDT-1m.parquet", candles())
    settings = Settings(**config(folder, **keys))
    return run(settings, "--klines", str(path), "--folds", "2", *options)


def rows_of(folder: Path, symbol: str = "TESTUSDT") -> dict[str, np.ndarray]:
    return rasters.read_months(folder / "data" / f"{symbol}-1m-features-rolling")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rolling")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    models = folder / "models"
    models.mkdir()
    (models / "untouched").write_text("as it was")
    return walk(folder)


MODELS = ["high_10_k_gb", "high_10_k_lc", "low_10_k_gb", "low_10_k_lc"]


def test_only_tested_rows_are_written_with_what_happened(
    folder: Path, result: dict[str, Any]
) -> None:
    found = rows_of(folder)
    assert list(found) == [
        *("open_time_ms", "close", "fold"),
        *MODELS,
        *("score", "high_10", "low_10"),
    ]
    raster = rasters.join(candles())
    start = int(found["open_time_ms"][0])
    times = raster.open_time_ms[raster.open_time_ms >= start]
    np.testing.assert_array_equal(found["open_time_ms"], times)  # gap rows included
    close = pd.Series(raster.kline[:, 3], raster.open_time_ms)[times]
    np.testing.assert_array_equal(found["close"], close)
    assert np.isnan(found["close"]).sum() == 10
    assert found["fold"].dtype == np.int64
    assert set(found["fold"].tolist()) == {0, 1}
    gap = np.isnan(found["close"])
    for name in (*MODELS, "score"):
        assert np.isnan(found[name][gap]).all()
        assert not np.isnan(found[name][~gap]).any()
    for name in ("high_10", "low_10"):
        expected = pd.Series(label(name, raster.kline_table(), 60).y, raster.open_time_ms)[times]
        np.testing.assert_array_equal(found[name], expected)
        assert np.isnan(found[name][-60:]).all()
    outputs = np.column_stack([found[name] for name in MODELS])
    formula = ScoreFormula(kind=ScoreKind.RATIO, high=tuple(MODELS[:2]), low=tuple(MODELS[2:]))
    np.testing.assert_array_equal(found["score"], score(formula, MODELS, outputs))
    assert result["rows"] == (~gap).sum()


def test_the_model_folder_is_not_touched(folder: Path, result: dict[str, Any]) -> None:
    assert [p.name for p in (folder / "models").iterdir()] == ["untouched"]


def test_a_step_trains_exactly_as_train_does_with_the_candles_before(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    found = rows_of(folder)
    settings = Settings(**config(folder))
    features = FeatureSet.of(NAMES)
    raster = rasters.join(candles())
    for fold in (0, 1):
        here = np.flatnonzero(found["fold"] == fold)
        start = int(found["open_time_ms"][here[0]])
        before = inputs.before(raster, start)
        work = tmp_path / str(fold)
        work.mkdir()
        rows = gather(
            [before],
            features,
            settings.labels,
            horizon=60,
            train_days=1.5,
            nan_share=0.2,
            workers=1,
            advance=lambda count: None,
            file=fits.matrix(work, "x"),
        )
        with Progress(io.StringIO(), quiet=True).bar("training") as bar:
            plan = recipes(settings.algorithms)
            trained = train_command.train(
                rows, plan, settings, features, [before], work, Fanout(), bar
            )
        values = features.batch(raster.first_index, raster.kline).astype(np.float32)
        place = (found["open_time_ms"][here] - raster.open_time_ms[0]) // M
        known = ~np.isnan(found["close"][here])
        assert {model.name for model in trained.models} == set(MODELS)
        for model in trained.models:
            said = model.fitted.predict(values[place[known]][:, list(model.columns)])
            np.testing.assert_allclose(found[model.name][here][known], said, rtol=1e-14)


def test_any_parquet_reader_takes_the_folder(folder: Path, result: dict[str, Any]) -> None:
    table = pq.read_table(folder / "data" / "TESTUSDT-1m-features-rolling")
    assert table.num_rows == len(rows_of(folder)["open_time_ms"])


def test_figures_are_those_of_the_rows(folder: Path, result: dict[str, Any]) -> None:
    found = rows_of(folder)
    report = json.loads(
        (folder / "data" / "TESTUSDT-1m-features-rolling" / "_about" / "metrics.json").read_text()
    )
    for name in MODELS:
        y, p = found[name[: name.index("_k_")]], found[name]
        for fold in (None, 0, 1):
            keep = ~np.isnan(y) & ~np.isnan(p)
            figures = report["models"][name]
            if fold is not None:
                keep &= found["fold"] == fold
                figures = report["folds"][str(fold)]["models"][name]
            assert figures["auc"] == pytest.approx(sk.roc_auc_score(y[keep], p[keep]), abs=1e-6)
            assert figures["brier"] == pytest.approx(np.mean((y - p)[keep] ** 2), abs=1e-6)
            assert figures["rows"] == keep.sum()
            assert figures["auc_low"] < figures["auc"] < figures["auc_high"]
        assert report["models"][name] == result["models"][name]
    for one in report["baselines"].values():
        assert {"base_rate", "volatility", "clock"} == set(one)
        assert 0 < one["clock"]["auc"] < 1
    assert report["score"]["auc_low"] < report["score"]["auc"] < report["score"]["auc_high"]
    assert len(report["score"]["deciles"]) == 10
    assert set(report["aggregates"]) == {str(kind) for kind in ScoreKind}
    assert len({one["rows"] for one in report["aggregates"].values()}) == 1
    assert report["best_aggregate"] in report["aggregates"]
    lines = (
        folder / "data" / "TESTUSDT-1m-features-rolling" / "_about" / "metrics.txt"
    ).read_text()
    assert [line.split(", ")[0] for line in lines.splitlines()] == MODELS
    assert "'auc'" in lines


def test_a_stack_learns_from_the_folds_before(folder: Path, result: dict[str, Any]) -> None:
    signaler = {"model": {"aggregate": "stack"}}
    again = walk(folder, signaler=signaler)
    assert again["fits_kept"] == again["fits"]  # the same models
    found = rows_of(folder)
    start = int(found["open_time_ms"][found["fold"] == 1][0])
    outputs = np.column_stack([found[name] for name in MODELS])
    logits = np.log(outputs / (1 - outputs))
    before = found["open_time_ms"] + 60 * M < start  # the labels look 60 candles ahead
    sides = []
    for label_ in ("high_10", "low_10"):
        rows = before & ~np.isnan(found[label_]) & ~np.isnan(logits).any(axis=1)
        scaler = StandardScaler().fit(logits[rows])
        model = LogisticRegression(C=0.01, tol=1e-10, max_iter=1000)
        model.fit(scaler.transform(logits[rows]), found[label_][rows])
        known = ~np.isnan(logits).any(axis=1)
        sides.append(model.predict_proba(scaler.transform(logits[known]))[:, 1])
    expected = np.full(len(outputs), np.nan)
    expected[known] = sides[0] - sides[1]
    expected[found["fold"] == 0] = np.nan
    np.testing.assert_allclose(found["score"], expected, atol=5e-4)  # two solvers

    walk(folder, signaler={"model": {"aggregate": "best"}})
    best = rows_of(folder)
    place = folder / "data" / "TESTUSDT-1m-features-rolling" / "_about" / "metrics.json"
    report = json.loads(place.read_text())
    assert report["aggregate_of_fold"]["0"] == "logit_mean"
    first = ScoreFormula(kind=ScoreKind.LOGIT_MEAN, high=tuple(MODELS[:2]), low=tuple(MODELS[2:]))
    of_first = best["fold"] == 0
    np.testing.assert_array_equal(best["score"][of_first], score(first, MODELS, outputs[of_first]))
    raster = rasters.join(candles())
    _, touch = after([raster], np.zeros(len(raster), np.int16), raster.open_time_ms, 60)
    touch = touch[np.searchsorted(raster.open_time_ms, best["open_time_ms"])]
    told = {}
    for kind in PLAIN_KINDS:
        formula = ScoreFormula(kind=kind, high=tuple(MODELS[:2]), low=tuple(MODELS[2:]))
        said = score(formula, MODELS, outputs)
        rows = before & (np.abs(touch) == 1) & ~np.isnan(said)
        told[str(kind)] = sk.roc_auc_score(touch[rows] > 0, said[rows])
    assert report["aggregate_of_fold"]["1"] == max(told, key=lambda kind: told[kind])
    walk(folder)


def test_no_training_label_looks_at_a_tested_row(tmp_path: Path) -> None:
    settings = Settings(**config(tmp_path))
    raster = rasters.join(candles())
    rows = candidates(
        [raster],
        FeatureSet.of(NAMES),
        settings.labels,
        horizon=60,
        start_ms=0,
        workers=1,
        advance=lambda count: None,
    )
    block = rolling.splits.Block(start_ms=int(rows.open_ms[3000]), stop_ms=int(rows.open_ms[3500]))
    first = int(rows.open_ms[500])

    def plan(y: dict[str, np.ndarray]) -> folds.Fold:
        return folds.plan_fold(
            rolling.replace(rows, y=y),
            0,
            (block,),
            (rows.open_ms >= first) & (rows.open_ms < block.start_ms),
            lambda name: rolling.splits.before(rows.open_ms, rows.t1_ms[name], block, first),
            recipes(settings.algorithms),
            settings,
            M,
            "k",
        )

    fold = plan(rows.y)
    assert fold.test.tolist() == list(range(3000, 3500))
    for job in fold.jobs:
        assert rows.open_ms[job.positions].min() >= first
        assert rows.open_ms[job.positions].max() == block.start_ms - 61 * M
        assert (rows.t1_ms[job.label][job.positions] < block.start_ms).all()
    # what happened later changes nothing in the plan
    turned = {
        name: np.where(rows.t1_ms[name] >= block.start_ms, 1 - y, y) for name, y in rows.y.items()
    }
    again = plan(turned)
    assert again.train_base == fold.train_base
    for one, other in zip(fold.jobs, again.jobs, strict=True):
        np.testing.assert_array_equal(one.y, other.y)


def test_a_matrix_in_a_file_is_the_same_bits(tmp_path: Path) -> None:
    tables = [candles(3500, seed, symbol) for seed, symbol in enumerate(("AUSDT", "BUSDT"))]
    data = [rasters.join(table) for table in tables]

    def rows(file: Path | None) -> Any:
        return candidates(
            data,
            FeatureSet.of(NAMES),
            ["high_10"],
            horizon=60,
            start_ms=int(data[0].open_time_ms[1000]),
            workers=2,
            advance=lambda count: None,
            file=file,
        )

    there, here = rows(tmp_path / "x.npy"), rows(None)
    assert isinstance(there.x, np.memmap)
    np.testing.assert_array_equal(there.x, here.x)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), here.x)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    assert (np.diff(here.open_ms) >= 0).all()
    for at, raster in enumerate(data):
        of_symbol = here.x[here.symbol == at]
        places = (here.open_ms[here.symbol == at] - raster.open_time_ms[0]) // M
        values = FeatureSet.of(NAMES).batch(raster.first_index, raster.kline)
        np.testing.assert_array_equal(of_symbol, values[places].astype(np.float32))
    # rows that are not meant count for nothing in what is left out
    x = np.zeros((100, 2), np.float32)
    x[60:, 1] = np.nan
    assert usable(x, 0.2).left_out.tolist() == [False, False]
    assert usable(x, 0.2, np.arange(100) >= 50).left_out.tolist() == [False, True]


def test_a_run_goes_on_where_another_stopped(folder: Path, result: dict[str, Any]) -> None:
    before = rows_of(folder)
    [work] = (folder / "data" / rolling.WORK).iterdir()
    kept = sorted(work.glob("fold-*.npy"))
    assert len(kept) == 2 * (4 + 4)
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:100])  # as no writer of ours leaves it
    again = walk(folder)
    assert (again["fits"], again["fits_kept"]) == (16, 14)
    after = rows_of(folder)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    assert again["models"] == result["models"]
    assert not list(work.glob("matrix-*"))
    # another config begins anew, and what is of no use any more goes away
    other = walk(folder, trainer={"train_days": 1.5, "threads": 1, "label_horizon": 61})
    assert other["fits_kept"] == 0
    assert [p for p in (folder / "data" / rolling.WORK).iterdir() if p == work] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config(tmp_path)))
    command = [sys.executable, "-m", "trainer", "rolling", "-c", str(file), "--json"]
    command += ["--klines", str(path), "--folds", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / "data" / rolling.WORK

    def has_come_so_far() -> bool:
        assert process.poll() is None
        return len(list(work.glob("*/fold-*.npy"))) >= 3

    wait_until(has_come_so_far, "three fits")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "data" / "TESTUSDT-1m-features-rolling").exists()
    found = run(Settings(**config(tmp_path)), "--klines", str(path), "--folds", "2")
    assert found["fits_kept"] >= 3
    whole = walk(tmp_path / "whole")
    assert whole["models"] == found["models"]
    a, b = rows_of(tmp_path), rows_of(tmp_path / "whole")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_several_symbols_have_a_folder_each(tmp_path: Path) -> None:
    paths = [
        str(write(tmp_path / f"{symbol}-1m.parquet", candles(4500, seed, symbol)))
        for seed, symbol in enumerate(("AUSDT", "BUSDT"))
    ]
    settings = Settings(**config(tmp_path, algorithms=["lc"]))
    found = run(settings, "--klines", *paths, "--folds", "1")
    total = 0
    for symbol in ("AUSDT", "BUSDT"):
        rows = rows_of(tmp_path, symbol)
        total += int((~np.isnan(rows["score"])).sum())
        report = json.loads(
            (
                tmp_path / "data" / f"{symbol}-1m-features-rolling" / "_about" / "metrics.json"
            ).read_text()
        )
        keep = ~np.isnan(rows["high_10"]) & ~np.isnan(rows["high_10_k_lc"])
        assert report["models"]["high_10_k_lc"]["auc"] == pytest.approx(
            sk.roc_auc_score(rows["high_10"][keep], rows["high_10_k_lc"][keep]), abs=1e-6
        )
    assert found["rows"] == total
    pooled = found["models"]["high_10_k_lc"]
    assert {"null_low", "null_high"} <= set(pooled)


def test_combinatorial_cross_validation_has_figures_of_its_own(tmp_path: Path) -> None:
    trainer = {
        "threads": 1,
        "label_horizon": 60,
        "rolling": {"groups": 4, "test_groups": 2},
    }
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles())
    settings = Settings(**config(tmp_path, algorithms=["lc"], trainer=trainer))
    found = run(settings, "--klines", str(path), "--cpcv")
    assert (found["combinations"], found["paths"]) == (6, 3)
    report = json.loads((tmp_path / "data" / "TESTUSDT-1m-cpcv" / "metrics.json").read_text())
    assert report["kind"] == "cpcv"
    assert "no estimate" in report["warning"]
    figures = report["models"]["high_10_k_lc"]
    each = [one["models"]["high_10_k_lc"]["auc"] for one in report["of_path"]]
    assert figures["auc_mean"] == pytest.approx(np.mean(each), abs=1e-6)
    assert len(set(each)) == 3
    rows = {one["models"]["high_10_k_lc"]["rows"] for one in report["of_path"]}
    assert len(rows) == 1  # every path tests every row once
    assert not (tmp_path / "data" / "TESTUSDT-1m-features-rolling").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (["--start", "yesterday"], Usage, "not a time"),
        (["--folds", "0"], Usage, "--folds 0"),
        (["--start", "2019-01-01"], Usage, "no fold fits"),
        (["--until", "5"], Usage, "no candle before"),
        (["--workers", "0"], Usage, "at least one"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, options: list[str], error: type[Exception], text: str
) -> None:
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles(3000))
    with pytest.raises(error, match=text):
        run(Settings(**config(tmp_path)), "--klines", str(path), *options)


def test_too_little_history_is_one_clear_line(tmp_path: Path) -> None:
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles(1200))
    with pytest.raises(Failure, match="give more history"):
        run(Settings(**config(tmp_path)), "--klines", str(path))


# --- against independent computations ------------------------------------------------------------


def plain_models() -> dict[str, Any]:
    """As the documented defaults say, by the libraries alone."""
    import lightgbm
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    def scaled(model: Any) -> Any:
        clip = FunctionTransformer(lambda x: np.clip(x, -5, 5))
        return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), clip, model)

    return {
        "gb": lightgbm.LGBMClassifier(
            num_leaves=7, n_estimators=200, learning_rate=0.05, min_child_samples=34,
            colsample_bytree=0.6, subsample=0.7, subsample_freq=1, reg_lambda=5.0, max_bin=127,
            random_state=11, n_jobs=1, verbosity=-1,
        ),
        "nn": scaled(
            MLPClassifier((64, 32), alpha=1e-2, batch_size=256, max_iter=6, random_state=11)
        ),
        "lc": scaled(LogisticRegression(C=0.1, max_iter=500)),
    }  # fmt: skip


def interval_of(y: np.ndarray, p: np.ndarray, block: int) -> tuple[float, float]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        starts = random.integers(0, len(y) - block + 1, -(-len(y) // block))
        rows = (starts[:, None] + np.arange(block)).ravel()
        found.append(sk.roc_auc_score(y[rows], p[rows]))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:X does not")
def test_on_real_candles_figures_are_those_of_a_plain_walk_forward(
    market_data: Path, tmp_path: Path
) -> None:
    [whole] = klinefiles.read_klines([market_data / "BTCUSDT-1m.parquet"])
    day = 86_400_000
    end = int(pd.Timestamp("2025-06-01", tz="UTC").timestamp() * 1000)
    kept = whole.between(end - 125 * day, end)
    path = write(tmp_path / "BTCUSDT-1m.parquet", kept)
    settings = Settings(
        data_folder=tmp_path / "data",
        model_folder=tmp_path / "models",
        labels=["high_10", "low_10"],
        trainer={"train_days": 60, "threads": 2, "rolling": {"folds": 3, "step_days": 20}},
    )
    run(settings, "--klines", str(path), "--backend", "threads")
    ours = rows_of(tmp_path, "BTCUSDT")

    features = configured(settings)
    raster = rasters.join(kept)
    x = features.batch(raster.first_index, raster.kline, workers=2)
    frame = pd.DataFrame(raster.kline, columns=KLINE_COLUMNS, index=raster.open_time_ms)
    ahead_high = frame.high[::-1].rolling(180, min_periods=180).max()[::-1].shift(-1)
    ahead_low = frame.low[::-1].rolling(180, min_periods=180).min()[::-1].shift(-1)
    truth = {
        "high_10": (ahead_high >= frame.close * 1.01).astype(float).where(ahead_high.notna()),
        "low_10": (ahead_low <= frame.close * 0.99).astype(float).where(ahead_low.notna()),
    }
    times = raster.open_time_ms
    usable_columns = ~np.isnan(x).all(axis=0)
    x = x[:, usable_columns]
    said = {name: np.full(len(times), np.nan) for name in ("gb", "nn", "lc")}
    for side, y in truth.items():
        for start in (end - 60 * day, end - 40 * day, end - 20 * day):
            before = (times >= start - 60 * day) & (times + 180 * M < start)
            train = before & (np.arange(len(times)) % 4 == 0) & y.notna().to_numpy()
            train &= frame.close.notna().to_numpy() & (np.arange(len(times)) >= 1439)
            test = (times >= start) & (times < start + 20 * day)
            for name, model in plain_models().items():
                data = np.where(np.isinf(x), np.nan, x)
                model.fit(data[train], y.to_numpy()[train])
                said[name][test] = model.predict_proba(data[test])[:, 1]
        for name, p in said.items():
            keep = ~np.isnan(p) & y.notna().to_numpy() & frame.close.notna().to_numpy()
            low, high = interval_of(y.to_numpy()[keep][::10], p[keep][::10], 18)
            mine, happened = ours[f"{side}_k_{name}"], ours[side]
            known = ~np.isnan(mine) & ~np.isnan(happened)
            auc = sk.roc_auc_score(happened[known], mine[known])
            assert low <= auc <= high, (side, name, low, auc, high)
            assert auc > 0.55  # there is something to agree on


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_on_a_random_walk_no_label_and_no_algorithm_has_skill(tmp_path: Path, seed: int) -> None:
    walked = leaks.random_walk("1m", 40_000, 180, seed)
    path = write(tmp_path / "BTCUSDT-1m.parquet", walked.kline_table())
    names = ["high_10", "high_20", "highv", "low_10", "low_20", "lowv"]
    settings = Settings(
        data_folder=tmp_path / "data",
        model_folder=tmp_path / "models",
        labels=names,
        trainer={"train_days": 12, "stride": 5, "threads": 2, "rolling": {"folds": 2}},
    )
    result = run(settings, "--klines", str(path), "--backend", "threads")
    found = rows_of(tmp_path, "BTCUSDT")
    assert len(result["models"]) == 18
    limit = leaks.limit_of(18, 0.01)
    for name in result["models"]:
        y, p = found[name[: name.index("_k_")]], found[name]
        keep = ~np.isnan(y) & ~np.isnan(p)
        one = leaks.skill("walk", name, y[keep][::10] > 0.5, p[keep][::10], 18, 0)
        assert abs(one.z) < limit, (name, one)
    direction = result["score"]
    assert direction["auc_low"] < 0.5 < direction["auc_high"]
    assert result["alarms"] == []
