"""The report: a page per release that stands alone, says what is missing, and warns."""

import argparse
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure, Usage
from shared.releases import TrainingRange, promote, read_release, write_release
from shared.times import iso
from tests.browser import browser
from tests.made_releases import made_release
from tests.releases import M, market
from trainer import figures, rasters, report
from trainer.progress import Progress
from trainer.sections import models

ROWS = 3000
SECTIONS = [
    "tail",
    "folds",
    "calibration",
    "importance",
    "score",
    "thresholds",
    "equity",
    "signals",
    "gaps",
    "origin",
]
HOSTILE = "<script>alert(\"1\")</script><img src=x onerror=alert(2)> $a_b$ & 'quoted'"
MODELS = ("high_10_k_lc", "low_10_k_lc")


def settings(folder: Path, **keys: Any) -> Settings:
    return Settings(
        symbols=["BTCUSDT"],
        data_folder=folder / "data",
        model_folder=folder / "models",
        trainer={"threads": 1},
        **keys,
    )


def run(folder: Path, *options: str, rows: int = 0, **keys: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    result = report.run(
        settings(folder, **keys),
        parser.parse_args(["--rows", str(rows), *options]),
        Progress(io.StringIO(), quiet=True),
    )
    assert report.summary(result)
    json.dumps(result, default=str)
    return result


def write_release_to(folder: Path, **changes: Any) -> str:
    manifest, files = made_release(labels=("high_10", "low_10"))
    figures = {"auc": 0.71, "auc_low": 0.66, "auc_high": 0.75, "ap": 0.3, "base_rate": 0.1}
    update: dict[str, Any] = {
        "metrics": {
            name: figures | {"brier": 0.08, "log_loss": 0.3, "rows": 900} for name in MODELS
        },
        "training": TrainingRange(
            start_ms=0,
            end_ms=ROWS * M,
            rows=5000,
            stride=10,
            seed=3,
            test_start_ms=1_600_000_000_000,
            test_rows=9000,
        ),
    }
    manifest = manifest.model_copy(update=update | changes)
    compared = {"auc": 0.527, "auc_low": 0.49, "auc_high": 0.57, "rank_correlation": -0.031}
    files["metrics.json"] = json.dumps(
        {
            "score": {"kind": "ratio", "best": "stack", "compared": {"stack": compared}},
            "values": {"high_max_180_k_gb": {"mae": 0.317, "r2": None, "rank": 0.211, "rows": 55}},
        }
    ).encode()
    write_release(folder / "models", manifest, files)
    return manifest.id


def write_merged(folder: Path, rows: int = ROWS, gap: slice | None = slice(100, 130)) -> None:
    columns = market(rows)
    if gap is not None:
        for name in columns:
            if name != "open_time_ms":
                columns[name][gap] = np.nan
    rasters.MonthFolder(rasters.merged_folder(folder / "data", "BTCUSDT", "1m")).write(
        [columns], {}
    )


def rolling_metrics(**changes: Any) -> dict[str, Any]:
    """As `trainer rolling` writes it, with made-up figures."""
    model = {
        "auc": 0.612, "auc_low": 0.55, "auc_high": 0.67, "ap": 0.2, "f1": 0.0, "precision": 0.0,
        "recall": 0.0, "brier": 0.09, "log_loss": 0.31, "base_rate": 0.1, "rows": 900, "lift": 2.0,
        "skill": 0.04, "mean_output": 0.12, "calibration": 1.2, "ece": 0.021, "null_low": 0.47,
        "null_high": 0.54, "folds": 2, "auc_mean": 0.62, "auc_sd": 0.01, "auc_least": 0.61,
        "auc_most": 0.63,
    }  # fmt: skip
    baseline = {"auc": 0.58}
    decile = {
        "score_from": -0.5, "score_to": -0.4, "rows": 90, "mean_bp": -1.5, "mean_bp_low": -4.0,
        "mean_bp_high": 1.0, "median_bp": 0.5, "up_first": 0.45,
    }  # fmt: skip
    score = {
        "rows": 900, "rank": 0.02, "rank_low": -0.03, "rank_high": 0.07, "resolved": 700,
        "auc": 0.56, "auc_low": 0.51, "auc_high": 0.6, "null_low": 0.46, "null_high": 0.54,
    }  # fmt: skip
    plan = {
        "test": [["2023-04-01T00:00:00Z", "2023-04-12T00:00:00Z"]],
        "train_rows": 4000,
        "test_rows": 450,
    }
    return {
        "kind": "walk_forward",
        "horizon": 180,
        "null": "the clock alone",
        "plan": [plan | {"fold": n} for n in (0, 1)],
        "skipped": [],
        "alarms": [],
        "models": dict.fromkeys(MODELS, model),
        "baselines": {
            label: {"base_rate": 0.1, "volatility": baseline, "clock": baseline}
            for label in ("high_10", "low_10")
        },
        "score": score | {"deciles": [decile] * 10},
        "aggregate": "ratio",
        "best_aggregate": "logit_mean",
        "aggregates": {"ratio": score, "logit_mean": score | {"auc": 0.573, "auc_high": 0.61}},
        "folds": {
            str(n): {"models": {name: {"auc": 0.6 + 0.02 * n} for name in MODELS}, "score": score}
            for n in (0, 1)
        },
        "calibration": {
            name: [{"output": p, "happened": 0.8 * p, "rows": 60} for p in (0.05, 0.1, 0.3)]
            for name in MODELS
        },
    } | changes


def about(folder: Path) -> Path:
    """Where a monthly folder keeps what is no row."""
    found = folder / "_about"
    found.mkdir(exist_ok=True)
    return found


def write_rolling(folder: Path, **changes: Any) -> Path:
    random = np.random.default_rng(1)
    columns = market(ROWS)
    tail = slice(ROWS - 1000, ROWS)
    score = np.tanh(random.normal(0, 0.3, 1000))
    score[:5] = np.nan
    place = folder / "data" / "BTCUSDT-1m-features-rolling"
    rows: dict[str, Any] = {
        "open_time_ms": columns["open_time_ms"][tail],
        "close": columns["close"][tail],
        "fold": np.repeat([0, 1], 500),
    }
    rows |= {name: random.random(1000) for name in MODELS}
    rows |= {"score": score}
    rows |= {label: (random.random(1000) < 0.1).astype(float) for label in ("high_10", "low_10")}
    rasters.MonthFolder(place).write([rows], {})
    (about(place) / "metrics.json").write_text(json.dumps(rolling_metrics(**changes)))
    return place


def scored_rows(folder: Path) -> dict[str, Any]:
    """What signals and backtest begin their rows with: the score of rolling."""
    rows = rasters.read_months(folder / "data" / "BTCUSDT-1m-features-rolling")
    return {name: rows[name] for name in ("open_time_ms", "close", "score")}


def write_signals(
    folder: Path, verdict: str = "it holds", pair: tuple[float, float] = (0.15, -0.15), **of: Any
) -> Path:
    """As `trainer signals` writes it, with made-up figures."""
    place = folder / "data" / "BTCUSDT-1m-signals"
    rows = scored_rows(folder)
    count = len(rows["close"])
    rows |= {"side": np.zeros(count, np.int64), "position": np.zeros(count, np.int64)}
    rows |= {"equity": np.linspace(1000, 1100, count)}
    rasters.MonthFolder(place).write([rows], {})
    buy, sell = (a.ravel() for a in np.meshgrid([0.1, 0.15, 0.2], [-0.2, -0.15], indexing="ij"))
    grid = {
        "direction": np.ones(6, np.int64),
        "buy": buy,
        "sell": sell,
        "total_return": np.array([0.1, -0.2, 0.3, np.nan, 0.0, -0.1]),
        "sharpe": np.array([1.0, -2.0, 3.0, np.inf, 0.0, -1.0]),
    }
    klinefiles.write_columns(about(place) / "grid.parquet", grid, {})
    point = {
        "buy": 0.15, "sell": -0.2, "total_return": 0.3, "trades_per_month": 12.34,
        "win_rate": 0.456, "profit_factor": None, "sharpe": 3.0, "sortino": 4.0,
        "max_drawdown": 0.07, "exposure": 0.5, "deflated_sharpe": 0.97,
    }  # fmt: skip
    step = {
        "first": "2023-04-05T00:00:00Z", "last": "2023-04-06T23:59:00Z", "buy": None, "sell": None,
        "sharpe_before": None, "sharpe": -1.25, "total_return": -0.031,
    }  # fmt: skip
    direction = {
        "points": 6,
        "candidates": 5,
        "best": point,
        "robust": point | {"buy": pair[0], "sell": pair[1]},
        "walk_forward": {"steps": [step], "sharpe": 0.5, "total_return": 0.02},
        "deflated_sharpe": 0.97,
        "overfitting": 0.25,
        "expected_best_sharpe": 2.25,
        "lucky": False,
        "verdict": verdict,
    }
    summary = {"direction": "long", "directions": {"long": direction | of}}
    (about(place) / "signals.json").write_text(json.dumps(summary))
    return place


def write_backtest(folder: Path, reason: str = "score", trades: int = 45, **of: Any) -> Path:
    """As `trainer backtest` writes it, with made-up figures."""
    place = folder / "data" / "BTCUSDT-1m-backtest"
    rows = scored_rows(folder)
    times, count = rows["open_time_ms"], len(rows["close"])
    rows |= {
        "equity": np.linspace(1000, 1200, count),
        "buy_and_hold": np.linspace(1000, 900, count),
    }
    rasters.MonthFolder(place).write([rows], {})
    figures = {
        "total_return": 0.2, "cagr": 0.5, "sharpe": 1.5, "sortino": 2.5, "max_drawdown": 0.111,
        "trades": trades, "trades_per_month": 99.9, "win_rate": 0.4, "profit_factor": 1.1,
        "exposure": 0.3, "turnover": 77.7, "fees": 12.34,
    }  # fmt: skip
    summary = {
        "performance": figures,
        "buy_and_hold": {"total_return": -0.1, "max_drawdown": 0.2},
        "by_fee": [{"fee": 0.0004, "slippage": 0.0002, "total_return": 0.25, "sharpe": 1.75}],
        "rules": {"buy": 0.15, "sell": -0.15},
        "costs": {"fee": 0.001, "slippage": 0.0002},
    }
    (about(place) / "backtest.json").write_text(json.dumps(summary | of))
    with (about(place) / "trades.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "number",
                "side",
                "entry_time",
                "entry_price",
                "entry_reason",
                "exit_time",
                "exit_price",
                "exit_reason",
                "profit",
                "profit_share",
            ]
        )
        for n in range(trades):
            entered, left = iso(int(times[10 + 20 * n])), iso(int(times[20 + 20 * n]))
            side = "short" if n % 3 == 0 else "long"
            last = "open at the end" if n == trades - 1 else reason
            writer.writerow([n + 1, side, entered, 100.5, reason, left, 101.25, last, n % 2, 0.01])
    return place


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with everything there is to show; texts are hostile where they come from files."""
    folder = tmp_path_factory.mktemp("report")
    manifest, _ = made_release(labels=("high_10", "low_10"))
    labels = {
        name: label.model_copy(update={"definition": HOSTILE})
        for name, label in manifest.labels.items()
    }
    made_from = {"rows_sha256": "f00dcafe", "libraries": {"numpy": "2.0.1"}}
    write_release_to(folder, labels=labels, code_version=HOSTILE, made_from=made_from)
    write_merged(folder)
    write_rolling(folder, null=HOSTILE, alarms=[HOSTILE])
    write_signals(folder, verdict=HOSTILE)
    write_backtest(folder, reason=HOSTILE)
    return folder


@pytest.fixture(scope="module")
def result(full: Path) -> dict[str, Any]:
    return run(full, rows=60)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are put together, but not written out: for tests of the words around them."""
    monkeypatch.setattr(figures, "svg", lambda figure, name, label: "<svg></svg>")


