"""`trainer labels`: the configured labels of every raster row, or what labels there are."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.config import LABEL_WORDS, Settings, label_names
from shared.errors import Usage
from trainer import rasters
from trainer.csvfiles import write_csv
from trainer.labels.forms import FORMS, SIGMA_IS, spec
from trainer.labels.sigma import trailing_sigma
from trainer.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rasters.add_options(parser)
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="these instead of the config's")
    parser.add_argument(
        "--horizon", type=int, metavar="ROWS", help="rows to look ahead, instead of the config's"
    )
    parser.add_argument(
        "--t1",
        action="store_true",
        help="beside each label NAME a column NAME_t1: when the last row that it looks at opens",
    )
    parser.add_argument("--csv", action="store_true", help="write one csv file as well")
    parser.add_argument(
        "--list", action="store_true", help="print every form of label with its definition and t1"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    horizon = settings.trainer.label_horizon if args.horizon is None else args.horizon
    if horizon < 1:
        raise Usage(f"--horizon {horizon}: a label looks at least one row ahead")
    if args.list:
        words = {word: list(names) for word, names in LABEL_WORDS.items()}
        return {"command": "labels", "horizon": horizon, "forms": _forms(horizon), "words": words}
    names = label_names(rasters.listed(args.labels) or settings.labels)
    specs = [spec(name, horizon) for name in names]
    outputs = []
    for read, raster, out in rasters.selected(settings, args, "labels"):
        table = raster.kline_table()
        columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": raster.open_time_ms}
        means: dict[str, float | None] = {}
        with progress.bar(f"labels of {raster.symbol}", len(names), "labels") as bar:
            scaled = any(one.sigmas is not None for one in specs)
            sigma = trailing_sigma(table.column("close")) if scaled else None
            for one in specs:
                found = one.compute(table, sigma)
                columns[one.name] = found.y
                if args.t1:
                    columns[f"{one.name}_t1"] = raster.open_time_ms[found.t1]
                known = found.y[~np.isnan(found.y)]
                means[one.name] = round(float(known.mean()), 6) if len(known) else None
                if not len(known):
                    progress.note(
                        f"{raster.symbol}: no row has a value of {one.name}: it looks at rows up "
                        f"to {one.t1}, and there are {len(raster):,}"
                    )
                bar.advance(detail=one.name)
        out.write([columns], {"horizon": str(horizon)})
        wrote = [out.path]
        if args.csv:
            wrote.append(_csv_path(out.path))
            write_csv(wrote[-1], columns, progress)
        outputs.append(rasters.span(raster) | {"read": read, "wrote": wrote, "mean": means})
    return {
        "command": "labels",
        "rows": sum(output["rows"] for output in outputs),
        "labels": list(names),
        "horizon": horizon,
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    if "forms" in result:
        return _listing(result)
    places = ", ".join(str(path) for output in result["outputs"] for path in output["wrote"])
    return f"labels: {len(result['labels'])} labels of {result['rows']:,} rows in {places}"


def _csv_path(written: Path) -> Path:
    """FILE.csv beside FILE.parquet, and beside the monthly folder FILE."""
    stem = written.stem if written.suffix == ".parquet" else written.name
    return written.with_name(f"{stem}.csv")


def _forms(horizon: int) -> list[dict[str, Any]]:
    found = []
    for form in FORMS:
        labels = []
        for name in form.examples:
            one = spec(name, horizon)
            labels.append(
                {"name": name, "side": one.side, "definition": one.definition, "t1": one.t1}
            )
        found.append({"form": form.shown, "note": form.note, "labels": labels})
    return found


def _listing(result: Mapping[str, Any]) -> str:
    lines = [
        f"Labels at a horizon of {result['horizon']} rows. y is 0 or 1, or a value where there is",
        "no side (which way the price goes where y is 1); NaN is not known. t1: the last row",
        "that is looked at. W and H are rows.",
    ]
    for form in result["forms"]:
        lines += ["", f"{form['form']}{'  - ' if form['note'] else ''}{form['note']}"]
        for one in form["labels"]:
            text = one["definition"].removesuffix(f", {SIGMA_IS}")
            side = one["side"] or "value"
            lines.append(f"  {one['name']:21} {side:5}  {text}; t1 = {one['t1']}")
    words = [f"  {word:21} {', '.join(names)}" for word, names in result["words"].items()]
    return "\n".join([*lines, "", SIGMA_IS, "", "Words that stand for two of them:", *words])
