"""A bundle runs only when it is harmless, whole and gives its golden outputs; then bit for bit."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shared.bundle import Bundle, Runner, check_graph, invalid_reason
from shared.errors import BadInput
from shared.releases import BUNDLE, MANIFEST, Manifest, promote
from shared.score import ScoreKind, score
from tests.made_releases import FEATURES, made_models, made_release, rehashed, write
from trainer.models.lc import Linear


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write(tmp_path_factory.mktemp("models")))


def rows(count: int, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).normal(scale=3, size=(count, len(FEATURES)))
    x[np.random.default_rng(seed + 1).random(x.shape) < 0.05] = np.nan
    return x


def test_a_release_loads_through_the_link(tmp_path: Path) -> None:
    release = write(tmp_path)
    promote(tmp_path, release.name)
    found = Bundle.load(tmp_path / "current")
    assert found.id == release.name
    assert found.note == ""


def test_outputs_are_the_formula_computed_by_hand(bundle: Bundle) -> None:
    x = rows(50)
    expected = np.empty((50, 4))
    for column, model in enumerate(made_models(len(FEATURES), 0, tuple(bundle.manifest.labels))):
        linear = model.fitted
        assert isinstance(linear, Linear)
        for row in range(50):
            total = linear.bias
            for i, value in enumerate(x[row].astype(np.float32).astype(float)):
                filled = linear.scaling.median[i] if np.isnan(value) else value
                z = (filled - linear.scaling.mean[i]) / linear.scaling.scale[i]
                total += linear.weights[i] * max(-5.0, min(5.0, z))
            expected[row, column] = 1 / (1 + np.exp(-total))
    found = bundle.run(x)
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-12)
    high, low = expected[:, :2].mean(axis=1), expected[:, 2:].mean(axis=1)
    np.testing.assert_allclose(found.score, 2 * high / (high + low) - 1, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", list(ScoreKind))
def test_the_graphs_score_is_the_definition(tmp_path: Path, kind: ScoreKind) -> None:
    found_bundle = Bundle.load(write(tmp_path, kind=kind))
    found = found_bundle.run(rows(500))
    expected = score(found_bundle.manifest.score.formula, found.models, found.outputs)
    if kind in {ScoreKind.LOGIT_MEAN, ScoreKind.STACK}:  # log and exp are the libraries' own
        np.testing.assert_allclose(found.score, expected, rtol=0, atol=1e-15)
    else:
        assert found.score.tobytes() == expected.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_batch_gives_the_bits_of_single_rows(bundle: Bundle, threads: int) -> None:
    x = rows(301)
    together = bundle.run(x, threads)
    for row in range(len(x)):
        alone = bundle.run(x[row : row + 1])
        assert alone.outputs.tobytes() == together.outputs[row].tobytes()
        assert alone.score.tobytes() == together.score[row].tobytes()
    backwards = bundle.run(x[::-1])
    assert backwards.outputs[::-1].tobytes() == together.outputs.tobytes()


def test_a_graph_whose_bits_depend_on_the_batch_runs_row_by_row() -> None:
    double = TensorProto.DOUBLE
    nodes = [  # an Exp of one column: onnxruntime rounds pairs otherwise than what is left over
        helper.make_node("Gather", ["features", "first"], ["one"], axis=1),
        helper.make_node("Exp", ["one"], ["outputs"]),
        helper.make_node("Squeeze", ["outputs", "axis"], ["score"]),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("first", 0), ("axis", 1))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("features", double, ["n", 3])],
        [
            helper.make_tensor_value_info("outputs", double, ["n", 1]),
            helper.make_tensor_value_info("score", double, ["n"]),
        ],
        constants,
    )
    opset = helper.make_opsetid("", 21)
    content = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    runner = Runner(content, 3, ["a"])
    assert not runner.batched
    x = np.random.default_rng(3).normal(size=(200, 3))
    expected = [runner.run(row[None]).score[0] for row in x]
    assert runner.run(x).score.tobytes() == np.array(expected).tobytes()
    assert runner.run(x, 2).score.tobytes() == np.array(expected).tobytes()


def test_no_rows_give_no_scores(bundle: Bundle) -> None:
    assert bundle.run(np.empty((0, len(FEATURES)))).score.shape == (0,)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 7), (1, 1, 6)])
def test_features_of_another_shape_are_refused(bundle: Bundle, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"need \(n, 6\) features"):
        bundle.run(np.zeros(shape))


def test_other_golden_outputs_on_the_same_machine_are_refused(tmp_path: Path) -> None:
    release = write(tmp_path)
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["golden"]["outputs"][0][0] += 1e-15
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="golden rows do not give the recorded outputs"):
        Bundle.load(release)


@pytest.mark.parametrize(
    "runtime", [{"onnxruntime": "1.0.0", "cpu": "vax"}, {"onnxruntime": "9.9", "cpu": "x"}]
)
def test_another_runtime_is_allowed_small_differences_and_says_so(
    tmp_path: Path, runtime: dict[str, str]
) -> None:
    release = write(tmp_path)
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["runtime"] = runtime
    path.write_text(json.dumps(manifest))
    assert Bundle.load(release).note == ""  # the bits are the same all the same
    manifest["golden"]["outputs"][0][0] += 1e-8
    path.write_text(json.dumps(manifest))
    note = Bundle.load(release).note
    assert f"made by onnxruntime {runtime['onnxruntime']} on {runtime['cpu']}" in note
    assert "1.0e-08" in note
    manifest["golden"]["outputs"][0][0] += 1e-5
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="golden rows are off by"):
        Bundle.load(release)


def _with_external_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _with_hidden_external_data(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def _with_external_data_in_a_branch(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph([], "branch", [], [], initializer=[tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch))


def _with_a_custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def _with_a_contrib_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def _with_a_custom_opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def _with_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("", "Exp", ["x"], ["y"], [node], opsets))


def _with_another_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "else"
    model.graph.node[-1].output[0] = "else"


def _with_another_width(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def _with_an_unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Detonate"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_with_external_data, "external data"),
        (_with_hidden_external_data, "external data"),
        (_with_external_data_in_a_branch, "external data"),
        (_with_a_custom_operator, "com.evil"),
        (_with_a_contrib_operator, "com.microsoft"),
        (_with_a_custom_opset, "com.evil"),
        (_with_a_function, "functions"),
        (_with_another_output, "onnxruntime"),
        (_with_another_width, "onnxruntime|inputs"),
        (_with_an_unknown_operator, "Detonate"),
    ],
)
def test_a_graph_that_could_do_harm_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    manifest, files = made_release()
    model = onnx.load_from_string(files[BUNDLE])
    change(model)
    files[BUNDLE] = model.SerializeToString()
    release = tmp_path / "releases" / manifest.id
    release.mkdir(parents=True)
    for name, content in files.items():
        (release / name).write_bytes(content)
    (release / MANIFEST).write_text(rehashed(manifest, files).model_dump_json())
    with pytest.raises(BadInput, match=says) as error:
        Bundle.load(release)
    assert "\n" not in str(error.value)
    assert "release refused" in str(error.value)


def test_bytes_that_are_no_model_are_refused() -> None:
    content = made_release()[1][BUNDLE]
    random = np.random.default_rng(0)
    broken = [b"", b"\x80\x04pickle", b"\xff" * 100, content[: len(content) // 2]]
    for _ in range(200):
        changed = bytearray(content)
        for place in random.integers(0, len(changed), 3):
            changed[place] = random.integers(0, 256)
        broken.append(bytes(changed))
    for candidate in broken:
        try:  # a flipped weight is still a model: then it must run, else BadInput and no other
            Runner(candidate, len(FEATURES), ["a"] * 4)
        except BadInput as error:
            assert "\n" not in str(error)


def test_the_walk_accepts_what_we_export() -> None:
    for content in made_release()[1].values():
        check_graph(content)


def test_live_use_needs_no_trainer_library() -> None:
    code = (
        "import sys, shared.bundle, shared.releases, shared.score\n"
        "bad = {'onnx', 'lightgbm', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imports {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert importlib.util.find_spec("onnx") is not None  # or the check would say nothing


# --- why a candle gets no score ------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    names = tuple(f"close_SMA_{i}" for i in range(2, 22))
    return made_release(features=names, left_out=names[15:])[0]


def reason(manifest: Manifest, values: np.ndarray, **more: object) -> str:
    options = {"gap": False, "covered": True} | more
    return invalid_reason(values, manifest, **options)  # type: ignore[arg-type]  # by keyword


def test_a_whole_candle_is_valid(manifest: Manifest) -> None:
    assert reason(manifest, np.zeros(20)) == ""
    assert reason(manifest, np.zeros(20), outputs=np.array([0, 0.5, 1, 0.1]), score=0.0) == ""


def test_each_fault_has_its_reason(manifest: Manifest) -> None:
    zeros = np.zeros(20)
    assert reason(manifest, zeros, schema="0" * 16).startswith("features have schema 0000")
    assert reason(manifest, np.zeros(19)) == f"19 features, release {manifest.id} needs 20"
    assert reason(manifest, zeros, gap=True).startswith("gap")
    assert reason(manifest, zeros, covered=False).startswith("warm-up")
    infinite = zeros.copy()
    infinite[3] = -np.inf
    assert reason(manifest, infinite) == f"feature {manifest.features[3]} is infinite"


def test_a_fifth_of_the_used_features_may_be_missing(manifest: Manifest) -> None:
    values = np.zeros(20)
    values[15:] = np.nan  # no model uses them
    values[:3] = np.nan  # 3 of 15 are 20 %
    assert reason(manifest, values) == ""
    values[3] = np.nan
    assert reason(manifest, values) == "4 of 15 features have no value"
    assert reason(manifest, values, nan_share=0.3) == ""


@pytest.mark.parametrize("output", [np.nan, np.inf, -1e-9, 1.0000001])
def test_an_impossible_output_is_named(manifest: Manifest, output: float) -> None:
    outputs = np.array([0.1, output, 0.2, 0.3])
    found = reason(manifest, np.zeros(20), outputs=outputs, score=0.1)
    assert found.startswith("model high_20_k_lc gave ")


@pytest.mark.parametrize("value", [None, np.nan])
def test_a_score_that_is_nil_has_a_reason(manifest: Manifest, value: float | None) -> None:
    assert reason(manifest, np.zeros(20), outputs=np.zeros(4), score=value).startswith("no score")
