"""Runs a release: one ONNX graph that turns a feature vector into every output and the score.

Live services, replay and backtest all come through here, and a score must have the same bits
wherever it is computed. The graphs of this project's trainer give a row the same bits alone and
among others; a runner tries that before it trusts it, and runs rows one at a time where it does
not hold (the vector instructions of a batched `Exp` or matrix product may round differently). Bits
are promised for one onnxruntime version and CPU kind; elsewhere the golden rows must agree to
`GOLDEN_TOLERANCE`.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# onnxruntime's threads must not spin beside the other services of a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import numpy.typing as npt
import onnxruntime

from shared.errors import BadInput
from shared.onnxfile import fields, message, text, text_of
from shared.reference import REFERENCE, Reference, columns_of, parse
from shared.releases import BUNDLE, MAX_MODEL_BYTES, Manifest, Release, cpu_kind, read_release

FloatArray = npt.NDArray[np.float64]

GOLDEN_TOLERANCE = 1e-6
_NAMES = ["outputs", "score"]
_TRIED_ROWS = 67  # whole vectors of any length, and some over
_BATCH_ROWS = 1_024  # of one call: what lies between the nodes stays in the caches
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Of n rows: outputs (n, n_models) float64, columns as `models`; score (n,), NaN = nil."""

    models: tuple[str, ...]
    outputs: FloatArray
    score: FloatArray

    def named(self, row: int = 0) -> dict[str, float]:
        return dict(zip(self.models, self.outputs[row].tolist(), strict=True))


class Runner:
    """A bundle's graph in a session of its own. Threads may share one.

    batched: a row's bits do not depend on the rows beside it, so that many are run at once.
    """

    def __init__(self, content: bytes, features: int, models: Sequence[str]) -> None:
        """
        Raises:
            BadInput: the graph is refused, or has other inputs and outputs than a bundle.
        """
        self._features = features
        self.models = tuple(models)
        self._run = _open_bundle(content, features)
        self.batched = self._is_same_in_batches()

    def run(self, x: FloatArray, threads: int = 1) -> Outputs:
        """All models and the score.

        x: (n, n_features) float64, columns in the order of the manifest's features.
        threads: rows are shared out; the bits are the same for any number.

        Raises:
            BadInput: x has another shape.
        """
        x = np.ascontiguousarray(x, np.float64)
        if x.ndim != 2 or x.shape[1] != self._features:
            raise BadInput(f"the models need (n, {self._features}) features, got {x.shape}")
        rows = len(x)
        outputs = np.empty((rows, len(self.models)))
        score = np.empty(rows)

        size = _BATCH_ROWS if self.batched else 1

        def fill(start: int, stop: int) -> None:
            for at in range(start, stop, size):
                part = slice(at, min(at + size, stop))
                outputs[part], score[part] = self._run(_NAMES, {"features": x[part]})

        if threads <= 1 or rows < 2 * threads:
            fill(0, rows)
        else:
            bounds = np.linspace(0, rows, threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, bounds[:-1], bounds[1:]))
        return Outputs(models=self.models, outputs=outputs, score=score)

    def _is_same_in_batches(self) -> bool:
        """Whether made-up rows have the same bits alone and in batches of several sizes.

        Raises:
            BadInput: the graph cannot be run.
        """
        x = np.random.default_rng(0).normal(scale=2, size=(_TRIED_ROWS, self._features))
        x[::7, ::3] = np.nan
        try:
            alone = [self._run(_NAMES, {"features": x[row : row + 1]}) for row in range(len(x))]
            for size in (2, 3, len(x)):
                together = self._run(_NAMES, {"features": x[:size]})
                for at, found in enumerate(together):
                    single = np.concatenate([outputs[at] for outputs in alone[:size]])
                    if single.tobytes() != found.tobytes():
                        return False
        except Exception as error:  # noqa: BLE001  # onnxruntime raises a dozen classes of its own
            raise BadInput(f"onnxruntime: {' '.join(str(error).split())}") from None
        return True


