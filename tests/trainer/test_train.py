"""From candles to a release, as the command does it."""

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.bundle import Bundle, invalid_reason
from shared.config import Settings, Trainer
from shared.errors import BadInput, Failure, Usage
from shared.features import KLINE_51, FeatureSet
from shared.klines import KLINE_COLUMNS, KlineTable, to_raster
from shared.releases import current_id, list_releases, read_release
from shared.score import score, side
from tests.releases import market
from tests.waiting import wait_until
from trainer import evaluate, fits, labels, predict, rasters, train
from trainer.models import cases
from trainer.models import rows as training_rows
from trainer.models.fit import Job
from trainer.progress import Progress

M = 60_000
NAMES = ("close_5", "close_std_15", "volume_5", "span_60", "close_trend_15", "close_area_60")


def candles(rows: int, seed: int = 5, symbol: str = "TESTUSDT") -> KlineTable:
    columns = market(rows, seed)
    return KlineTable(
        symbol=symbol,
        interval="1m",
        open_time_ms=columns["open_time_ms"],
        values=np.column_stack([columns[name] for name in KLINE_COLUMNS]),
    )


def write(path: Path, table: KlineTable, columns: tuple[str, ...] = KLINE_COLUMNS) -> Path:
    klinefiles.write_columns(
        path,
        {"open_time_ms": table.open_time_ms} | {name: table.column(name) for name in columns},
        {},
    )
    return path


def settings(folder: Path, **keys: Any) -> Settings:
    defaults: dict[str, Any] = {
        "symbols": ["TESTUSDT"],
        "model_folder": folder / "models",
        "data_folder": folder / "data",
        "features_kline": NAMES,
        "labels": ["high_10", "low_10"],
        "trainer": {"threads": 2},
    }
    return Settings(**(defaults | keys))


def run(config: Settings, *options: str, command: Any = train) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    result: dict[str, Any] = command.run(
        config, parser.parse_args(options), Progress(io.StringIO(), quiet=True)
    )
    assert command.summary(result)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    path = write(folder / "TESTUSDT-1m.parquet", candles(5000))
    return run(settings(folder), "--klines", str(path), "--promote")


def test_a_release_has_every_model_of_every_label(folder: Path, result: dict[str, Any]) -> None:
    names = [f"{label}_k_{algo}" for label in ("high_10", "low_10") for algo in ("gb", "nn", "lc")]
    manifest = Bundle.load(folder / "models" / "current").manifest
    assert manifest.id == result["release"] == current_id(folder / "models")
    assert list(manifest.models) == list(result["models"]) == names
    assert sorted(p.name for p in (folder / "models" / "current").iterdir()) == sorted(
        [
            *(f"{name}.onnx" for name in [*names, "bundle"]),
            *("manifest.json", "metrics.json", "metrics.txt", "reference.json"),
        ]
    )
    assert manifest.score.high == tuple(names[:3])
    assert manifest.score.low == tuple(names[3:])
    assert manifest.features == NAMES
    assert manifest.schema_hash == FeatureSet.of(NAMES).schema
    assert manifest.features_horizon == FeatureSet.of(NAMES).lookback
    assert manifest.labels["low_10"].definition == "min(low[t+1 .. t+180]) <= close[t] * (1 - 1 %)"
    assert manifest.labels["high_10"].side == "high"
    assert result["labels_added"] == {}
    assert list(manifest.labels) == ["high_10", "low_10"]
    assert manifest.symbols == ("TESTUSDT",)


