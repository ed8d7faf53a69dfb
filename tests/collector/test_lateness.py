"""People are told once that candles stay away, and once that they are back."""

from collector.lateness import LATE_S, START_S, Lateness

KEY = "kline:{BTCUSDT}:1m"


def test_an_outage_is_told_once_and_its_end_too() -> None:
    lateness = Lateness()
    told = []
    for second in range(600):
        late = 100 <= second < 300
        told += [(second, *t) for t in lateness.look(KEY if late else "", 3 * late, float(second))]
    assert [(at, level, code) for at, level, code, _ in told] == [
        (100 + int(LATE_S), "alert", "late"),
        (300, "warning", "late"),
    ]
    assert f"{KEY} has been behind the market for 60 s, by 3 candles" in told[0][3]
    assert told[1][3] == "candles come again, after 200 s"


def test_a_short_lag_and_a_long_start_are_not_told() -> None:
    lateness = Lateness()
    assert [lateness.look(KEY, 9, float(s)) for s in range(int(START_S))] == [[]] * int(START_S)
    assert lateness.look("", 0, START_S) == []
    for s in range(1000):
        assert lateness.look(KEY if s % 50 else "", 2, START_S + s) == []


def test_a_start_that_never_comes_to_an_end_is_told() -> None:
    lateness = Lateness()
    told = [t for s in range(5000) for t in lateness.look(KEY, 2000, float(s))]
    assert len(told) == 1
