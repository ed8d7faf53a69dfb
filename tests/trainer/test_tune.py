"""Tuning: what a trial is worth, how studies go on, and what they say in the end."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sqlalchemy.exc import IntegrityError

from shared import klinefiles
from shared.config import Settings, Trainer
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from tests.trainer.test_promote import NAMES, candles, run
from tests.valkey import Server
from trainer import rasters, tune
from trainer.cli import main
from trainer.progress import Progress

MINUTE = 60_000
HORIZON = 30
SPACE = {"lc": {"train.C": [0.0001, 10.0, "log"]}, "labels": {"horizon": {"choices": [20, 40]}}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = candles(3600, seed=9)
    columns = {"open_time_ms": table.open_time_ms}
    path = tmp_path_factory.mktemp("tune") / "TESTUSDT-1m.parquet"
    klinefiles.write_columns(path, columns | {n: table.column(n) for n in KLINE_COLUMNS})
    return path


def settings(folder: Path, **keys: Any) -> Settings:
    trainer = {"threads": 2, "label_horizon": HORIZON, "stride": 2, "calm_labels": False}
    tuning = {"trials": 4, "folds": 2, "space": SPACE} | keys.pop("tune", {})
    return Settings(
        symbols=["TESTUSDT"],
        data_folder=folder / "data",
        model_folder=folder / "models",
        features_kline=NAMES,
        labels=["high_10", "low_10"],
        algorithms=["lc"],
        trainer=Trainer(**(trainer | {"tune": tuning} | keys)),
    )


def tuned(folder: Path, file: Path, *options: str, **keys: Any) -> dict[str, Any]:
    return run(settings(folder, **keys), "--klines", str(file), *options, command=tune)


def study_of(result: dict[str, Any], at: int = 0) -> optuna.Study:
    return optuna.load_study(study_name=result["studies"][at]["study"], storage=result["storage"])


def test_a_trial_is_worth_what_a_plain_loop_says(tmp_path: Path, file: Path) -> None:
    """Rows, purge, scaling, fit, baseline and mean by hand, for one value of C."""
    raster = rasters.join(klinefiles.read_klines([file])[0])
    features = FeatureSet.of(NAMES)
    bench = tune.Bench(settings(tmp_path), features, [raster], Progress(quiet=True))
    limit = bench.plan.holdout.start_ms
    found = list(bench.measure("lc", {"train.C": 0.03}, bench.plan.folds, limit))

    values = features.batch(raster.first_index, kline=raster.kline).astype(np.float32)
    close, high, low = raster.kline[:, 3], raster.kline[:, 1], raster.kline[:, 2]
    n, first = len(raster), features.lookback - 1
    held = first + int((n - first) * 0.8)
    assert int(raster.open_time_ms[held]) == limit
    half = first + (held - first) // 2
    edges = [half, first + int((half - first) * 1.5), held]
    assert [int(raster.open_time_ms[at]) for at in edges] == [
        *(fold.start_ms for fold in bench.plan.folds),
        limit,
    ]
    for fold, (start, stop) in enumerate(itertools.pairwise(edges)):
        skills = []
        for side in ("high", "low"):
            y = np.full(n, np.nan)
            for t in range(n - HORIZON):
                if side == "high":
                    y[t] = float(high[t + 1 : t + 1 + HORIZON].max() >= close[t] * 1.01)
                else:
                    y[t] = float(low[t + 1 : t + 1 + HORIZON].min() <= close[t] * 0.99)
            even = [t for t in range(first, n) if (raster.first_index + t) % 2 == 0]
            fit = [t for t in even if t + HORIZON < start]
            test = [t for t in even if start <= t < stop and t + HORIZON < held]
            mean, deviation = values[fit].mean(axis=0), values[fit].std(axis=0)
            scaled = np.clip((values - mean) / deviation, -5, 5).astype(float)
            model = LogisticRegression(C=0.03, solver="newton-cholesky").fit(scaled[fit], y[fit])
            base = np.mean([y[t] for t in range(first, n) if t + HORIZON < start])
            loss = log_loss(y[test], model.predict_proba(scaled[test])[:, 1])
            plain = log_loss(y[test], np.full(len(test), base))
            skills.append(1 - loss / plain)
        assert found[fold] == pytest.approx(np.mean(skills), abs=2e-3)


def test_a_label_trial_is_worth_the_scores_auc_over_the_configured_horizon(
    tmp_path: Path, file: Path
) -> None:
    raster = rasters.join(klinefiles.read_klines([file])[0])
    bench = tune.Bench(settings(tmp_path), FeatureSet.of(NAMES), [raster], Progress(quiet=True))
    n = len(raster)
    rows = bench.rows
    test = np.arange(500, 900)
    random = np.random.default_rng(0)
    outputs = {f"{side}_10_k_lc": random.random(len(test)) for side in ("high", "low")}
    limit = int(rows.open_ms[880])
    fold = bench.plan.folds[0]
    found = bench._of_score(rows, ("high_10", "low_10"), test, outputs, fold, limit)
    close, high, low = raster.kline[:, 3], raster.kline[:, 1], raster.kline[:, 2]
    truth, said = [], []
    up, down = outputs["high_10_k_lc"], outputs["low_10_k_lc"]
    for at, row in enumerate(test):
        t = int(rows.index[row]) - raster.first_index
        if rows.open_ms[row] + HORIZON * MINUTE >= limit or t + HORIZON >= n:
            continue
        width = np.std(np.diff(np.log(close[t - 720 : t + 1]))) * HORIZON**0.5
        for k in range(1, HORIZON + 1):
            rose = high[t + k] >= close[t] * (1 + width)
            fell = low[t + k] <= close[t] * (1 - width)
            if rose or fell:
                if rose != fell:
                    truth.append(rose)
                    said.append(2 * up[at] / (up[at] + down[at]) - 1)
                break
    assert 50 < len(truth) < len(test)
    assert found == pytest.approx(roc_auc_score(truth, said))


def test_every_kind_is_tuned_and_the_best_is_a_config_to_copy(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tuned(tmp_path, file)
    assert [study["what"] for study in result["studies"]] == ["lc", "labels"]
    assert [study["objective"] for study in result["studies"]] == ["log-loss skill", "score AUC"]
    for at, found in enumerate(result["studies"]):
        trials = study_of(result, at).get_trials()
        done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
        assert len(done) == found["complete"] + found["pruned"] == 4
        values = [trial.value for trial in trials if trial.state.name == "COMPLETE"]
        if found["best"] is None:
            assert max(values) <= found["configured"]
            continue
        assert found["best"]["value"] == max(values) > found["configured"]
        assert found["holdout"]["looks"] == 1
    text = tune.summary(result)
    assert "optimistic" in text
    assert (tmp_path / "data" / "TESTUSDT-1m-tune.db").exists()
    json.dumps(result)
    copied = result["config"]
    assert copied
    assert Settings(**copied)  # what is printed can be copied
    for key, value in copied.items():
        assert f'  "{key}": {json.dumps(value)},' in text.splitlines()


def test_a_holdout_that_does_not_confirm_the_best_is_said() -> None:
    study = {
        "what": "lc",
        "objective": "log-loss skill",
        "configured": 0.02,
        "complete": 3,
        "pruned": 1,
        "best": {"trial": 1, "value": 0.03, "values": {"train.C": 1.0}},
        "holdout": {"best": 0.01, "configured": 0.015, "looks": 1},
    }
    result = {"studies": [study], "config": {}, "storage": "x"}
    assert "does not confirm them" in tune.summary(result)
    study["holdout"] = {"best": 0.02, "configured": 0.015, "looks": 1}
    assert "does not confirm" not in tune.summary(result)


def values_of(result: dict[str, Any]) -> list[Any]:
    return [(trial.params, trial.value) for trial in study_of(result).get_trials()]


def test_a_study_that_goes_on_is_the_study_that_never_stopped(tmp_path: Path, file: Path) -> None:
    whole = tuned(tmp_path / "a", file, "--what", "lc", "--trials", "5", "--no-holdout")
    tuned(tmp_path / "b", file, "--what", "lc", "--trials", "2", "--no-holdout")
    rest = tuned(tmp_path / "b", file, "--what", "lc", "--trials", "5", "--no-holdout")
    assert values_of(rest) == values_of(whole)
    assert whole["studies"][0]["holdout"] is None
    again = tuned(tmp_path / "b", file, "--what", "lc", "--trials", "5", "--no-holdout")
    assert len(values_of(again)) == 5
    elsewhere = {"threads": 1, "test_share": 0.3}  # nothing that a trial depends on
    again = tuned(tmp_path / "b", file, "--what", "lc", "--trials", "5", **elsewhere)
    assert again["studies"][0]["study"] == rest["studies"][0]["study"]
    other = tuned(tmp_path / "b", file, "--what", "lc", "--trials", "2", stride=3)
    assert other["studies"][0]["study"] != rest["studies"][0]["study"]


def test_the_holdout_is_measured_once_per_best_and_counted(tmp_path: Path, file: Path) -> None:
    space = {"lc": {"train.C": [0.0001, 10.0, "log"]}}
    result = tuned(tmp_path, file, "--what", "lc", "--trials", "3", tune={"space": space})
    held = result["studies"][0]["holdout"]
    assert held["looks"] == 1
    again = tuned(tmp_path, file, "--what", "lc", "--trials", "3", tune={"space": space})
    assert again["studies"][0]["holdout"] == held
    bench_from = result["studies"][0]["folds"][-1]["to"]
    assert held["from"] == bench_from  # right behind the last fold


def test_a_trial_behind_the_median_is_pruned_after_its_first_fold(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def worth(
        self: tune.Bench, kind: str, values: dict[str, float], folds: Any, limit_ms: int
    ) -> Any:
        for number, _ in enumerate(folds):
            measured.append(number)
            good = len(measured) < 14  # the first trials are good, the later ones are not
            yield 1.0 if good else 0.0

    monkeypatch.setattr(tune.Bench, "measure", worth)
    result = tuned(tmp_path, file, "--what", "lc", "--trials", "9", "--no-holdout")
    found = result["studies"][0]
    assert found["pruned"] >= 2
    pruned = [t for t in study_of(result).get_trials() if t.state.name == "PRUNED"]
    assert {len(trial.intermediate_values) for trial in pruned} == {1}


_KILLED = """
import os, signal, sys
from trainer import cli, tune

