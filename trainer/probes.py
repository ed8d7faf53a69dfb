"""Do features and labels look ahead? Recomputed from less data they must be the same bits.

Each probe compares what is computed from all candles with what comes of the candles up to a row
alone, and of the same past with another future. A user's feature gets nothing but its window of
past rows, so a look ahead must come from somewhere else: from data that its file holds (a table of
candles at the top of the file, a cache), from state that it keeps between calls, or from files that
it reads while it is called. Those are altered, reversed and watched.
"""

import builtins
import contextlib
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.user import UserFeature, read_user_file
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.times import iso
from trainer import othertables
from trainer.evaluate import rank_correlation
from trainer.labels import label
from trainer.rasters import Raster

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]  # told by the comparison with None

Floats = npt.NDArray[np.float64]

SPAN = 32  # rows before each cut that are compared
_AHEAD = 32  # rows after it that a user's feature is computed for
_GAPS = 12
_LAST_ROWS = 200
_CALLS = 5
_CLOSE = KLINE_COLUMNS.index("close")
# A table that a feature may hold for itself, such as weights, has fewer numbers than this and than
# its window; more are data, and live has no such data.
_OWN_NUMBERS = 1000
_MOST_OBJECTS = 200_000
_LOADS = 4  # times that a user's file is run again on tables with another future
# No honest feature knows the next candle's return so well.
_TOO_WELL = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One proof of a leak. kind: feature, label or training; row_ms: open time of the row that
    shows it, None where no single row does; value, other: what was computed and what should have
    been the same."""

    kind: str
    name: str
    why: str
    row_ms: int | None = None
    value: float | None = None
    other: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "why": self.why,
            "row": None if self.row_ms is None else iso(self.row_ms),
            "row_ms": self.row_ms,
            "value": self.value,
            "other": self.other,
        }

    def __str__(self) -> str:
        at = "" if self.row_ms is None else f" at {iso(self.row_ms)}"
        return f"{self.kind} {self.name!r}{at}: {self.why}"


def cuts(raster: Raster, first: int, horizon: int, count: int, seed: int) -> list[int]:
    """Rows to cut after: `count` anywhere, some in the last `horizon` rows, and around gaps."""
    rows = len(raster)
    random = np.random.default_rng(seed)
    found = {rows - 1, rows - 2, rows - 1 - horizon // 2, rows - 1 - horizon, rows - 2 - horizon}
    found |= {int(at) for at in random.integers(rows - horizon, rows, 3)}
    gaps = raster.gaps()
    if gaps:
        chosen = random.permutation(len(gaps))[:_GAPS]
        step = int(raster.open_time_ms[1] - raster.open_time_ms[0])
        for start_ms, length in (gaps[at] for at in chosen):
            start = (start_ms - int(raster.open_time_ms[0])) // step
            found |= {start - 1, start, start + length - 1, start + length, start + length + 1}
    if rows > first:
        found |= {int(at) for at in random.integers(first, rows, count)}
    return sorted(at for at in found if first <= at < rows)


def another_future(
    values: Floats,
    after: int,
    seed: int,
    scale: tuple[float, float] = (0.2, 3.0),
    gone: float = 0.1,
) -> Floats:
    """The rows up to `after` as they are, later ones scaled at random, a share of them gone."""
    found = values.copy()
    random = np.random.default_rng(seed)
    later = found[after + 1 :]
    later *= random.uniform(*scale, (len(later), 1)) * random.uniform(0.9, 1.1, later.shape)
    later[random.random(len(later)) < gone] = np.nan
    return found


def _differ(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
    """Where the bits differ; NaN is NaN."""
    return np.asarray((a.view(np.int64) != b.view(np.int64)) & ~(np.isnan(a) & np.isnan(b)))


# --- features ------------------------------------------------------------------------------------


def features(
    raster: Raster,
    chosen: FeatureSet,
    at: Sequence[int],
    seed: int,
    advance: Callable[[], None],
) -> list[Finding]:
    """Probes features that the kernel computes; one finding per feature at most."""
    found: dict[str, Finding] = {}
    for cut in at:
        low = max(0, cut - SPAN - chosen.lookback + 2)
        high = min(len(raster), cut + 1 + chosen.lookback)
        judged = slice(max(low + chosen.lookback - 1, cut - SPAN + 1) if low else 0, cut + 1)
        if low == 0:
            judged = slice(max(0, cut - SPAN + 1), cut + 1)

        def computed(
            first: int, stop: int, changed: bool, cut: int = cut, judged: slice = judged
        ) -> Floats:
            inputs: dict[str, Any] = {**raster.inputs(first, stop)}
            sources: dict[str, Any] = {
                name: None
                if values is None
                else (another_future(values, cut - first, seed + cut) if changed else values)
                for name, values in inputs.items()
            }
            whole = chosen.batch(raster.first_index + first, **sources)
            return np.ascontiguousarray(whole[judged.start - first : judged.stop - first])

        whole = computed(low, high, False)
        tries = {
            f"it differs when the candles end at {iso(int(raster.open_time_ms[cut]))}": (
                computed(low, cut + 1, False)
            ),
            f"it differs when the candles after {iso(int(raster.open_time_ms[cut]))} are others": (
                computed(low, high, True)
            ),
        }
        if low > 0:
            tries["it differs with the row at which the computation starts"] = computed(
                max(0, low - 17), high, False
            )
        for why, other in tries.items():
            rows, columns = np.nonzero(_differ(whole, other))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                name = chosen.names[column]
                if name not in found:
                    found[name] = Finding(
                        kind="feature",
                        name=name,
                        why=why,
                        row_ms=int(raster.open_time_ms[judged.start + row]),
                        value=float(whole[row, column]),
                        other=float(other[row, column]),
                    )
        advance()
    return list(found.values())


# --- a user's own features -----------------------------------------------------------------------


def user_features(
    raster: Raster,
    path: Path,
    names: Sequence[str],
    at: Sequence[int],
    seed: int,
    advance: Callable[[], None],
) -> list[Finding]:
    """Probes the functions of a user's file; one finding per feature at most.

    Raises:
        Failure: a function fails on the candles as they are.
    """
    found = []
    for name in names:
        finding = _user_feature(raster, path, name, at, seed)
        if finding is not None:
            found.append(finding)
        advance()
    return found


def _user_feature(
    raster: Raster, path: Path, name: str, at: Sequence[int], seed: int
) -> Finding | None:
    probe = _Probe(raster=raster, feature=_plain(read_user_file(path)[0][name]), cuts=tuple(at))

    def finding(row: int, why: str, other: float | str) -> Finding:
        return Finding(
            kind="feature",
            name=name,
            why=why if isinstance(other, float) else f"{why} ({other})",
            row_ms=int(raster.open_time_ms[row]),
            value=probe.value(row),
            other=other if isinstance(other, float) else None,
        )

    read = probe.reads_files()  # first, since it may be slow
    if read is not None:
        row, what = read
        return finding(row, f"it reads {what} while it is computed", probe.value(row))
    expected = {cut: probe.rows(cut, cut + _AHEAD) for cut in at}
    for cut in at:
        when = iso(int(raster.open_time_ms[cut]))
        for why, other in (
            (f"it differs when the candles end at {when}", probe.rows(cut, cut)),
            (f"it differs when the candles after {when} are others", probe.changed(cut, seed)),
        ):
            for row, value in other.items():
                if row <= cut and _is_other(expected[cut][row], value):
                    return finding(row, why, value)
    # the other way round and by a file run anew: a function of its window alone does not notice
    fresh = _Probe(raster=raster, feature=_plain(read_user_file(path)[0][name]), cuts=tuple(at))
    for cut in reversed(at):
        for row in reversed(range(fresh.first_row(cut), cut + 1)):
            again = fresh.tried(row)
            if _is_other(expected[cut][row], again):
                why = "it keeps something between calls: in another order its value differs"
                return finding(row, why, again)
    for one in probe.outside(seed):
        return finding(*one)
    for one in probe.loaded(seed):
        return finding(*one)
    return _knows_too_much(probe, name, seed)


def _plain(one: UserFeature) -> UserFeature:
    """With the Python function of a compiled one: what it was compiled with cannot be altered."""
    function = getattr(one.function, "py_func", one.function)
    return UserFeature(
        name=one.name, lookback=one.lookback, path=one.path, line=one.line, function=function
    )


def _is_other(a: float | str, b: float | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a != b
    return bool(_differ(np.array([a]), np.array([b]))[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """One function, called with windows of the raster; what it raises counts as a value."""

    raster: Raster
    feature: UserFeature
    cuts: tuple[int, ...]

    def first_row(self, cut: int) -> int:
        return max(self.feature.lookback - 1, cut - SPAN + 1)

    def value(self, row: int) -> float:
        return self.feature.value(self._window(self.raster.kline, row))

    def tried(self, row: int) -> float | str:
        try:
            return self.value(row)
        except Failure as error:
            return str(error)

    def rows(self, cut: int, last: int) -> dict[int, float]:
        """As `UserFeature.batch` gives them of the rows up to `last`; those before `cut` and on."""
        return self._batch(self.raster.kline, cut, min(last, len(self.raster) - 1))

    def changed(self, cut: int, seed: int) -> dict[int, float]:
        last = min(cut + _AHEAD, len(self.raster) - 1)
        low = max(0, self.first_row(cut) - self.feature.lookback + 1)
        other = another_future(self.raster.kline[low : last + 1], cut - low, seed + cut)
        found = np.empty(len(other))
        try:
            self.feature.batch(other, found)
        except Failure:  # a window of impossible candles may be refused; those rows do not count
            found[cut + 1 - low :] = np.nan
            self.feature.batch(other[: cut + 1 - low], found[: cut + 1 - low])
        return {row: float(found[row - low]) for row in range(self.first_row(cut), cut + 1)}

    def _batch(self, kline: Floats, cut: int, last: int) -> dict[int, float]:
        first = self.first_row(cut)
        low = first - self.feature.lookback + 1
        if last < first or low < 0:
            return {}
        rows = np.ascontiguousarray(kline[low : last + 1])
        found = np.empty(len(rows))
        self.feature.batch(rows, found)
        return {row: float(found[row - low]) for row in range(first, last + 1)}

    def _window(self, kline: Floats, row: int) -> Floats:
        window = kline[row - self.feature.lookback + 1 : row + 1].copy()
        window.flags.writeable = False
        return window

    def _sample(self) -> list[int]:
        """The cuts, and every row of the end, where labels are not known yet."""
        last = range(max(0, len(self.raster) - _LAST_ROWS), len(self.raster))
        return sorted({row for row in (*self.cuts, *last) if row >= self.feature.lookback - 1})

    def reads_files(self) -> tuple[int, str] | None:
        """The first row whose computation reads a file, and which."""
        for row in self._sample():
            expected = self.tried(row)  # what is read once and kept is found by `outside`
            found: list[str] = []
            for _ in range(_CALLS):  # another thread may read as well, but not each time
                with _watched() as opened:
                    self.tried(row)
                found += opened[:1]
                if not opened:
                    break
            else:
                return row, found[-1]
            with _no_more_files():
                value = self.tried(row)
            if _is_other(expected, value) and not _is_other(expected, self.tried(row)):
                return row, "a file"  # which a library maps into memory
        return None

    def loaded(self, seed: int) -> Iterator[tuple[int, str, float | str]]:
        """(row, why, value) where a value depends on candles after it that the file read, if only
        for a figure of them: the file is run again on tables with other candles after the row."""
        known = [row for row in self.cuts if not np.isnan(self.raster.kline[row, _CLOSE])]
        for at in dict.fromkeys(len(known) * part // _LOADS for part in range(_LOADS)):
            if at >= len(known):
                return
            row = known[at]
            expected = self.tried(row)
            place = functools.partial(_place, raster=self.raster, row=row)
            with othertables.altered(place, np.random.default_rng(seed)) as used:
                try:
                    one = _plain(read_user_file(self.feature.path)[0][self.feature.name])
                except Usage:  # a file may refuse candles that cannot be
                    continue
                value = _Probe(raster=self.raster, feature=one, cuts=self.cuts).tried(row)
            if used and not isinstance(value, str) and _is_other(expected, value):
                why = f"it looks ahead: it differs when {used[0]} gives it other later candles"
                yield row, why, value

    def outside(self, seed: int) -> Iterator[tuple[int, str, float | str]]:
        """(row, why, value) where a value depends on data that the file holds.

        First only what lies after the row is altered, in tables in which the candles up to it are
        found; then all data at once.
        """
        held = [one for one in _held_data(self.feature) if one.is_data(self.feature.lookback)]
        close = self.raster.kline[:, _CLOSE]
        random = np.random.default_rng(seed)
        for row in self._sample():
            expected = self.tried(row)
            for one in held:
                for later in one.later_than(self.raster, row):
                    with later.altered(random):
                        value = self.tried(row)
                    if _is_other(expected, value):
                        yield (
                            row,
                            f"it looks ahead: it differs when later candles in {one.name} are "
                            "others",
                            value,
                        )
        most = max(_OWN_NUMBERS, len(KLINE_COLUMNS) * self.feature.lookback)
        held = [one for one in held if one.size > most]
        for row in self._sample() if held else ():
            if np.isnan(close[row]):
                continue
            expected = self.tried(row)
            for one in held:
                with one.emptied():
                    value = self.tried(row)
                if _is_other(expected, value):
                    yield (
                        row,
                        "it depends on data outside its window, which live does not have and which "
                        f"may look ahead: {one.name}",
                        value,
                    )


def _knows_too_much(probe: _Probe, name: str, seed: int) -> Finding | None:
    """A feature that foretells the next candle as none can, however it does it."""
    close = probe.raster.kline[:, _CLOSE]
    first, last = probe.feature.lookback - 1, len(close) - 1
    if last - first < 500:
        return None
    rows = np.unique(np.random.default_rng(seed).integers(first, last, 1500))
    with np.errstate(divide="ignore", invalid="ignore"):
        moves = close[rows + 1] / close[rows] - 1
    values = np.array([probe.value(int(row)) for row in rows])
    for what, said in (("", values), (" less the close", values - close[rows])):
        known = np.isfinite(moves) & np.isfinite(said)
        if known.sum() < 300:
            continue
        found = rank_correlation(said[known], moves[known])
        if found is not None and abs(found) > _TOO_WELL:
            most = int(rows[known][np.argmax(np.abs(moves[known]))])
            return Finding(
                kind="feature",
                name=name,
                why=f"its value{what} foretells the next candle's return (rank correlation "
                f"{found:+.2f} over {int(known.sum()):,} rows), which no honest feature can",
                row_ms=int(probe.raster.open_time_ms[most]),
                value=probe.value(most),
            )
    return None


# --- data that a user's file holds ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Later:
    """The part of a table that lies after a row."""

    sequence: Any  # list or (n,) view of an array
    start: int
    keys: tuple[Any, ...] | None = None  # of a dict: the keys in order

    @contextlib.contextmanager
    def altered(self, random: np.random.Generator) -> Iterator[None]:
        if self.keys is not None:
            places: Sequence[Any] = self.keys[self.start :]
        else:
            places = range(self.start, len(self.sequence))
        if isinstance(self.sequence, np.ndarray):
            kept = self.sequence[self.start :].copy()
            self.sequence[self.start :] = kept * random.uniform(0.2, 3.0, len(kept))
            try:
                yield
            finally:
                self.sequence[self.start :] = kept
            return
        before = [self.sequence[place] for place in places]
        factors = random.uniform(0.2, 3.0, len(before))
        for place, old, factor in zip(places, before, factors, strict=True):
            self.sequence[place] = old * float(factor)
        try:
            yield
        finally:
            for place, old in zip(places, before, strict=True):
                self.sequence[place] = old


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """An object with many values that a user's function can reach. name: how to find it; holder,
    key: the nearest dict or closure cell through which it is reached."""

    name: str
    value: Any
    size: int
    holder: Any = None
    key: Any = None

    def is_data(self, lookback: int) -> bool:
        """More than weights for its window could be."""
        return self.size > lookback and self.size >= 64

    def later_than(self, raster: Raster, row: int) -> Iterator[_Later]:
        """Where the candles up to `row` stand in it: what comes after."""
        if isinstance(self.value, np.ndarray):
            if self.value.dtype.kind != "f" or not self.value.flags.writeable:
                return
            table = np.atleast_2d(self.value)
            if table.ndim > 2:
                return
            # the longer side is time
            for view in table if table.shape[1] >= table.shape[0] else table.T:
                place = _place(view, raster, row)
                if place is not None:
                    yield _Later(sequence=view, start=place + 1)
            return
        if isinstance(self.value, dict):
            values, keys = list(self.value.values()), tuple(self.value)
        elif isinstance(self.value, list):
            values, keys = self.value, None
        else:
            return
        if all(type(value) is float or isinstance(value, np.floating) for value in values):
            place = _place(np.array(values, float), raster, row)
            if place is not None:
                yield _Later(sequence=self.value, start=place + 1, keys=keys)

    @contextlib.contextmanager
    def emptied(self) -> Iterator[None]:
        value = self.value
        if isinstance(value, np.ndarray) and value.flags.writeable:
            kept = value.copy()
            value[...] = np.nan if value.dtype.kind == "f" else np.zeros((), value.dtype)
            try:
                yield
            finally:
                value[...] = kept
        elif isinstance(value, dict | list):
            content = value.copy()
            value.clear()
            try:
                yield
            finally:
                value.update(content) if isinstance(value, dict) else value.extend(content)
        elif isinstance(self.holder, dict):
            self.holder[self.key] = None
            try:
                yield
            finally:
                self.holder[self.key] = value
        elif isinstance(self.holder, types.CellType):
            self.holder.cell_contents = None
            try:
                yield
            finally:
                self.holder.cell_contents = value
        else:
            yield


def _place(values: npt.NDArray[Any], raster: Raster, row: int) -> int | None:
    """Where in `values` a column of the candles at `row` stands, with the two before it."""
    for column in range(5):
        source = raster.kline[max(0, row - 200) : row + 1, column]
        last = source[np.isfinite(source)][-3:]
        if len(last) < 3 or last[0] == last[1] == last[2]:
            continue
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < 3:
            continue
        there = values[known]
        near = 1e-6 * np.abs(last)
        hit = np.abs(there[2:] - last[2]) <= near[2]
        hit &= np.abs(there[1:-1] - last[1]) <= near[1]
        hit &= np.abs(there[:-2] - last[0]) <= near[0]
        if hit.any():
            return int(known[int(np.flatnonzero(hit)[0]) + 2])
    return None


def _held_data(one: UserFeature) -> list[_Held]:
    """Whatever the function can reach that holds many values: globals of its file, closures,
    defaults, caches."""
    function = one.function
    while hasattr(function, "__wrapped__") and not hasattr(function, "__globals__"):
        function = function.__wrapped__
    own = getattr(function, "__globals__", {})
    found: list[_Held] = []
    seen: set[int] = {id(sys.modules), id(own.get("__builtins__")), id(vars(builtins))}
    names = {id(value): f"{name!r} of {one.path.name}" for name, value in own.items()}
    # (object, how it is called, what holds it, by which key, is that its own place)
    waiting: list[tuple[Any, str, Any, Any, bool]] = [
        (one.function, f"the closure of {one.name!r}", None, None, False)
    ]
    for name, value in own.items():
        if not name.startswith("__"):
            waiting.append((value, f"{name!r} of {one.path.name}", own, name, True))
    while waiting and len(seen) < _MOST_OBJECTS:
        value, path, holder, key, is_own = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        path = names.get(id(value), path)
        if isinstance(value, types.ModuleType) or value is own:
            continue
        if isinstance(value, type) and value.__module__ != own.get("__name__"):
            continue
        if isinstance(value, types.FunctionType) and value.__globals__ is not own:
            continue
        if isinstance(value, types.BuiltinFunctionType | types.CodeType | str | bytes):
            continue
        size = _size(value)
        if size is not None and size >= 64:
            found.append(
                _Held(
                    name=path,
                    value=_writeable(value, holder if is_own else None, key),
                    size=size,
                    holder=holder,
                    key=key,
                )
            )
            if isinstance(value, np.ndarray):
                continue
        for inner, place, at in _inside(value):
            if place is None:
                waiting.append((inner, path, holder, key, False))
            else:
                waiting.append((inner, path, place, at, True))
    return found


def _size(value: Any) -> int | None:
    """How many values it holds itself; None for what holds none."""
    if isinstance(value, np.ndarray):
        return value.size if value.dtype.kind in "fiu" else None
    if isinstance(value, dict | list | tuple | set | frozenset):
        return len(value)
    # tables of other libraries keep their values outside Python
    if type(value).__module__.partition(".")[0] in ("polars", "pyarrow", "duckdb"):
        return sys.maxsize if not isinstance(value, type) else None
    return None


def _writeable(value: Any, holder: Any, key: Any) -> Any:
    """The same array, or a copy in its place, that can be altered."""
    if not isinstance(value, np.ndarray) or value.flags.writeable:
        return value
    try:
        value.flags.writeable = True
    except ValueError:
        copy = np.array(value)
        if isinstance(holder, dict):
            holder[key] = copy
        elif isinstance(holder, types.CellType):
            holder.cell_contents = copy
        else:
            return value
        return copy
    return value


def _inside(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(object, what holds it, by which key) of what it refers to."""
    if isinstance(value, dict):
        if len(value) <= 10_000:
            for key, inner in value.items():
                yield inner, value, key
        return
    if isinstance(value, types.CellType):
        with contextlib.suppress(ValueError):
            yield value.cell_contents, value, None
        return
    if isinstance(value, list | tuple) and len(value) > 10_000:
        return
    for inner in gc.get_referents(value):
        yield inner, None, None


