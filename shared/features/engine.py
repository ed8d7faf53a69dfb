"""Features of candles, live and in batch: `FeatureSet` says which, `Window` follows one symbol."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import OutOfSync, Usage
from shared.features.families import SOURCES, Spec, parse
from shared.features.plan import CHUNK, Floats, Plan, make_plan
from shared.features.ta import DAY_MS, TaSpec
from shared.features.ta_plan import TaPlan, make_ta_plan
from shared.features.user import UserFeature, UserHistory, read_user_file
from shared.klines import KLINE_COLUMNS

_LEAST_BLOCK = 20_000  # rows per thread of a parallel batch; less is not worth its warm-up


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """An ordered list of features; what a model is trained on and what a vector on the bus holds.

    names: as config lists them; a name is the specification of its feature.
    schema_json: `json.dumps(names, separators=(",", ":"))`, ASCII only: the text that the bus keeps
        under `schema:<schema>`.
    schema: first 16 hex digits of that text's sha256.
    lookback: rows, the current one included, on which a value depends at most.
    sources: which of "kline", "futur", "depth" and "other" are read.
    user_sha256: of the user's feature file, None without one. A release records it beside the
        schema: the name of a user feature says what it is only together with this file.
    """

    names: tuple[str, ...]
    schema_json: str
    schema: str
    lookback: int
    sources: frozenset[str]
    user_sha256: str | None
    _plans: tuple[Plan | TaPlan, ...]
    _user: tuple[tuple[int, UserFeature], ...]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        user_file: Path | str | None = None,
        *,
        interval_ms: int | None = None,
    ) -> "FeatureSet":
        """The features of these names, in this order.

        user_file: a Python file with functions under `@feature(lookback=...)`.
        interval_ms: length of a candle; only the features of the clock (`time_of_day` ..) ask it.

        Raises:
            Usage: no name, a repeated or an unknown one, one of the clock without `interval_ms`,
                or a fault in the user's file.
        """
        names = tuple(names)
        if not names:
            raise Usage("no features: list at least one name")
        if len(set(names)) < len(names):
            twice = next(name for at, name in enumerate(names) if name in names[:at])
            raise Usage(f"feature {twice!r} is listed twice")
        path = None if user_file is None else Path(user_file)
        user_features, user_sha256 = ({}, None) if path is None else read_user_file(path)
        specs = {name: parse(name, user_features) for name in names if name not in user_features}
        for name, spec in specs.items():
            if isinstance(spec, TaSpec) and spec.clock and interval_ms is None:
                raise Usage(f"feature {name!r} needs the interval of the candles")
        plans: list[Plan | TaPlan] = []
        for source in SOURCES:
            known = [(at, specs[name]) for at, name in enumerate(names) if name in specs]
            seed = [(at, s) for at, s in known if isinstance(s, Spec) and s.source is source]
            ta = [(at, s) for at, s in known if isinstance(s, TaSpec) and s.source == source.name]
            if seed:
                plans.append(make_plan(source, seed))
            if ta:
                plans.append(make_ta_plan(source, ta, DAY_MS // (interval_ms or DAY_MS)))
        user = tuple(
            (column, user_features[name])
            for column, name in enumerate(names)
            if name in user_features
        )
        sources = {plan.source.name for plan in plans}
        if user or "other" in sources:
            sources.add("kline")
        lookbacks = [spec.lookback for spec in specs.values()]
        lookbacks += [feature.lookback for _, feature in user]
        schema_json = json.dumps(names, separators=(",", ":"))
        return cls(
            names=names,
            schema_json=schema_json,
            schema=hashlib.sha256(schema_json.encode()).hexdigest()[:16],
            lookback=max(lookbacks),
            sources=frozenset(sources),
            user_sha256=user_sha256,
            _plans=tuple(plans),
            _user=user,
        )

    def window(self) -> "Window":
        """A new, empty window: the live form, for one symbol."""
        return Window(self)

    def batch(
        self,
        first_index: int,
        kline: npt.ArrayLike,
        futur: npt.ArrayLike | None = None,
        depth: npt.ArrayLike | None = None,
        other: npt.ArrayLike | None = None,
        *,
        workers: int = 1,
    ) -> Floats:
        """The features of every row: (n, n_features) float64, columns in the order of `names`.

        first_index: open_time_ms // interval_ms of row 0.
        kline, futur, other (another symbol's candles): (n, 9), columns as KLINE_COLUMNS; depth:
            (n, 11), as DEPTH_COLUMNS; raster rows, NaN where there is nothing. A source that no
            name reads may be left out.
        workers: threads; the values are the same bits with any number.

        Raises:
            Usage: a source that the names read is missing or has another shape.
            Failure: a user's function failed.
        """
        inputs = self._inputs(kline, futur, depth, other)
        n = len(inputs["kline"]) if "kline" in inputs else len(next(iter(inputs.values())))
        out = np.empty((n, len(self.names)))
        blocks = max(1, min(workers, n // max(_LEAST_BLOCK, self.lookback)))
        edges = [n * block // blocks for block in range(blocks + 1)]
        ranges = list(itertools.pairwise(edges))
        if blocks == 1:
            self._block(first_index, inputs, 0, n, out)
        else:
            with ThreadPoolExecutor(blocks) as pool:
                for done in [
                    pool.submit(self._block, first_index, inputs, start, stop, out)
                    for start, stop in ranges
                ]:
                    done.result()
        for column, feature in self._user:
            feature.batch(inputs["kline"], out[:, column])
        return out

    def _block(
        self, first_index: int, inputs: dict[str, Floats], start: int, stop: int, out: Floats
    ) -> None:
        """Rows [start, stop) of a batch, warmed up by the rows before."""
        for plan in self._plans:
            rows = inputs[plan.source.name]
            warm = max(0, start - (plan.longest - 1))
            state = plan.state(CHUNK)
            state.start(first_index + warm)
            if warm < start:
                state.advance(rows[warm:start], np.empty((start - warm, len(self.names))))
            state.advance(rows[start:stop], out[start:stop])

    def _inputs(
        self,
        kline: npt.ArrayLike | None,
        futur: npt.ArrayLike | None,
        depth: npt.ArrayLike | None,
        other: npt.ArrayLike | None,
    ) -> dict[str, Floats]:
        """The sources that are read, as arrays that the kernel takes."""
        given = {"kline": kline, "futur": futur, "depth": depth, "other": other}
        inputs = {}
        for source in SOURCES:
            if source.name not in self.sources:
                continue
            rows = given[source.name]
            if rows is None:
                raise Usage(f"these features read {source.name} rows, and there are none")
            array = np.ascontiguousarray(rows, dtype=np.float64)
            width = len(KLINE_COLUMNS) if source.name == "other" else len(source.columns)
            if array.ndim != 2 or array.shape[1] != width:
                raise Usage(f"{source.name} rows have shape {array.shape}, expected (n, {width})")
            inputs[source.name] = array
        lengths = {name: len(array) for name, array in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise Usage(f"the sources must have the same rows; they have {lengths}")
        if "other" in inputs:
            inputs["other"] = np.hstack([inputs["kline"], inputs["other"]])
        return inputs


class Window:
    """The features of one symbol as its candles close, and all that must be remembered for them.

    State can be rebuilt from the last `lookback - 1` rows before the next one: from then on `step`
    gives the very bits of `FeatureSet.batch`, wherever the loaded rows begin.
    """

    def __init__(self, features: FeatureSet) -> None:
        self._features = features
        self._states = [(plan, plan.state()) for plan in features._plans]
        self._rows = {
            plan.source.name: np.empty((1, len(plan.source.columns))) for plan, _ in self._states
        }
        self._user = UserHistory([feature for _, feature in features._user])
        self._index: int | None = None
        self._start(0)
        for plan, state in self._states:  # compiles, or loads what was compiled, before live begins
            state.advance(np.empty((0, len(plan.source.columns))), np.empty((0, 1)))

    @property
    def index(self) -> int | None:
        """Index of the newest row; None before the first."""
        return self._index

    @property
    def nbytes(self) -> int:
        """Memory of the state."""
        return sum(state.nbytes for _, state in self._states) + self._user.nbytes

    def load(
        self,
        first_index: int,
        kline: npt.ArrayLike,
        futur: npt.ArrayLike | None = None,
        depth: npt.ArrayLike | None = None,
        other: npt.ArrayLike | None = None,
    ) -> None:
        """Forget all, then take these rows as history; arguments as those of `FeatureSet.batch`.

        Row 0 counts as the first candle there is, unless more than `lookback` rows are given.

        Raises:
            Usage: a source that the names read is missing or has another shape.
        """
        inputs = self._features._inputs(kline, futur, depth, other)
        n = len(next(iter(inputs.values())))
        skip = max(0, n - self._features.lookback)
        self._start(first_index + skip)
        scratch = np.empty((n - skip, len(self._features.names)))
        for plan, state in self._states:
            state.advance(inputs[plan.source.name][skip:], scratch)
        if "kline" in inputs:
            self._user.load(inputs["kline"][skip:])
        self._index = first_index + n - 1 if n else None

    def step(
        self,
        index: int,
        kline_row: npt.ArrayLike | None,
        futur_row: npt.ArrayLike | None = None,
        depth_row: npt.ArrayLike | None = None,
        other_row: npt.ArrayLike | None = None,
    ) -> Floats:
        """The features of the next row: (n_features,) float64, in the order of the names.

        index: its open_time_ms // interval_ms.
        *_row: one row of each source that is read; None = nothing is known of this minute, a row of
            NaN, as for a gap.

        Raises:
            OutOfSync: the row is not the one after the last: load the history again.
            Failure: a user's function failed; the window must be loaded again.
        """
        if self._index is None:
            self._start(index)
        elif index != self._index + 1:
            raise OutOfSync(f"row {index} does not follow row {self._index}")
        self._index = index
        out = np.empty((1, len(self._features.names)))
        given = {"kline": kline_row, "futur": futur_row, "depth": depth_row}
        for name, rows in self._rows.items():
            if name == "other":
                width = len(KLINE_COLUMNS)
                rows[0, :width] = np.nan if kline_row is None else kline_row
                rows[0, width:] = np.nan if other_row is None else other_row
            else:
                row = given[name]
                rows[0] = np.nan if row is None else row
        for plan, state in self._states:
            state.advance(self._rows[plan.source.name], out)
        if self._features._user:
            self._user.push(kline_row)
            for column, feature in self._features._user:
                out[0, column] = self._user.value(feature)
        features: Floats = out[0]
        return features

    def _start(self, index: int) -> None:
        for _, state in self._states:
            state.start(index)
        self._user.start()