class Document(HTMLParser):
    """What a test asks of a page. Fails where tags are not closed in order."""

    VOID = frozenset({"meta", "br", "img", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> tuple[str, Document]:
    text = path.read_text(encoding="utf-8")
    return text, Document(text)


def test_the_page_has_every_section_and_lies_in_the_release(
    full: Path, result: dict[str, Any]
) -> None:
    path = result["wrote"]
    assert path == full / "models" / "releases" / result["release"] / "report.html"
    _, page = read(path)
    ids = [attributes.get("id") for attributes in page.all("section")]
    assert [one for one in ids if one] == SECTIONS
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == ["#main", *(f"#{one}" for one in SECTIONS)]
    every = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(every) == len(set(every))
    assert read_release(path.parent).id == result["release"]  # it may lie in a release


def test_the_page_asks_for_nothing_and_runs_nothing(result: dict[str, Any]) -> None:
    text, page = read(result["wrote"])
    assert not {"script", "link", "iframe", "object", "img", "base", "form"} & {
        tag for tag, _ in page.tags
    }
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                assert str(value).startswith(("#", "data:image/png")), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_texts_from_files_are_text(result: dict[str, Any]) -> None:
    text, page = read(result["wrote"])
    assert "<script" not in text
    assert text.count("onerror=") == "".join(page.words).count("onerror=") >= 3
    assert any(HOSTILE in words for words in page.words)


def test_figures_and_tables_speak_to_everybody(result: dict[str, Any]) -> None:
    _, page = read(result["wrote"])
    drawings = page.all("svg")
    assert drawings
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert len(str(attributes["aria-label"])) > 30
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert {a.get("scope") for a in page.all("th")} == {"col", "row"}
    assert len(page.all("figcaption")) == len(page.all("figure"))
    scrolling = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
    assert page.all("html") == [{"lang": "en"}]


def test_figures_of_the_measured_stand_in_the_tables(result: dict[str, Any]) -> None:
    _, page = read(result["wrote"])
    words = set(page.words)
    assert {"0.710", "0.660 .. 0.750", "10.0 %", "3.0"} <= words  # AUC, interval, base rate, lift
    assert {"0.527", "0.490 .. 0.570", "-0.031", "high_max_180_k_gb", "0.317"} <= words
    assert {"0.612", "0.600 .. 0.620", "0.470 .. 0.540", "0.580"} <= words  # the folds
    assert {"2.10 %", "12.0 %", "1.20"} <= words  # calibration
    assert {"-1.5", "-4.0 .. +1.0", "45.0 %"} <= words  # deciles
    assert {"0.573", "0.510 .. 0.610"} <= words  # formulas
    assert any(
        "Best out of sample: logit_mean; these rows were scored by ratio. Their intervals" in one
        for one in words
    )
    assert "2023-04-01 00:00" in words
    assert {"f00dcafe", "2.0.1"} <= words
    assert "5,000, every 10th candle" in words
    assert {"12.3", "45.6 %", "0.97", "-1.25", "-3.1 %"} <= words  # the pairs of thresholds
    assert {"99.9", "77.7", "12.34", "0.040 %", "1.75", "11.1 %"} <= words  # the account
    assert "BTCUSDT: the last 15 of 45 trades (all are in trades.csv)" in words
    text = " ".join(page.words)
    assert "33.3 % of 6 pairs gained after costs" in text
    assert "20.0 % in 45 round trips" in text
    assert "Fee 0.1 %, slippage 0.02 % of each trade" in text
    assert "20 of 40 gained after costs" in text


def test_every_figure_is_a_png_too_and_the_page_is_the_same_bytes(tmp_path: Path) -> None:
    write_release_to(tmp_path)
    write_merged(tmp_path)
    found = run(tmp_path, rows=30)
    page = found["wrote"].read_bytes()
    folder = tmp_path / "png"
    found = run(tmp_path, "--png", str(folder), rows=30)
    assert found["wrote"].read_bytes() == page
    names = sorted(path.stem for path in folder.iterdir())
    assert names == ["auc-tail", "btcusdt-gaps", "btcusdt-importance"]
    assert found["figures"] == len(names)
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.iterdir())


def test_every_section_has_its_figures(result: dict[str, Any]) -> None:
    text, page = read(result["wrote"])
    titles = " ".join(words for words in page.words if words.startswith(("AUC", "BTCUSDT: ")))
    for title in (
        "AUC on the purged tail",
        "AUC over 2 folds",
        "said and happened",
        "AUC lost when a group is shuffled",
        "distribution of the score",
        "what followed, by tenth of the score",
        "net return of each pair, long only",
        "Sharpe ratio of each pair, long only",
        "gain and drawdown",
        "signals over the last 960 scored candles",
        "the last 40 trades of the backtest",
        "missing candles",
    ):
        assert title in titles
    assert len(page.all("figure")) == result["figures"] == 12
    assert len(text) < 1_000_000


def test_importance_is_of_the_groups_in_use_and_says_when_it_is_in_sample(
    result: dict[str, Any],
) -> None:
    # made_releases' features: close 1 5 15 60, volume 5, span 5; training ends at 1970
    assert set(result["importance"]["BTCUSDT"]) == {"close", "volume", "span"}
    assert not any("In-sample" in line for line in result["warnings"])


@pytest.mark.usefixtures("undrawn")
def test_rows_that_were_trained_on_are_called_in_sample(tmp_path: Path) -> None:
    training = TrainingRange(
        start_ms=0, end_ms=2**42, rows=9, stride=1, seed=1, test_start_ms=0, test_rows=9
    )
    write_release_to(tmp_path, training=training)
    write_merged(tmp_path)
    found = run(tmp_path, rows=30)
    assert any(line.startswith("In-sample: the importance") for line in found["warnings"])
    assert any(line.startswith("Few rows: ") for line in found["warnings"])


@pytest.mark.usefixtures("undrawn")
def test_where_nothing_was_measured_the_page_says_which_command_gives_it(tmp_path: Path) -> None:
    write_release_to(tmp_path, metrics={})
    found = run(tmp_path, rows=30)
    text = " ".join(read(found["wrote"])[1].words)
    for command in ("train", "rolling", "merge", "signals", "backtest"):
        assert f"`python -m trainer {command}`" in text
    assert found["figures"] == 0
    assert len(found["missing"]) == 9
    assert any("No walk-forward evaluation" in line for line in found["warnings"])


@pytest.mark.usefixtures("undrawn")
def test_warnings_name_what_is_too_good_or_no_better_than_the_clock(tmp_path: Path) -> None:
    figures = {"auc": 0.93, "auc_low": 0.92, "auc_high": 0.94, "base_rate": 0.1, "rows": 9}
    weak = {"auc": 0.52, "auc_low": 0.4, "auc_high": 0.6, "base_rate": 0.1, "rows": 9}
    write_release_to(tmp_path, metrics=dict(zip(MODELS, (figures, weak), strict=True)))
    baseline = {"volatility": {"auc": 0.7}, "clock": {"auc": 0.5}}
    score = rolling_metrics()["score"] | {"auc": 0.53}
    write_rolling(
        tmp_path,
        baselines={"high_10": baseline, "low_10": {}},
        score=score,
        alarms=["look here"],
        skipped=[{"fold": 3, "from": "2023-05-01T00:00:00Z", "why": "too few cases"}],
        models=rolling_metrics()["models"] | {"extra_1_k_gb": {}},
    )
    lines = " | ".join(run(tmp_path)["warnings"])
    assert "Too good: high_10_k_lc has an AUC of 0.930 on the purged tail" in lines
    assert "wider than 0.1 for low_10_k_lc" in lines
    assert "Not told apart from chance on the purged tail: low_10_k_lc" in lines
    assert "1 model of 3 rank no better" in lines
    assert "(0.540)" in lines  # direction within the band of luck
    assert "look here" in lines
    assert "fold 3 from 2023-05-01T00:00:00Z was left out: too few cases" in lines


@pytest.mark.usefixtures("undrawn")
def test_lucky_overfitted_or_losing_thresholds_are_warned_of(tmp_path: Path) -> None:
    write_release_to(tmp_path)
    write_rolling(tmp_path)
    write_signals(tmp_path, "it is lucky", pair=(0.2, -0.15), lucky=True, overfitting=0.625)
    figures = {"total_return": -0.25, "max_drawdown": 0.3, "trades": 3}
    place = write_backtest(
        tmp_path, trades=3, performance=figures, rules={"buy": 0.3, "sell": -0.15}
    )
    lines = " | ".join(run(tmp_path)["warnings"])
    assert "BTCUSDT, thresholds, long only: it is lucky" in lines
    assert "with a probability of 62 %" in lines
    assert "the robust pair is 0.2 and -0.15" in lines
    assert "the backtest loses after costs (-25.0 %)" in lines
    assert "gains less (-25.0 %) than buying and holding (-10.0 %)" in lines
    assert "3 round trips in the backtest: too few" in lines
    assert "the backtest buys above 0.3 and sells below -0.15" in lines
    assert "other scores" not in lines
    rows = rasters.read_months(place)
    rows["score"][50] += 1e-9
    texts = [(path.name, path.read_bytes()) for path in about(place).iterdir()]
    rasters.MonthFolder(place).write([rows], {})
    for name, content in texts:
        (about(place) / name).write_bytes(content)
    lines = " | ".join(run(tmp_path)["warnings"])
    assert "the backtest ran on other scores than the walk-forward rows" in lines
    assert "the threshold search ran on other scores" not in lines


@pytest.mark.usefixtures("undrawn")
def test_thresholds_and_trades_that_came_to_nothing_are_shown_as_such(tmp_path: Path) -> None:
    write_release_to(tmp_path)
    write_merged(tmp_path)
    write_rolling(tmp_path)
    nothing = {"best": None, "robust": None, "overfitting": None, "deflated_sharpe": None}
    write_signals(tmp_path, "nothing can be chosen", **nothing)
    write_backtest(tmp_path, trades=0)
    found = run(tmp_path)
    assert "BTCUSDT, thresholds, long only: nothing can be chosen." in found["warnings"]
    assert (
        "BTCUSDT: 0 round trips in the backtest: too few to tell skill from luck."
        in (found["warnings"])
    )


@pytest.mark.usefixtures("undrawn")
def test_folds_of_other_models_are_not_this_releases(tmp_path: Path) -> None:
    manifest, files = made_release(labels=("high_10", "low_10", "low_20"))
    write_release(tmp_path / "models", manifest, files)
    write_rolling(tmp_path)
    assert any(
        "are of other models than this release (low_20_k_lc)" in line
        for line in run(tmp_path)["warnings"]
    )


def test_regressions_beside_the_bundle_are_models_of_the_release_too() -> None:
    told: list[str] = []
    draft, one = SimpleNamespace(warn=told.append), SimpleNamespace(symbol="BTCUSDT")
    rolling = SimpleNamespace(outputs={"high_10_k_lc": 0, "high_max_60_k_lc": 0})
    manifest = SimpleNamespace(models={"high_10_k_lc": 0}, values={"high_max_60_k_lc": 0})
    models._same_models(draft, one, rolling, manifest)  # type: ignore[arg-type]  # what it reads
    assert told == []
    manifest.values = {}
    models._same_models(draft, one, rolling, manifest)  # type: ignore[arg-type]  # what it reads
    assert "other models than this release (high_max_60_k_lc)" in told[0]


@pytest.mark.usefixtures("undrawn")
def test_data_without_a_gap_and_with_many(tmp_path: Path) -> None:
    write_release_to(tmp_path)
    write_merged(tmp_path, gap=None)
    found = run(tmp_path)
    assert "no candle is missing among 3,000" in " ".join(read(found["wrote"])[1].words)
    write_merged(tmp_path, gap=slice(10, 310))
    found = run(tmp_path)
    assert "BTCUSDT: 10.0 % of the candles are missing." in found["warnings"]
    words = read(found["wrote"])[1].words
    assert "300" in words


@pytest.mark.usefixtures("undrawn")
def test_the_live_release_is_reported_else_the_newest_else_the_one_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no release; run `python -m trainer train`"):
        run(tmp_path)
    manifest, files = made_release(labels=("high_10", "low_10"))
    write_release(tmp_path / "models", manifest, files)
    newer, files = made_release(seed=1, labels=("high_10", "low_10"), created_s=1_800_000_000)
    write_release(tmp_path / "models", newer, files)
    assert run(tmp_path)["release"] == newer.id
    promote(tmp_path / "models", manifest.id)
    assert run(tmp_path)["release"] == manifest.id
    assert run(tmp_path, "--release", newer.id)["release"] == newer.id
    with pytest.raises(Failure, match=f"no release 'x'; the newest is {newer.id}"):
        run(tmp_path, "--release", "x")


@pytest.mark.usefixtures("undrawn")
def test_every_symbol_of_a_release_has_its_own_parts(tmp_path: Path) -> None:
    write_release_to(tmp_path, symbols=("BTCUSDT", "ETHUSDT"))
    write_merged(tmp_path)
    write_rolling(tmp_path)
    found = run(tmp_path)
    text = " ".join(read(found["wrote"])[1].words)
    assert "BTCUSDT: folds" in text
    assert "ETHUSDT: folds" not in text
    for command in ("rolling", "signals", "backtest", "merge"):
        assert any(
            "ETHUSDT" in line and f"`python -m trainer {command}`" in line
            for line in found["missing"]
        )
    found = run(tmp_path, "--symbol", "ETHUSDT")
    assert found["symbols"] == ["ETHUSDT"]
    assert "BTCUSDT: folds" not in " ".join(read(found["wrote"])[1].words)


def test_bare_files_stand_in_for_the_merged_data(tmp_path: Path) -> None:
    write_release_to(tmp_path)
    path = tmp_path / "BTCUSDT-1m.parquet"
    klinefiles.write_columns(path, market(2200), {})
    found = run(tmp_path, "--klines", str(path), rows=30)
    assert set(found["importance"]["BTCUSDT"]) == {"close", "volume", "span"}
    assert "no candle is missing among 2,200" in " ".join(read(found["wrote"])[1].words)
    other = tmp_path / "ETHUSDT-1m.parquet"
    klinefiles.write_columns(other, market(50), {})
    with pytest.raises(Usage, match=r"ETHUSDT 1m, and release .* is of BTCUSDT 1m"):
        run(tmp_path, "--klines", str(other))


@pytest.mark.usefixtures("undrawn")
def test_wrong_options_are_told_in_one_line(tmp_path: Path) -> None:
    write_release_to(tmp_path)
    for options, words in (
        (("--out", "page.txt"), "name it .html"),
        (("--symbol", "ETHUSDT"), "is of BTCUSDT"),
        (("--futures", "x.csv"), "go with --klines"),
    ):
        with pytest.raises(Usage, match=words):
            run(tmp_path, *options)
    with pytest.raises(Usage, match="a number of rows"):
        run(tmp_path, rows=-1)


@pytest.mark.parametrize("content", ["{", "[]", None])
@pytest.mark.usefixtures("undrawn")
def test_a_damaged_file_is_named_not_left_out(tmp_path: Path, content: str | None) -> None:
    write_release_to(tmp_path)
    path = write_rolling(tmp_path) / "_about" / "metrics.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(BadInput, match=r"metrics\.json: .*`python -m trainer rolling`"):
        run(tmp_path)


@pytest.mark.browser
def test_a_browser_shows_the_page_on_every_screen(
    full: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    path: Path = result["wrote"]
    with browser(tmp_path) as tab:
        for width in (390, 768, 1280):
            for dark in (False, True):
                tab.open(path, width=width, dark=dark)
                assert tab.requests == [path.resolve().as_uri()]
                assert tab.messages == []
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                shown = tab.evaluate(
                    "[...document.querySelectorAll('main > section')].filter("
                    "s => s.getBoundingClientRect().height > 40).map(s => s.id)"
                )
                assert [one for one in shown if one] == SECTIONS
                drawn = tab.evaluate(
                    "[...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll("
                    "'svg')].filter(s => s.getBoundingClientRect().height > 50).length)"
                )
                assert drawn == [1] * result["figures"]
                # text of a figure lies inside it
                outside = tab.evaluate(
                    "[...document.querySelectorAll('svg')].filter(s => s.clientHeight).flatMap("
                    "s => { const b = s.getBoundingClientRect(); return [...s.querySelectorAll("
                    "'text')].filter(t => { const r = t.getBoundingClientRect(); return r.left < "
                    "b.left - 2 || r.right > b.right + 2 || r.bottom > b.bottom + 2; }).map("
                    "t => t.textContent); })"
                )
                assert outside == []
                background, ink = tab.evaluate(
                    "[getComputedStyle(document.body).backgroundColor, "
                    "getComputedStyle(document.querySelector('svg')).color]"
                )
                channels = [int(re.findall(r"\d+", colour)[0]) for colour in (background, ink)]
                assert (channels[0] < 60 and channels[1] > 200) == dark
                tab.screenshot(tmp_path / f"{width}-{dark}.png")
        assert tab.pdf().startswith(b"%PDF")
