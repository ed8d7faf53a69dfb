"""What goes live and what does not: gates, the list of releases, promote and rollback."""

import argparse
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import BadInput, Failure
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.releases import Manifest, current_id, read_release
from tests import made_releases
from tests.releases import market
from trainer import gates, promote, rasters, releases, rollback, train
from trainer.cli import main
from trainer.progress import Progress

NAMES = ("close_5", "close_std_15", "volume_5", "span_60")


def candles(rows: int, seed: int = 5) -> KlineTable:
    columns = market(rows, seed)
    return KlineTable(
        symbol="TESTUSDT",
        interval="1m",
        open_time_ms=columns["open_time_ms"],
        values=np.column_stack([columns[name] for name in KLINE_COLUMNS]),
    )


def settings(folder: Path, **keys: Any) -> Settings:
    defaults: dict[str, Any] = {
        "symbols": ["TESTUSDT"],
        "model_folder": folder / "models",
        "data_folder": folder / "data",
        "features_kline": NAMES,
        "labels": ["high_10", "low_10"],
        "algorithms": ["lc"],
        "trainer": {"threads": 2},
    }
    return Settings(**(defaults | keys))


def run(config: Settings, *options: str, command: Any = promote) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    result: dict[str, Any] = command.run(
        config, parser.parse_args(options), Progress(io.StringIO(), quiet=True)
    )
    assert command.summary(result)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with candles and two releases that nothing made live."""
    folder = tmp_path_factory.mktemp("trained")
    table = candles(3500)
    columns = {"open_time_ms": table.open_time_ms}
    columns |= {name: table.column(name) for name in KLINE_COLUMNS}
    path = folder / "TESTUSDT-1m.parquet"
    klinefiles.write_columns(path, columns)
    for _ in range(2):
        run(settings(folder), "--klines", str(path), command=train)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    return copy


def known(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models" / "releases").iterdir())


def rewritten(folder: Path, release: str, **changes: Any) -> None:
    """The release with another manifest, as a later version or a careless hand may have made it."""
    path = folder / "models" / "releases" / release / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_promote_verifies_and_rollback_returns(folder: Path, tmp_path: Path) -> None:
    config = settings(folder)
    with pytest.raises(Failure, match="no release to promote"):
        run(settings(tmp_path))
    first, second = known(folder)
    assert run(config, first)["release"] == first
    broken = folder / "models" / "releases" / second / "bundle.onnx"
    content = broken.read_bytes()
    broken.write_bytes(content[:-1])
    for force in ([], ["--force"]):
        with pytest.raises(BadInput, match=r"bundle\.onnx is not the file"):
            run(config, *force)
    assert current_id(folder / "models") == first
    broken.write_bytes(content)
    result = run(config, "--klines", str(folder / "TESTUSDT-1m.parquet"))
    assert (result["release"], result["previous"], result["overridden"]) == (second, first, [])
    assert run(config, command=rollback)["release"] == first
    with pytest.raises(Failure, match="no earlier release"):
        run(config, command=rollback)
    with pytest.raises(Failure, match="no release 'x'"):
        run(config, "x")


def test_an_ordinary_release_passes_and_without_candles_a_line_says_what_was_not_tried(
    folder: Path,
) -> None:
    config = settings(folder)
    table = candles(3500)
    bundle = Bundle.load(folder / "models" / "releases" / known(folder)[0])
    found = gates.check(bundle, FeatureSet.of(NAMES), [rasters.join(table)], nan_share=0.2)
    assert [finding for finding in found if finding.refuses] == []
    result = run(config)
    assert any("no candles at hand" in warning for warning in result["warnings"])
    columns = rasters.join(table).columns()
    rasters.MonthFolder(rasters.merged_folder(folder / "data", "TESTUSDT", "1m")).write(
        [columns], {}
    )
    result = run(config)
    assert not any("no candles at hand" in warning for warning in result["warnings"])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no parity": ({"parity": {}}, "does not say that its graphs were compared"),
    "parity failed": (
        {"parity": {"trees_equal": True, "sides_flipped": 3, "largest_difference": 0.0}},
        "its graphs do not give what its models gave",
    ),
    "too good": (
        {
            "metrics": {
                "high_10_k_lc": {"auc": 0.99, "auc_low": 0.97, "auc_high": 0.995, "rows": 700}
            }
        },
        r"high_10_k_lc has an AUC of 0\.990 out of sample \(0\.970 at least\)",
    ),
    "test rows at the start": (
        {"training": {"test_start_ms": 0}},
        "no purged test rows lie behind",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gate_refuses_goes_live_by_force_only_and_loudly(
    folder: Path, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, text = FAULTS[fault]
    release = known(folder)[1]
    manifest = json.loads((folder / "models" / "releases" / release / "manifest.json").read_text())
    if "training" in changes:
        changes = {"training": manifest["training"] | changes["training"]}
    rewritten(folder, release, **changes)
    run(settings(folder), known(folder)[0])
    with pytest.raises(Failure, match=f"not promoted: .*{text}.*--force") as caught:
        run(settings(folder), release)
    assert "\n" not in str(caught.value)
    assert current_id(folder / "models") == known(folder)[0]
    monkeypatch.setenv("ITB_MODEL_FOLDER", str(folder / "models"))
    monkeypatch.setenv("ITB_DATA_FOLDER", str(folder / "data"))
    assert main(["promote", release, "--force"]) == 0
    captured = capsys.readouterr()
    assert "FORCED although: " in captured.err
    assert "forced past 1 faults" in captured.out
    assert current_id(folder / "models") == release


def test_a_lucky_few_test_rows_and_a_high_auc_are_said_and_refuse_nothing(folder: Path) -> None:
    figures = {"auc": 0.97, "auc_low": 0.6, "auc_high": 1.0, "rows": 90}
    rewritten(folder, known(folder)[1], metrics={"high_10_k_lc": figures})
    result = run(settings(folder))
    assert any("more than the 0.86 that honest tests" in text for text in result["warnings"])
    figures = {"auc": 0.52, "auc_low": 0.47, "auc_high": 0.58, "rows": 700}
    rewritten(folder, known(folder)[1], metrics={"high_10_k_lc": figures})
    result = run(settings(folder))
    assert any("no model is better than chance" in text for text in result["warnings"])


class Fixed(Bundle):
    """A release whose outputs a test sets."""

    def __init__(self, real: Bundle, output: float, score: float) -> None:
        self.release, self.manifest, self.models = real.release, real.manifest, real.models
        self.note = ""

        def outputs(x: Any, threads: int = 1) -> Any:
            found = real.run(x, threads)
            found.outputs[:, 0] = output
            found.score[:] = score
            return found

        self.run = outputs


@pytest.mark.parametrize(
    ("output", "score", "text"),
    [
        (0.5, 0.25, "the score is 0.25 for every one of"),
        (1.5, 0.1, "high_10_k_lc gives 1.5, which is no probability"),
        (float("nan"), 0.1, "high_10_k_lc gives nan, which is no probability"),
        (0.5, float("nan"), "the score is nil for"),
    ],
)
def test_broken_outputs_on_recent_candles_are_refused(
    trained: Path, output: float, score: float, text: str
) -> None:
    real = Bundle.load(trained / "models" / "releases" / known(trained)[0])
    raster = rasters.join(candles(3500))
    found = gates.check(Fixed(real, output, score), FeatureSet.of(NAMES), [raster], nan_share=0.2)
    assert any(text in finding.text and finding.refuses for finding in found)


def test_candles_that_are_all_invalid_are_refused(trained: Path) -> None:
    bundle = Bundle.load(trained / "models" / "releases" / known(trained)[0])
    short = rasters.join(candles(3500).rows(0, 200))
    found = gates.check(bundle, FeatureSet.of(NAMES), [short], nan_share=0.2)
    assert any("live it would be mute" in finding.text and finding.refuses for finding in found)


def test_a_single_file_of_another_model_is_refused(trained: Path) -> None:
    bundle = Bundle.load(trained / "models" / "releases" / known(trained)[0])
    names = list(bundle.manifest.models)
    swapped = dict(zip(names, reversed(list(bundle.manifest.models.values())), strict=True))
    bundle.manifest = bundle.manifest.model_copy(update={"models": swapped})
    found = gates.check(bundle, FeatureSet.of(NAMES), [rasters.join(candles(3500))], nan_share=0.2)
    assert {f.text for f in found if f.refuses} == {
        f"the file of {name} is not the model in the bundle" for name in names
    }


def test_a_feature_that_looks_ahead_is_named_with_the_candle_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raster = rasters.join(candles(2600))
    features = FeatureSet.of(NAMES)
    assert gates.leaks(features, raster) == []

    def ahead(chosen: FeatureSet, rows: rasters.Raster, workers: int) -> Iterator[dict[str, Any]]:
        for block in gates_blocks(chosen, rows, workers):
            moved = block["span_60"].copy()
            moved[:-1] = moved[1:]  # each row has the value of the next one
            yield dict(block) | {"span_60": moved}

    gates_blocks = gates.feature_blocks
    monkeypatch.setattr(gates, "feature_blocks", ahead)
    found = gates.leaks(features, raster)
    assert len(found) == 1
    assert found[0].refuses
    assert found[0].text.startswith("span_60 of the candle 20")


def test_a_user_feature_with_a_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from shared.features import feature\n\nseen = []\n\n"
        "@feature(lookback=2)\ndef calls(rows):\n"
        "    seen.append(1)\n    return float(len(seen))\n"
    )
    found = gates.leaks(FeatureSet.of(("close_5", "calls"), file), rasters.join(candles(2600)))
    assert [finding.text.split()[0] for finding in found] == ["calls"]


def test_a_user_feature_that_reads_the_next_row_is_named_with_the_row(tmp_path: Path) -> None:
    raster = rasters.join(candles(2600))
    np.save(tmp_path / "close.npy", raster.kline[:, 3])
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom shared.features import feature\n\n"
        f"close = np.load({str(tmp_path / 'close.npy')!r})\n\n"
        "@feature(lookback=2)\ndef honest(rows):\n    return float(rows[-1, 3] - rows[0, 3])\n\n"
        "@feature(lookback=2)\ndef tomorrow(rows):\n"
        "    at = int(np.flatnonzero(close == rows[-1, 3])[0])\n"
        "    return float(close[min(at + 1, len(close) - 1)] / rows[-1, 3])\n"
    )
    features = FeatureSet.of(("close_5", "honest", "tomorrow"), file)
    found = gates.own_leaks(features, raster, file)
    assert len(found) == 1
    assert found[0].refuses
    assert found[0].text.startswith("feature 'tomorrow' at 20")


def test_train_writes_but_does_not_promote_what_a_gate_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings(folder), known(folder)[0])
    before = known(folder)
    monkeypatch.setattr(gates, "_NIL_SHARE", -1.0)
    monkeypatch.setenv("ITB_MODEL_FOLDER", str(folder / "models"))
    path = str(folder / "TESTUSDT-1m.parquet")
    with pytest.raises(Failure, match="is written but not promoted"):
        run(settings(folder), "--klines", path, "--promote", command=train)
    assert current_id(folder / "models") == before[0]
    assert len(known(folder)) == len(before) + 1
    monkeypatch.undo()
    assert run(settings(folder), "--klines", path, "--promote", command=train)["promoted"]
    assert current_id(folder / "models") == known(folder)[-1]


# --- the list ------------------------------------------------------------------------------------


def test_the_list_tells_every_release_and_which_is_live(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITB_MODEL_FOLDER", str(folder / "models"))
    first, second = known(folder)
    assert main(["releases", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["live"] is None
    run(settings(folder), second)
    (folder / "models" / "releases" / first / "manifest.json").write_text("{")
    assert main(["releases", "--json", "--history"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["id"] for entry in found["releases"]] == [first, second]
    assert [entry["live"] for entry in found["releases"]] == [False, True]
    assert "is not valid JSON" in found["releases"][0]["fault"]
    manifest: Manifest = read_release(folder / "models" / "releases" / second).manifest
    entry = found["releases"][1]
    assert entry["symbols"] == ["TESTUSDT"]
    assert (entry["interval"], entry["models"]) == ("1m", 2)
    aucs = [figures["auc"] for figures in manifest.metrics.values()]
    assert entry["auc"] == pytest.approx((aucs[0] + aucs[1]) / 2, abs=1e-6)  # type: ignore[operator]
    assert entry["metrics"] == manifest.metrics
    assert [(e["action"], e["release"]) for e in found["history"]] == [("promote", second)]
    assert main(["releases"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"  {first}")
    assert "DAMAGED" in lines[1]
    assert lines[2].startswith(f"* {second}")
    assert lines[-1].endswith(f"* {second} is live")


def test_an_empty_list_and_a_live_release_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITB_MODEL_FOLDER", str(tmp_path / "models"))
    assert main(["releases"]) == 0
    assert "none in" in capsys.readouterr().out
    release = made_releases.write(tmp_path / "models")
    releases_of = tmp_path / "models" / "releases"
    promote.releases.promote(tmp_path / "models", release.name)
    shutil.rmtree(releases_of / release.name)
    assert main(["releases"]) == 0
    assert "is not there any more" in capsys.readouterr().err
    assert releases.figures(releases_of / release.name)["fault"].endswith(
        "No such file or directory"
    )
