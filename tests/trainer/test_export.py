"""ONNX graphs against the libraries that trained the models."""

import math
import pickle
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from shared.bundle import Runner, check_graph, open_session
from shared.config import Algorithm
from shared.errors import Failure, Usage
from shared.score import ScoreFormula, ScoreKind, Stack, score
from trainer.evaluate import auc
from trainer.export import parity
from trainer.export.models import TrainedModel, export_bundle, export_model
from trainer.models import gb, lc, nn
from trainer.models.fit import Fitted, Fitter, Job, Recipe, recipes
from trainer.models.scaling import Scaling

WIDTH = 9
FEATURES = tuple(f"close_SMA_{i}" for i in range(2, 2 + WIDTH))
COLUMNS = (0, 1, 3, 4, 5, 7)  # the models leave three out


def data(rows: int = 3000, nan: float = 0.03, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, WIDTH)).astype(np.float32)
    y = (x[:, 0] + 0.5 * x[:, 3] ** 2 + random.normal(size=rows) > 1).astype(float)
    x[random.random(x.shape) < nan] = np.nan
    return x, y


def job_of(recipe: Recipe, label: str, name: str, y: np.ndarray) -> Job:
    """A job of all rows, a minute apart, whose labels look five minutes ahead."""
    rows = np.arange(len(y))
    return Job(
        recipe=recipe,
        label=label,
        name=name,
        positions=rows,
        y=y,
        open_ms=rows * 60_000,
        t1_ms=(rows + 5) * 60_000,
    )


def fitted(algorithm: Algorithm, x: np.ndarray, y: np.ndarray, label: str) -> TrainedModel:
    fitter = Fitter(x[:, list(COLUMNS)], 1, 7)
    (recipe,) = recipes([algorithm])
    name = f"{label}_k_{algorithm.name}"
    job = job_of(recipe, label, name, y)

    def keep(_: Job, model: Fitted) -> Fitted:
        return model

    (model,) = fitter.fit_each([job], keep)
    return TrainedModel(
        name=name,
        label=label,
        inputs="k",
        algorithm=algorithm.algo,
        columns=COLUMNS,
        fitted=model,
        is_value=job.is_value,
    )


def one_by_one(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    session = open_session(export_model(model, FEATURES))
    rows = x.astype(np.float64)
    return np.concatenate(
        [session.run(None, {"features": rows[i : i + 1]})[0] for i in range(len(rows))]
    )


def native(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    return model.fitted.predict(x[:, list(COLUMNS)])


GB = Algorithm(name="gb", algo="gb")
NN = Algorithm(name="nn", algo="nn")
LC = Algorithm(name="lc", algo="lc")


@pytest.mark.parametrize(
    "algorithm",
    [
        GB,
        Algorithm(name="seed", algo="gb", params={"preset": "seed"}, train={"num_rounds": 150}),
        Algorithm(name="big", algo="gb", train={"num_leaves": 63, "min_data_in_leaf": 5}),
        Algorithm(name="dart", algo="gb", train={"boosting": "dart", "n_estimators": 40}),
        Algorithm(name="slope", algo="gb", train={"sigmoid": 0.7, "n_estimators": 40}),
        Algorithm(name="plain", algo="gb", train={"use_missing": False, "n_estimators": 40}),
        Algorithm(
            name="goss",
            algo="gb",
            train={"data_sample_strategy": "goss", "bagging_freq": 0, "n_estimators": 40},
        ),
    ],
    ids=lambda algorithm: algorithm.name,
)
@pytest.mark.parametrize("nan", [0.0, 0.1])
def test_trees_have_the_boosters_very_bits(algorithm: Algorithm, nan: float) -> None:
    x, y = data(2500, nan)
    model = fitted(algorithm, x, y, "high_10")
    held_out = data(700, 0.1, seed=1)[0]  # NaN also where training had none
    found, expected = one_by_one(model, held_out), native(model, held_out)
    assert found.tobytes() == expected.tobytes()
    assert at_once(model, held_out).tobytes() == expected.tobytes()
    assert len(np.unique(expected)) > 40  # or equality would say little


def test_trees_are_equal_on_their_own_thresholds() -> None:
    x, y = data(2500)
    model = fitted(GB, x, y, "high_10")
    assert isinstance(model.fitted, gb.Boosting)
    thresholds: list[tuple[int, float]] = []

    def walk(tree: dict[str, object]) -> None:
        if "split_feature" in tree:
            thresholds.append((int(tree["split_feature"]), float(tree["threshold"])))  # type: ignore[call-overload, arg-type]  # JSON
            walk(tree["left_child"])  # type: ignore[arg-type]  # JSON
            walk(tree["right_child"])  # type: ignore[arg-type]  # JSON

    for tree in model.fitted.booster.dump_model()["tree_info"]:
        walk(tree["tree_structure"])
    random = np.random.default_rng(2)
    edges = data(600, 0, seed=3)[0]
    for row in edges:
        for place in random.integers(0, len(thresholds), 12):
            feature, threshold = thresholds[place]
            near = np.float32(np.clip(threshold, -1e30, 1e30))  # the last bin's is 1e300
            row[COLUMNS[feature]] = random.choice(
                [near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))]
            )
    tiny = np.array([0, -0.0, 1e-36, -1e-36, 1e-35, -1e-35, 2e-35, -2e-35], np.float32)
    edges[::5, :6] = random.choice(tiny, (120, 6))
    assert one_by_one(model, edges).tobytes() == native(model, edges).tobytes()


