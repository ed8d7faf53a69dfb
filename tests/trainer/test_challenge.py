"""Champion against challenger: the period, the measures, the rule, and the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from shared import klinefiles
from shared.errors import Failure
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.releases import current_id, promote, read_release
from tests.trainer.test_promote import candles, run, settings
from trainer import challenge, rasters, train
from trainer.challenge import Period, Shown, judge
from trainer.cli import main
from trainer.progress import Progress

HORIZON = 20
MINUTE = 60_000
NAMES = ("champion", "challenger")


def shown(rows: int = 3000, *, noise: tuple[float, float] = (1.0, 1.0), seed: int = 1) -> Shown:
    """Two labels and a direction that both releases see through noise of their own."""
    random = np.random.default_rng(seed)
    truth = (random.random((rows, 2)) < 0.3).astype(float)
    truth[random.random(rows) < 0.05] = np.nan
    first = random.choice([-1.0, 0.0, 1.0, np.nan], rows, p=[0.4, 0.1, 0.4, 0.1])

    def said(level: float) -> tuple[Any, Any]:
        seen = np.nan_to_num(truth, nan=0.3) + random.normal(0, level, truth.shape)
        outputs = 1 / (1 + np.exp(-2 * (seen - 0.6)))
        score = np.tanh(np.nan_to_num(first) + random.normal(0, 3 * level, rows))
        score[random.random(rows) < 0.03] = np.nan
        return outputs, score

    (p0, s0), (p1, s1) = said(noise[0]), said(noise[1])
    return Shown(probability=(p0, p1), truth=truth, score=(s0, s1), first=first)


def verdict(of: Shown) -> challenge.Verdict:
    period = Period(start_ms=0, retrain=False)
    return judge(of, ("a", "b"), horizon=HORIZON, names=NAMES, period=period, end_ms=1)


def test_the_measures_are_those_of_scikit_learn() -> None:
    given = shown(noise=(1.0, 0.8))
    found = verdict(given)
    rows = [
        at
        for at in range(len(given.truth))
        if not np.isnan(given.truth[at]).any()
        and not np.isnan(given.score[0][at])
        and not np.isnan(given.score[1][at])
    ]
    truth = given.truth[rows]
    base = np.mean([log_loss(y, np.full(len(y), y.mean())) for y in truth.T])
    skills = [
        1 - np.mean([log_loss(y, q) for y, q in zip(truth.T, p[rows].T, strict=True)]) / base
        for p in given.probability
    ]
    assert found.skill.champion == pytest.approx(skills[0])
    assert found.skill.challenger == pytest.approx(skills[1])
    assert found.skill.difference == pytest.approx(skills[1] - skills[0])
    resolved = [
        at
        for at in range(len(given.first))
        if given.first[at] in (-1.0, 1.0)
        and not np.isnan(given.score[0][at])
        and not np.isnan(given.score[1][at])
    ]
    aucs = [roc_auc_score(given.first[resolved] > 0, score[resolved]) for score in given.score]
    assert found.score_auc.champion == pytest.approx(aucs[0])
    assert found.score_auc.challenger == pytest.approx(aucs[1])
    assert found.rows == max(len(rows), len(resolved))
    for compared in (found.skill, found.score_auc):
        assert compared.low is not None
        assert compared.high is not None
        assert compared.difference is not None
        assert compared.low < compared.difference < compared.high


def test_the_interval_of_independent_rows_is_that_of_the_normal_law() -> None:
    """With a horizon of one row the bootstrap is the ordinary one: +- 1.96 standard errors."""
    given = shown(5000)
    period = Period(start_ms=0, retrain=False)
    found = judge(given, ("a", "b"), horizon=1, names=NAMES, period=period, end_ms=1).skill
    whole = ~np.isnan(given.truth).any(axis=1)
    for score in given.score:
        whole &= ~np.isnan(score)
    truth = given.truth[whole]
    losses = [
        np.mean(-np.log(np.where(truth > 0, p[whole], 1 - p[whole])), axis=1)
        for p in given.probability
    ]
    base = np.mean([log_loss(y, np.full(len(y), y.mean())) for y in truth.T])
    error = np.std((losses[0] - losses[1]) / base) / np.sqrt(len(truth))
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize(
    ("noise", "reasons"),
    [((1.0, 1.0), 0), ((1.6, 0.6), 0), ((0.6, 1.6), 2), ((1.0, 1.002), 0)],
)
def test_a_clearly_worse_challenger_loses_and_an_equal_one_does_not(
    noise: tuple[float, float], reasons: int
) -> None:
    found = verdict(shown(noise=noise))
    assert len(found.reasons) == reasons
    assert ("LOSES" in str(found)) is bool(reasons)


def test_a_skill_lower_by_more_than_the_margin_loses_even_within_chance() -> None:
    given = shown(200, noise=(1.0, 1.05), seed=3)
    found = verdict(given).skill
    assert found.difference is not None
    assert found.high is not None
    lost = found.difference < -challenge.MARGIN
    assert lost
    assert found.high > 0
    assert any("lower by more than 0.005" in reason for reason in verdict(given).reasons)


def test_a_challenger_that_says_the_same_is_told_as_such_and_may_go_live() -> None:
    given = shown(500)
    same = Shown(
        probability=(given.probability[0], given.probability[0]),
        truth=given.truth,
        score=(given.score[0], given.score[0]),
        first=given.first,
    )
    found = verdict(same)
    assert found.reasons == ()
    assert "says the same, only its training is newer" in str(found)


def test_nothing_in_common_is_one_line() -> None:
    given = shown(100)
    blind = Shown(
        probability=given.probability,
        truth=given.truth,
        score=(given.score[0], np.full(100, np.nan)),
        first=given.first,
    )
    with pytest.raises(Failure, match="no candle in common"):
        verdict(blind)


# --- the command ---------------------------------------------------------------------------------


def saved(path: Path, table: KlineTable) -> str:
    columns = {"open_time_ms": table.open_time_ms}
    columns |= {name: table.column(name) for name in KLINE_COLUMNS}
    klinefiles.write_columns(path, columns)
    return str(path)


def known(folder: Path) -> list[str]:
    """Champion and challenger: ids of one second do not sort in the order of their making."""
    releases = (folder / "models" / "releases").iterdir()
    return [path.name for path in sorted(releases, key=lambda path: path.stat().st_mtime_ns)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion of the first 2,500 candles, live; a challenger of 3,500; files of 3,500, 4,500."""
    folder = tmp_path_factory.mktemp("challenge")
    whole = candles(4500)
    old = saved(folder / "TESTUSDT-1m-old.parquet", whole.rows(0, 2500))
    new = saved(folder / "TESTUSDT-1m-new.parquet", whole.rows(0, 3500))
    saved(folder / "TESTUSDT-1m-all.parquet", whole)
    config = settings(folder, trainer={"threads": 2, "label_horizon": HORIZON, "test_share": 0.4})
    run(config, "--klines", old, "--promote", command=train)
    run(config, "--klines", new, command=train)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    return copy


