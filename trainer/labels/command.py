"""`trainer labels`: the configured labels of every raster row."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.config import Settings
from shared.errors import Usage
from trainer import rasters
from trainer.labels.forms import label
from trainer.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rasters.add_options(parser)
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="these instead of the config's")
    parser.add_argument(
        "--horizon", type=int, metavar="ROWS", help="rows to look ahead, instead of the config's"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    names = rasters.listed(args.labels) or settings.labels
    horizon = settings.trainer.label_horizon if args.horizon is None else args.horizon
    if horizon < 1:
        raise Usage(f"--horizon {horizon}: a label looks at least one row ahead")
    outputs = []
    for read, raster, out in rasters.selected(settings, args, "labels"):
        columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": raster.open_time_ms}
        means: dict[str, float | None] = {}
        with progress.bar(f"labels of {raster.symbol}", len(names), "labels") as bar:
            for name in names:
                columns[name] = label(name, raster.kline_table(), horizon).y
                known = columns[name][~np.isnan(columns[name])]
                means[name] = round(float(known.mean()), 6) if len(known) else None
                bar.advance(detail=name)
        out.write([columns], {"horizon": str(horizon)})
        outputs.append(rasters.span(raster) | {"read": read, "wrote": [out.path], "mean": means})
    return {
        "command": "labels",
        "rows": sum(output["rows"] for output in outputs),
        "labels": list(names),
        "horizon": horizon,
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    places = ", ".join(str(output["wrote"][0]) for output in result["outputs"])
    return f"labels: {len(result['labels'])} labels of {result['rows']:,} rows in {places}"
