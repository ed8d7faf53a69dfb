"""What people read."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.messages import (
    DUPLICATE,
    TEXT_UNITS,
    alert_text,
    clean,
    is_alert,
    price_text,
    score_text,
    steps,
    units,
)
from shared.events import Notice, Signal

MINUTE = 60_000
NOW = 1_700_000_000_000


def signal(score: float | None = -0.26, close: float = 60_518.0, invalid: str = "") -> Signal:
    return Signal(
        open_time_ms=NOW // MINUTE * MINUTE, symbol="BTCUSDT", interval="1m", close=close,
        score=score, side="", invalid=invalid, release="r", schema="s",
    )  # fmt: skip


def notice(
    text: str = "x", code: str = "gap", level: str = "warning", time_ms: int = NOW
) -> Notice:
    return Notice(service="collector", level=level, code=code, text=text, time_ms=time_ms)


def test_message_is_the_designs() -> None:
    assert score_text(signal(), "BTC", 3) == "₿ 60,518 📉📉📉 Score: -0.26"


@pytest.mark.parametrize(
    ("base", "sign"), [("BTC", "₿"), ("ETH", "Ξ"), ("DOGE", "DOGE"), ("1000SATS", "1000SATS")]
)
def test_sign_stands_for_the_base_asset(base: str, sign: str) -> None:
    assert score_text(signal(0.2), base, 4) == f"{sign} 60,518 📈 Score: +0.20"


@pytest.mark.parametrize("hundredths", range(0, 101, 5))
def test_exact_multiples_of_the_step_count_in_full(hundredths: int) -> None:
    assert steps(hundredths / 100) == steps(-hundredths / 100) == hundredths // 5


@given(st.floats(-1, 1), st.integers(0, 20))
def test_icons_follow_the_steps_above_the_threshold(score: float, threshold: int) -> None:
    text = score_text(signal(score), "BTC", threshold)
    exact = abs(Fraction(score)) / Fraction(5, 100)
    near = abs(exact - round(exact)) < Fraction(1, 10**8)
    whole = round(exact) if near else math.floor(exact)
    if near and abs(exact - round(exact)) > Fraction(1, 10**10):
        return  # so close to a step that the tolerance itself decides
    if whole < threshold:
        assert text is None
        return
    assert text is not None
    down = str(score).startswith("-")
    assert text.count("📉" if down else "📈") == whole - threshold + 1
    assert text.count("📈" if down else "📉") == 0
    assert text.endswith(f"Score: {score:+.2f}")
    assert ("-" if down else "+") in text


def test_threshold_zero_lets_every_score_through_with_one_icon() -> None:
    assert score_text(signal(0.01), "BTC", 0) == "₿ 60,518 📈 Score: +0.01"
    assert score_text(signal(-0.01), "BTC", 0) == "₿ 60,518 📉 Score: -0.01"
    assert score_text(signal(0.0), "BTC", 0) == "₿ 60,518 📈 Score: +0.00"


@pytest.mark.parametrize(
    "silent",
    [
        signal(None),
        signal(math.nan),
        signal(1.5),
        signal(0.9, invalid="warm-up"),
        signal(0.9, close=math.nan),
        signal(0.9, close=0.0),
    ],
)
def test_what_is_no_valid_score_stays_silent(silent: Signal) -> None:
    assert score_text(silent, "BTC", 0) is None


@pytest.mark.parametrize(
    ("price", "text"),
    [
        (60_518.0, "60,518"),
        (60_518.99, "60,518"),
        (1_000.0, "1,000"),
        (999.999, "1,000"),
        (150.37, "150.37"),
        (99.99999, "100"),
        (1.0, "1"),
        (0.0812, "0.0812"),
        (0.00000812, "0.00000812"),
        (1e-15, "1e-15"),
        (1e20, "1e+20"),
    ],
)
def test_prices_read_well_large_and_small(price: float, text: str) -> None:
    assert price_text(price) == text


@given(st.floats(1e-11, 1e14))
def test_a_printed_price_is_the_price(price: float) -> None:
    printed = float(price_text(price).replace(",", ""))
    if price >= 1_000:
        assert printed == math.floor(price)
    else:
        assert printed > 0
        assert abs(printed - price) <= 0.5000001e-4 * price * 10


def test_levels_above_info_are_alerts_also_unknown_ones() -> None:
    assert [is_alert(notice(level=level)) for level in ("info", "warning", "alert", "fatal")] == [
        False, True, True, True,
    ]  # fmt: skip


def test_a_burst_is_one_message_with_counts() -> None:
    burst = [notice("BTCUSDT 12:00"), *(notice(f"later {n}") for n in range(6))]
    message = alert_text([*burst, notice("boom", "dead_letter", "alert")], NOW)
    assert message.notices == 8
    assert message.text.splitlines() == [
        "⚠️ collector gap ×7: BTCUSDT 12:00",
        "🚨 collector dead_letter: boom",
    ]


def test_an_old_alert_says_since_when() -> None:
    message = alert_text([notice("x", time_ms=NOW)], NOW + 600_000)
    assert message.text == "⚠️ collector gap (since 2023-11-14T22:13:20Z): x"


texts = st.text(st.characters(exclude_categories=()), max_size=900)


@given(st.lists(st.builds(notice, texts, texts, st.sampled_from(["warning", "alert"])), min_size=1))
def test_alerts_always_fit_and_none_is_left_out(notices: list[Notice]) -> None:
    waiting, lines, told = list(notices), 0, 0
    while waiting:
        message = alert_text(waiting, NOW)
        assert 0 < message.notices <= len(waiting)
        assert units(message.text + DUPLICATE) <= 4096
        assert units(message.text) <= TEXT_UNITS
        codes = {(n.service, n.code) for n in waiting[: message.notices]}
        assert len(message.text.split("\n")) == len(codes)
        lines += len(codes)
        told += message.notices
        waiting = waiting[message.notices :]
    assert told == len(notices)


@given(st.text(st.characters(exclude_categories=()), max_size=400), st.integers(1, 200))
def test_clean_text_is_one_printable_line(text: str, characters: int) -> None:
    cleaned = clean(text, characters)
    assert len(cleaned) <= characters
    assert cleaned.isprintable()
    assert cleaned.encode().decode() == cleaned


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    assert clean("\x1b[2J\x1b]0;x\x07 a\nb\u202ec") == "[2J]0;x a bc"
