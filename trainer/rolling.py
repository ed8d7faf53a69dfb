"""`trainer rolling`: walk-forward. Train on the past, test on what comes next, step by step.

Each step trains as `train` does with the candles before its test rows: no training label has looked
at the first of them. The live release is not touched. Writes, per symbol, the folder
`{data_folder}/{symbol}-{interval}-features-rolling`: monthly parquet of open_time_ms, close, fold,
one column per model, score, and the labels; in `_about` metrics.json and
metrics.txt. Only out-of-sample rows.

`--cpcv`: combinatorial purged cross-validation instead, `{symbol}-{interval}-cpcv/metrics.*`. It
trains on the future of what it tests and is for choosing between kinds of model only; never quote
it as what to expect live.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.klines import KLINE_COLUMNS
from shared.score import PLAIN_KINDS
from shared.times import interval_ms, iso
from trainer import baselines, fanout, fits, inputs, outcomes, rasters, splits
from trainer.csvfiles import write_csv
from trainer.evaluate import Metrics, ValueMetrics
from trainer.fanout import Fanout
from trainer.folds import Files, Fold, pieces, plan_fold
from trainer.models.cases import labels_to_compute
from trainer.models.fit import Recipe, check_labels, inputs_of, recipes
from trainer.models.rows import Rows, candidates
from trainer.outofsample import (
    NULL,
    SCORE_NULL,
    Judge,
    Outcomes,
    OutOfSample,
    alarms,
    assemble,
    with_trained,
)
from trainer.progress import Progress

_DAY_MS = 86_400_000
WORK = ".rolling"
_INTERVALS = (
    "95 % by moving-block bootstrap, blocks of four windows of the label, widened for few blocks"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_options(parser)
    parser.add_argument("--start", metavar="TIME", help="first test time, 2024-01-01 (UTC)")
    parser.add_argument("--step-days", type=float, metavar="D", help="days of a test block")
    parser.add_argument("--folds", type=int, metavar="N", help="how many test blocks")
    parser.add_argument("--train-days", type=float, metavar="D", help="trailing days trained on")
    parser.add_argument("--csv", action="store_true", help="write the rows as one csv file, too")
    parser.add_argument(
        "--cpcv", action="store_true", help="combinatorial purged cross-validation instead"
    )
    fanout.add_options(parser, backend="processes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be done, as config and options say. end_ms: open time after the last candle."""

    settings: Settings
    data: list[rasters.Raster]
    features: FeatureSet
    plan: list[Recipe]
    candle_ms: int
    first_ms: int
    end_ms: int
    train_ms: int
    workers: int
    blocks: list[splits.Block]
    combinations: list[splits.Combination]
    groups: list[splits.Block]

    @property
    def is_cpcv(self) -> bool:
        return bool(self.combinations)

    @property
    def name(self) -> str:
        kind = "cpcv" if self.is_cpcv else "rolling"
        return f"{'+'.join(r.symbol for r in self.data)}-{self.data[0].interval}-{kind}"

    @property
    def key(self) -> str:
        """Digest of all that the outputs depend on."""
        further = {
            "train_ms": self.train_ms,
            "embargo_rows": self.settings.trainer.rolling.embargo_rows,
            "blocks": [(b.start_ms, b.stop_ms) for b in self.blocks],
            "combinations": [c.groups for c in self.combinations],
        }
        return fits.key_of(self.settings, self.features, self.data, further)


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    fan = fanout.of_options(args, settings, progress.note)
    task = _task(_with_options(settings, args), args)
    kind = "combinations" if task.is_cpcv else "folds"
    with fits.work_folder(settings.data_folder / WORK, task.name, task.key) as folder:
        rows, files = _matrix(task, folder, progress)
        folds, skipped = _plan(task, rows, progress)
        found, kept = _outputs(task, folds, files, folder, fan, progress)
        names = _model_names(task, folds)
        happened = _outcomes(task, rows)
        judge = Judge(
            horizon=settings.trainer.label_horizon,
            candle_ms=task.candle_ms,
            seed=settings.trainer.seed,
            workers=task.workers,
        )
        result: dict[str, Any] = {
            "command": "rolling",
            "kind": "cpcv" if task.is_cpcv else "walk_forward",
            "symbols": [raster.symbol for raster in task.data],
            "interval": task.data[0].interval,
            kind: len(folds),
            "fits": len(found),
            "fits_kept": kept,
            "labels": list(dict.fromkeys(label for fold in folds for label in fold.labels)),
        }
        if task.is_cpcv:
            result |= _cpcv(task, rows, folds, found, names, happened, judge, progress)
        else:
            result |= _walk(
                task, rows, folds, skipped, found, names, happened, judge, progress, csv=args.csv
            )
    return result | {"seconds": round(time.monotonic() - started, 1)}


