"""The account's clock goes on by a clock that nobody sets (FAULTS T19)."""

import time

import pytest

from shared.clock import AccountClock


def test_before_it_is_measured_it_is_ours_and_has_no_skew() -> None:
    clock = AccountClock()
    assert abs(clock.now_ms - time.time() * 1000) < 1_000
    assert clock.skew_ms is None


def test_a_step_of_our_clock_changes_the_skew_and_not_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    clock = AccountClock()
    clock.measured(at_s=99.5, there_ms=1_002_000)  # it was half a second ago
    assert (clock.now_ms, clock.skew_ms) == (1_002_500, 2_500)
    monkeypatch.setattr(time, "time", lambda: 900.0)  # somebody sets our clock back
    monkeypatch.setattr(time, "monotonic", lambda: 101.0)
    assert (clock.now_ms, clock.skew_ms) == (1_003_500, 103_500)
