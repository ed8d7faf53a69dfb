"""Champion against challenger: two releases on the same candles, which neither has seen.

The period: the candles after the end of both trainings. Where these are too few, the challenger's
test rows, as far as they lie behind the end of the champion's training. The released challenger
has been fitted on these in the end, so its recipe is trained again on nothing but the candles
before them, and that is what is run. Where these are too few as well, it is refused.

The rule (both must hold; a tie is no defeat, for the challenger knows newer candles):

* outputs: per label that both releases predict, the mean of its models' outputs is a probability;
  its log-loss, averaged over these labels, gives a skill (1 - loss / loss of the base rate). The
  challenger's skill must not be lower by more than `MARGIN`, nor lower beyond chance;
* score: its rank AUC between candles after which the price rose by one sigma of the horizon before
  it fell by one, and the others, must not be lower beyond chance.

Beyond chance: the 95 % interval of the difference, by moving-block bootstrap with blocks as
`trainer.evaluate.block_rows` says, lies wholly below 0.
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import Failure
from shared.klines import KLINE_COLUMNS
from shared.releases import Manifest, current_folder
from shared.times import interval_ms, iso
from trainer import rasters
from trainer.evaluate import auc, block_rows, interval
from trainer.labels import label, trailing_sigma
from trainer.outcomes import first_touch
from trainer.predict import features_of, scores
from trainer.progress import Progress

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MARGIN = 0.005
# With fewer spans of a horizon an interval says nothing.
FEWEST_BLOCKS = 20
RESAMPLES = 400
_BOOTSTRAP_ROWS = 6_000
_SEED = 7
_SMALLEST = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One measure of both, and the challenger's minus the champion's with its 95 % interval.

    None: there was nothing to compare.
    """

    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None

    def text(self) -> str:
        if self.difference is None:
            return "not comparable"
        text = f"{self.challenger:.4f} against {self.champion:.4f}, {self.difference:+.4f}"
        if self.low is None or self.high is None:
            return f"{text} (too few rows for an interval)"
        return f"{text} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the challenge. reasons: why it is lost; none: it is not."""

    champion: str
    challenger: str
    period: str
    start_ms: int
    end_ms: int
    rows: int
    labels: tuple[str, ...]
    skill: Compared
    score_auc: Compared
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        outcome = "LOSES" if self.reasons else "is not worse"
        if self.skill.low == self.skill.high == self.score_auc.low == self.score_auc.high == 0:
            outcome = "says the same, only its training is newer,"
        return (
            f"challenger {self.challenger} {outcome} against champion {self.champion} on "
            f"{self.rows:,} candles from {iso(self.start_ms)} ({self.period}): log-loss skill "
            f"{self.skill.text()}; score AUC {self.score_auc.text()}"
        )

    def plain(self) -> dict[str, Any]:
        found = asdict(self)
        found["from"], found["to"] = iso(found.pop("start_ms")), iso(found.pop("end_ms"))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What two releases said of the same candles, and what came.

    probability: release -> (n, n_labels); truth: (n, n_labels) 0 or 1, NaN unknown; score: release
    -> (n,); first: (n,) +1 rose first, -1 fell first, 0 neither, NaN unknown. Releases: champion,
    challenger. NaN where a release has no score. Symbols follow one another.
    """

    probability: tuple[Floats, Floats]
    truth: Floats
    score: tuple[Floats, Floats]
    first: Floats


def against_live(
    settings: Settings,
    args: argparse.Namespace,
    challenger: Bundle,
    candles: Sequence[rasters.Raster],
    progress: Progress,
) -> Verdict:
    """Lets a release challenge the one that is live.

    candles: of both releases' symbols and interval. args: with klines and futures, as `promote`.

    Raises:
        Failure: nothing is live, or there is no period that neither has seen.
    """
    folder = current_folder(settings.model_folder)
    if folder is None:
        raise Failure(
            f"{settings.model_folder}: no release is live, so there is no champion; promote "
            "without --challenge"
        )
    champion = Bundle.load(folder, settings.limits.model_bytes)
    if champion.id == challenger.id:
        raise Failure(f"release {champion.id} is live already; it cannot challenge itself")
    if champion.manifest.interval != challenger.manifest.interval:
        raise Failure(
            f"the live release {champion.id} is for {champion.manifest.interval} candles, "
            f"{challenger.id} for {challenger.manifest.interval}: they cannot be compared"
        )
    if not candles:
        raise Failure(
            "no candles to compare on: run `python -m trainer download` and `merge`, or give "
            "--klines"
        )
    period = period_of(champion.manifest, challenger.manifest, candles)
    with _contender(settings, args, challenger, period, progress) as contender:
        shown = run_both(settings, (champion, contender), candles, period, progress)
    step = interval_ms(challenger.manifest.interval)
    return judge(
        shown,
        common_labels(champion.manifest, challenger.manifest),
        horizon=_horizon(challenger.manifest),
        names=(champion.id, challenger.id),
        period=period,
        end_ms=max(int(raster.open_time_ms[-1]) for raster in candles) + step,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From start_ms on. retrain: the challenger has seen it, and must be trained again without."""

    start_ms: int
    retrain: bool

    @property
    def text(self) -> str:
        if self.retrain:
            return (
                "the challenger's test rows behind the champion's training, its recipe trained "
                "again without them"
            )
        return "after both trainings"