def challenged(folder: Path, file: str, *options: str, **keys: Any) -> dict[str, Any]:
    trainer = {"threads": 2, "label_horizon": HORIZON, "test_share": 0.4} | keys
    config = settings(folder, trainer=trainer)
    path = str(folder / f"TESTUSDT-1m-{file}.parquet")
    return run(config, known(folder)[1], "--challenge", "--klines", path, *options)


def test_both_run_on_what_came_after_both_trainings(folder: Path) -> None:
    champion, challenger = known(folder)
    result = challenged(folder, "all")
    found = result["challenge"]
    assert (found["champion"], found["challenger"]) == (champion, challenger)
    assert found["period"] == "after both trainings"
    end_ms = read_release(folder / "models" / "releases" / challenger).manifest.training.end_ms
    assert found["from"] == klinefiles.iso(end_ms + MINUTE)
    assert 900 < found["rows"] <= 1000  # the last ones' labels are not known
    assert found["labels"] == ("high_10", "low_10")
    assert current_id(folder / "models") == challenger
    json.dumps(found)


def test_else_the_challengers_recipe_is_trained_again_without_its_test_rows(folder: Path) -> None:
    champion, challenger = (
        read_release(folder / "models" / "releases" / name).manifest for name in known(folder)
    )
    result = challenged(folder, "new")
    found = result["challenge"]
    assert "trained again without them" in found["period"]
    start = max(champion.training.end_ms + MINUTE, challenger.training.test_start_ms)
    assert found["from"] == klinefiles.iso(start)
    assert found["challenger"] == challenger.id
    assert known(folder) == [champion.id, challenger.id]
    assert current_id(folder / "models") == challenger.id


