"""How long a silent stream is waited for."""

from collector.feed import LONGEST_PATIENCE_S, Patience


def test_patience_doubles_with_each_fruitless_replacement_up_to_a_limit() -> None:
    patience = Patience(4.0)
    waited = []
    for _ in range(8):
        waited.append(patience.of("a"))
        patience.exhausted("a")
    assert waited == [4, 8, 16, 32, 60, 60, 60, 60]
    assert LONGEST_PATIENCE_S == 60
    assert patience.of("b") == 4


def test_messages_in_time_bring_it_back_slowly() -> None:
    patience = Patience(4.0)
    patience.exhausted("a")
    patience.spoke("a", 3.0)
    assert 7.9 < patience.of("a") < 8
    for _ in range(100):
        patience.spoke("a", 2.0)
    assert patience.of("a") == 4


def test_an_illiquid_stream_does_not_reconnect_for_ever() -> None:
    """One message each 20 s: after three replacements its silence is understood."""
    patience = Patience(4.0)
    replaced = 0
    for _ in range(200):
        while patience.of("a") < 20:
            patience.exhausted("a")
            replaced += 1
        patience.spoke("a", 20.0)
    assert replaced == 3