def test_infinite_and_huge_values_go_the_boosters_way() -> None:
    x, y = data(2500)
    model = fitted(GB, x, y, "high_10")
    rows = data(60, 0, seed=3)[0]
    rows[:20, 0], rows[20:40, 0], rows[40:, 0] = np.inf, -np.inf, 3e38
    assert one_by_one(model, rows).tobytes() == native(model, rows).tobytes()


def test_trees_without_a_split_are_a_constant() -> None:
    x, y = data(300)
    model = fitted(
        Algorithm(name="c", algo="gb", train={"min_data_in_leaf": 290, "n_estimators": 3}),
        x,
        y,
        "high_10",
    )
    found = one_by_one(model, x[:20])
    assert found.tobytes() == native(model, x[:20]).tobytes()
    assert len(np.unique(found)) == 1


def test_the_input_is_what_float32_can_tell_apart() -> None:
    x, y = data()
    model = fitted(GB, x, y, "high_10")
    session = open_session(export_model(model, FEATURES))
    exact = x[:1].astype(np.float64)
    finer = exact * (1 + 1e-12)
    first, second = (session.run(None, {"features": rows})[0] for rows in (exact, finer))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "algorithm",
    [
        NN,
        Algorithm(name="tanh", algo="nn", params={"layers": [5]}, train={"activation": "tanh"}),
        Algorithm(
            name="deep", algo="nn", params={"layers": [8, 7, 6]}, train={"activation": "logistic"}
        ),
        Algorithm(
            name="id", algo="nn", params={"is_scale": False}, train={"activation": "identity"}
        ),
        LC,
        Algorithm(name="raw", algo="lc", params={"is_scale": False}, train={"solver": "lbfgs"}),
    ],
    ids=lambda algorithm: algorithm.name,
)
def test_dense_models_agree_with_the_native_ones(algorithm: Algorithm) -> None:
    x, y = data()
    model = fitted(algorithm, x, y, "low_10")
    held_out = data(500, 0.1, seed=1)[0]
    found = one_by_one(model, held_out)
    np.testing.assert_allclose(found, native(model, held_out), rtol=0, atol=1e-6)
    assert at_once(model, held_out).tobytes() == found.tobytes()
    assert found.std() > 0.005


SVC_ = Algorithm(name="svc", algo="svc")


@pytest.mark.parametrize(
    "algorithm",
    [
        SVC_,
        Algorithm(name="linear", algo="svc", train={"kernel": "linear", "C": 0.1}),
        Algorithm(
            name="poly",
            algo="svc",
            params={"is_scale": False, "calibrate": "isotonic"},
            train={"kernel": "poly", "degree": 2, "coef0": 1.0, "gamma": 0.1},
        ),
    ],
    ids=lambda algorithm: algorithm.name,
)
def test_support_vectors_agree_with_libsvm(algorithm: Algorithm) -> None:
    x, y = data(1200)
    model = fitted(algorithm, x, y, "low_10")
    held_out = data(300, 0.1, seed=1)[0]
    found = one_by_one(model, held_out)
    np.testing.assert_allclose(found, native(model, held_out), rtol=0, atol=1e-9)
    assert found.std() > 0.005
    # rows have the same bits alone and in a batch, of an odd number of vectors too
    formula_ = ScoreFormula(kind=ScoreKind.RATIO, high=(model.name,), low=(model.name,))
    runner = Runner(export_bundle([model], formula_, FEATURES), WIDTH, [model.name])
    together = runner.run(held_out.astype(float)).outputs[:, 0]
    alone = [runner.run(row[None].astype(float)).outputs[0, 0] for row in held_out]
    assert together.tobytes() == np.array(alone).tobytes()


