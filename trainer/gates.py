"""The gates before a promotion: what is broken or too good to be true does not go live.

* parity: the release says that its graphs gave what the native models gave, and its single files
  still give what its bundle gives;
* sanity: on recent candles there is a score, it is not constant, every output is a probability; the
  test rows lie where they must; no model ranks what happens next nearly perfectly, which no market
  allows (`TOO_GOOD`);
* leak: the features of a candle have the same bits when the candles after it are taken away, and a
  user's own features know nothing but their window (`trainer leaks --quick` says more).

A model without skill is no fault: it is said, and goes live. AUCs above the largest that an honest
evaluation of BTCUSDT has shown (`ALARMS`) are said as well.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.bundle import Bundle, open_session
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.releases import Manifest
from shared.times import interval_ms, iso
from trainer import probes
from trainer.features import feature_blocks
from trainer.predict import valid_rows
from trainer.rasters import Raster

Floats = npt.NDArray[np.float64]

# Honest AUCs end at 0.83, rows split at random give 0.91 to 0.98, a label among the features 1.0.
# The lower end of the 95 % interval is compared, so that a few lucky test rows refuse nothing.
TOO_GOOD = 0.95
# label: the AUC above which a figure is worth a look (reference on machine learning, section 0);
# measured on candles of 1m with a horizon of 180, and said for no others.
ALARMS = ((re.compile(r"(high|low)_\d\d"), 0.86), (re.compile(r"(high|low)v(_\d{3})?"), 0.78))
_ALARM_INTERVAL, _ALARM_HORIZON = "1m", 180
# Of this many recent candles so many are scored.
_RECENT, _SCORED = 5_000, 400
_FEWEST_SCORED = 50
_NIL_SHARE = 0.2
_CUTS, _LEAK_ROWS = 6, 300
_LARGEST_DIFFERENCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a gate found. refuses: the release must not go live; else it is only said."""

    gate: str
    text: str
    refuses: bool

    def __str__(self) -> str:
        return f"{self.gate} gate: {self.text}"


def check(
    bundle: Bundle,
    features: FeatureSet,
    candles: Sequence[Raster],
    *,
    nan_share: float,
    features_file: Path | None = None,
    threads: int = 1,
) -> list[Finding]:
    """All that speaks against a release, by its manifest and on the last of the candles.

    candles: of the release's interval, with every source that its features read; none: only what
    needs no candles is checked, and a finding says so. features_file: of the user's own features.
    """
    found = [*_parity(bundle.manifest), *_metrics(bundle.manifest)]
    if not candles:
        text = "no candles at hand: scores and features were not tried on recent ones"
        return [*found, Finding(gate="sanity", text=text, refuses=False)]
    for raster in candles:
        values, valid = _recent(features, raster, bundle.manifest, nan_share, threads)
        found += _sanity(bundle, raster.symbol, values, valid, threads)
        found += _files(bundle, values[valid])
        found += leaks(features, raster)
        if features_file is not None:
            found += own_leaks(features, raster, features_file)
    return found


def leaks(features: FeatureSet, raster: Raster, seed: int = 0) -> list[Finding]:
    """Features of the last candles whose bits change when the candles after them are taken away."""
    start = max(0, len(raster) - _LEAK_ROWS - (features.lookback - 1))
    tail = raster.rows(start, len(raster))
    whole = _values(features, tail)
    first = min(features.lookback - 1, len(tail) - 1)
    if len(tail) - first < 2:
        return []
    random = np.random.default_rng(seed)
    # The very last row must be among those taken away: a look ahead is not seen where nothing is.
    cuts = {len(tail) - 1, *random.integers(first + 1, len(tail), _CUTS - 1).tolist()}
    found: dict[str, int] = {}
    for cut in sorted(cuts):
        part = _values(features, tail.rows(0, cut))
        same = (part.view(np.uint64) == whole[:cut].view(np.uint64)) | (
            np.isnan(part) & np.isnan(whole[:cut])
        )
        for column in np.flatnonzero(~same.all(axis=0)).tolist():
            found.setdefault(features.names[column], int(np.flatnonzero(~same[:, column])[0]))
    return [
        Finding(
            gate="leak",
            text=f"{name} of the candle {iso(int(tail.open_time_ms[row]))} ({raster.symbol}) has "
            "other bits without the candles after it: it looks ahead, or at more than its window",
            refuses=True,
        )
        for name, row in found.items()
    ]


