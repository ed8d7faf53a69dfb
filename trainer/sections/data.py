"""What the release was made from: its data's gaps, models, labels and features."""

import numpy as np

from trainer import figures
from trainer.evidence import Evidence
from trainer.importance import groups
from trainer.page import Picture, Section, Table
from trainer.sections.draft import Draft
from trainer.sections.words import counted, mapping, percent, run_it, some, when, whole

_GAPS_SHOWN = 15
_SHOWN_SHARE_OF_GAPS = 0.01


def gaps(evidence: Evidence, draft: Draft) -> Section:
    """Candles that are missing in the merged data."""
    parts: list[Table | Picture | str] = []
    missing = []
    for one in evidence.symbols:
        raster = one.raster
        if raster is None:
            missing.append(run_it(one, "No merged candles", "merge"))
            continue
        found = raster.gaps()
        lost = sum(rows for _, rows in found)
        span = f"{when(int(raster.open_time_ms[0]))} to {when(int(raster.open_time_ms[-1]))} UTC"
        if not found:
            parts.append(f"{one.symbol}: no candle is missing among {len(raster):,}, {span}.")
            continue
        share = lost / len(raster)
        if share > _SHOWN_SHARE_OF_GAPS:
            draft.warn(f"{one.symbol}: {percent(share)} of the candles are missing.")
        starts = np.array([start for start, _ in found], np.int64)
        lengths = np.array([rows for _, rows in found], np.float64)
        parts.append(
            draft.broad(
                f"{one.symbol}-gaps",
                f"{one.symbol}: missing candles",
                lambda wide, raster=raster, starts=starts, lengths=lengths: figures.gaps(  # type: ignore[misc]
                    int(raster.open_time_ms[0]),
                    int(raster.open_time_ms[-1]),
                    starts,
                    lengths,
                    wide=wide,
                ),
                f"{counted(len(found), 'gap')}, {lost:,} of {len(raster):,} candles "
                f"({percent(share, 3)}), {span}.",
                "why: the exchange was down, or the download is not complete "
                "(`python -m trainer download` repairs what it can).",
            )
        )
        longest = sorted(found, key=lambda gap: (-gap[1], gap[0]))[:_GAPS_SHOWN]
        parts.append(
            Table(
                caption=f"{one.symbol}: the longest gaps ({len(longest)} of {len(found):,})",
                columns=("first missing candle (UTC)", "missing candles"),
                rows=[(when(start), whole(rows)) for start, rows in longest],
            )
        )
    return Section(
        id="gaps",
        title="Data gaps",
        intro=(
            "A missing candle is a row without values. Features skip it, labels whose window holds "
            "one are not known, and no score is given for it."
        ),
        parts=parts,
        missing=missing,
    )


def origin(evidence: Evidence, draft: Draft) -> Section:
    """What the release was made from."""
    manifest = evidence.manifest
    left_out = set(manifest.left_out)
    if left_out:
        draft.warn(
            f"{counted(len(left_out), 'feature')} left out, without a value in more than half of "
            f"the training rows: {some(sorted(left_out))}."
        )
    for name, label in manifest.labels.items():
        if label.left_out:
            draft.warn(f"No model predicts {name}: {label.left_out}.")
    by_group = groups(manifest.features)
    names = manifest.features
    parts: list[Table | Picture | str] = [
        Table(
            caption="Models and their files",
            columns=("model", "label", "algorithm", "speaks for", "file", "sha256"),
            rows=[
                (
                    name,
                    model.label,
                    model.algorithm,
                    "rise" if name in manifest.score.high else "fall",
                    model.file,
                    model.sha256[:16],
                )
                for name, model in manifest.models.items()
            ],
            texts=frozenset({1, 2, 3, 4, 5}),
        ),
        Table(
            caption="Labels",
            columns=("label", "candles ahead", "definition"),
            rows=[
                (name, whole(label.horizon), label.definition)
                for name, label in manifest.labels.items()
            ],
            texts=frozenset({2}),
        ),
        Table(
            caption=f"Features, {len(names)} in {counted(len(by_group), 'group')}",
            columns=("group", "features", "left out", "names"),
            rows=[
                (
                    group,
                    whole(len(columns)),
                    whole(sum(names[at] in left_out for at in columns)),
                    ", ".join(names[at] for at in columns),
                )
                for group, columns in by_group.items()
            ],
            texts=frozenset({3}),
        ),
    ]
    if manifest.parity:
        parts.append(
            Table(
                caption="Parity of the exported models with the trained ones",
                columns=("measure", "value"),
                rows=[
                    (
                        name.replace("_", " "),
                        f"{value:,}" if isinstance(value, int) else f"{value:.3g}",
                    )
                    for name, value in manifest.parity.items()
                ],
            )
        )
    made_from = manifest.made_from
    if made_from:
        libraries = mapping(made_from, "libraries")
        parts.append(
            Table(
                caption="Made from (the whole config is in manifest.json)",
                columns=("what", "value"),
                rows=[
                    ("sha256 of the rows", str(made_from.get("rows_sha256", "–"))),
                    *((name, str(version)) for name, version in libraries.items()),
                ],
                texts=frozenset({1}),
            )
        )
    return Section(
        id="origin",
        title="What it is made of",
        intro=f"Score: {manifest.score.kind} of the models that speak for a rise and for a fall.",
        parts=parts,
    )