@pytest.mark.parametrize("calibrate", ["platt", "isotonic"])
@pytest.mark.parametrize("algo", ["gb", "nn", "lc"])
def test_the_map_behind_a_model_stands_in_its_graph(algo: str, calibrate: str) -> None:
    x, y = data(1500)
    algorithm = Algorithm.model_validate(
        {"name": "c", "algo": algo, "params": {"calibrate": calibrate}}
    )
    model = fitted(algorithm, x, y, "high_10")
    held_out = data(300, 0.1, seed=1)[0]
    found, expected = one_by_one(model, held_out), native(model, held_out)
    if algo == "gb":
        assert found.tobytes() == expected.tobytes()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    plain = model.core.raw(held_out[:, list(COLUMNS)])
    assert np.abs(found - 1 / (1 + np.exp(-plain))).max() > 0.003  # it is a map


def test_a_bundle_of_all_kinds_passes_the_gate() -> None:
    x, y = data(900)
    algorithms = [
        Algorithm(name="iso", algo="gb", params={"calibrate": "isotonic"}),
        GB,
        Algorithm(name="platt", algo="gb", params={"calibrate": "platt"}),
        SVC_,
        Algorithm(name="nnp", algo="nn", params={"calibrate": "platt"}),
        Algorithm(name="nni", algo="nn", params={"calibrate": "isotonic"}),
        LC,
    ]
    models = [
        fitted(algorithm, x, target, label)
        for label, target in (("high_10", y), ("low_10", 1 - y))
        for algorithm in algorithms
    ]
    content = export_bundle(models, formula(models), FEATURES)
    check_graph(content)
    runner = Runner(content, WIDTH, [model.name for model in models])
    files = {model.name: export_model(model, FEATURES) for model in models}
    held_out = data(1000, 0.1, seed=5)[0]
    found = parity.check(models, files, runner, formula(models), (0.15, -0.15), held_out, 2)
    assert found["trees_equal"] is True
    assert float(found["largest_difference"]) < 1e-6


@pytest.mark.parametrize("algo", ["gb", "nn", "lc", "svc"])
def test_regressions_are_files_with_values_of_the_labels_unit(algo: str) -> None:
    x, _ = data(1500, nan=0.02)
    clean = np.nan_to_num(x.astype(float))
    y = 300 + 50 * (clean[:, 0] + clean[:, 3]) + np.random.default_rng(3).normal(size=len(x))
    algorithm = Algorithm.model_validate({"name": algo, "algo": algo})
    model = fitted(algorithm, x, y, "high_max_60")
    held_out = data(400, 0.02, seed=1)[0]
    found, expected = one_by_one(model, held_out), native(model, held_out)
    if algo == "gb":
        assert found.tobytes() == expected.tobytes()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (
        parity.check_values([model], {model.name: export_model(model, FEATURES)}, held_out) < 1e-6
    )
    clean = np.nan_to_num(held_out.astype(float))
    truth = 300 + 50 * (clean[:, 0] + clean[:, 3])
    # nn learns slowly in its few epochs; all must have found the sum
    assert np.corrcoef(found, truth)[0, 1] > 0.8
    other = export_model(fitted(algorithm, x, -y, "high_max_60"), FEATURES)
    with pytest.raises(Failure, match=f"parity gate: high_max_60_k_{algo} is off"):
        parity.check_values([model], {model.name: other}, held_out)


def test_scaling_is_median_standardise_clip() -> None:
    x, _ = data(nan=0)
    x[:, 2] = 4.25  # constant
    x[:, 8] = np.nan  # nothing at all
    with_nan = x.copy()
    with_nan[::10, 1] = np.nan
    scaling = Scaling.fit(with_nan)
    filled = x.astype(float)
    filled[::10, 1] = np.nanmedian(with_nan[:, 1])
    filled[:, 8] = 0
    expected = np.clip(StandardScaler().fit_transform(filled), -5, 5)
    np.testing.assert_allclose(scaling.apply(with_nan), expected, atol=1e-9)