def own_leaks(features: FeatureSet, raster: Raster, file: Path, seed: int = 0) -> list[Finding]:
    """Functions of the user's file that know more than their window: the quick probes of
    `trainer leaks`, on the last of the candles."""
    names = probes.of_file(file, features.names)
    start = max(0, len(raster) - _LEAK_ROWS - (features.lookback - 1))
    tail = raster.rows(start, len(raster))
    first = features.lookback - 1
    if not names or len(tail) - first < 2:
        return []
    horizon = min(_LEAK_ROWS // 4, len(tail) - first - 1)
    cuts = probes.cuts(tail, first, horizon, 2, seed)
    found = probes.user_features(tail, file, names, cuts, seed, lambda: None)
    return [
        Finding(gate="leak", text=f"{finding} ({raster.symbol})", refuses=True) for finding in found
    ]


def _values(features: FeatureSet, raster: Raster, threads: int = 1) -> Floats:
    """(n, n_features), as the command `features` and live compute them."""
    blocks = feature_blocks(features, raster, threads)
    return np.concatenate(
        [np.column_stack([block[name] for name in features.names]) for block in blocks]
    )


def _recent(
    features: FeatureSet, raster: Raster, manifest: Manifest, nan_share: float, threads: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Features of some of the last candles, and which of these live would score."""
    start = max(0, len(raster) - _RECENT - (features.lookback - 1))
    tail = raster.rows(start, len(raster))
    values = _values(features, tail, threads)
    covered = np.arange(len(tail)) >= features.lookback - 1
    close = tail.kline[:, KLINE_COLUMNS.index("close")]
    valid = valid_rows(values, manifest, close, covered, nan_share)
    first = min(features.lookback - 1, len(tail) - 1)
    places = np.unique(np.linspace(first, len(tail) - 1, _SCORED).astype(np.intp))
    return values[places], valid[places]


def _parity(manifest: Manifest) -> Iterator[Finding]:
    passed = manifest.parity
    if not passed:
        yield Finding(
            gate="parity",
            text="the release does not say that its graphs were compared with its models",
            refuses=True,
        )
        return
    largest = passed.get("largest_difference")
    if (
        passed.get("trees_equal") is not True
        or passed.get("sides_flipped") != 0
        or largest is None
        or not largest < _LARGEST_DIFFERENCE
    ):
        yield Finding(
            gate="parity",
            text="by its own record its graphs do not give what its models gave",
            refuses=True,
        )


def _metrics(manifest: Manifest) -> Iterator[Finding]:
    training = manifest.training
    step = interval_ms(manifest.interval)
    if not (
        training.start_ms < training.test_start_ms <= training.end_ms
        and all(entry.horizon >= 1 for entry in manifest.labels.values())
        and training.test_start_ms - training.start_ms
        > step * min(entry.horizon for entry in manifest.labels.values())
    ):
        yield Finding(
            gate="sanity",
            text="no purged test rows lie behind the training rows that its figures come from",
            refuses=True,
        )
    aucs = {
        name: figures
        for name, figures in manifest.metrics.items()
        if figures.get("auc") is not None and name in manifest.models
    }
    if not aucs:
        text = "no model was measured out of sample"
        yield Finding(gate="sanity", text=text, refuses=False)
        return
    skilled = False
    for name, figures in aucs.items():
        label = manifest.models[name].label
        auc, low = float(figures["auc"] or 0), figures.get("auc_low")
        skilled |= low is not None and low > 0.5
        if low is not None and low > TOO_GOOD:
            yield Finding(
                gate="sanity",
                text=f"{name} has an AUC of {auc:.3f} out of sample ({low:.3f} at least): no "
                f"market is that predictable, so its features know the label; see `trainer leaks`",
                refuses=True,
            )
            continue
        comparable = (
            manifest.interval == _ALARM_INTERVAL
            and manifest.labels[label].horizon == _ALARM_HORIZON
        )
        band = next((b for pattern, b in ALARMS if pattern.fullmatch(label)), None)
        if comparable and band is not None and auc > band:
            yield Finding(
                gate="sanity",
                text=f"{name} has an AUC of {auc:.3f} out of sample, more than the {band} that "
                "honest tests have shown on BTCUSDT; look for a leak",
                refuses=False,
            )
    if not skilled:
        text = "no model is better than chance out of sample (every interval reaches to 0.5)"
        yield Finding(gate="sanity", text=text, refuses=False)


def _sanity(
    bundle: Bundle,
    symbol: str,
    values: Floats,
    valid: npt.NDArray[np.bool_],
    threads: int,
) -> Iterator[Finding]:
    def refused(text: str) -> Finding:
        return Finding(gate="sanity", text=f"{symbol}: {text}", refuses=True)

    if not valid.any():
        yield refused(f"none of {len(valid)} recent candles is valid for it: live it would be mute")
        return
    if valid.mean() < 1 - _NIL_SHARE:
        yield Finding(
            gate="sanity",
            text=f"{symbol}: {int((~valid).sum())} of {len(valid)} recent candles get no score",
            refuses=False,
        )
    found = bundle.run(values[valid], threads)
    wrong = ~((found.outputs >= 0) & (found.outputs <= 1))
    for column in np.flatnonzero(wrong.any(axis=0)).tolist():
        yield refused(
            f"{bundle.models[column]} gives {found.outputs[wrong[:, column], column][0]:g}, which "
            "is no probability"
        )
    nil = ~np.isfinite(found.score)
    if nil.mean() > _NIL_SHARE:
        yield refused(f"the score is nil for {int(nil.sum())} of {len(nil)} valid candles")
        return
    if len(nil) < _FEWEST_SCORED:
        return
    score = found.score[~nil]
    if np.ptp(score) == 0:
        yield refused(f"the score is {score[0]:g} for every one of {len(score)} recent candles")
        return
    constant = [
        name
        for name, column in zip(bundle.models, found.outputs.T, strict=True)
        if np.ptp(column) == 0
    ]
    if constant:
        text = f"{symbol}: the same output for every recent candle: {', '.join(constant)}"
        yield Finding(gate="sanity", text=text, refuses=False)
    thresholds = bundle.manifest.thresholds
    for side, always in (
        ("BUY", (score > thresholds.buy).all()),
        ("SELL", (score < thresholds.sell).all()),
    ):
        if always:
            text = f"{symbol}: every recent candle says {side}; look at the thresholds"
            yield Finding(gate="sanity", text=text, refuses=False)


def _files(bundle: Bundle, values: Floats) -> Iterator[Finding]:
    """The single files against the bundle, on rows that may be scored."""
    if not len(values):
        return  # `_sanity` has said so
    found = bundle.run(values)
    folder = bundle.release.folder
    for column, (name, entry) in enumerate(bundle.manifest.models.items()):
        alone = open_session((folder / entry.file).read_bytes()).run(None, {"features": values})[0]
        # "not below": NaN must not pass
        if not (np.abs(np.ravel(alone) - found.outputs[:, column]) < _LARGEST_DIFFERENCE).all():
            yield Finding(
                gate="parity",
                text=f"the file of {name} is not the model in the bundle",
                refuses=True,
            )