def test_every_score_is_measured_out_of_sample_and_the_best_is_named(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    path = str(folder / "TESTUSDT-1m.parquet")
    config = settings(tmp_path, algorithms=["lc", "gb"], trainer={"test_share": 0.75})
    result = run(config, "--klines", path)
    told = result["score"]
    assert set(told["compared"]) == {"ratio", "difference", "logit_mean", "stack"}
    aucs = {kind: figures["auc"] for kind, figures in told["compared"].items()}
    assert told["best"] == max(aucs, key=lambda kind: aucs[kind])
    assert told["kind"] == "ratio"  # as the config has it
    for figures in told["compared"].values():
        assert 0 <= figures["auc"] <= 1
        if figures["auc_low"] is not None:  # None: fewer rows than two windows of a label
            assert figures["auc_low"] <= figures["auc"] <= figures["auc_high"]
        assert -1 <= figures["rank_correlation"] <= 1
        assert figures["cases"] >= 10
        # the second half of the test rows
        assert figures["rows"] == pytest.approx(result["test"]["rows"] / 2, abs=1)
    report = json.loads((Path(result["folder"]) / "metrics.json").read_text())
    assert report["score"] == told
    assert f"(best out of sample: {told['best']}" in train.summary(result)
    best = told["compared"][told["best"]]
    for low, high, shown in ((0.41, 0.63, "0.410 .. 0.630)"), (None, None, "of too few rows to")):
        best |= {"auc": 0.52, "auc_low": low, "auc_high": high}
        assert f"direction AUC 0.520, {shown}" in train.summary(result | {"score": told})


@pytest.mark.parametrize("aggregate", ["stack", "best"])
def test_the_score_of_the_config_is_that_of_the_release(
    folder: Path, result: dict[str, Any], tmp_path: Path, aggregate: str
) -> None:
    path = str(folder / "TESTUSDT-1m.parquet")
    keys = {"signaler": {"model": {"aggregate": aggregate}}, "algorithms": ["lc"]}
    if aggregate == "best":
        with pytest.raises(Failure, match="too few rises and falls"):
            run(settings(tmp_path, **keys, trainer={"test_share": 0.04}), "--klines", path)
    found = run(settings(tmp_path, **keys, trainer={"test_share": 0.75}), "--klines", path)
    bundle = Bundle.load(tmp_path / "models" / "releases" / found["release"])
    kind = found["score"]["best"] if aggregate == "best" else "stack"
    assert bundle.manifest.score.kind == found["score"]["kind"] == kind
    outputs = bundle.run(np.random.default_rng(0).normal(size=(40, len(NAMES))))
    formula = bundle.manifest.score.formula
    np.testing.assert_allclose(
        outputs.score, score(formula, bundle.models, outputs.outputs), atol=1e-14
    )


def test_regressions_lie_beside_the_bundle_and_change_nothing_in_it(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    labels_ = ["high_10", "high_max_60", "low_10"]
    path = str(folder / "TESTUSDT-1m.parquet")
    found = run(settings(tmp_path, labels=labels_), "--klines", path)
    release = read_release(tmp_path / "models" / "releases" / found["release"])
    first = read_release(folder / "models" / "releases" / result["release"])
    assert release.bundle == first.bundle
    names = [f"high_max_60_k_{algo}" for algo in ("gb", "nn", "lc")]
    assert list(release.manifest.values) == list(found["values"]) == names
    assert list(release.manifest.models) == list(first.manifest.models)
    assert list(release.manifest.labels) == ["high_10", "low_10"]
    entry = release.manifest.values[names[0]]
    assert (entry.label, entry.horizon, entry.algorithm) == ("high_max_60", 60, "gb")
    assert entry.definition == "100 * (max(high[t+1 .. t+60]) - close[t]) / close[t]"
    for figures in found["values"].values():
        assert figures["mae"] > 0
        assert set(figures) >= {"r2", "rank", "rank_low", "rank_high", "sign_auc"}
    lines = (release.folder / "metrics.txt").read_text().splitlines()
    assert [line.split(", ")[0] for line in lines] == [*result["models"], *names]
    assert "3 regressions" in train.summary(found)
    assert set(release.manifest.metrics) == {*result["models"], *names}


def test_support_vectors_train_on_a_sample_and_say_so_loudly(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    algorithm = {"name": "svc", "algo": "svc", "params": {"max_rows": 500}}
    heard = io.StringIO()
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(["--klines", str(folder / "TESTUSDT-1m.parquet")])
    found = train.run(settings(tmp_path, algorithms=[algorithm]), args, Progress(heard))
    assert list(found["models"]) == ["high_10_k_svc", "low_10_k_svc"]
    (note,) = found["notes"]
    assert "NOTE: svc is fitted on " in note
    assert note in heard.getvalue()
    manifest = Bundle.load(tmp_path / "models" / "releases" / found["release"]).manifest
    assert {model.calibration for model in manifest.models.values()} == {"platt"}
    assert {model.algorithm for model in manifest.models.values()} == {"svc"}


def test_the_manifest_says_what_the_release_was_made_from(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    made = read_release(folder / "models" / "releases" / result["release"]).manifest.made_from
    assert made["trainer"]["seed"] == 7
    assert [a["name"] for a in made["algorithms"]] == ["gb", "nn", "lc"]
    assert set(made["libraries"]) >= {"lightgbm", "scikit-learn", "onnx"}
    table = candles(5000)
    table.values[4000, 3] *= 1.0001
    path = write(tmp_path / "TESTUSDT-1m.parquet", table)
    found = run(settings(tmp_path, algorithms=["lc"]), "--klines", str(path))
    other = read_release(tmp_path / "models" / "releases" / found["release"]).manifest.made_from
    assert other["rows_sha256"] != made["rows_sha256"]


def test_figures_are_out_of_sample_with_their_interval(
    folder: Path, result: dict[str, Any]
) -> None:
    for figures in result["models"].values():
        assert figures["auc_low"] <= figures["auc"] <= figures["auc_high"]
        assert 0 < figures["base_rate"] < 1
    lines = (folder / "models" / "current" / "metrics.txt").read_text().splitlines()
    assert [line.split(", ")[0] for line in lines] == list(result["models"])
    report = json.loads((folder / "models" / "current" / "metrics.json").read_text())
    assert report["models"] == result["models"]
    assert result["parity"]["trees_equal"] is True
    assert result["parity"]["rows"] == result["candles"]


def test_the_same_data_gives_the_same_bytes(folder: Path, result: dict[str, Any]) -> None:
    again = run(
        settings(folder, trainer={"threads": 1}), "--klines", str(folder / "TESTUSDT-1m.parquet")
    )
    assert again["release"] != result["release"]
    first, second = (
        read_release(folder / "models" / "releases" / r["release"]) for r in (result, again)
    )
    assert first.bundle == second.bundle
    assert first.manifest.models == second.manifest.models
    for name in first.manifest.models:
        files = [(r.folder / f"{name}.onnx").read_bytes() for r in (first, second)]
        assert files[0] == files[1]
    assert first.manifest.made_from["rows_sha256"] == second.manifest.made_from["rows_sha256"]
    assert first.manifest.metrics == second.manifest.metrics


def killed_before_promoting(config: Settings, path: Path) -> str:
    """`train --promote` that ends when its release is written; returns that release's id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.promote, "newest", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, "--klines", str(path), "--promote")
    assert current_id(config.model_folder) is None
    (release,) = list_releases(config.model_folder)
    return release


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_written_release_is_not_made_again_but_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles(4000))
    config = settings(tmp_path, algorithms=["lc"])
    release = killed_before_promoting(config, path)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", None)  # nothing is trained
        again = run(config, "--klines", str(path), "--promote")
    assert again["was_there"]
    assert again["release"] == release == current_id(config.model_folder)
    assert "was there already, live" in train.summary(again)
    assert not list(config.data_folder.glob(f"{train.WORK}/*"))
    # asked for again, it is made again, and the same is told of it
    anew = run(config, "--klines", str(path), "--promote")
    assert not anew["was_there"]
    assert len(list_releases(config.model_folder)) == 2
    differ = {"release", "folder", "was_there", "fits", "fits_kept", "seconds"}
    assert {k: v for k, v in again.items() if k not in differ} == {
        k: v for k, v in anew.items() if k not in differ
    }


@pytest.mark.parametrize("change", ["data", "thresholds", "damaged"])
def test_a_release_of_anything_else_is_made(tmp_path: Path, change: str) -> None:
    table = candles(4000)
    path = write(tmp_path / "TESTUSDT-1m.parquet", table)
    keys: dict[str, Any] = {"algorithms": ["lc"]}
    release = killed_before_promoting(settings(tmp_path, **keys), path)
    if change == "data":
        table.values[3999, 3] *= 1.0001
        write(path, table)
    elif change == "thresholds":
        keys["signaler"] = {"model": {"buy_threshold": 0.3, "sell_threshold": -0.3}}
    else:
        (tmp_path / "models" / "releases" / release / "bundle.onnx").write_bytes(b"")
    again = run(settings(tmp_path, **keys), "--klines", str(path), "--promote")
    assert not again["was_there"]
    assert again["release"] != release
    assert current_id(tmp_path / "models") == again["release"]


def test_the_gains_of_the_trees_are_in_the_metrics(folder: Path, result: dict[str, Any]) -> None:
    place = folder / "models" / "releases" / result["release"]
    found = json.loads((place / "metrics.json").read_text())["gain_importance"]
    assert list(found) == ["high_10_k_gb", "low_10_k_gb"]
    for gains in found.values():
        assert set(gains) <= set(NAMES)
        assert list(gains.values()) == sorted(gains.values(), reverse=True)
        assert sum(gains.values()) == pytest.approx(1, abs=1e-5)


def test_nothing_at_or_after_until_is_used(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    before, after = candles(5000), candles(1000, seed=99)
    until = int(before.open_time_ms[-1]) + M
    longer = replace(
        before,
        open_time_ms=np.concatenate([before.open_time_ms, after.open_time_ms + 5000 * M]),
        values=np.concatenate([before.values, after.values * 3]),
    )
    found = run(
        settings(tmp_path),
        *("--klines", str(write(tmp_path / "TESTUSDT-1m.parquet", longer))),
        *("--until", str(until)),
    )
    assert result["last"] == found["last"]
    bundles = [
        read_release(base / "models" / "releases" / r["release"]).bundle
        for base, r in ((folder, result), (tmp_path, found))
    ]
    assert bundles[0] == bundles[1]


def test_no_label_of_a_training_row_reaches_the_test_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[Job]] = []
    real = fits.finish

    def spy(pieces: list[fits.Piece], *rest: Any) -> Any:
        seen.append([piece.job for piece in pieces])
        return real(pieces, *rest)

    monkeypatch.setattr(fits, "finish", spy)
    table = candles(4000)
    config = settings(tmp_path, algorithms=["lc"])
    found = run(config, "--klines", str(write(tmp_path / "TESTUSDT-1m.parquet", table)))
    rows = training_rows.gather(
        [rasters.join(table)],
        FeatureSet.of(NAMES),
        config.labels,
        horizon=180,
        train_days=548,
        nan_share=0.2,
        workers=1,
        advance=lambda count: None,
    )
    measured, final = seen
    starts = [read_release(tmp_path / "models" / "releases" / found["release"]).manifest.training]
    test_start = starts[0].test_start_ms
    for job in measured:
        last = rows.open_ms[job.positions].max()
        assert last + 180 * M < test_start  # the label's last candle opens before
        assert last + 181 * M == test_start  # and no row is given away
    for job in final:
        assert rows.open_ms[job.positions].max() == table.open_time_ms[-181]


def test_features_that_are_mostly_missing_are_left_out_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "TESTUSDT-1m.csv.parquet", candles(4000), KLINE_COLUMNS[:5])
    names = ("close_5", "trades_5", "tb_base_15", "close_trend_15")
    config = settings(tmp_path, features_kline=names, algorithms=["gb", "lc"])
    found = run(config, "--klines", str(path))
    assert found["features"] == {"used": 2, "left_out": ["trades_5", "tb_base_15"]}
    bundle = Bundle.load(tmp_path / "models" / "releases" / found["release"])
    assert bundle.manifest.left_out == ("trades_5", "tb_base_15")
    # they change nothing, and a live vector without them is valid
    x = np.array([[1.0, np.nan, np.nan, 0.5], [1.0, 7.0, -7.0, 0.5]])
    outputs = bundle.run(x).outputs
    assert outputs[0].tobytes() == outputs[1].tobytes()
    assert invalid_reason(x[0], bundle.manifest, False, True) == ""


def test_a_side_without_cases_ends_in_one_line_and_no_release(tmp_path: Path) -> None:
    table = candles(4000)
    values = np.tile(table.values[0], (4000, 1))
    values[:, :4] = 100 + np.sin(np.arange(4000) / 50)[:, None] * 1e-3
    path = write(tmp_path / "TESTUSDT-1m.parquet", replace(table, values=values))
    with pytest.raises(
        Failure,
        match=r"no high label to train \(high_10: 0 of .* needed\); .* trainer\.calm_labels$",
    ) as error:
        run(settings(tmp_path, trainer={"calm_labels": False}), "--klines", str(path))
    assert "\n" not in str(error.value)
    # a price that never moves has no volatility either
    values[:, :4] = 100
    path = write(tmp_path / "TESTUSDT-1m.parquet", replace(table, values=values))
    with pytest.raises(Failure, match=r"nor are there for highv \.\. highv_050") as error:
        run(settings(tmp_path), "--klines", str(path))
    assert "\n" not in str(error.value)
    lively = write(tmp_path / "lively" / "TESTUSDT-1m.parquet", table)
    with pytest.raises(Failure, match="no low label to train: the config lists none"):
        run(settings(tmp_path, labels=["high_10"]), "--klines", str(lively))
    assert list_releases(tmp_path / "models") == []


def test_a_label_with_few_cases_is_left_out_and_named(tmp_path: Path) -> None:
    table = candles(4000)
    # rises of 2.5 % within three hours are rare in a market of a third of the moves
    values = table.values.copy()
    values[:, :4] = values[:, :4] ** 0.33
    path = write(tmp_path / "TESTUSDT-1m.parquet", replace(table, values=values))
    labels = ["high_10", "high_25", "low_10"]
    found = run(settings(tmp_path, labels=labels, algorithms=["lc"]), "--klines", str(path))
    assert list(found["labels_left_out"]) == ["high_25"]
    assert list(found["models"]) == ["high_10_k_lc", "low_10_k_lc"]
    manifest = read_release(tmp_path / "models" / "releases" / found["release"]).manifest
    assert "50 of either class" in manifest.labels["high_25"].left_out


@pytest.mark.parametrize(
    ("keys", "options", "says"),
    [
        ({"labels": ["high_mxa", "low_10"]}, (), "no label 'high_mxa'"),
        ({"algorithms": [{"name": "x", "algo": "gb", "params": {"leaves": 3}}]}, (), "leaves"),
        ({"features_kline": ["close_bogus"]}, (), "close_bogus"),
        ({}, ("--until", "5"), "no candle before"),
        ({"features_futur": ["f_close_5"]}, (), "futur rows"),
    ],
)
def test_a_bad_config_is_one_line_of_usage(
    folder: Path,
    result: dict[str, Any],
    tmp_path: Path,
    keys: dict[str, Any],
    options: tuple[str, ...],
    says: str,
) -> None:
    with pytest.raises(Usage, match=says):
        run(settings(tmp_path, **keys), *options, "--klines", str(folder / "TESTUSDT-1m.parquet"))
    assert not (tmp_path / "models").exists()


def test_too_little_history_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles(700))
    with pytest.raises(Failure, match="longest feature window"):
        run(settings(tmp_path), "--klines", str(path))


def test_blocks_of_intervals_are_windows_of_all_symbols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two symbols take turns, so that a window of 60 candles is 120 rows."""
    files = [
        str(write(tmp_path / f"{symbol}-1m.parquet", candles(3500, seed, symbol)))
        for seed, symbol in enumerate(("AUSDT", "BUSDT"))
    ]
    blocks = []

    def measured(y: Any, p: Any, block: int, seed: int) -> Any:
        blocks.append(block)
        return evaluate.measure(y, p, block, seed)

    monkeypatch.setattr(train, "measure", measured)
    config = settings(
        tmp_path,
        algorithms=["lc"],
        trainer={"label_horizon": 60, "stride": 7, "test_share": 0.5, "threads": 1},
    )
    run(config, "--klines", *files)
    assert blocks == [4 * 9 * 2] * 2  # 60 / 7 rows of each in a window


def test_several_symbols_train_one_release(tmp_path: Path) -> None:
    paths = [
        str(write(tmp_path / f"{symbol}-1m.parquet", candles(3500, seed, symbol)))
        for seed, symbol in enumerate(("AUSDT", "BUSDT"))
    ]
    found = run(settings(tmp_path, algorithms=["lc"]), "--klines", *paths)
    assert found["symbols"] == ["AUSDT", "BUSDT"]
    assert found["rows"] == 2 * (3500 - FeatureSet.of(NAMES).lookback + 1)


# --- finished fits --------------------------------------------------------------------------------

EVERY_KIND: list[dict[str, Any]] = [
    {"name": "gb", "algo": "gb", "params": {"early_stopping": True, "calibrate": "isotonic"}},
    {"name": "nn", "algo": "nn", "params": {"calibrate": "platt"}},
    {"name": "lc", "algo": "lc"},
    {"name": "svc", "algo": "svc", "params": {"max_rows": 500}},
]


def kinds(folder: Path) -> dict[str, Any]:
    """The settings of `settings`, as a config file has them."""
    return {
        "symbols": ["TESTUSDT"],
        "model_folder": str(folder / "models"),
        "data_folder": str(folder / "data"),
        "features_kline": NAMES,
        "labels": ["high_10", "low_10", "high_max_60"],
        "algorithms": EVERY_KIND,
        "trainer": {"threads": 1},
    }


def files_of(folder: Path) -> dict[str, bytes]:
    """The graphs of the one release there."""
    [release] = (folder / "models" / "releases").iterdir()
    return {path.name: path.read_bytes() for path in sorted(release.glob("*.onnx"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Candles, and the graphs of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write(folder / "TESTUSDT-1m.parquet", candles(3500))
    found = run(Settings(**kinds(folder)), "--klines", str(path))
    assert (found["fits"], found["fits_kept"]) == (21, 0)  # three had too few cases to measure
    assert not (folder / "data").exists(), "nothing is kept behind a release"
    return path, files_of(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_between_fits_it_goes_on_to_the_same_graphs(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = undisturbed
    config = tmp_path / "config.json"
    config.write_text(json.dumps(kinds(tmp_path)))
    command = [sys.executable, "-m", "trainer", "train", "-c", str(config), "--klines", str(path)]
    work = tmp_path / "data" / train.WORK
    for least in (3, 14):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def has_come_so_far(
            process: "subprocess.Popen[bytes]" = process, least: int = least
        ) -> bool:
            assert process.poll() is None
            return len([*work.glob("*/measured-*"), *work.glob("*/final-*")]) >= least

        wait_until(has_come_so_far, f"{least} fits", timeout_s=90)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "models").exists()
    torn = min(work.glob("*/final-*"), default=None) or min(work.glob("*/measured-*"))
    torn.write_bytes(torn.read_bytes()[:-7])  # as no writer of ours leaves it
    notes = io.StringIO()
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    found = train.run(
        Settings(**kinds(tmp_path)), parser.parse_args(["--klines", str(path)]), Progress(notes)
    )
    assert found["fits_kept"] >= 13
    assert "fits are kept from an earlier run" in notes.getvalue()
    assert files_of(tmp_path) == expected
    assert not work.exists()


def test_processes_give_the_graphs_of_threads(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = undisturbed
    options = ("--klines", str(path), "--backend", "processes", "--workers", "2")
    run(Settings(**kinds(tmp_path)), *options)
    assert files_of(tmp_path) == expected


def test_another_config_keeps_nothing_of_this_one(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = undisturbed

    def fail(*_: Any) -> Any:
        raise Failure("the parity gate says no")

    with monkeypatch.context() as patch:
        patch.setattr(train, "build", fail)
        with pytest.raises(Failure, match="parity gate"):
            run(Settings(**kinds(tmp_path)), "--klines", str(path))
    other = kinds(tmp_path) | {"trainer": {"threads": 1, "seed": 8}}
    assert run(Settings(**other), "--klines", str(path))["fits_kept"] == 0
    assert not (tmp_path / "data" / train.WORK).exists(), "and clears away what was left of it"


# --- labels that stand in in a calm market -------------------------------------------------------

DEFAULT_LABELS = Settings().labels


def rows_of(table: KlineTable, config: Settings) -> training_rows.Rows:
    """Rows as the default features choose them (a day of warm-up), with one feature."""
    return training_rows.gather(
        [rasters.join(table)],
        FeatureSet.of(["close_720"]),
        cases.labels_to_compute(config),
        horizon=180,
        train_days=548,
        nan_share=0.2,
        workers=1,
        advance=lambda count: None,
    )


def choose(table: KlineTable, config: Settings) -> cases.Choice:
    rows = rows_of(table, config)
    return cases.choose_labels(rows, np.arange(len(rows)), config)


def path_lengths(table: KlineTable, rows: int) -> np.ndarray:
    """Sum of the absolute log returns of each window of `rows` candles."""
    moves = np.abs(np.diff(np.log(table.column("close"))))
    sums = np.concatenate([[0.0], np.cumsum(moves)])
    return np.asarray(sums[rows - 1 :] - sums[: len(sums) - rows + 1])


# First candles of windows in which a side reaches neither one percent nor 1.25 sigma 50 times
# (upwards, upwards, downwards), nor 1.0 sigma (upwards).
HARDEST = {
    "BTCUSDT-1m.parquet": (1736095260000, 1684761060000, 1750617300000, 1693239660000),
    "ETHUSDT-1m.parquet": (1721675040000, 1727380020000, 1728501900000, 1721681700000),
}


@pytest.mark.parametrize(
    ("files", "samples"),
    [
        ("BTCUSDT-1m.parquet", 60),
        ("ETHUSDT-1m.parquet", 20),
        ("ETHUSDT-15m.parquet", 15),
        ("vision/BTCUSDT-15m-2025-*.zip", 15),
        ("vision/BTCUSDT-1h-20*.zip", 15),
    ],
)
def test_every_4000_real_candles_have_a_label_of_either_side(
    market_data: Path, files: str, samples: int
) -> None:
    (table,) = klinefiles.read_klines(sorted(market_data.glob(files)))
    lengths = path_lengths(table, 4000)
    by_length = np.argsort(lengths)
    # from the calmest to the wildest, and at random
    places = by_length[np.linspace(0, len(lengths) - 1, samples).astype(int)].tolist()
    places += np.random.default_rng(1).integers(0, len(lengths), samples).tolist()
    hardest = np.searchsorted(table.open_time_ms, HARDEST.get(files, ())).tolist()
    config = Settings()
    added: list[str] = []
    for place in (*places, *hardest):
        choice = choose(table.rows(place, place + 4000), config)
        assert {labels.side_of(name) for name in choice.kept} == {"high", "low"}
        fixed = [name for name in config.labels if name not in choice.left_out]
        assert choice.kept == [*fixed, *choice.added]
        for side_ in ("high", "low"):
            stand_ins = [name for name in choice.added if name.startswith(side_)]
            assert len(stand_ins) == (not any(name.startswith(side_) for name in fixed))
        added += choice.added
    if hardest:
        assert {"highv", "highv_100", "highv_075", "lowv_100"} <= set(added)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, market_data: Path) -> tuple[KlineTable, Path]:
    """The calmest 4,000 minutes of BTCUSDT from 2021 to 2025."""
    (table,) = klinefiles.read_klines([market_data / "BTCUSDT-1m.parquet"])
    place = int(np.argmin(path_lengths(table, 4000)))
    table = table.rows(place, place + 4000)
    path = tmp_path_factory.mktemp("calm") / "BTCUSDT-1m.parquet"
    return table, write(path, table, KLINE_COLUMNS[:5])


def test_the_calmest_candles_train_with_labels_that_stand_in(
    calm: tuple[KlineTable, Path], tmp_path: Path
) -> None:
    table, path = calm
    config = settings(tmp_path, symbols=["BTCUSDT"], labels=DEFAULT_LABELS, features_kline=KLINE_51)
    heard = io.StringIO()
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    found = train.run(config, parser.parse_args(["--klines", str(path)]), Progress(heard))
    assert list(found["labels_left_out"]) == [*DEFAULT_LABELS]
    assert list(found["labels_added"]) == ["highv", "lowv"]
    names = [f"{label}_k_{algo}" for label in ("highv", "lowv") for algo in ("gb", "nn", "lc")]
    assert list(found["models"]) == names
    for text in (heard.getvalue(), train.summary(found)):
        assert "label highv added because no high label of the config is left" in text
        assert "label lowv added because no low label of the config is left" in text
    bundle = Bundle.load(tmp_path / "models" / "releases" / found["release"])
    manifest = bundle.manifest
    assert (manifest.score.high, manifest.score.low) == (tuple(names[:3]), tuple(names[3:]))
    entry = manifest.labels["highv"]
    assert (entry.side, entry.horizon, entry.left_out) == ("high", 180, "")
    assert entry.definition.startswith(
        "max(high[t+1 .. t+180]) >= close[t] * (1 + 1.25 * sigma[t] * sqrt(180)), sigma[t] = "
        "population standard deviation of ln(close[r] / close[r-1]) over r = t-719 .. t; added "
        "because no high label of the config is left (high_10: 0 of "
    )
    assert manifest.labels["lowv"].definition.startswith(
        "min(low[t+1 .. t+180]) <= close[t] * (1 - 1.25 * sigma[t]"
    )
    assert all(manifest.labels[name].left_out for name in DEFAULT_LABELS)
    # the base rate on the tail, straight from the candles
    close, high = table.column("close"), table.column("high")
    start = int(np.searchsorted(table.open_time_ms, manifest.training.test_start_ms))
    cases = []
    for t in range(start, 4000 - 180):
        sigma = np.std(np.diff(np.log(close[t - 720 : t + 1])))
        cases.append(high[t + 1 : t + 181].max() / close[t] - 1 >= 1.25 * sigma * np.sqrt(180))
    assert found["models"]["highv_k_lc"]["base_rate"] == pytest.approx(np.mean(cases), abs=1e-6)
    assert found["models"]["highv_k_lc"]["rows"] == len(cases)


def test_scaled_labels_look_back_before_the_first_training_row() -> None:
    table = candles(4000)
    rows = training_rows.gather(
        [rasters.join(table)],
        FeatureSet.of(["close_5"]),
        ["highv", "lowv_050"],
        horizon=60,
        train_days=1,
        nan_share=0.2,
        workers=1,
        advance=lambda count: None,
    )
    assert len(rows) == 1441
    for name in ("highv", "lowv_050"):
        whole = labels.label(name, table, 60)
        np.testing.assert_array_equal(rows.y[name], whole.y[-1441:])
        assert not np.isnan(rows.y[name][:-60]).any()
        assert rows.t1_ms[name].tolist() == table.open_time_ms[whole.t1[-1441:]].tolist()


def test_rows_of_one_class_are_one_line(calm: tuple[KlineTable, Path], tmp_path: Path) -> None:
    algorithm = {"name": "short", "algo": "lc", "params": {"length": 250}}
    config = settings(tmp_path, symbols=["BTCUSDT"], algorithms=[algorithm])
    with pytest.raises(Failure, match=r"^highv_k_short: the 250 rows .* hold no two classes"):
        run(config, "--klines", str(calm[1]))
    assert list_releases(tmp_path / "models") == []


def test_labels_of_the_config_that_have_cases_keep_others_out(tmp_path: Path) -> None:
    table = candles(4000)
    assert choose(table, settings(tmp_path)).added == {}
    # one of a side is enough; a scaled one of the config is a label like any other
    named = choose(table, settings(tmp_path, labels=["highv", "high_25", "low_10"]))
    assert named.kept[0] == "highv"
    assert named.added == {}


@pytest.mark.parametrize(("flat", "rows"), [(700, 320), (150, 0)])
def test_a_tail_without_cases_has_no_auc_and_a_tail_without_labels_no_figures(
    tmp_path: Path, flat: int, rows: int
) -> None:
    """flat: the last rows, in which the price stands still; their labels are 0 or, where the label
    looks further ahead than the tail is long, not known."""
    table = candles(4000)
    values = table.values.copy()
    values[-flat:, :4] = values[-flat, 3]
    path = write(tmp_path / "TESTUSDT-1m.parquet", replace(table, values=values))
    share = 500 / (4000 - FeatureSet.of(NAMES).lookback + 1) if rows else 0.03
    config = settings(tmp_path, trainer={"threads": 2, "test_share": share})
    found = run(config, "--klines", str(path))
    for figures in found["models"].values():
        assert figures["auc"] is figures["auc_low"] is figures["auc_high"] is None
        assert figures["rows"] == rows
        assert figures.get("base_rate", 0) == 0
    folder_ = tmp_path / "models" / "releases" / found["release"]
    report = json.loads((folder_ / "metrics.json").read_text())
    assert report["models"] == found["models"] == Bundle.load(folder_).manifest.metrics


# --- rows ----------------------------------------------------------------------------------------


def gathered(table: KlineTable, train_days: float = 548) -> training_rows.Rows:
    return training_rows.gather(
        [rasters.join(table)],
        FeatureSet.of(NAMES),
        ["high_10", "low_10"],
        horizon=180,
        train_days=train_days,
        nan_share=0.2,
        workers=1,
        advance=lambda count: None,
    )


def test_rows_are_whole_candles_with_covered_windows() -> None:
    table = candles(4000)
    keep = np.ones(4000, bool)
    keep[2500:2510] = False
    holed = replace(table, open_time_ms=table.open_time_ms[keep], values=table.values[keep])
    rows = gathered(holed)
    raster = to_raster(holed)
    lookback = FeatureSet.of(NAMES).lookback
    expected = [i for i in range(lookback - 1, 4000) if keep[i]]
    assert rows.open_ms.tolist() == raster.open_time_ms[expected].tolist()
    values = FeatureSet.of(NAMES).batch(int(raster.open_time_ms[0]) // M, raster.values)
    assert rows.x.tobytes() == values[expected].astype(np.float32).tobytes()
    near_gap = (rows.open_ms < raster.open_time_ms[2510]) & (
        rows.open_ms >= raster.open_time_ms[2500 - 180]
    )
    assert np.isnan(rows.y["high_10"][near_gap]).all()


def test_only_the_trailing_days_are_taken_and_their_features_need_not_be() -> None:
    table = candles(5000)
    few, all_rows = gathered(table, train_days=1), gathered(table)
    assert len(few) == 1441
    assert few.x.tobytes() == all_rows.x[-1441:].tobytes()


@pytest.mark.parametrize(
    ("rows", "stride"), [(500, 1), (20_000, 1), (40_000, 2), (150_000, 7), (789_000, 10)]
)
def test_the_stride_keeps_twenty_thousand_rows(rows: int, stride: int) -> None:
    assert training_rows.stride_for(rows) == stride


def test_strided_rows_do_not_depend_on_where_the_data_starts() -> None:
    table = candles(4000)
    late = gathered(table.rows(137, 4000))
    early = gathered(table)
    strided = [
        set(rows.open_ms[training_rows.chosen(rows, M, 7)].tolist()) for rows in (early, late)
    ]
    assert strided[1] < strided[0]
    last = training_rows.chosen(early, M, 1, length=100)
    assert early.open_ms[last].tolist() == table.open_time_ms[-100:].tolist()


# --- predict, promote, rollback ------------------------------------------------------------------


def test_predict_writes_what_live_would_say(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    table = candles(5000)
    keep = np.ones(5000, bool)
    keep[4000:4020] = False
    holed = replace(table, open_time_ms=table.open_time_ms[keep], values=table.values[keep])
    path, out = write(tmp_path / "TESTUSDT-1m.parquet", holed), tmp_path / "out.parquet"
    found = run(settings(folder), "--klines", str(path), "--out", str(out), command=predict)
    columns = klinefiles.read_columns(out)
    bundle = Bundle.load(folder / "models" / "current")
    assert list(columns) == ["open_time_ms", "close", *bundle.models, "score"]
    assert len(columns["score"]) == found["rows"] == 5000
    raster = to_raster(holed)
    features = FeatureSet.of(NAMES)
    window = features.window()
    first = int(raster.open_time_ms[0]) // M
    scored = 0
    for row in range(5000):
        values = window.step(first + row, raster.values[row])
        gap, covered = bool(np.isnan(raster.values[row, 3])), row >= features.lookback - 1
        invalid = invalid_reason(values, bundle.manifest, gap, covered)
        assert bool(invalid) == np.isnan(columns["score"][row])
        if not invalid and row % 100 == 0:
            live = bundle.run(values[None])
            assert live.score[0] == columns["score"][row]
            assert live.named() == {name: columns[name][row] for name in bundle.models}
        scored += not invalid
    assert found["scored"] == scored


@pytest.mark.parametrize("to_file", [True, False])
def test_predict_writes_the_same_numbers_as_one_csv_file(
    folder: Path, result: dict[str, Any], tmp_path: Path, to_file: bool
) -> None:
    path = write(tmp_path / "TESTUSDT-1m.parquet", candles(5000))
    own = settings(folder, data_folder=tmp_path)
    out = ["--out", str(tmp_path / "out.parquet")] if to_file else []
    found = run(own, "--klines", str(path), "--csv", *out, command=predict)
    written, csv_path = found["outputs"][0]["wrote"]
    name = "out.csv" if to_file else "TESTUSDT-1m-predictions.csv"
    assert csv_path == tmp_path / name
    assert str(csv_path) in predict.summary(found)
    columns = klinefiles.read_columns(written) if to_file else rasters.read_months(written)
    with csv_path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(columns)
    assert np.isnan(columns["score"]).any()
    for name, column in columns.items():
        read = np.array([float(row[name]) if row[name] else np.nan for row in rows])
        np.testing.assert_array_equal(read, column)


def test_predict_refuses_other_intervals_and_releases(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    hourly = replace(candles(30), interval="1h")
    hourly = replace(
        hourly,
        open_time_ms=hourly.open_time_ms[0] // 3_600_000 * 3_600_000
        + 3_600_000 * np.arange(30, dtype=np.int64),
    )
    path = write(tmp_path / "TESTUSDT-1h.parquet", hourly)
    with pytest.raises(Usage, match="is for 1m candles"):
        run(
            settings(folder),
            "--klines",
            str(path),
            "--out",
            str(tmp_path / "o.parquet"),
            command=predict,
        )
    with pytest.raises(BadInput, match="release refused"):
        run(settings(folder), "--release", "nothing", command=predict)
    with pytest.raises(Failure, match="no release is live"):
        run(settings(tmp_path), command=predict)


# --- real candles --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_held_out_month_of_real_candles_has_equal_outputs(
    market_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 default models on a year of BTC; June 2025, unseen, against the native models."""
    kept: dict[str, Any] = {}
    real = train.build

    def spy(*arguments: Any) -> Any:
        kept["trained"] = arguments[3]
        return real(*arguments)

    monkeypatch.setattr(train, "build", spy)
    (table,) = klinefiles.read_klines([market_data / "BTCUSDT-1m.parquet"])
    june = int(np.datetime64("2025-06-01", "ms").astype(np.int64))
    config = Settings(model_folder=tmp_path / "models", trainer=Trainer(train_days=365))
    found = run(config, "--klines", str(market_data / "BTCUSDT-1m.parquet"), "--until", str(june))
    assert len(found["models"]) == 18
    bundle = Bundle.load(tmp_path / "models" / "releases" / found["release"])
    start = int(np.searchsorted(table.open_time_ms, june))
    raster = to_raster(table.rows(start - 3000, len(table)))
    values = FeatureSet.of(KLINE_51).batch(int(raster.open_time_ms[0]) // M, raster.values)[3000:]
    outputs = bundle.run(values, threads=2)
    x = values.astype(np.float32)
    models = kept["trained"].models
    native = np.column_stack([m.fitted.predict(x[:, list(m.columns)]) for m in models])
    for column, model in enumerate(models):
        if model.algorithm == "gb":
            assert outputs.outputs[:, column].tobytes() == native[:, column].tobytes()
    assert np.abs(outputs.outputs - native).max() < 1e-5
    formula = bundle.manifest.score.formula
    theirs = score(formula, [m.name for m in models], native)
    sides = [[side(v, 0.15, -0.15) for v in s.tolist()] for s in (outputs.score, theirs)]
    assert sides[0] == sides[1]
    assert len(set(sides[0])) == 3