def test_the_linear_model_is_scikit_learns_at_its_optimum() -> None:
    x, y = data(nan=0)
    model = fitted(LC, x, y, "low_10")
    scaled = np.clip(StandardScaler().fit_transform(x[:, list(COLUMNS)].astype(float)), -5, 5)
    reference = LogisticRegression(C=0.1, solver="lbfgs", tol=1e-10, max_iter=1000).fit(scaled, y)
    expected = reference.predict_proba(scaled)[:, 1]
    np.testing.assert_allclose(native(model, x), expected, atol=1e-6)


def at_once(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    session = open_session(export_model(model, FEATURES))
    return np.asarray(session.run(None, {"features": x.astype(np.float64)})[0])


@pytest.fixture(scope="module")
def trained() -> list[TrainedModel]:
    x, y = data()
    other = (np.nan_to_num(x[:, 4]) > 0.8).astype(float)
    return [
        fitted(algorithm, x, target, label)
        for label, target in (("high_10", y), ("low_10", other))
        for algorithm in (GB, NN, LC)
    ]


def formula(models: list[TrainedModel], kind: ScoreKind = ScoreKind.RATIO) -> ScoreFormula:
    stacks: list[Stack | None] = [None, None]
    if kind is ScoreKind.STACK:
        random = np.random.default_rng(4)
        stacks = [
            Stack(weights={m.name: float(random.normal()) for m in models}, bias=float(bias))
            for bias in random.normal(size=2)
        ]
    return ScoreFormula(
        kind=kind,
        high=tuple(m.name for m in models if m.label == "high_10"),
        low=tuple(m.name for m in models if m.label == "low_10"),
        high_stack=stacks[0],
        low_stack=stacks[1],
    )


@pytest.mark.parametrize("kind", list(ScoreKind))
def test_the_bundle_passes_the_gate(trained: list[TrainedModel], kind: ScoreKind) -> None:
    held_out = data(2000, 0.1, seed=5)[0]
    content = export_bundle(trained, formula(trained, kind), FEATURES)
    check_graph(content)
    runner = Runner(content, WIDTH, [model.name for model in trained])
    files = {model.name: export_model(model, FEATURES) for model in trained}
    found = parity.check(trained, files, runner, formula(trained, kind), (0.15, -0.15), held_out, 2)
    assert found["rows"] == 2000
    assert found["trees_equal"] is True
    assert 0 < float(found["largest_difference"]) < 1e-6
    # and the score of the graph is that of its definition, of the graph's own outputs
    names = [model.name for model in trained]
    graph = runner.run(held_out[:200].astype(float))
    theirs = score(formula(trained, kind), names, graph.outputs)
    np.testing.assert_allclose(graph.score, theirs, rtol=0, atol=1e-14)
    assert len(np.unique(graph.score)) > 150


@pytest.mark.parametrize("kind", list(ScoreKind))
@pytest.mark.parametrize("places", [(0, 1, 2, 3, 4, 5), (0, 1, 4), (0, 3, 4), (2, 4), (1, 2, 5)])
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    trained: list[TrainedModel], kind: ScoreKind, places: tuple[int, ...]
) -> None:
    models = [trained[place] for place in places]
    content = export_bundle(models, formula(models, kind), FEATURES)
    runner = Runner(content, WIDTH, [model.name for model in models])
    assert runner.batched
    session = open_session(content)
    x = data(130, 0.1, seed=4)[0].astype(float)
    alone = [session.run(None, {"features": row[None]}) for row in x]
    for size in (1, 2, 5, 64, 130):
        for output in (0, 1):
            parts = [
                session.run(None, {"features": x[start : start + size]})[output]
                for start in range(0, len(x), size)
            ]
            expected = np.concatenate([found[output] for found in alone])
            assert np.concatenate(parts).tobytes() == expected.tobytes()


def test_the_order_of_the_outputs_is_that_of_the_models(trained: list[TrainedModel]) -> None:
    mixed = [trained[i] for i in (4, 0, 5, 2, 3, 1)]
    runner = Runner(
        export_bundle(mixed, formula(trained), FEATURES), WIDTH, [model.name for model in mixed]
    )
    x = data(50, seed=9)[0]
    found = runner.run(x.astype(float)).outputs
    for column, model in enumerate(mixed):
        np.testing.assert_allclose(found[:, column], native(model, x), atol=1e-6)