class Bundle:
    """A verified release, ready to run. Threads may share one.

    note: what a person should know about it ("" = nothing): its golden rows were computed by
    another onnxruntime or CPU kind, so that bits may differ from the training machine's.
    batched: many rows cost much less at once than one by one; the bits are the same.
    reference: of what it was trained on, None where it holds nothing of that; reference_columns:
    the features that it speaks of, among the manifest's.
    """

    def __init__(self, release: Release) -> None:
        """
        Raises:
            BadInput: the bundle is refused or does not give its golden outputs.
        """
        self.release = release
        self.manifest = release.manifest
        self.models = tuple(release.manifest.models)
        self.reference: Reference | None = None
        self.reference_columns: npt.NDArray[np.int64] = np.empty(0, np.int64)
        try:
            if release.reference is not None:
                self.reference = parse(release.reference)
                self.reference_columns = columns_of(self.manifest.features, self.reference)
            runner = Runner(release.bundle, len(self.manifest.features), self.models)
            self.note = _check_golden(self.manifest, runner)
        except BadInput as error:
            raise BadInput(
                f"{release.folder}: release refused: {_named(error)}; "
                "train again or promote another release"
            ) from None
        self.run = runner.run
        self.batched = runner.batched

    @property
    def id(self) -> str:
        return self.release.id

    @classmethod
    def load(cls, folder: Path, max_bytes: int = MAX_MODEL_BYTES) -> "Bundle":
        """Reads, verifies and tries the release in `folder` (a release, or `current`).

        Raises:
            BadInput: it must not be used; the text says why in one line.
        """
        return cls(read_release(folder, max_bytes))


def _named(error: BadInput) -> str:
    """With the name of the file that is at fault."""
    text = str(error)
    return text if text.startswith(REFERENCE) else f"{BUNDLE}: {text}"


def invalid_reason(
    values: FloatArray,
    manifest: Manifest,
    gap: bool,
    covered: bool,
    *,
    schema: str | None = None,
    outputs: FloatArray | None = None,
    score: float | None = None,
    nan_share: float = 0.2,
) -> str:
    """Why a candle gets no score; "" where it gets one.

    values: (n_features,) float64. schema: hash that came with them (None: known to fit).
    outputs, score: what the bundle gave, once it has run; before that leave them out.
    Only the features that the release uses count towards `nan_share`.
    """
    if schema is not None and schema != manifest.schema_hash:
        return f"features have schema {schema}, release {manifest.id} needs {manifest.schema_hash}"
    if values.shape != (len(manifest.features),):
        return f"{values.size} features, release {manifest.id} needs {len(manifest.features)}"
    if gap:
        return "gap: the exchange has no such candle"
    if not covered:
        return "warm-up: the longest window is not covered"
    used = values[manifest.used]
    missing = int(np.isnan(used).sum())
    if missing > nan_share * len(used):
        return f"{missing} of {len(used)} features have no value"
    infinite = np.isinf(used)
    if infinite.any():
        return f"feature {manifest.features[manifest.used[int(infinite.argmax())]]} is infinite"
    return "" if outputs is None else invalid_output(outputs, manifest, score)


def invalid_output(outputs: FloatArray, manifest: Manifest, score: float | None) -> str:
    """Why what the bundle gave is no score; "" where it is one.

    outputs: (n_models,) float64. score: None or NaN where there is none.
    """
    # "not inside" rather than "outside", so that NaN is caught too
    wrong = ~((outputs >= 0.0) & (outputs <= 1.0))
    if wrong.any():
        place = int(wrong.argmax())
        return f"model {tuple(manifest.models)[place]} gave {outputs[place]:g}, outside [0, 1]"
    if score is None or not math.isfinite(score):
        return "no score: the outputs of both sides are 0"
    return ""


