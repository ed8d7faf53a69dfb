"""Permutation importance, against scikit-learn's figures and models whose inputs are known."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from shared.features import DEPTH_33, FUTUR_38, KLINE_51
from shared.features.ta import CALENDAR, FUNCTIONS
from trainer.importance import group_of, groups, meaning, permuted


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_group_is_what_features_share_but_for_the_window() -> None:
    assert group_of("close_5") == "close"
    assert group_of("close_std_720") == "close_std"
    assert group_of("f_close_std_5") == "f_close_std"
    assert group_of("my_own_idea_30") == "my_own_idea"
    assert group_of("idea") == "idea"
    assert group_of("close_EMA_12_rel_60_log") == group_of("close_EMA_5") == "close_EMA"
    assert group_of("f_close_LINEARREG_SLOPE_20") == "f_close_LINEARREG_SLOPE"
    assert {group_of(name) for name in CALENDAR} == {"calendar"}


def test_every_group_has_a_meaning() -> None:
    assert meaning("close_std") == "volatility of closes"
    assert meaning("f_close_std") == "volatility of closes of the futures"
    assert meaning("close_LINEARREG_SLOPE") == f"{FUNCTIONS['LINEARREG_SLOPE'].formula}, x = close"
    assert meaning("my_own_idea") == "a feature of your own"
    for name in (*KLINE_51, *FUTUR_38, *DEPTH_33, *CALENDAR):
        assert meaning(group_of(name)) != "a feature of your own", name


def test_every_column_of_the_seed_sets_is_in_one_group() -> None:
    names = (*KLINE_51, *FUTUR_38, *DEPTH_33)
    found = groups(names)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(len(names)))
    assert len(found["close_std"]) == 5
    assert [names[at] for at in found["close_area"]] == [
        f"close_area_{w}" for w in (60, 120, 180, 300, 720)
    ]
    assert set(found) == {n.rpartition("_")[0] for n in names}


def test_shuffling_all_inputs_is_judging_with_the_outputs_of_other_rows() -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(400, 3))
    y = (logistic(x @ [1.0, -2.0, 0.5]) > random.random(400)).astype(float)
    y[::9] = np.nan
    known = ~np.isnan(y)

    def outputs(rows: np.ndarray) -> np.ndarray:
        return logistic(rows @ [1.0, -2.0, 0.5])[:, None]

    (found,) = permuted(outputs, x, {"m": y}, {"all": np.arange(3)}, repeats=4, seed=11)
    p = outputs(x)[:, 0]
    draw = np.random.default_rng(11)
    orders = [draw.permutation(400) for _ in range(4)]
    aucs = [roc_auc_score(y[known], p[order][known]) for order in orders]
    losses = [log_loss(y[known], p[order][known]) for order in orders]
    whole = roc_auc_score(y[known], p[known])
    assert found.features == 3
    assert found.auc_drop["m"] == pytest.approx(whole - np.mean(aucs), abs=1e-12)
    assert found.auc_spread["m"] == pytest.approx((max(aucs) - min(aucs)) / 2, abs=1e-12)
    assert found.loss_rise["m"] == pytest.approx(
        np.mean(losses) - log_loss(y[known], p[known]), abs=1e-12
    )


def test_the_group_that_decides_comes_first_and_an_unused_one_costs_nothing() -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=(500, 4))
    y = (x[:, 2] > 0).astype(float)
    found = permuted(
        lambda rows: np.column_stack([logistic(5 * rows[:, 2]), logistic(rows[:, 2] + rows[:, 0])]),
        x,
        {"sure": y, "mixed": y},
        {"unused": np.array([1, 3]), "second": np.array([0]), "first": np.array([2])},
        repeats=3,
        seed=0,
    )
    assert found[0].group == "first"
    of = {one.group: one for one in found}
    assert of["unused"].auc_drop == {"sure": 0.0, "mixed": 0.0}
    assert of["unused"].loss_rise == {"sure": 0.0, "mixed": 0.0}
    assert of["second"].auc_drop["sure"] == 0.0
    assert of["first"].auc_drop["sure"] == pytest.approx(0.5, abs=0.08)
    assert of["first"].mean_drop == pytest.approx(
        (of["first"].auc_drop["sure"] + of["first"].auc_drop["mixed"]) / 2
    )


def test_columns_of_a_group_stay_together() -> None:
    x = np.random.default_rng(5).normal(size=(200, 2))
    x[:, 1] = -x[:, 0]
    y = (x[:, 0] > 0).astype(float)

    def outputs(rows: np.ndarray) -> np.ndarray:
        return (0.5 / (1 + np.abs(rows.sum(axis=1))))[:, None]  # 0.5 while the two belong together

    (together,) = permuted(outputs, x, {"m": y}, {"pair": np.array([0, 1])}, repeats=2, seed=1)
    assert together.loss_rise["m"] == 0.0
    apart = permuted(
        outputs, x, {"m": y}, {"a": np.array([0]), "b": np.array([1])}, repeats=2, seed=1
    )
    assert all(one.loss_rise["m"] > 0.01 for one in apart)


def test_a_model_whose_rows_are_of_one_class_has_no_figures() -> None:
    x = np.random.default_rng(6).normal(size=(50, 1))
    mixed = (x[:, 0] > 0).astype(float)

    def outputs(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([logistic(rows[:, 0])] * 3)

    truth = {"never": np.zeros(50), "unknown": np.full(50, np.nan), "mixed": mixed}
    (found,) = permuted(outputs, x, truth, {"g": np.array([0])}, repeats=1, seed=0)
    assert set(found.auc_drop) == {"mixed"}
    del truth["mixed"]
    assert permuted(outputs, x, truth, {"g": np.array([0])}, repeats=1, seed=0) == []


def test_progress_counts_every_row_that_is_run() -> None:
    x = np.random.default_rng(7).normal(size=(40, 2))
    seen: list[tuple[int, str]] = []
    permuted(
        lambda rows: logistic(rows[:, :1]),
        x,
        {"m": (x[:, 0] > 0).astype(float)},
        {"a": np.array([0]), "b": np.array([1])},
        repeats=3,
        seed=0,
        advance=lambda count, detail: seen.append((count, detail)),
    )
    assert sum(count for count, _ in seen) == 40 * (1 + 2 * 3)