def test_the_gate_stops_a_bundle_of_other_models(trained: list[TrainedModel]) -> None:
    x, y = data()
    others = [*trained]
    others[0] = fitted(GB, x, 1 - y, "high_10")
    runner = Runner(
        export_bundle(others, formula(trained), FEATURES), WIDTH, [m.name for m in trained]
    )
    files = {model.name: export_model(model, FEATURES) for model in trained}
    with pytest.raises(Failure, match="parity gate: high_10_k_gb differs on"):
        parity.check(trained, files, runner, formula(trained), (0.15, -0.15), x, 1)


def test_the_gate_stops_a_file_of_another_model(trained: list[TrainedModel]) -> None:
    x, _ = data()
    runner = Runner(
        export_bundle(trained, formula(trained), FEATURES), WIDTH, [m.name for m in trained]
    )
    files = {model.name: export_model(trained[1], FEATURES) for model in trained}
    with pytest.raises(Failure, match="the file of high_10_k_gb is not the model"):
        parity.check(trained, files, runner, formula(trained), (0.15, -0.15), x, 1)


def test_equal_data_and_seed_give_equal_bytes() -> None:
    x, y = data(800)
    files = [
        export_model(fitted(algorithm, x, y, "high_10"), FEATURES)
        for algorithm in (GB, NN, LC)
        for _ in range(2)
    ]
    assert files[0] == files[1]
    assert files[2] == files[3]
    assert files[4] == files[5]


def test_the_number_of_workers_changes_no_model() -> None:
    x, y = data(800)
    plan = recipes([GB, NN, LC])
    jobs = [
        job_of(recipe, label, f"{label}_{recipe.name}", target)
        for recipe in plan
        for label, target in (("high_10", y), ("high_15", 1 - y), ("high_20", y))
    ]
    outputs = []
    for workers in (1, 3):
        found = dict(
            Fitter(x, workers, 7).fit_each(jobs, lambda job, m: (job.name, m.predict(x).tobytes()))
        )
        outputs.append(found)
    assert outputs[0] == outputs[1]
    assert outputs[0]["high_10_gb"] == outputs[0]["high_20_gb"] != outputs[0]["high_15_gb"]


@pytest.mark.parametrize("rows", [100, 2_380, 79_000, 1_000_000])
def test_small_data_get_small_leaves_and_batches(rows: int) -> None:
    assert 20 <= gb.leaf_rows(rows) <= 300
    assert 32 <= nn.batch_size(rows) <= 1024
    assert gb.leaf_rows(79_000) == 300
    assert nn.batch_size(79_000) == 1024
    steps = math.ceil(rows / nn.batch_size(rows))
    assert steps >= min(75, rows // 32)


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (Algorithm(name="a", algo="gb", params={"lenght": 5}), "did you mean 'length'"),
        (Algorithm(name="a", algo="gb", params={"length": -5}), "params.length"),
        (Algorithm(name="a", algo="gb", params={"preset": "x"}), "default, seed"),
        (Algorithm(name="a", algo="gb", params={"is_scale": True}), "is_scale"),
        (Algorithm(name="a", algo="gb", train={"linear_tree": True}), "linear_tree"),
        (Algorithm(name="a", algo="gb", train={"boosting": "rf"}), "boosting"),
        (Algorithm(name="a", algo="gb", train={"nmu_leaves": 3}), "no train.nmu_leaves"),
        (Algorithm(name="a", algo="gb", train={"max_bin": 1}), "LightGBM: .*max_bin"),
        (Algorithm(name="a", algo="lc", train={"penalti": 1}), "did you mean 'penalty'"),
        (Algorithm(name="a", algo="nn", train={"activation": "gelu"}), "activation"),
        (Algorithm(name="a", algo="nn", params={"layers": []}), "layers"),
        (Algorithm(name="a", algo="nn", params={"backend": "keras"}), "sklearn, torch"),
        (Algorithm(name="a", algo="lc", params={"early_stopping": True}), "early_stopping"),
        (
            Algorithm(
                name="a",
                algo="gb",
                params={"early_stopping": True},
                train={"boosting": "dart"},
            ),
            "no early stopping",
        ),
        (Algorithm(name="a", algo="gb", train={"early_stopping_rounds": 5}), "no use here"),
        (Algorithm(name="a", algo="nn", train={"validation_fraction": 0.2}), "unknown key"),
        (Algorithm(name="a", algo="lc", params={"calibrate": "beta"}), "platt, isotonic"),
        (Algorithm(name="a", algo="lc", params={"tail_share": 1}), "between 0 and 1"),
        (Algorithm(name="a", algo="lc", params={"weights": "age"}), "none, uniqueness"),
        (Algorithm(name="a", algo="svc", params={"calibrate": "none"}), "no probabilities"),
        (Algorithm(name="a", algo="svc", train={"probability": True}), "unknown key"),
        (Algorithm(name="a", algo="svc", train={"kernel": "sigmoid"}), "rbf, linear, poly"),
        (Algorithm(name="a", algo="svc", train={"epsilon": 0.1, "random_state": 1}), "not all for"),
        (Algorithm(name="a", algo="gb", train={"objective": "poisson"}), "objective"),
        (
            Algorithm(
                name="a",
                algo="gb",
                params={"is_regression": True},
                train={"objective": "binary"},
            ),
            "not all for values",
        ),
        (
            Algorithm(name="a", algo="lc", params={"calibrate": "platt"}, train={"alpha": 1.0}),
            "for yes-or-no labels",
        ),
    ],
)
def test_a_wrong_algorithm_is_refused_before_any_work(algorithm: Algorithm, says: str) -> None:
    with pytest.raises(Usage, match=says):
        recipes([algorithm])
    with pytest.raises(Usage, match="two algorithms"):
        recipes([GB, GB])


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (Algorithm(name="a", algo="lc", train={"C": -1}), "LogisticRegression"),
        (Algorithm(name="a", algo="nn", train={"solver": "x"}), "MLPClassifier"),
    ],
)
def test_what_a_library_refuses_is_one_line(algorithm: Algorithm, says: str) -> None:
    x, y = data(200)
    with pytest.raises(Failure, match=says) as error:
        fitted(algorithm, x, y, "high_10")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("params", [{}, {"early_stopping": True, "calibrate": "platt"}])
