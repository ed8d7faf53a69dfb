"""Contributions against the libraries that trained the models, and against the definition."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from shared.bundle import Bundle
from shared.contributions import Contributor, Method
from shared.errors import BadInput
from shared.onnxfile import read_graph
from shared.releases import write_release
from shared.score import ScoreKind
from tests.made_releases import release_of
from tests.trainer.test_export import COLUMNS, FEATURES, GB, LC, NN, WIDTH, Algorithm, data, fitted
from trainer.export.models import TrainedModel, export_model
from trainer.export.trees import leaf_counts
from trainer.models.gb import Boosting

SVC = Algorithm(name="svc", algo="svc", params={"calibrate": "platt", "max_rows": 400})
TREES = [
    GB,
    Algorithm(name="seed", algo="gb", params={"preset": "seed"}, train={"num_rounds": 150}),
    Algorithm(name="big", algo="gb", train={"num_leaves": 63, "min_data_in_leaf": 5}),
    Algorithm(name="dart", algo="gb", train={"boosting": "dart", "n_estimators": 40}),
    Algorithm(name="slope", algo="gb", train={"sigmoid": 0.7, "n_estimators": 40}),
    Algorithm(name="plain", algo="gb", train={"use_missing": False, "n_estimators": 40}),
]


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def released(folder: Path, models: list[TrainedModel]) -> Bundle:
    manifest, files = release_of(models, FEATURES)
    return Bundle.load(write_release(folder, manifest, files))


def pair(algorithm: Algorithm, nan: float = 0.05, seed: int = 0) -> list[TrainedModel]:
    """A model for each side, of other rows."""
    return [
        fitted(algorithm, *data(2500, nan, seed + at), label)
        for at, label in enumerate(("high_10", "low_10"))
    ]


@pytest.mark.parametrize("algorithm", TREES, ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("nan", [0.0, 0.1])
def test_trees_contribute_what_lightgbm_says(
    tmp_path: Path, algorithm: Algorithm, nan: float
) -> None:
    models = pair(algorithm, nan)
    contributor = Contributor(released(tmp_path, models))
    rows = data(25, 0.1, seed=9)[0]
    for row in rows:
        found = contributor.of(row.astype(np.float64))
        for model in models:
            assert isinstance(model.core, Boosting)
            booster = model.core.booster
            theirs = booster.predict(row[None, list(COLUMNS)], pred_contrib=True)[0]
            slope = model.core.slope
            one = found[model.name]
            assert one.method is Method.TREESHAP
            assert one.values[list(COLUMNS)] == pytest.approx(slope * theirs[:-1], abs=1e-9)
            assert one.base == pytest.approx(slope * theirs[-1], abs=1e-9)
            assert set(np.flatnonzero(one.values)) <= set(COLUMNS)
            assert abs(one.remainder) < 1e-9
            output = model.fitted.predict(row[None, list(COLUMNS)])[0]
            assert logistic(one.logit) == pytest.approx(output, abs=1e-12)


def test_shapley_values_are_the_average_over_all_orders(tmp_path: Path) -> None:
    """The definition by brute force: of every subset of features, what a tree gives when the
    others are unknown (each branch weighed by its training rows)."""
    few = Algorithm(name="few", algo="gb", train={"num_leaves": 9, "n_estimators": 3})
    models = pair(few)
    contributor = Contributor(released(tmp_path, models))
    core = models[0].core
    assert isinstance(core, Boosting)
    trees = [tree["tree_structure"] for tree in core.booster.dump_model()["tree_info"]]
    row = data(1, 0, seed=4)[0][0, list(COLUMNS)]

    def expected(tree: dict[str, object], known: frozenset[int]) -> float:
        if "split_feature" not in tree:
            return float(tree["leaf_value"])  # type: ignore[arg-type]  # JSON
        left, right = tree["left_child"], tree["right_child"]
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        if tree["split_feature"] in known:
            goes_left = row[tree["split_feature"]] <= tree["threshold"]  # type: ignore[call-overload]  # JSON
            return expected(left if goes_left else right, known)
        counts = [side.get("internal_count", side.get("leaf_count")) for side in (left, right)]
        values = [expected(side, known) for side in (left, right)]
        return float(np.average(values, weights=counts))

    count = len(COLUMNS)
    shapley = np.zeros(count)
    for one in range(count):
        others = [other for other in range(count) if other != one]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1)
            for subset in itertools.combinations(others, size):
                known = frozenset(subset)
                gain = sum(expected(t, known | {one}) - expected(t, known) for t in trees)
                shapley[one] += weight / math.factorial(count) * gain
    whole = np.full(WIDTH, np.nan)
    whole[list(COLUMNS)] = row
    found = contributor.of(whole)[models[0].name]
    assert found.values[list(COLUMNS)] == pytest.approx(shapley, abs=1e-12)
    assert np.abs(shapley).max() > 0.01  # or equality would say little


@pytest.mark.parametrize("is_scale", [True, False])
def test_a_linear_model_contributes_weight_times_distance_from_the_median(
    tmp_path: Path, is_scale: bool
) -> None:
    algorithm = Algorithm(name="lc", algo="lc", params={"is_scale": is_scale})
    models = pair(algorithm)
    contributor = Contributor(released(tmp_path, models))
    x, y = data(2500, 0.05, 0)
    x = x[:, list(COLUMNS)].astype(np.float64)
    median = np.nanmedian(x, axis=0)
    filled = np.where(np.isnan(x), median, x)
    mean, spread = (filled.mean(0), filled.std(0)) if is_scale else (0.0, 1.0)
    scaled = (filled - mean) / spread
    if is_scale:
        scaled = np.clip(scaled, -5, 5)
    theirs = LogisticRegression(random_state=7, C=_c(models[0]), max_iter=1000).fit(scaled, y)
    row = data(1, 0, seed=9)[0][0].astype(np.float64)
    row[COLUMNS[2]] = np.nan
    found = contributor.of(row)[models[0].name]
    at = (median - mean) / spread
    here = (np.where(np.isnan(row[list(COLUMNS)]), median, row[list(COLUMNS)]) - mean) / spread
    assert found.method is Method.LINEAR
    assert found.values[list(COLUMNS)] == pytest.approx(theirs.coef_[0] * (here - at), abs=1e-3)
    assert found.values[COLUMNS[2]] == 0
    assert abs(found.remainder) < 1e-9
    output = models[0].fitted.predict(row[None, list(COLUMNS)].astype(np.float32))[0]
    assert logistic(found.logit) == pytest.approx(output, abs=1e-9)
    assert contributor.medians[list(COLUMNS)] == pytest.approx(median, abs=1e-6)
    assert np.isnan(np.delete(contributor.medians, COLUMNS)).all()


def _c(model: TrainedModel) -> float:
    native = getattr(model.core, "native")  # noqa: B009  # of Linear alone
    return float(native.C)


@pytest.mark.parametrize("algorithm", [NN, SVC], ids=lambda algorithm: algorithm.name)
def test_other_models_are_asked_with_and_without_each_feature(
    tmp_path: Path, algorithm: Algorithm
) -> None:
    models = pair(algorithm)
    contributor = Contributor(released(tmp_path, models))
    train = data(2500, 0.05, 0)[0][:, list(COLUMNS)]
    median = np.nanmedian(train.astype(np.float64), axis=0)
    if algorithm.algo == "svc":  # scaled by all rows, fitted on a sample of them
        median = contributor.medians[list(COLUMNS)]
    assert contributor.medians[list(COLUMNS)] == pytest.approx(median, abs=1e-6)
    row = data(1, 0, seed=9)[0][0]
    found = contributor.of(row.astype(np.float64))[models[0].name]

    def log_odds(x: np.ndarray) -> float:
        p = float(models[0].fitted.predict(x[None].astype(np.float32))[0])
        return math.log(p / (1 - p))

    here, typical = row[list(COLUMNS)].astype(np.float64), median
    for at, column in enumerate(COLUMNS):
        without, alone = here.copy(), typical.copy()
        without[at], alone[at] = typical[at], here[at]
        expected = (log_odds(here) - log_odds(without) + log_odds(alone) - log_odds(typical)) / 2
        assert found.values[column] == pytest.approx(expected, abs=2e-4)
    assert found.method is Method.OCCLUSION
    assert found.base == pytest.approx(log_odds(typical), abs=1e-4)
    assert found.logit == pytest.approx(log_odds(here), abs=1e-4)


@pytest.mark.parametrize("calibrate", ["platt", "isotonic"])
@pytest.mark.parametrize("algo", ["gb", "lc", "nn"])
def test_behind_a_calibration_contributions_still_add_up(
    tmp_path: Path, calibrate: str, algo: str
) -> None:
    algorithm = Algorithm.model_validate(
        {"name": algo, "algo": algo, "params": {"calibrate": calibrate}}
    )
    models = pair(algorithm)
    manifest, files = release_of(models, FEATURES)
    assert {entry.calibration for entry in manifest.models.values()} == {calibrate}
    contributor = Contributor(Bundle.load(write_release(tmp_path, manifest, files)))
    for row in data(5, 0.1, seed=9)[0].astype(np.float64):
        for name, one in contributor.of(row).items():
            if one.method is not Method.OCCLUSION:
                assert abs(one.remainder) < 1e-9, name
            if calibrate == "platt":
                model = next(model for model in models if model.name == name)
                output = model.fitted.predict(row[None, list(COLUMNS)].astype(np.float32))[0]
                assert logistic(one.logit) == pytest.approx(output, abs=1e-6)


@pytest.mark.parametrize("kind", list(ScoreKind))
def test_pulls_weigh_models_by_how_the_score_follows_them(tmp_path: Path, kind: ScoreKind) -> None:
    """The slopes of each formula, by hand."""
    models = [*pair(LC), *pair(GB, seed=5)]
    manifest, files = release_of(models, FEATURES, kind=kind)
    bundle = Bundle.load(write_release(tmp_path, manifest, files))
    contributor = Contributor(bundle)
    row = data(1, 0, seed=9)[0][0].astype(np.float64)
    outputs = bundle.run(row[None]).named()
    p = {
        side: [outputs[f"{side}_10_k_{algo}"] for algo in ("lc", "gb")] for side in ("high", "low")
    }
    high, low = np.mean(p["high"]), np.mean(p["low"])
    logits = {name: math.log(value / (1 - value)) for name, value in outputs.items()}
    expected = {}
    for name, value in outputs.items():
        sign = 1 if name.startswith("high") else -1
        if kind is ScoreKind.RATIO:
            other = low if sign > 0 else high
            slope = sign * 2 * other / (high + low) ** 2 / 2 * value * (1 - value)
        elif kind is ScoreKind.DIFFERENCE:
            slope = sign * value * (1 - value) / 2
        elif kind is ScoreKind.LOGIT_MEAN:
            mean = np.mean([math.log(one / (1 - one)) for one in p["high" if sign > 0 else "low"]])
            slope = sign * logistic(mean) * (1 - logistic(mean)) / 2
        else:
            slope = 0
            for stack, way in zip(manifest.score.formula.stacks, (1, -1), strict=True):
                z = stack.bias + sum(stack.weights[one] * logits[one] for one in logits)
                slope += way * stack.weights[name] * logistic(z) * (1 - logistic(z))
        expected[name] = slope
    assert contributor.weights(outputs) == pytest.approx(expected, rel=1e-5, abs=1e-12)
    found = contributor.of(row)
    total = sum(expected[name] * one.values for name, one in found.items())
    assert contributor.pulls(found, outputs) == pytest.approx(total, rel=1e-5, abs=1e-12)


def test_trees_of_an_earlier_version_say_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.export.models._metadata", lambda model, features: {})
    contributor = Contributor(released(tmp_path, pair(GB)))
    assert set(contributor.missing) == {"high_10_k_gb", "low_10_k_gb"}
    assert "train again" in contributor.missing["high_10_k_gb"]
    assert contributor.of(np.zeros(WIDTH)) == {}


def test_counts_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.export.models.leaf_counts", lambda core: leaf_counts(core)[1:])
    with pytest.raises(BadInput, match=r"high_10_k_gb\.onnx: it has \d+ leaves and counts of"):
        Contributor(released(tmp_path, pair(GB)))


def test_a_graph_is_read_as_the_onnx_library_reads_it() -> None:
    import onnx
    from onnx import numpy_helper

    for algorithm in (GB, LC, NN):
        content = export_model(fitted(algorithm, *data(900), "high_10"), FEATURES)
        theirs, ours = onnx.load_model_from_string(content), read_graph(content)
        assert ours.metadata == {p.key: p.value for p in theirs.metadata_props}
        assert len(ours.nodes) == len(theirs.graph.node)
        for mine, node in zip(ours.nodes, theirs.graph.node, strict=True):
            assert (mine.kind, mine.inputs, mine.outputs) == (
                node.op_type,
                tuple(node.input),
                tuple(node.output),
            )
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.INTS:
                    assert mine.attributes[attribute.name].tolist() == list(attribute.ints)
                elif attribute.type == onnx.AttributeProto.INT:
                    assert mine.attributes[attribute.name] == attribute.i
                elif attribute.type == onnx.AttributeProto.TENSOR:
                    expected = numpy_helper.to_array(attribute.t)
                    assert np.array_equal(mine.attributes[attribute.name], expected)
        assert set(ours.constants) == {one.name for one in theirs.graph.initializer}
        for one in theirs.graph.initializer:
            assert np.array_equal(ours.constants[one.name], numpy_helper.to_array(one))
