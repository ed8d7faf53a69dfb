"""Folds of a cross-validation: planned here, their fits done as `fits` does them.

A fold is trained as `train` trains on the candles before its test rows: the same recipes, strides,
left-out features and chosen labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.config import Settings
from shared.errors import Failure
from trainer import baselines
from trainer.fits import Piece
from trainer.models.cases import choose_labels
from trainer.models.fit import Job, Recipe, jobs_of
from trainer.models.rows import Rows, Usable, chosen, stride_for, usable, valid
from trainer.splits import Block

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What every worker maps into memory: (n, n_features) and (n, columns of baselines) float32."""

    x: Path
    base: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Planned. blocks: what is tested; test: positions of the rows that get outputs; jobs: fits,
    their positions among all rows; train_base: label -> mean of the training rows' labels;
    stride, train_rows: of the rows trained on; labels_left_out, labels_added: name -> why."""

    number: int
    blocks: tuple[Block, ...]
    test: Positions
    used: Positions
    jobs: tuple[Job, ...]
    labels: tuple[str, ...]
    train_base: dict[str, float]
    stride: int
    train_rows: int
    train_first_ms: int
    train_last_ms: int
    left_out: tuple[int, ...]
    labels_left_out: dict[str, str]
    labels_added: dict[str, str]


def plan_fold(
    rows: Rows,
    number: int,
    blocks: tuple[Block, ...],
    window: Mask,
    allowed: Callable[[str], Mask],
    plan: Sequence[Recipe],
    settings: Settings,
    candle_ms: int,
    inputs: str,
) -> Fold:
    """What training on the rows of `window` gives, where a label's rows are known only as far as
    `allowed(label)` says: (n,) each.

    Raises:
        Failure: too little to train on.
    """
    places = np.flatnonzero(window)
    if not len(places):
        raise Failure("no candle to train on")
    first, last = int(places[0]), int(places[-1]) + 1
    span = slice(first, last)
    found: Usable = usable(rows.x[span], settings.limits.nan_share, window[span])
    keep = np.flatnonzero(found.keep) + first
    known = Rows(
        x=rows.x[:0],
        y={k: np.where(allowed(k)[keep], y[keep], np.nan) for k, y in rows.y.items()},
        open_ms=rows.open_ms[keep],
        t1_ms={name: t1[keep] for name, t1 in rows.t1_ms.items()},
        index=rows.index[keep],
        symbol=rows.symbol[keep],
        left_out=found.left_out,
    )
    stride = settings.trainer.stride or stride_for(len(known))
    base = chosen(known, candle_ms, stride)
    if not len(base):
        raise Failure(f"{len(known):,} rows and a stride of {stride}: none is left to train on")
    choice = choose_labels(known, base, settings)
    jobs = jobs_of(known, plan, choice.kept, step_ms=candle_ms, stride=stride, inputs=inputs)
    tested = np.flatnonzero(np.logical_or.reduce([b.holds(rows.open_ms) for b in blocks]))
    if len(tested):
        low, high = int(tested[0]), int(tested[-1]) + 1
        fit = valid(rows.x[low:high], found.left_out, settings.limits.nan_share)
        tested = tested[fit[tested - low]]
    of_label = {label: known.y[label][base] for label in choice.kept}
    return Fold(
        number=number,
        blocks=blocks,
        test=tested,
        used=np.flatnonzero(~found.left_out),
        # a job without two classes where it needs them cannot be fitted: no output in this fold
        jobs=tuple(replace(job, positions=keep[job.positions]) for job in jobs if job.cases),
        labels=tuple(choice.kept),
        train_base={label: float(np.nanmean(y)) for label, y in of_label.items()},
        stride=stride,
        train_rows=len(base),
        train_first_ms=int(known.open_ms[0]),
        train_last_ms=int(known.open_ms[-1]),
        left_out=tuple(np.flatnonzero(found.left_out).tolist()),
        labels_left_out=choice.left_out,
        labels_added=choice.added,
    )


def pieces(fold: Fold, files: Files, seed: int, folder: Path) -> list[Piece]:
    """Every model of the fold, and each label's baselines on the rows of its first model."""
    found = []
    with_baselines: set[str] = set()
    for job in fold.jobs:
        wanted: list[tuple[str, baselines.Name | None]] = [(job.name, None)]
        if job.label not in with_baselines:
            with_baselines.add(job.label)
            wanted += [(f"{job.label}.{name}", name) for name in baselines.NAMES]
        for name, baseline in wanted:
            columns = fold.used
            if baseline is not None:
                of_baseline = baselines.NAMES[baseline]
                columns = np.arange(of_baseline.start, of_baseline.stop)
            found.append(
                Piece(
                    fold=fold.number,
                    name=name,
                    x=files.x if baseline is None else files.base,
                    columns=columns,
                    job=job,
                    baseline=baseline,
                    test=fold.test,
                    seed=seed,
                    out=folder / f"fold-{fold.number:03d}-{name}.npy",
                )
            )
    return found