def test_another_config_than_the_challengers_cannot_be_trained_again(folder: Path) -> None:
    with pytest.raises(Failure, match="the config's seed are not those of"):
        challenged(folder, "new", seed=99)


def test_no_unseen_period_is_refused_with_how_many_candles_are_missing(folder: Path) -> None:
    with pytest.raises(Failure, match=r"no period that neither .* 400 are needed"):
        challenged(folder, "old")
    assert current_id(folder / "models") == known(folder)[0]
    with pytest.raises(Failure, match="cannot challenge itself"):
        run(
            settings(folder),
            known(folder)[0],
            "--challenge",
            "--klines",
            str(folder / "TESTUSDT-1m-all.parquet"),
        )


def test_a_lost_challenge_promotes_by_force_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    champion, challenger = known(folder)
    monkeypatch.setattr(challenge, "MARGIN", -1.0)  # whoever is not far better loses
    with pytest.raises(Failure, match="not promoted: challenge lost: its log-loss skill is lower"):
        challenged(folder, "all")
    assert current_id(folder / "models") == champion
    result = challenged(folder, "all", "--force")
    assert len(result["overridden"]) == 1
    assert current_id(folder / "models") == challenger


def test_without_a_champion_or_candles_there_is_no_challenge(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ITB_MODEL_FOLDER", str(folder / "models"))
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "nothing"))
    assert main(["promote", known(folder)[1], "--challenge"]) == 1
    assert "no candles to compare on" in capsys.readouterr().err
    (folder / "models" / "current").unlink()
    assert main(["promote", "--challenge"]) == 1
    assert "no release is live, so there is no champion" in capsys.readouterr().err


def test_what_both_said_is_what_predict_says_of_each(folder: Path) -> None:
    """The outputs and scores that are compared, against the bundles run by hand."""
    promote(folder / "models", known(folder)[0])
    raster = rasters.join(klinefiles.read_klines([folder / "TESTUSDT-1m-all.parquet"])[0])
    bundles = tuple(
        challenge.Bundle.load(folder / "models" / "releases" / name) for name in known(folder)
    )
    period = Period(start_ms=int(raster.open_time_ms[4000]), retrain=False)
    found = challenge.run_both(
        settings(folder), (bundles[0], bundles[1]), [raster], period, Progress(quiet=True)
    )
    features = challenge.features_of(bundles[1].manifest, settings(folder))
    values = features.batch(raster.first_index, kline=raster.kline)[4000:]
    said = bundles[1].run(values)
    np.testing.assert_array_equal(found.score[1], said.score)
    np.testing.assert_array_equal(found.probability[1], said.outputs)  # one model per label
    close, high = raster.kline[:, 3], raster.kline[:, 1]
    for row in range(0, 500 - HORIZON, 37):
        best = max(high[4000 + row + 1 : 4000 + row + 1 + HORIZON])
        assert found.truth[row, 0] == float(best >= close[4000 + row] * 1.01)
    assert np.isnan(found.truth[-HORIZON:]).all()
