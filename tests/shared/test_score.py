"""The score's definition against hand calculations, and its rules."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.score import ScoreFormula, ScoreKind, Side, Stack, score, side

MODELS = ("high_a", "low_a", "high_b")


UP = Stack(weights={"high_a": 0.5, "low_a": -0.25, "high_b": 1.5}, bias=-0.125)
DOWN = Stack(weights={"high_a": -0.75, "low_a": 2.0, "high_b": 0.0}, bias=0.5)


def formula(kind: ScoreKind) -> ScoreFormula:
    is_stack = kind is ScoreKind.STACK
    return ScoreFormula(
        kind=kind,
        high=("high_a", "high_b"),
        low=("low_a",),
        high_stack=UP if is_stack else None,
        low_stack=DOWN if is_stack else None,
    )


def of(kind: ScoreKind, *row: float) -> float:
    return float(score(formula(kind), MODELS, np.array([row]))[0])


def test_ratio_is_the_seeds_formula() -> None:
    # high = (0.2 + 0.4) / 2 = 0.3, low = 0.1: 2 * 0.3 / 0.4 - 1 = 0.5
    assert of(ScoreKind.RATIO, 0.2, 0.1, 0.4) == pytest.approx(0.5, abs=1e-15)


def test_ratio_without_any_output_is_nil() -> None:
    assert math.isnan(of(ScoreKind.RATIO, 0.0, 0.0, 0.0))


def test_difference_is_that_of_the_means() -> None:
    assert of(ScoreKind.DIFFERENCE, 0.2, 0.1, 0.4) == pytest.approx(0.2, abs=1e-15)


def test_logit_mean_averages_logits_and_subtracts_probabilities() -> None:
    logits = [math.log(p / (1 - p)) for p in (0.2, 0.4)]
    expected = 1 / (1 + math.exp(-sum(logits) / 2)) - 0.1
    assert of(ScoreKind.LOGIT_MEAN, 0.2, 0.1, 0.4) == pytest.approx(expected, abs=1e-14)


def test_logit_mean_takes_certain_outputs() -> None:
    assert of(ScoreKind.LOGIT_MEAN, 1.0, 0.0, 1.0) == pytest.approx(1.0, abs=1e-12)


def test_stack_is_the_difference_of_two_logistic_models() -> None:
    a, b, c = (math.log(p / (1 - p)) for p in (0.2, 0.1, 0.4))  # high_a, low_a, high_b
    up = 1 / (1 + math.exp(-(0.5 * a - 0.25 * b + 1.5 * c - 0.125)))
    down = 1 / (1 + math.exp(-(-0.75 * a + 2.0 * b + 0.5)))
    assert of(ScoreKind.STACK, 0.2, 0.1, 0.4) == pytest.approx(up - down, abs=1e-14)


def test_a_stack_needs_a_weight_for_every_model_and_others_none() -> None:
    sides = {"high": ("high_a", "high_b"), "low": ("low_a",)}
    with pytest.raises(ValueError, match="weights for both sides"):
        ScoreFormula(kind=ScoreKind.STACK, **sides, high_stack=UP)
    with pytest.raises(ValueError, match="weights for both sides"):
        ScoreFormula(kind=ScoreKind.RATIO, **sides, high_stack=UP, low_stack=DOWN)
    short = Stack(weights={"high_a": 1.0}, bias=0.0)
    with pytest.raises(ValueError, match="for every model"):
        ScoreFormula(kind=ScoreKind.STACK, **sides, high_stack=UP, low_stack=short)


@pytest.mark.parametrize("kind", list(ScoreKind))
def test_an_output_without_value_gives_no_score(kind: ScoreKind) -> None:
    assert math.isnan(of(kind, math.nan, 0.1, 0.4))


probability = st.floats(min_value=0, max_value=1)


@given(probability, probability, probability, st.sampled_from(list(ScoreKind)))
def test_a_score_lies_between_minus_one_and_one(
    a: float, b: float, c: float, kind: ScoreKind
) -> None:
    found = of(kind, a, b, c)
    assert math.isnan(found) or -1 - 1e-12 <= found <= 1 + 1e-12


@given(probability, probability, st.sampled_from(list(ScoreKind)))
def test_swapping_the_sides_turns_the_sign(a: float, b: float, kind: ScoreKind) -> None:
    up = down = None
    if kind is ScoreKind.STACK:
        up = Stack(weights={"a": 0.5, "b": -0.25}, bias=0.1)
        down = Stack(weights={"a": -0.75, "b": 2.0}, bias=-0.3)
    there = ScoreFormula(kind=kind, high=("a",), low=("b",), high_stack=up, low_stack=down)
    back = ScoreFormula(kind=kind, high=("b",), low=("a",), high_stack=down, low_stack=up)
    row = np.array([[a, b]])
    np.testing.assert_allclose(
        score(there, ("a", "b"), row), -score(back, ("a", "b"), row), atol=1e-12
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.16, Side.BUY),
        (0.15, Side.NONE),  # above, not at
        (0.0, Side.NONE),
        (-0.15, Side.NONE),
        (-0.16, Side.SELL),
        (None, Side.NONE),
        (math.nan, Side.NONE),
    ],
)
def test_side_is_beyond_a_threshold(value: float | None, expected: Side) -> None:
    assert side(value, 0.15, -0.15) is expected