# --- files that are read during a call -----------------------------------------------------------

_opened: list[str] | None = None
_is_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """Files that Python opens in the block; bytes that libraries read past it count as one."""
    global _opened, _is_hooked  # noqa: PLW0603 - an audit hook is the whole process's and for ever
    if not _is_hooked:
        sys.addaudithook(_hook)
        _is_hooked = True
    own = _bytes_read()
    own = _bytes_read() - own
    found: list[str] = []
    before = _bytes_read()
    _opened = found
    try:
        yield found
    finally:
        _opened = None
    if not found and _bytes_read() - before > own:
        found.append("a file")


@contextlib.contextmanager
def _no_more_files() -> Iterator[None]:
    """Whatever would open a file in the block fails, libraries that map it into memory too."""
    if resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _bytes_read() -> int:
    """Of the whole process, by any library; 0 where the system does not say."""
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("rchar:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


# --- labels --------------------------------------------------------------------------------------


def labels(
    raster: Raster,
    names: Sequence[str],
    horizon: int,
    at: Sequence[int],
    seed: int,
    advance: Callable[[], None],
) -> list[Finding]:
    """A label must not have looked beyond its t1: with others after a row, every label whose t1
    lies no later is the same; with none after it, what is known of it already is the same. (A gap
    after t1 may make a label unknown: that says nothing of what the price did.)"""
    table = raster.kline_table()
    found: list[Finding] = []
    for name in names:
        finding = _label(table, name, horizon, at, seed)
        if finding is not None:
            found.append(finding)
        advance()
    return found


def _label(
    table: KlineTable, name: str, horizon: int, at: Sequence[int], seed: int
) -> Finding | None:
    for cut in at:
        low, high = max(0, cut - 4 * horizon - 2000), min(len(table), cut + 2 * horizon + 2)
        part = table.rows(low, high)
        whole = label(name, part, horizon)
        last = cut - low
        others = [
            KlineTable(
                symbol=table.symbol,
                interval=table.interval,
                open_time_ms=part.open_time_ms,
                values=another_future(part.values, last, seed + cut, scale, gone=0.0),
            )
            for scale in ((1.5, 3.0), (0.2, 0.7))
        ]
        rows = np.arange(len(part))
        if (whole.t1 < rows).any():
            row = int(np.flatnonzero(whole.t1 < rows)[0])
            return _label_finding(part, name, row, "its t1 lies before the row itself")
        for why, again in (
            *(
                ("when the candles after the last that it says it looked at are others", other)
                for other in others
            ),
            ("when there are no later candles yet", part.rows(0, last + 1)),
        ):
            tried = label(name, again, horizon)
            size = min(len(tried.y), last + 1)
            wrong = _differ(whole.y[:size], tried.y[:size]) & ~np.isnan(whole.y[:size])
            if any(again is other for other in others):
                wrong &= whole.t1[:size] <= last
            else:
                wrong &= ~np.isnan(tried.y[:size])
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                return _label_finding(
                    part, name, row, f"it differs {why}", whole.y[row], tried.y[row]
                )
    return None


def _label_finding(
    part: KlineTable, name: str, row: int, why: str, value: float = np.nan, other: float = np.nan
) -> Finding:
    return Finding(
        kind="label",
        name=name,
        why=why,
        row_ms=int(part.open_time_ms[row]),
        value=None if np.isnan(value) else float(value),
        other=None if np.isnan(other) else float(other),
    )


def of_file(path: Path | None, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that are functions of the user's file."""
    if path is None:
        return ()
    there: Mapping[str, UserFeature] = read_user_file(path)[0]
    return tuple(name for name in names if name in there)