def summary(result: Mapping[str, Any]) -> str:
    aucs = [m["auc_mean"] for m in result["models"].values() if m.get("auc_mean") is not None]
    mean = f", mean AUC {sum(aucs) / len(aucs):.3f}" if aucs else ""
    where = ", ".join(str(path) for path in result["wrote"])
    if result["kind"] == "cpcv":
        return (
            f"rolling --cpcv: {len(result['models'])} models, {result['combinations']} "
            f"combinations, {result['paths']} paths{mean} (trained on the future too: no estimate "
            f"of live), in {where}, {result['seconds']} s"
        )
    direction = result["score"]["auc"]
    said = ""
    if direction is not None:
        low, high = result["score"]["auc_low"], result["score"]["auc_high"]
        band = f" ({low:.3f} .. {high:.3f})" if low is not None else ""
        said = f", direction of the score {direction:.3f}{band}"
    warned = f"; {len(result['alarms'])} too good to be true" if result["alarms"] else ""
    return (
        f"rolling: {len(result['models'])} models, {result['folds']} folds, {result['rows']:,} "
        f"rows out of sample{mean}{said}, in {where}, {result['seconds']} s{warned}"
    )


# --- what is to be done --------------------------------------------------------------------------


def _with_options(settings: Settings, args: argparse.Namespace) -> Settings:
    """The config with what the command line says instead."""
    given = {
        "start": args.start,
        "step_days": args.step_days,
        "folds": args.folds,
        "train_days": args.train_days,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name != "start" and value <= 0:
            raise Usage(f"--{name.replace('_', '-')} {value}: must be above 0")
    before = settings.trainer.rolling.model_dump()
    if "step_days" in given:
        before["step_rows"] = None
    try:
        rolling = type(settings.trainer.rolling)(**(before | given))
    except ValueError:
        raise Usage(f"--start {args.start}: not a time such as 2024-01-01") from None
    trainer = settings.trainer.model_copy(update={"rolling": rolling})
    return settings.model_copy(update={"trainer": trainer})


def _task(settings: Settings, args: argparse.Namespace) -> Task:
    plan = recipes(settings.algorithms)
    if not plan:
        raise Usage("config: algorithms: name at least one")
    check_labels(plan, settings.labels)
    if args.cpcv and settings.signaler.model.aggregate not in PLAIN_KINDS:
        raise Usage(
            f"signaler.model.aggregate {settings.signaler.model.aggregate} learns from the past, "
            f"and --cpcv has none: name one of {', '.join(PLAIN_KINDS)}"
        )
    features = configured(settings)
    data = inputs.read(settings, args, features)
    candle_ms = interval_ms(data[0].interval)
    rolling = settings.trainer.rolling
    end_ms = max(int(raster.open_time_ms[-1]) for raster in data) + candle_ms
    first_ms = min(
        int(raster.open_time_ms[0]) + min(features.lookback - 1, len(raster)) * candle_ms
        for raster in data
    )
    train_ms = int((rolling.train_days or settings.trainer.train_days) * _DAY_MS)
    task = Task(
        settings=settings,
        data=data,
        features=features,
        plan=plan,
        candle_ms=candle_ms,
        first_ms=first_ms,
        end_ms=end_ms,
        train_ms=train_ms,
        workers=fanout.workers_of(args, settings),
        blocks=[],
        combinations=[],
        groups=[],
    )
    if first_ms >= end_ms:
        raise Failure(
            f"no candle to test on: the longest feature window alone needs {features.lookback:,} "
            "rows; give more history"
        )
    if args.cpcv:
        times = np.unique(np.concatenate([raster.open_time_ms for raster in data]))
        times = times[times >= first_ms]
        return replace(
            task,
            combinations=splits.cpcv(times, rolling.groups, rolling.test_groups),
            groups=[one.blocks[0] for one in splits.cpcv(times, rolling.groups, 1)],
        )
    size_ms = None
    if rolling.step_days is not None:
        size_ms = int(rolling.step_days * _DAY_MS)
    elif rolling.step_rows is not None:
        size_ms = rolling.step_rows * candle_ms
    blocks = splits.walk_forward(
        first_ms,
        end_ms,
        candle_ms,
        start_ms=rolling.start_ms,
        size_ms=size_ms,
        folds=rolling.folds,
        train_ms=train_ms,
    )
    return replace(task, blocks=blocks)


def _plan(
    task: Task, rows: Rows, progress: Progress
) -> tuple[list[Fold], dict[int, tuple[splits.Block, str]]]:
    """The folds that can be trained, and the others: number -> (test block, why)."""
    settings = task.settings
    given = inputs_of(task.features)
    wanted: list[tuple[tuple[splits.Block, ...], Any, Callable[[str], Any]]] = []
    if task.is_cpcv:
        embargo = settings.trainer.rolling.embargo_rows
        embargo_ms = task.candle_ms * (
            settings.trainer.label_horizon if embargo is None else embargo
        )
        for one in task.combinations:
            tested = np.logical_or.reduce([b.holds(rows.open_ms) for b in one.blocks])

            def allowed(label: str, blocks: tuple[splits.Block, ...] = one.blocks) -> Any:
                return splits.around(rows.open_ms, rows.t1_ms[label], blocks, embargo_ms)

            wanted.append((one.blocks, ~tested, allowed))
    else:
        for block in task.blocks:
            # as `train --until start`: the trailing days are counted from the last candle before
            first_ms = block.start_ms - task.candle_ms - task.train_ms

            def known(label: str, block: splits.Block = block, first_ms: int = first_ms) -> Any:
                return splits.before(rows.open_ms, rows.t1_ms[label], block, first_ms)

            window = (rows.open_ms >= first_ms) & (rows.open_ms < block.start_ms)
            wanted.append(((block,), window, known))
    folds: list[Fold] = []
    skipped: dict[int, tuple[splits.Block, str]] = {}
    with progress.bar("planning", len(wanted), "folds") as bar:
        for number, (blocks, window, of_label) in enumerate(wanted):
            try:
                fold = plan_fold(
                    rows,
                    number,
                    blocks,
                    window,
                    of_label,
                    task.plan,
                    settings,
                    task.candle_ms,
                    given,
                )
            except Failure as error:
                if isinstance(error, Usage):
                    raise
                skipped[number] = (blocks[0], str(error))
                progress.note(f"fold {number}, {iso(blocks[0].start_ms)}: left out: {error}")
            else:
                folds.append(fold)
            bar.advance()
    if not folds:
        first, why = next(iter(skipped.values()))
        raise Failure(f"no fold can be trained; the first, {iso(first.start_ms)}: {why}")
    if task.is_cpcv and skipped:
        number, (_, why) = next(iter(skipped.items()))
        raise Failure(f"combination {number} cannot be trained ({why}); use fewer groups")
    return folds, skipped


# --- work that is kept ---------------------------------------------------------------------------


def _matrix(task: Task, folder: Path, progress: Progress) -> tuple[Rows, Files]:
    """Features, labels and the baselines' columns of every candle that is trained or tested on."""
    files = Files(x=fits.matrix(folder, "x"), base=fits.matrix(folder, "base"))
    start_ms = task.first_ms
    if task.blocks:
        start_ms = max(start_ms, task.blocks[0].start_ms - task.candle_ms - task.train_ms)
    total = sum(int((raster.open_time_ms >= start_ms).sum()) for raster in task.data)
    with progress.bar("features", total) as bar:
        try:
            rows = candidates(
                task.data,
                task.features,
                labels_to_compute(task.settings),
                horizon=task.settings.trainer.label_horizon,
                start_ms=start_ms,
                workers=task.workers,
                advance=bar.advance,
                file=files.x,
            )
            base = np.empty((len(rows), baselines.COLUMNS), np.float32)
            for symbol, raster in enumerate(task.data):
                here = rows.symbol == symbol
                places = (rows.open_ms[here] - raster.open_time_ms[0]) // task.candle_ms
                base[here] = baselines.features(raster, places)
            with files.base.open("wb") as file:
                np.save(file, base)
        except OSError as error:
            raise Failure(f"{folder}: cannot be written ({error.strerror or error})") from error
    return rows, files


def _outputs(
    task: Task, folds: Sequence[Fold], files: Files, folder: Path, fan: Fanout, bars: Progress
) -> tuple[dict[tuple[int, str], npt.NDArray[np.float64]], int]:
    """(fold, name) -> outputs; and how many of them an earlier run had left."""
    every = [
        piece for fold in folds for piece in pieces(fold, files, task.settings.trainer.seed, folder)
    ]
    found: dict[tuple[int, str], npt.NDArray[np.float64]] = {}
    kept = 0
    with bars.bar("fits", len(every), "fits") as bar:
        for one in fits.finish(every, fan, bar):
            assert isinstance(one.found, np.ndarray)  # noqa: S101 - no piece keeps its model
            found[one.piece.fold, one.piece.name] = one.found
            kept += one.kept
    return found, kept


# --- what came of it -----------------------------------------------------------------------------


def _model_names(task: Task, folds: Sequence[Fold]) -> list[str]:
    """Labels in the order of the config, added ones after them; each with all algorithms."""
    given = inputs_of(task.features)
    labels = dict.fromkeys(label for fold in folds for label in fold.labels)
    ordered = [n for n in task.settings.labels if n in labels]
    ordered += [n for n in labels if n not in ordered]
    there = {job.name for fold in folds for job in fold.jobs}
    names = [f"{label}_{given}_{recipe.name}" for label in ordered for recipe in task.plan]
    return [name for name in names if name in there]


def _outcomes(task: Task, rows: Rows) -> Outcomes:
    returns, touch = outcomes.after(
        task.data, rows.symbol, rows.open_ms, task.settings.trainer.label_horizon
    )
    return Outcomes(
        open_ms=rows.open_ms,
        symbol=rows.symbol,
        y=rows.y,
        t1_ms=rows.t1_ms,
        returns=returns,
        touch=touch,
    )


def _walk(
    task: Task,
    rows: Rows,
    folds: Sequence[Fold],
    skipped: Mapping[int, tuple[splits.Block, str]],
    found: Mapping[tuple[int, str], npt.NDArray[np.float64]],
    names: Sequence[str],
    happened: Outcomes,
    judge: Judge,
    progress: Progress,
    *,
    csv: bool,
) -> dict[str, Any]:
    kind = task.settings.signaler.model.aggregate
    table = assemble(folds, found, names, kind)
    wait_ms = task.settings.trainer.label_horizon * task.candle_ms
    table, chosen = with_trained(table, folds, rows, happened, kind, wait_ms)
    several = len(task.data) > 1
    parts: list[tuple[int | None, OutOfSample]] = [(None, table)]
    if several:
        of_row = rows.symbol[table.positions]
        parts += [(at, table.only(of_row == at)) for at in range(len(task.data))]
    figures: dict[int | None, dict[str, Any]] = {}
    with progress.bar(
        "figures", len(parts) * (len(folds) + 1) * len(table.outputs), "figures"
    ) as bar:
        for symbol, part in parts:
            figures[symbol] = judge.figures(part, happened, folds, bar.advance)
    about = {
        "kind": "walk_forward",
        "interval": task.data[0].interval,
        "horizon": task.settings.trainer.label_horizon,
        "aggregate": kind,
        "aggregate_of_fold": chosen,
        "intervals": _INTERVALS,
        "null": NULL,
        "score_null": SCORE_NULL,
        "key": task.key,
        "plan": [_fold_text(task, fold) for fold in folds],
        "skipped": [
            {"fold": n, "from": iso(block.start_ms), "why": why}
            for n, (block, why) in skipped.items()
        ],
    }
    wrote = []
    warnings: list[str] = []
    for symbol, raster in enumerate(task.data):
        of_symbol = figures[symbol if several else None]
        lines = list(alarms(of_symbol, table.label_of))
        warnings += [f"{raster.symbol}: {line}" for line in lines]
        here = table.only(rows.symbol[table.positions] == symbol)
        report = about | {"symbol": raster.symbol, "rows": len(here.positions), "alarms": lines}
        report |= of_symbol
        told = _metrics_files(report, _seed_lines(of_symbol["models"]))
        wrote += _write_rows(
            task, raster, symbol, rows, here, folds, names, told, progress if csv else None
        )
    if any(m.get("null_low", 0.0) is None for m in figures[None]["models"].values()):
        progress.note("no null band of some label: that takes four tested days and more")
    for line in warnings:
        progress.note(line)
    top = figures[None]
    return {
        "from": iso(min(block.start_ms for fold in folds for block in fold.blocks)),
        "to": iso(int(rows.open_ms[table.positions[-1]])) if len(table.positions) else None,
        "rows": len(table.positions),
        "models": top["models"],
        "baselines": top["baselines"],
        "score": {k: v for k, v in top["score"].items() if k != "deciles"},
        "aggregate": kind,
        "best_aggregate": top["best_aggregate"],
        "alarms": warnings,
        "skipped": len(skipped),
        "wrote": wrote,
    }


def _fold_text(task: Task, fold: Fold) -> dict[str, Any]:
    names = task.features.names
    return {
        "fold": fold.number,
        "test": [[iso(b.start_ms), iso(b.stop_ms)] for b in fold.blocks],
        "train": [iso(fold.train_first_ms), iso(fold.train_last_ms)],
        "train_rows": fold.train_rows,
        "stride": fold.stride,
        "test_rows": len(fold.test),
        "features_left_out": [names[at] for at in fold.left_out],
        "labels_left_out": fold.labels_left_out,
        "labels_added": fold.labels_added,
    }


def _write_rows(
    task: Task,
    raster: rasters.Raster,
    symbol: int,
    rows: Rows,
    table: OutOfSample,
    folds: Sequence[Fold],
    names: Sequence[str],
    told: Mapping[str, str],
    csv: Progress | None,
) -> list[Path]:
    """Every raster row of the tested blocks; NaN where there is no candle, output or outcome.

    told: texts that belong to the rows, by file name. csv: also one csv file, and who is told how
    far it is.
    """
    place = np.zeros(len(raster), np.int64) - 1
    for fold in folds:
        for block in fold.blocks:
            place[block.holds(raster.open_time_ms)] = fold.number
    inside = place >= 0

    def placed(at: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Any:
        whole = np.full(len(raster), np.nan)
        whole[(at - raster.open_time_ms[0]) // task.candle_ms] = values
        return whole[inside]

    tested = rows.open_ms[table.positions]
    columns: dict[str, npt.NDArray[Any]] = {
        "open_time_ms": raster.open_time_ms[inside],
        "close": raster.kline[inside, KLINE_COLUMNS.index("close")],
        "fold": place[inside],
    }
    columns |= {name: placed(tested, table.outputs[name]) for name in names}
    columns["score"] = placed(tested, table.score)
    here = rows.symbol == symbol
    for label in dict.fromkeys(table.label_of[name] for name in names):
        columns[label] = placed(rows.open_ms[here], rows.y[label][here])
    out = rasters.MonthFolder(
        task.settings.data_folder / f"{raster.symbol}-{raster.interval}-features-rolling"
    )

    def about(unfinished: Path) -> None:
        for file, text in told.items():
            (unfinished / file).write_text(text)

    out.write([columns], {"kind": "walk_forward", "key": task.key}, about)
    if csv is None:
        return [out.path]
    path = out.path.with_name(f"{out.path.name}.csv")
    write_csv(path, columns, csv)
    return [out.path, path]


def _seed_lines(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, figures in models.items():
        if "rows" not in figures:
            lines.append(f"{name}, not measured: no row whose label is known")
            continue
        kind = ValueMetrics if "mae" in figures else Metrics
        given = {k: v for k, v in figures.items() if k in kind.__dataclass_fields__}
        lines.append(kind(**given).seed_line(name))
    return lines


def _metrics_files(report: Mapping[str, Any], lines: Sequence[str]) -> dict[str, str]:
    """File name -> text."""
    return {
        "metrics.txt": "".join(f"{line}\n" for line in lines),
        "metrics.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
    }


def _cpcv(
    task: Task,
    rows: Rows,
    folds: Sequence[Fold],
    found: Mapping[tuple[int, str], npt.NDArray[np.float64]],
    names: Sequence[str],
    happened: Outcomes,
    judge: Judge,
    progress: Progress,
) -> dict[str, Any]:
    """Each path is one out-of-sample history of all rows, put together from the combinations."""
    rolling = task.settings.trainer.rolling
    on_path = splits.paths(rolling.groups, rolling.test_groups)
    kind = task.settings.signaler.model.aggregate
    of_path = []
    with progress.bar("paths", len(on_path), "paths") as bar:
        for numbers in on_path:
            parts: list[Fold] = []
            said: dict[tuple[int, str], npt.NDArray[np.float64]] = {}
            for group, number in enumerate(numbers):
                fold = folds[number]
                block = task.groups[group]
                here = block.holds(rows.open_ms[fold.test])
                parts.append(replace(fold, number=group, blocks=(block,), test=fold.test[here]))
                for name in [*names, *_baseline_names(fold)]:
                    if (fold.number, name) in found:
                        said[group, name] = found[fold.number, name][here]
            table = assemble(parts, said, names, kind)
            of_path.append(judge.figures(table, happened, []))
            bar.advance()
    models = {
        name: _over_paths([one["models"][name] for one in of_path if one["models"][name]])
        for name in names
    }
    scores = _over_paths([one["score"] for one in of_path])
    report = {
        "kind": "cpcv",
        "warning": "trained on the future of what is tested: no estimate of live performance",
        "symbols": [raster.symbol for raster in task.data],
        "interval": task.data[0].interval,
        "horizon": task.settings.trainer.label_horizon,
        "groups": rolling.groups,
        "test_groups": rolling.test_groups,
        "combinations": len(folds),
        "paths": len(on_path),
        "key": task.key,
        "models": models,
        "score": scores,
        "of_path": of_path,
        "plan": [_fold_text(task, fold) for fold in folds],
    }
    wrote = []
    for raster in task.data:
        path = task.settings.data_folder / f"{raster.symbol}-{raster.interval}-cpcv"
        lines = [f"{name}, {figures}" for name, figures in models.items()]
        for file, text in _metrics_files(report, lines).items():
            with klinefiles.replacing(path / file) as unfinished:
                unfinished.write_text(text)
        wrote.append(path)
    return {"paths": len(on_path), "models": models, "score": scores, "wrote": wrote}


def _baseline_names(fold: Fold) -> list[str]:
    return [f"{label}.{name}" for label in fold.labels for name in baselines.NAMES]


def _over_paths(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over the paths of what matters."""
    result: dict[str, Any] = {"paths": len(found)}
    for key in ("auc", "ap", "brier", "log_loss", "skill", "rank"):
        values = [one[key] for one in found if one.get(key) is not None]
        if values:
            result |= {
                f"{key}_mean": round(float(np.mean(values)), 6),
                f"{key}_least": min(values),
                f"{key}_most": max(values),
            }
    return result
