"""What stands around the libraries' fits: purged tails, maps, weights, early stopping, samples."""

import lightgbm
import numpy as np
import pytest
from scipy import optimize
from sklearn.neural_network import MLPClassifier
from sklearn.utils.class_weight import compute_sample_weight

from shared.config import Algorithm
from shared.errors import Failure, Usage
from trainer.evaluate import measure_values
from trainer.models import gb
from trainer.models.calibration import (
    Isotonic,
    Mapped,
    Platt,
    fit_isotonic,
    fit_platt,
    logistic,
)
from trainer.models.fit import Fitted, Fitter, Job, check_labels, ends_before, jobs_of, recipes
from trainer.models.nn import Network
from trainer.models.options import Around
from trainer.models.rows import Rows
from trainer.models.svc import Vectors
from trainer.models.weights import row_weights, uniqueness

M = 60_000
HORIZON = 30


def algorithm(algo: str, train: dict[str, object] | None = None, **params: object) -> Algorithm:
    return Algorithm.model_validate(
        {"name": "m", "algo": algo, "params": params, "train": train or {}}
    )


def made_rows(count: int = 1500, seed: int = 0) -> Rows:
    """Rows a minute apart with three features; their labels look HORIZON rows ahead."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 3)).astype(np.float32)
    y = (x[:, 0] + random.normal(size=count) > 0.8).astype(float)
    y[-HORIZON:] = np.nan
    open_ms = np.arange(count, dtype=np.int64) * M
    return Rows(
        x=x,
        y={"high_10": y, "high_max_60": 3 * x[:, 1].astype(float) + 7},
        open_ms=open_ms,
        t1_ms=dict.fromkeys(("high_10", "high_max_60"), open_ms + HORIZON * M),
        index=np.arange(count, dtype=np.int64),
        symbol=np.zeros(count, np.int16),
        left_out=np.zeros(3, bool),
    )


def job_of(rows: Rows, algorithm_: Algorithm, label: str = "high_10") -> Job:
    (job,) = jobs_of(rows, recipes([algorithm_]), [label], step_ms=M, stride=1, inputs="k")
    return job


def fit(rows: Rows, job: Job, seed: int = 7) -> Fitted:
    def keep(_: Job, model: Fitted) -> Fitted:
        return model

    (model,) = Fitter.of(rows, 1, seed).fit_each([job], keep)
    return model


# --- rows ----------------------------------------------------------------------------------------


def test_no_label_before_the_tail_looks_into_it() -> None:
    job = job_of(made_rows(), algorithm("lc", calibrate="platt", tail_share=0.25))
    before, tail = job.parts()
    assert len(job.positions) == 1500 - HORIZON
    first = int(1470 * 0.75)
    assert tail.tolist() == list(range(first, 1470))
    assert before.tolist() == list(range(first - HORIZON))
    assert job.t1_ms[before].max() < job.open_ms[tail].min()


@pytest.mark.parametrize("calibrate", ["platt", "isotonic"])
@pytest.mark.parametrize("algo", ["gb", "nn", "lc", "svc"])
def test_the_map_is_fitted_on_rows_that_the_model_has_not_seen(algo: str, calibrate: str) -> None:
    rows = made_rows(600)
    job = job_of(rows, algorithm(algo, calibrate=calibrate))
    before, tail = job.parts()
    model = fit(rows, job)
    assert isinstance(model, Mapped)
    raw = model.core.raw(rows.x)
    # other labels and features in the tail, and in the rows whose labels look into it
    others = np.setdiff1d(np.arange(600), before)
    seen = rows.x.copy()
    rows.x[others] += 5
    rows.y["high_10"][tail] = 1 - rows.y["high_10"][tail]
    other = fit(rows, job_of(rows, algorithm(algo, calibrate=calibrate)))
    assert isinstance(other, Mapped)
    assert other.core.raw(seen).tobytes() == raw.tobytes()
    assert other.predict(seen).tobytes() != model.predict(seen).tobytes()


def test_length_counts_back_from_the_last_row_that_may_be_fitted_on() -> None:
    rows = made_rows()
    plan = recipes([algorithm("lc", length=200, every_nth_row=10)])
    (job,) = jobs_of(
        rows,
        plan,
        ["high_10"],
        step_ms=M,
        stride=1,
        inputs="k",
        allowed=ends_before(rows, 1000 * M),
    )
    # labels end before row 1000: the last candidate is row 969, and 960 the last of every tenth
    assert job.positions.tolist() == list(range(770, 970, 10))


def test_svc_takes_an_even_sample_and_says_from_how_many() -> None:
    job = job_of(made_rows(), algorithm("svc", max_rows=400))
    assert job.positions.tolist() == list(range(0, 1470, 4))
    assert job.thinned_from == 1470
    assert job_of(made_rows(), algorithm("svc")).thinned_from is None


def test_labels_get_the_algorithms_that_are_for_them() -> None:
    rows = made_rows()
    both = algorithm("gb")
    classes = Algorithm.model_validate({"name": "c", "algo": "lc", "train": {"C": 1.0}})
    values = Algorithm.model_validate({"name": "v", "algo": "lc", "train": {"alpha": 1.0}})
    own = Algorithm.model_validate({"name": "r", "algo": "nn", "params": {"is_regression": True}})
    plan = recipes([both, classes, values, own])
    jobs = jobs_of(rows, plan, [*rows.y], step_ms=M, stride=1, inputs="k")
    assert [job.name for job in jobs] == [
        *("high_10_k_m", "high_max_60_k_m", "high_10_k_c", "high_max_60_k_v", "high_max_60_k_r")
    ]
    with pytest.raises(Usage, match="none of them is for values such as high_max_60"):
        check_labels(recipes([classes]), ["high_10", "high_max_60"])
    with pytest.raises(Usage, match="no label 'hihg_10'"):
        check_labels(plan, ["hihg_10"])


def test_a_tail_of_one_class_is_one_line() -> None:
    rows = made_rows(400)
    rows.y["high_10"][250:-HORIZON] = 0
    job = job_of(rows, algorithm("lc", calibrate="platt"))
    assert job.cases == 0
    with pytest.raises(Failure, match="do not both hold two classes") as error:
        fit(rows, job)
    assert "\n" not in str(error.value)


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "offset"), [(1.7, -2.0), (0.2, 4.0), (-0.5, 0.0)])
def test_platt_is_the_most_likely_line(slope: float, offset: float) -> None:
    random = np.random.default_rng(1)
    raw = random.normal(3, 2, 800)
    y = (random.random(800) < 1 / (1 + np.exp(-(slope * raw + offset)))).astype(float)
    ones = y.sum()
    targets = np.where(y == 1, (ones + 1) / (ones + 2), 1 / (800 - ones + 2))

    def loss(ab: np.ndarray) -> float:
        z = ab[0] * raw + ab[1]
        return float(np.sum(np.logaddexp(0, z) - targets * z))

    best = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9})
    found = fit_platt(raw, y)
    assert loss(np.array([found.slope, found.offset])) <= best.fun + 1e-9
    assert [found.slope, found.offset] == pytest.approx(best.x, abs=2e-3)


def test_platt_of_separated_and_of_constant_outputs_is_finite() -> None:
    y = np.array([0.0] * 50 + [1.0] * 50)
    found = fit_platt(np.linspace(-3, 3, 100), y)
    assert 1 < found.slope < 1e4
    constant = fit_platt(np.full(100, 0.3), y)
    p = constant.apply(np.array([0.3]))
    assert p[0] == pytest.approx(0.5, abs=1e-6)


def test_isotonic_goes_through_the_centres_of_the_pooled_blocks() -> None:
    random = np.random.default_rng(2)
    raw = random.normal(size=400)
    y = (random.random(400) < 1 / (1 + np.exp(-2 * raw))).astype(float)
    order = np.argsort(raw)
    x = 1 / (1 + np.exp(-raw[order]))
    # pool adjacent violators, block by block
    blocks: list[list[float]] = []
    for value, at in zip(y[order], x, strict=True):
        blocks.append([value, at, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][2] >= blocks[-1][0] / blocks[-1][2]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    centres = np.array([at / n for _, at, n in blocks])
    values = np.array([total / n for total, _, n in blocks])
    gap = (centres[-1] - centres[0]) / 100
    assert np.diff(centres).min() > gap  # or some would be left out
    found = fit_isotonic(raw, y)
    grid = np.linspace(-4, 4, 500)
    expected = np.interp(1 / (1 + np.exp(-grid)), centres, np.clip(values, 1 / 402, 401 / 402))
    np.testing.assert_allclose(found.apply(grid), expected, atol=1e-9)
    assert np.all(np.diff(found.apply(grid)) >= 0)


def test_isotonic_of_outputs_that_say_nothing_is_the_base_rate() -> None:
    y = np.array([0.0, 1.0, 0.0, 0.0] * 25)
    found = fit_isotonic(np.full(100, -0.4), y)
    np.testing.assert_allclose(found.apply(np.array([-9.0, -0.4, 9.0])), 0.25)


def test_calibration_mends_what_class_weights_break() -> None:
    rows = made_rows(4000)
    weighted = fit(rows, job_of(rows, algorithm("lc", class_weight="balanced")))
    job = job_of(rows, algorithm("lc", class_weight="balanced", calibrate="platt"))
    mended = fit(rows, job)
    _, tail = job.parts()
    base = rows.y["high_10"][tail].mean()
    assert weighted.predict(rows.x[tail]).mean() > base + 0.1
    # nearly: Platt's targets are a little inside 0 and 1
    assert mended.predict(rows.x[tail]).mean() == pytest.approx(base, abs=1e-3)


def test_logistic_is_that_of_the_c_library_also_far_out() -> None:
    assert logistic(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]
    assert Platt(slope=2.0, offset=1.0).apply(np.array([0.5])) == [1 / (1 + np.exp(-2.0))]
    steps = Isotonic(at=np.array([0.0, 0.5]), value=np.array([0.1, 0.3]), slope=np.array([0.4, 0]))
    assert steps.apply(np.array([-800.0, 0.0, 800.0])).tolist() == [0.1, 0.3, 0.3]


# --- weights -------------------------------------------------------------------------------------


def test_uniqueness_is_the_mean_share_of_a_labels_candles() -> None:
    random = np.random.default_rng(3)
    opens = np.sort(random.choice(300, 60, replace=False))
    ends = opens + random.integers(1, 40, 60)
    concurrent = np.zeros(400)
    for start, end in zip(opens, ends, strict=True):
        concurrent[start + 1 : end + 1] += 1
    expected = [
        np.mean([1 / concurrent[t] for t in range(start + 1, end + 1)])
        for start, end in zip(opens, ends, strict=True)
    ]
    np.testing.assert_allclose(uniqueness(opens * M, ends * M), expected, rtol=1e-12)
    # labels that all look equally far from every row: alike, but for the first and last
    opens = np.arange(200)
    found = uniqueness(opens * M, (opens + 20) * M)
    np.testing.assert_allclose(found[20:-20], 1 / 20, rtol=1e-12)


def test_weights_have_a_mean_of_one_and_balance_the_classes() -> None:
    y = np.array([0.0] * 30 + [1.0] * 10)
    opens, ends = np.arange(40) * M, (np.arange(40) + np.tile([1, 5], 20)) * M
    assert row_weights(Around(), y, opens, ends) is None
    balanced = row_weights(Around(class_weight="balanced"), y, opens, ends)
    np.testing.assert_allclose(balanced, compute_sample_weight("balanced", y))
    own = row_weights(Around(weights="uniqueness"), y, opens, ends)
    alone = uniqueness(opens, ends)
    np.testing.assert_allclose(own, alone / alone.mean())
    both = row_weights(Around(weights="uniqueness", class_weight="balanced"), y, opens, ends)
    assert both is not None
    assert both.mean() == pytest.approx(1)
    assert both[:30].sum() == pytest.approx(both[30:].sum())
    np.testing.assert_allclose(both[:30] / both[0], alone[:30] / alone[0])


@pytest.mark.parametrize("algo", ["gb", "nn", "lc", "svc"])
@pytest.mark.parametrize("label", ["high_10", "high_max_60"])
def test_every_algorithm_heeds_the_weights(algo: str, label: str) -> None:
    rows = made_rows(400)
    plain = fit(rows, job_of(rows, algorithm(algo), label))
    rows.t1_ms[label][:] += np.random.default_rng(1).integers(0, 20, 400) * M
    same = fit(rows, job_of(rows, algorithm(algo), label))
    other = fit(rows, job_of(rows, algorithm(algo, weights="uniqueness"), label))
    raw = [Mapped.raw(m, rows.x) if isinstance(m, Mapped) else m.raw(rows.x) for m in (plain, same)]
    if algo != "svc" or label != "high_10":  # whose tail is cut by t1
        assert raw[0].tobytes() == raw[1].tobytes()
    assert other.raw(rows.x).tobytes() != raw[1].tobytes()


# --- early stopping ------------------------------------------------------------------------------


def test_trees_stop_where_the_tail_says_and_are_fitted_again_on_all_rows() -> None:
    rows = made_rows(1500)
    arguments = {"num_leaves": 15, "n_estimators": 60, "learning_rate": 0.3}
    job = job_of(rows, algorithm("gb", arguments, early_stopping=True, patience=10))
    before, tail = job.parts()
    y = rows.y["high_10"]
    own, _ = gb.parse(algorithm("gb", arguments))
    parameters, rounds = gb.parameters(own, len(before), 1, 7)
    whole = lightgbm.train(parameters, lightgbm.Dataset(rows.x[before], y[before]), rounds)
    losses = []
    for count in range(1, 61):
        p = np.asarray(whole.predict(rows.x[tail], num_iteration=count))
        losses.append(-np.mean(y[tail] * np.log(p) + (1 - y[tail]) * np.log(1 - p)))
    # the first minimum after which ten rounds bring nothing better
    expected = next(k for k in range(60) if losses[k] == min(losses[: k + 11]) and k + 10 < 60)
    model = fit(rows, job)
    assert isinstance(model, gb.Boosting)
    assert model.booster.num_trees() == expected + 1 < 60
    again = fit(rows, job_of(rows, algorithm("gb", arguments | {"n_estimators": expected + 1})))
    assert model.predict(rows.x).tobytes() == again.predict(rows.x).tobytes()
    # with a map the model stays the one of the rows before the tail
    mapped = fit(
        rows,
        job_of(
            rows, algorithm("gb", arguments, early_stopping=True, patience=10, calibrate="platt")
        ),
    )
    assert isinstance(mapped, Mapped)
    cut = whole.predict(rows.x, num_iteration=expected + 1, raw_score=True)
    np.testing.assert_allclose(mapped.raw(rows.x), cut, atol=1e-12)


def test_networks_stop_where_the_tail_says_and_are_fitted_again_on_all_rows() -> None:
    rows = made_rows(900)
    arguments = {"max_iter": 12, "learning_rate_init": 0.02}
    own = algorithm("nn", arguments, early_stopping=True, patience=2, layers=[16])
    job = job_of(rows, own)
    before, tail = job.parts()
    y = rows.y["high_10"]
    x = rows.x[before].astype(float)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scaled = np.clip((rows.x.astype(float) - mean) / scale, -5, 5).astype(np.float32)
    reference = MLPClassifier((16,), alpha=1e-2, batch_size=32, random_state=7, **arguments)
    losses: list[float] = []
    while len(losses) < 12 and len(losses) - int(np.argmin([*losses, 9])) < 3:
        reference.partial_fit(scaled[before], y[before], classes=[0, 1])
        p = reference.predict_proba(scaled[tail])[:, 1].astype(float)
        losses.append(float(-np.mean(y[tail] * np.log(p) + (1 - y[tail]) * np.log(1 - p))))
    best = int(np.argmin(losses)) + 1
    assert 1 <= best < 12
    model = fit(rows, job)
    assert isinstance(model, Network)
    again = fit(rows, job_of(rows, algorithm("nn", arguments | {"max_iter": best}, layers=[16])))
    assert model.predict(rows.x).tobytes() == again.predict(rows.x).tobytes()


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["gb", "nn"])
def test_regressions_stop_early_too(algo: str) -> None:
    rows = made_rows(900)
    train = {"max_iter": 25} if algo == "nn" else {}
    job = job_of(rows, algorithm(algo, train, early_stopping=True), "high_max_60")
    found = fit(rows, job).predict(rows.x)
    assert np.corrcoef(found, rows.y["high_max_60"])[0, 1] > 0.97
    assert np.abs(found - rows.y["high_max_60"]).mean() < 1.0


def test_the_sample_of_support_vectors_regresses_in_the_labels_unit() -> None:
    rows = made_rows(500)
    model = fit(rows, job_of(rows, algorithm("svc", max_rows=300), "high_max_60"))
    assert isinstance(model, Mapped)
    assert isinstance(model.core, Vectors)
    assert np.abs(model.predict(rows.x) - rows.y["high_max_60"]).mean() < 0.5


def test_figures_of_a_regression() -> None:
    y = np.array([-2.0, 1.0, 3.0, -1.0, 4.0])
    found = np.array([-1.0, 1.0, 2.0, 2.0, 5.0])
    figures = measure_values(y, found, 1, 0)
    assert figures.mae == pytest.approx((1 + 0 + 1 + 3 + 1) / 5)
    assert figures.r2 == pytest.approx(1 - 12 / 26)  # mean 1: squares 9 + 0 + 4 + 4 + 9
    # ranks of y 1 3 4 2 5, of found 1 2 3.5 3.5 5
    assert figures.rank == pytest.approx(np.corrcoef([1, 3, 4, 2, 5], [1, 2, 3.5, 3.5, 5])[0, 1])
    # positives 1 2 5, others -1 2: of 6 pairs 4 right, one tie
    assert figures.sign_auc == pytest.approx(4.5 / 6)
    assert "'mae': 1.2" in figures.seed_line("high_max_60_k_gb")
    one_sign = measure_values(y + 10, np.zeros(5), 1, 0)
    assert (one_sign.sign_auc, one_sign.rank) == (None, None)
    assert measure_values(np.ones(5), found, 1, 0).r2 is None
