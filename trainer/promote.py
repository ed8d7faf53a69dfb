"""`trainer promote`: makes a release live, if it passes the gates and, asked for, the challenge.

Verified as the predictor would (bytes, schema, golden outputs); then the gates of
`trainer/gates.py` on the candles of --klines, else of the merged data, else on none, which is said.
With --challenge it must also not be worse than the live release: `trainer/challenge.py` has the
rule. --force promotes what fails gates or challenge, and says what it overrode; a damaged release
stays refused.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import releases
from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import Failure
from shared.releases import list_releases
from trainer import challenge, gates, rasters
from trainer.predict import features_of
from trainer.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("release", nargs="?", metavar="ID", help="default: the newest release")
    parser.add_argument(
        "--challenge",
        action="store_true",
        help="only if it is not worse than the live release on candles that neither has seen",
    )
    parser.add_argument(
        "--force", action="store_true", help="promote all the same, and say what it failed"
    )
    parser.add_argument(
        "--klines",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="try it on these candles",
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    rasters.add_other(parser)


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    known = list_releases(settings.model_folder)
    if not known:
        raise Failure(
            f"{settings.model_folder}: no release to promote; run `python -m trainer train`"
        )
    release = args.release or known[-1]
    if release not in known:
        raise Failure(f"{settings.model_folder}: no release {release!r}; the newest is {known[-1]}")
    bundle = Bundle.load(settings.model_folder / "releases" / release, settings.limits.model_bytes)
    candles = recent_candles(settings, args, bundle)
    verdict: challenge.Verdict | None = None
    failed: list[str] = []
    if args.challenge:
        try:
            verdict = challenge.against_live(settings, args, bundle, candles, progress)
        except Failure as error:
            if not args.force:
                raise
            failed.append(str(error))
        else:
            progress.note(str(verdict))
            failed += verdict.reasons
    return checked(settings, bundle, candles, progress, force=args.force, failed=failed) | (
        {} if verdict is None else {"challenge": verdict.plain()}
    )


def summary(result: Mapping[str, Any]) -> str:
    before = f" (before: {result['previous']})" if result["previous"] else ""
    forced = f", forced past {len(result['overridden'])} faults" if result["overridden"] else ""
    return f"promote: {result['release']} is live{before}{forced}"


def checked(
    settings: Settings,
    bundle: Bundle,
    candles: Sequence[rasters.Raster],
    progress: Progress,
    *,
    force: bool = False,
    failed: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes a verified release live if it passes the gates; what `train --promote` calls, too.

    failed: what speaks against it already.

    Raises:
        Failure: it does not pass; the release that was live stays.
    """
    if bundle.note:
        progress.note(bundle.note)
    features = features_of(bundle.manifest, settings)
    threads = settings.trainer.threads or os.cpu_count() or 1
    with progress.bar("gates", 1, "releases") as bar:
        found = gates.check(
            bundle,
            features,
            candles,
            nan_share=settings.limits.nan_share,
            features_file=settings.features_file,
            threads=threads,
        )
        bar.advance()
    warnings = [str(finding) for finding in found if not finding.refuses]
    for warning in warnings:
        progress.note(f"warning: {warning}")
    refused = [*failed, *(str(finding) for finding in found if finding.refuses)]
    if refused and not force:
        raise Failure(
            f"release {bundle.id} is written but not promoted: {'; '.join(refused)}; "
            f"`python -m trainer promote {bundle.id} --force` overrides this"
        )
    for reason in refused:
        progress.note(f"FORCED although: {reason}")
    previous = releases.promote(settings.model_folder, bundle.id)
    return {
        "command": "promote",
        "release": bundle.id,
        "previous": previous,
        "warnings": warnings,
        "overridden": refused,
    }


def newest(
    settings: Settings, release: str, candles: Sequence[rasters.Raster], progress: Progress
) -> dict[str, Any]:
    """Loads, checks and promotes a release that `train` has just written."""
    folder = settings.model_folder / "releases" / release
    bundle = Bundle.load(folder, settings.limits.model_bytes)
    return checked(settings, bundle, candles, progress)


def recent_candles(
    settings: Settings, args: argparse.Namespace, bundle: Bundle
) -> list[rasters.Raster]:
    """Candles of the release's symbols: those of --klines, else the merged ones, as far as there.

    Raises:
        Failure: --klines are of no symbol or interval of the release, or lack a source that its
            features read.
    """
    manifest = bundle.manifest
    if args.klines is not None:
        options = argparse.Namespace(
            klines=args.klines,
            futures=args.futures,
            other=args.other,
            symbol=None,
            interval=None,
        )
        tables = rasters.read_bare(options, settings)
        found = list(rasters.joined_bare(options, settings, tables))
        fitting = [raster for raster in found if raster.interval == manifest.interval]
        if not fitting:
            raise Failure(
                f"release {bundle.id} is for {manifest.interval} candles, these are of "
                f"{', '.join(sorted({raster.interval for raster in found}))}"
            )
    else:
        fitting = [
            rasters.read_merged(settings.data_folder, symbol, manifest.interval)
            for symbol in manifest.symbols
            if rasters.merged_folder(settings.data_folder, symbol, manifest.interval).is_dir()
        ]
    sources = features_of(manifest, settings).sources
    for raster in fitting:
        source = raster.lacks(sources)
        if source is not None:
            raise Failure(
                f"{raster.symbol}: release {bundle.id} reads {source} rows, and there are none "
                "beside these candles; download and merge them, or give --futures or --other"
            )
    return fitting