def check_graph(content: bytes) -> None:
    """Refuses an ONNX model that could reach outside itself or run code that is not built in.

    Walks the protobuf by itself: no external data, no operators but those of ONNX and ONNX-ML,
    no model-local functions, no training graphs.

    Raises:
        BadInput: what was found.
    """
    seen_graph = False
    for number, value in fields(content):
        if number == 7:
            seen_graph = True
            _check_graph_part(message(value))
        elif number == 8:
            _check_domain(text_of(message(value), 1))
        elif number in {20, 25}:
            raise BadInput("it holds functions or training graphs")
    if not seen_graph:
        raise BadInput("it is no ONNX model")


def _check_graph_part(graph: memoryview) -> None:
    for number, value in fields(graph):
        if number == 1:
            _check_node(message(value))
        elif number == 5:
            _check_tensor(message(value))
        elif number == 15:
            _check_sparse(message(value))


def _check_node(node: memoryview) -> None:
    for number, value in fields(node):
        if number == 7:
            _check_domain(text(value))
        elif number == 5:
            for field, part in fields(message(value)):
                if field in {5, 10}:
                    _check_tensor(message(part))
                elif field in {6, 11}:
                    _check_graph_part(message(part))
                elif field in {22, 23}:
                    _check_sparse(message(part))


def _check_sparse(tensor: memoryview) -> None:
    for number, value in fields(tensor):
        if number in {1, 2}:
            _check_tensor(message(value))


def _check_tensor(tensor: memoryview) -> None:
    for number, value in fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise BadInput("a tensor's data lies outside the file (external data)")


def _check_domain(domain: str) -> None:
    if domain not in _DOMAINS:
        raise BadInput(f"it uses operators of {domain!r}; only ONNX and ONNX-ML are allowed")


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread, from bytes: it has no folder from which anything could be read."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The fallback would print to stdout and try the same thing once more.
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def _open_bundle(
    content: bytes, features: int
) -> Callable[[Any, dict[str, FloatArray]], list[Any]]:
    """The session's `run`, once the graph was found harmless and of the right shape."""
    check_graph(content)
    try:
        session = open_session(content)
        inputs = [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()]
        outputs = [(o.name, o.type) for o in session.get_outputs()]
    except Exception as error:  # noqa: BLE001  # onnxruntime raises a dozen classes of its own
        raise BadInput(f"onnxruntime: {' '.join(str(error).split())}") from None
    if inputs != [("features", "tensor(double)", [features])]:
        raise BadInput(f"its inputs are {inputs}, not the manifest's {features} features")
    if outputs != [("outputs", "tensor(double)"), ("score", "tensor(double)")]:
        raise BadInput(f"its outputs are {outputs}, not `outputs` and `score`")
    run: Callable[[Any, dict[str, FloatArray]], list[Any]] = session.run
    return run


def _check_golden(manifest: Manifest, runner: Runner) -> str:
    golden = manifest.golden
    try:
        found = runner.run(np.array(golden.inputs, np.float64))
    except Exception as error:  # noqa: BLE001  # as above; also outputs of another width
        raise BadInput(f"onnxruntime: {' '.join(str(error).split())}") from None
    got = np.column_stack([found.outputs, found.score])
    want = np.column_stack([np.array(golden.outputs), np.array(golden.scores)])
    if np.array_equal(got, want, equal_nan=True):
        return ""
    here = (onnxruntime.__version__, cpu_kind())
    made = (manifest.runtime.onnxruntime, manifest.runtime.cpu)
    if here == made or (np.isnan(got) != np.isnan(want)).any():
        raise BadInput("its golden rows do not give the recorded outputs")
    difference = float(np.nanmax(np.abs(got - want)))
    if difference > GOLDEN_TOLERANCE:
        raise BadInput(f"its golden rows are off by {difference:.1e}")
    return (
        f"release {manifest.id} was made by onnxruntime {made[0]} on {made[1]}, this is "
        f"{here[0]} on {here[1]}: outputs differ by up to {difference:.1e}"
    )