real = tune.Bench.measure
count = 0

def cut(self, *arguments):
    global count
    count += 1
    if count == 4:  # as configured, two trials, and then
        os.kill(os.getpid(), signal.SIGKILL)
    yield from real(self, *arguments)

tune.Bench.measure = cut
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_kill_9_in_a_trial_costs_that_trial_only(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.json"
    trainer = {"threads": 2, "label_horizon": HORIZON, "stride": 2}
    keys = {
        "symbol": "TESTUSDT",
        "data_folder": str(tmp_path / "data"),
        "features_kline": NAMES,
        "labels": ["high_10", "low_10"],
        "algorithms": ["lc"],
        "trainer": trainer | {"tune": {"trials": 4, "folds": 2, "space": SPACE}},
    }
    config.write_text(json.dumps(keys))
    options = ["tune", "-c", str(config), "--klines", str(file), "--what", "lc", "--no-holdout"]
    done = subprocess.run([sys.executable, "-c", _KILLED, *options], check=False)
    assert done.returncode == -signal.SIGKILL
    storage = f"sqlite:///{tmp_path / 'data' / 'TESTUSDT-1m-tune.db'}"
    name = optuna.get_all_study_names(storage)[0]
    states = [t.state.name for t in optuna.load_study(study_name=name, storage=storage).trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert main(options) == 0
    states = [t.state.name for t in optuna.load_study(study_name=name, storage=storage).trials]
    assert states[:3] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert len([state for state in states if state in ("COMPLETE", "PRUNED")]) == 4
    assert optuna.get_all_study_names(storage) == [name]


def test_processes_share_a_study_over_redis(tmp_path: Path, file: Path, valkey: Server) -> None:
    """Two runs in turn, as two processes would: each does what is left."""
    first = tuned(tmp_path / "a", file, "--what", "lc", "--trials", "2", "--storage", valkey.url)
    second = tuned(tmp_path / "b", file, "--what", "lc", "--trials", "3", "--storage", valkey.url)
    assert first["studies"][0]["study"] == second["studies"][0]["study"]
    assert second["studies"][0]["complete"] + second["studies"][0]["pruned"] == 3


def test_who_comes_second_to_an_empty_storage_takes_the_tables_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two processes that begin at once: the second fails on a row that the first has written."""
    real, calls = optuna.storages.RDBStorage, []

    def late(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))
        return real(*args, **kwargs)

    monkeypatch.setattr(optuna.storages, "RDBStorage", late)
    storage = tune.storage_of(f"sqlite:///{tmp_path / 'shared.db'}")
    assert storage.get_all_studies() == []


@pytest.mark.slow
def test_two_processes_at_once_share_the_trials(tmp_path: Path, file: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    trainer = {"threads": 1, "label_horizon": HORIZON, "stride": 2}
    keys = {
        "symbol": "TESTUSDT",
        "data_folder": str(tmp_path / "data"),
        "features_kline": NAMES,
        "labels": ["high_10", "low_10"],
        "algorithms": ["lc"],
        "trainer": trainer | {"tune": {"trials": 20, "folds": 2, "space": SPACE}},
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps(keys))
    line = [sys.executable, "-m", "trainer", "tune", "-c", str(config), "--klines", str(file)]
    line += ["--what", "lc", "--storage", storage, "--json"]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    names = optuna.get_all_study_names(storage)
    assert len(names) == 1
    trials = optuna.load_study(study_name=names[0], storage=storage).trials
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert 20 <= len(done) <= 21  # both may have begun the last one
    assert len({trial.user_attrs["process"] for trial in done}) == 2
    assert results[0]["studies"][0]["study"] == names[0]


WRONG: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "kind": (
        lambda a, b: tuned(a, b, "--what", "xgb"),
        "--what xgb: known are gb, nn, lc, svc, labels",
    ),
    "algorithm": (lambda a, b: tuned(a, b, "--what", "gb"), "has no algorithm of that kind"),
    "range": (
        lambda a, b: tuned(a, b, tune={"space": {"lc": {"train.C": [5, 1]}}}),
        r"space\.lc\.train\.C: give \[low, high\]",
    ),
    "name": (
        lambda a, b: tuned(a, b, tune={"space": {"lc": {"train.Q": [1, 5]}}}),
        r"lc: unknown key train\.Q",
    ),
    "section": (
        lambda a, b: tuned(a, b, tune={"space": {"lc": {"C": [1, 5]}}}),
        r"'C' is not train\.NAME or params\.NAME",
    ),
    "kind of space": (
        lambda a, b: tuned(a, b, tune={"space": {"svm": {"train.C": [1, 5]}}}),
        "'svm' is none of gb, nn, lc, svc, labels",
    ),
    "label": (
        lambda a, b: tuned(a, b, tune={"space": {"labels": {"threshold": {"choices": ["x9"]}}}}),
        "no label 'high_x9'",
    ),
    "trials": (lambda a, b: tuned(a, b, "--trials", "0"), "--trials 0: at least one"),
    "storage": (lambda a, b: tuned(a, b, "--storage", "here.db"), "give a URL such as sqlite"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_bad_options_are_one_line_of_usage(fault: str, tmp_path: Path, file: Path) -> None:
    call, text = WRONG[fault]
    with pytest.raises(Usage, match=text) as caught:
        call(tmp_path, file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "sqlite:////nowhere/at/all.db", "frob://x/y"]
)
def test_a_storage_that_is_not_there_is_one_line(url: str, tmp_path: Path, file: Path) -> None:
    with pytest.raises(Failure, match="the storage cannot be used: ") as caught:
        tuned(tmp_path, file, "--what", "lc", "--storage", url)
    assert "\n" not in str(caught.value)


def test_too_few_rows_for_the_folds_are_one_line(tmp_path: Path, file: Path) -> None:
    with pytest.raises(Failure, match="too few cases to measure on"):
        tuned(tmp_path, file, "--what", "lc", tune={"folds": 50})