def period_of(
    champion: Manifest, challenger: Manifest, candles: Sequence[rasters.Raster]
) -> Period:
    """The candles to compare on.

    Raises:
        Failure: there are too few that neither has seen.
    """
    step = interval_ms(challenger.interval)
    horizon = _horizon(challenger)
    fewest = FEWEST_BLOCKS * horizon
    end_ms = max(int(raster.open_time_ms[-1]) for raster in candles) + step

    def known(start_ms: int) -> int:
        """Candles from there on whose labels are known."""
        return (end_ms - start_ms) // step - horizon

    after = max(champion.training.end_ms, challenger.training.end_ms) + step
    if known(after) >= fewest:
        return Period(start_ms=after, retrain=False)
    tail = max(champion.training.end_ms + step, challenger.training.test_start_ms)
    if known(tail) >= fewest:
        return Period(start_ms=tail, retrain=True)
    raise Failure(
        f"no period that neither release has seen: {max(0, known(after)):,} candles with known "
        f"labels after both trainings, {max(0, known(tail)):,} among the challenger's test rows "
        f"behind the champion's training (which ends at {iso(champion.training.end_ms)}), and "
        f"{fewest:,} are needed; download more candles, or promote without --challenge"
    )


@contextlib.contextmanager
def _contender(
    settings: Settings,
    args: argparse.Namespace,
    challenger: Bundle,
    period: Period,
    progress: Progress,
) -> Iterator[Bundle]:
    """The challenger, or the same recipe trained on nothing but the candles before the period.

    Raises:
        Failure: the config is no longer that of the challenger.
    """
    if not period.retrain:
        yield challenger
        return
    from trainer import train  # noqa: PLC0415 - which promotes, and so imports this

    manifest = challenger.manifest
    progress.note(
        f"the challenger has been fitted on all candles: training its recipe again on those before "
        f"{iso(period.start_ms)} to compare"
    )
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    options = ["--until", str(period.start_ms)]
    if args.klines is not None:
        options += ["--klines", *map(str, args.klines)]
        if args.futures is not None:
            options += ["--futures", *map(str, args.futures)]
    else:
        options += ["--interval", manifest.interval]
        options += [part for symbol in manifest.symbols for part in ("--symbol", symbol)]
    with tempfile.TemporaryDirectory(prefix="itb-challenge-") as folder:
        elsewhere = settings.model_copy(update={"model_folder": Path(folder)})
        made = train.run(elsewhere, parser.parse_args(options), progress)
        again = Bundle.load(Path(folder) / "releases" / made["release"])
        for what, then, now in (
            ("features", manifest.features, again.manifest.features),
            ("seed", manifest.training.seed, again.manifest.training.seed),
            ("algorithms", _algorithms(manifest), _algorithms(again.manifest)),
            ("label horizon", _horizon(manifest), _horizon(again.manifest)),
        ):
            if then != now:
                raise Failure(
                    f"the config's {what} are not those of {challenger.id} any more, so its recipe "
                    "cannot be trained again; give its config, or wait for newer candles"
                )
        yield again


