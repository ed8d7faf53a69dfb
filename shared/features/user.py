"""A user's own features: functions in a Python file, under the same rules as the built-in ones."""

import hashlib
import numbers
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shared.errors import Failure, Usage
from shared.features.families import MAX_WINDOW, is_built_in
from shared.features.kernel import ZERO
from shared.klines import KLINE_COLUMNS

Floats = npt.NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[[Floats], float])

_MARK = "_itb_feature"


@dataclass(frozen=True, slots=True)
class _Mark:
    name: str
    lookback: int
    jit: bool


def feature(
    *, lookback: int, name: str | None = None, jit: bool = False
) -> Callable[[Function], Function]:
    """Marks a function of a user's file as a feature.

    The function gets a read-only (lookback, 9) float64 array: the last raster rows, newest last,
    columns as KLINE_COLUMNS, NaN where there is no candle; it returns a float, NaN for "no value".
    It must depend on nothing else. It is not called before `lookback` rows exist.

    lookback: rows, the current one included; name: the function's own unless given; jit: compile
    the function with Numba.
    """

    def mark(function: Function) -> Function:
        setattr(function, _MARK, _Mark(name or function.__name__, lookback, jit))
        return function

    return mark


@dataclass(frozen=True, slots=True, eq=False)
class UserFeature:
    """A function of the user's file; live and batch both call `value`: the same bits."""

    name: str
    lookback: int
    path: Path
    line: int
    function: Callable[[Floats], Any]

    def value(self, window: Floats) -> float:
        """The feature of the newest row; an infinite result counts as no value.

        Raises:
            Failure: the function raised or returned something that is not a number.
        """
        try:
            result = self.function(window)
        except Exception as error:  # anything may go wrong in a user's function
            at = _line_in(self.path, error) or self.line
            raise Failure(
                f"feature {self.name!r} ({self.path}:{at}) failed: {type(error).__name__}: {error}"
            ) from error
        if isinstance(result, bool | np.bool_) or not isinstance(result, numbers.Real):
            raise Failure(
                f"feature {self.name!r} ({self.path}:{self.line}) returned"
                f" {type(result).__name__}; it must return a float"
            )
        number = float(result)
        if not np.isfinite(number):
            return np.nan
        return number if abs(number) > ZERO else 0.0

    def batch(self, kline: Floats, out: Floats) -> None:
        """Writes the value of every row of kline (n, 9) into out (n,)."""
        # A copy of its own for every row, as live has: a function may add up in another order
        # where the memory lies otherwise.
        window, readonly = _window(self.lookback)
        out[: self.lookback - 1] = np.nan
        for at in range(self.lookback, len(kline) + 1):
            window[:] = kline[at - self.lookback : at]
            out[at - 1] = self.value(readonly)


class UserHistory:
    """The last rows that a symbol's user features look at."""

    def __init__(self, features: Sequence[UserFeature]) -> None:
        self._lookback = max((one.lookback for one in features), default=0)
        self._windows = {one.lookback: _window(one.lookback) for one in features}
        # Rows are appended; when the buffer is full the last ones move to its front.
        self._rows = np.empty((2 * self._lookback, len(KLINE_COLUMNS)))
        self._fill = 0

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + sum(window.nbytes for window, _ in self._windows.values())

    def start(self) -> None:
        self._fill = 0

    def load(self, kline: Floats) -> None:
        rows = kline[max(0, len(kline) - self._lookback) :] if self._lookback else kline[:0]
        self._rows[: len(rows)] = rows
        self._fill = len(rows)

    def push(self, row: npt.ArrayLike | None) -> None:
        if self._fill == len(self._rows):
            self._rows[: self._lookback] = self._rows[self._lookback :]
            self._fill = self._lookback
        self._rows[self._fill] = np.nan if row is None else row
        self._fill += 1

    def value(self, one: UserFeature) -> float:
        """The feature of the row pushed last."""
        if self._fill < one.lookback:
            return np.nan
        window, readonly = self._windows[one.lookback]
        window[:] = self._rows[self._fill - one.lookback : self._fill]
        return one.value(readonly)


def _window(lookback: int) -> tuple[Floats, Floats]:
    """An array, and a read-only view of it to hand out."""
    window = np.empty((lookback, len(KLINE_COLUMNS)))
    readonly = window.view()
    readonly.flags.writeable = False
    return window, readonly


def read_user_file(path: Path) -> tuple[dict[str, UserFeature], str]:
    """The features of a user's file by name, and the sha256 of its content.

    Raises:
        Usage: the file cannot be read or run, or a feature in it is not what it must be.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Usage(f"feature file {path}: {error.strerror or error}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    module = _run(path, content, sha256)
    features: dict[str, UserFeature] = {}
    for function in list(vars(module).values()):
        mark = getattr(function, _MARK, None)
        if not isinstance(mark, _Mark):
            continue
        one = _checked(path, function, mark)
        if one.name in features and features[one.name].function is not one.function:
            raise Usage(f"{path}:{one.line}: a second feature is named {one.name!r}")
        features[one.name] = one
    if not features:
        raise Usage(f"feature file {path}: no function in it has the decorator @feature(...)")
    return features, sha256


def _run(path: Path, content: bytes, sha256: str) -> ModuleType:
    """Runs the very bytes that were hashed, not what an import cache may hold."""
    name = f"itb_user_features_{sha256[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # pickling and dataclasses in the file look themselves up here
    try:
        exec(compile(content, str(path), "exec"), vars(module))  # noqa: S102  the user's own file
    except SyntaxError as error:
        raise Usage(f"{path}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # anything may go wrong in a user's file
        at = _line_in(path, error) or 1
        raise Usage(f"{path}:{at}: {type(error).__name__}: {error}") from error
    return module


def _checked(path: Path, function: Any, mark: _Mark) -> UserFeature:
    line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 1
    where = f"{path}:{line}: feature {mark.name!r}"
    if is_built_in(mark.name):
        raise Usage(f"{where} has the form of a built-in feature: give it another name")
    if not mark.name.isascii() or not mark.name.replace(".", "_").isidentifier():
        raise Usage(f"{where}: a name consists of letters, digits and underscores")
    if isinstance(mark.lookback, bool) or not isinstance(mark.lookback, int):
        raise Usage(f"{where}: lookback must be a number of rows, not {mark.lookback!r}")
    if not 1 <= mark.lookback <= MAX_WINDOW:
        raise Usage(f"{where}: lookback must be 1 to {MAX_WINDOW} rows, not {mark.lookback}")
    return UserFeature(
        name=mark.name,
        lookback=mark.lookback,
        path=path,
        line=line,
        function=_compiled(where, function) if mark.jit else function,
    )


def _compiled(where: str, function: Any) -> Any:
    try:
        import numba  # noqa: PLC0415  # an image for live services has none
    except ImportError:
        raise Usage(
            f"{where} asks to be compiled, and there is no Numba here: leave jit out, or run the "
            "featurizer from the trainer's image"
        ) from None
    rows = numba.types.Array(numba.float64, 2, "C", readonly=True)
    try:
        return numba.njit(numba.float64(rows))(function)
    except numba.core.errors.NumbaError as error:
        reason = str(error).strip().splitlines()
        raise Usage(f"{where} cannot be compiled: {' '.join(reason[1:3]).strip()}") from error


def _line_in(path: Path, error: BaseException) -> int | None:
    """The innermost line of the file that the error passed through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return lines[-1] if lines else None