def test_pytorch_trains_the_same_network(activation: str, params: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="the extra `nn` is not installed")
    x, y = data()
    algorithm = Algorithm(
        name="nn", algo="nn", params={"backend": "torch"} | params, train={"activation": activation}
    )
    model = fitted(algorithm, x, y, "high_10")
    held_out = data(500, 0.1, seed=1)[0]
    np.testing.assert_allclose(one_by_one(model, held_out), native(model, held_out), atol=1e-6)
    again = fitted(algorithm, x, y, "high_10")
    assert export_model(model, FEATURES) == export_model(again, FEATURES)
    kept = replace(model, fitted=pickle.loads(pickle.dumps(model.fitted)))  # noqa: S301 - ours
    assert native(kept, held_out).tobytes() == native(model, held_out).tobytes()
    assert export_model(kept, FEATURES) == export_model(model, FEATURES)


def test_pytorch_learns_what_scikit_learn_learns() -> None:
    pytest.importorskip("torch", reason="the extra `nn` is not installed")
    x, y = data(3000)
    held_out, happened = data(1500, seed=1)
    found = [
        auc(happened > 0.5, native(fitted(algorithm, x, y, "high_10"), held_out))
        for algorithm in (
            Algorithm(name="nn", algo="nn", params={"backend": backend})
            for backend in ("torch", "sklearn")
        )
    ]
    assert None not in found
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert found[0] > 0.6  # type: ignore[operator]


def test_pytorch_missing_is_one_line() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        x, y = data(200)
        with pytest.raises(Failure, match=r'pip install "itb\[nn\]"'):
            fitted(Algorithm(name="nn", algo="nn", params={"backend": "torch"}), x, y, "high_10")


def test_predictions_do_not_depend_on_lightgbms_threads() -> None:
    x, y = data(500)
    model = fitted(GB, x, y, "high_10")
    assert isinstance(model.fitted, gb.Boosting)
    two = model.fitted.booster.predict(x[:, list(COLUMNS)], num_threads=2)
    assert np.asarray(two).tobytes() == native(model, x).tobytes()
    assert isinstance(model.fitted.booster, lightgbm.Booster)


def test_options_hold_what_the_config_says() -> None:
    chosen, kinds = lc.parse(Algorithm(name="a", algo="lc", train={"C": 2.0}))
    assert chosen.train == {"C": 2.0}
    assert kinds == {False}  # ridge has no C
    own, kinds = gb.parse(Algorithm(name="a", algo="gb", params={"preset": "seed"}))
    assert kinds == {False, True}
    merged, rounds = gb.parameters(own, 50_000, 1, 7)
    assert rounds == 1500
    assert merged["max_depth"] == 1
    assert merged["min_data_in_leaf"] == 500  # 1 % of the rows