def _algorithms(manifest: Manifest) -> tuple[str, ...]:
    """Last parts of the models' names: `gb` of `high_20_k_gb`."""
    return tuple(sorted({name.rpartition("_")[2] for name in manifest.models}))


def _horizon(manifest: Manifest) -> int:
    """The longest of its labels: rows after a candle until all are known."""
    return max(entry.horizon for entry in manifest.labels.values())


def common_labels(champion: Manifest, challenger: Manifest) -> tuple[str, ...]:
    """Labels that models on a side of the score predict in both releases, over one horizon."""

    def predicted(manifest: Manifest) -> set[str]:
        sided = {*manifest.score.high, *manifest.score.low}
        return {m.label for name, m in manifest.models.items() if name in sided}

    both = predicted(champion) & predicted(challenger)
    return tuple(
        name
        for name in challenger.labels
        if name in both and champion.labels[name].horizon == challenger.labels[name].horizon
    )


def run_both(
    settings: Settings,
    releases: tuple[Bundle, Bundle],
    candles: Sequence[rasters.Raster],
    period: Period,
    progress: Progress,
) -> Shown:
    """Runs champion and challenger on the candles of the period, as live would."""
    champion, challenger = releases
    names = common_labels(champion.manifest, challenger.manifest)
    horizon = _horizon(challenger.manifest)
    threads = settings.trainer.threads or os.cpu_count() or 1
    probability: tuple[list[Floats], list[Floats]] = ([], [])
    score: tuple[list[Floats], list[Floats]] = ([], [])
    truth, first = [], []
    total = sum(int((raster.open_time_ms >= period.start_ms).sum()) for raster in candles)
    with progress.bar("champion and challenger", 2 * total, "candles") as bar:
        for raster in candles:
            start = int(np.searchsorted(raster.open_time_ms, period.start_ms))
            for at, bundle in enumerate(releases):
                features = features_of(bundle.manifest, settings)
                parts: list[rasters.Columns] = []
                for block in scores(
                    bundle, features, raster, start, len(raster), settings.limits.nan_share, threads
                ):
                    parts.append(block)
                    bar.advance(len(block["score"]), raster.symbol)
                said = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
                score[at].append(said["score"])
                probability[at].append(_per_label(bundle.manifest, names, said))
            table = raster.kline_table()
            truth.append(
                np.column_stack(
                    [
                        label(name, table, challenger.manifest.labels[name].horizon).y[start:]
                        for name in names
                    ]
                    or [np.empty((len(raster) - start, 0))]
                )
            )
            close, high, low = (
                raster.kline[:, KLINE_COLUMNS.index(name)] for name in ("close", "high", "low")
            )
            touched = first_touch(close, high, low, trailing_sigma(close), horizon)
            first.append(touched[start:])
    return Shown(
        probability=(np.concatenate(probability[0]), np.concatenate(probability[1])),
        truth=np.concatenate(truth),
        score=(np.concatenate(score[0]), np.concatenate(score[1])),
        first=np.concatenate(first),
    )


def _per_label(manifest: Manifest, names: Sequence[str], said: rasters.Columns) -> Floats:
    """(n, n_labels): the mean output of each label's models."""
    sided = {*manifest.score.high, *manifest.score.low}
    columns = [
        np.mean(
            [said[n] for n, m in manifest.models.items() if m.label == name and n in sided], axis=0
        )
        for name in names
    ]
    return np.column_stack(columns or [np.empty((len(said["score"]), 0))])


def judge(
    shown: Shown,
    labels: tuple[str, ...],
    *,
    horizon: int,
    names: tuple[str, str],
    period: Period,
    end_ms: int,
) -> Verdict:
    """Applies the rule of this module to what both said.

    Raises:
        Failure: there are no candles on which both can be compared.
    """
    skill, rows = _skill(shown, horizon)
    score_auc, directed = _directed(shown, horizon)
    if skill.difference is None and score_auc.difference is None:
        raise Failure(
            f"champion {names[0]} and challenger {names[1]} have no candle in common on which both "
            "gave a score and what came is known"
        )
    reasons = []
    if skill.difference is not None:
        if skill.difference < -MARGIN:
            reasons.append(f"its log-loss skill is lower by more than {MARGIN}: {skill.text()}")
        elif skill.high is not None and skill.high < 0:
            reasons.append(f"its log-loss skill is lower beyond chance: {skill.text()}")
    if score_auc.high is not None and score_auc.high < 0:
        reasons.append(
            "its score tells rises from falls less well, beyond chance: AUC " + score_auc.text()
        )
    return Verdict(
        champion=names[0],
        challenger=names[1],
        period=period.text,
        start_ms=period.start_ms,
        end_ms=end_ms,
        rows=max(rows, directed),
        labels=labels,
        skill=skill,
        score_auc=score_auc,
        reasons=tuple(f"challenge lost: {reason}" for reason in reasons),
    )


_NOTHING = Compared(champion=None, challenger=None, difference=None, low=None, high=None)


def _skill(shown: Shown, horizon: int) -> tuple[Compared, int]:
    """Log-loss skill, and on how many rows."""
    whole = ~np.isnan(shown.truth).any(axis=1)
    for probability, score in zip(shown.probability, shown.score, strict=True):
        whole &= ~np.isnan(probability).any(axis=1) & ~np.isnan(score)
    truth = shown.truth[whole]
    if not truth.size:
        return _NOTHING, 0
    base = truth.mean(axis=0)
    baseline = float(_losses(truth, np.broadcast_to(base, truth.shape)).mean())
    if baseline < _SMALLEST:  # one class only: there is no skill to have
        return _NOTHING, 0
    losses = [_losses(truth, p[whole]).mean(axis=1) for p in shown.probability]
    gained = (losses[0] - losses[1]) / baseline

    def mean(places: npt.NDArray[np.intp]) -> float:
        return float(gained[places].mean())

    low, high = _interval(len(gained), horizon, mean)
    return Compared(
        champion=float(1 - losses[0].mean() / baseline),
        challenger=float(1 - losses[1].mean() / baseline),
        difference=float(gained.mean()),
        low=low,
        high=high,
    ), len(gained)


def _losses(truth: Floats, probability: Floats) -> Floats:
    p = np.clip(probability, _SMALLEST, 1 - _SMALLEST)
    return np.where(truth > 0.5, -np.log(p), -np.log1p(-p))


def _directed(shown: Shown, horizon: int) -> tuple[Compared, int]:
    """The score's AUC between "rose first" and "fell first", and on how many rows."""
    rows = np.flatnonzero(
        (np.abs(shown.first) == 1) & ~np.isnan(shown.score[0]) & ~np.isnan(shown.score[1])
    )
    rose = shown.first[rows] > 0
    if not rose.any() or rose.all():
        return _NOTHING, 0
    said = [score[rows] for score in shown.score]

    def difference(places: npt.NDArray[np.intp]) -> float:
        both = [auc(rose[places], score[places]) for score in said]
        return float("nan") if None in both else float(both[1]) - float(both[0])  # type: ignore[arg-type]  # None is ruled out

    found = [auc(rose, score) for score in said]
    champion, challenger = float(found[0] or 0), float(found[1] or 0)
    low, high = _interval(len(rows), horizon, difference)
    return Compared(
        champion=champion,
        challenger=challenger,
        difference=challenger - champion,
        low=low,
        high=high,
    ), len(rows)


def _interval(
    rows: int, horizon: int, statistic: Callable[[npt.NDArray[np.intp]], float]
) -> tuple[float | None, float | None]:
    """95 % interval of a statistic of rows (given by their places), by moving-block bootstrap.

    None with fewer rows than two blocks.
    """
    step = max(1, rows // _BOOTSTRAP_ROWS)
    places = np.arange(0, rows, step)
    block = block_rows(horizon, step)
    if len(places) < 2 * block:
        return None, None
    random = np.random.default_rng(_SEED)
    values = []
    for _ in range(RESAMPLES):
        starts = random.integers(0, len(places) - block + 1, -(-len(places) // block))
        drawn = (starts[:, None] + np.arange(block)).ravel()[: len(places)]
        values.append(statistic(places[drawn]))
    return interval(np.array(values), len(places) / block)
