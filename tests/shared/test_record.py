"""The chain of hashes: what it holds, and that nothing can be changed in it unseen."""

import hashlib
import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import codec
from shared.bus import Entry, Source
from shared.errors import BadInput
from shared.events import Meta, Record, Signal
from shared.record import (
    GENESIS,
    differing,
    line_of,
    link,
    read_file,
    record_of,
    text_of,
    verify,
)
from shared.streams import SIGNAL

M = 60_000
SOURCE = Source(SIGNAL, "BTCUSDT", "1m")


def signal(number: int, **change: object) -> Signal:
    values = {
        "open_time_ms": number * M,
        "symbol": "BTCUSDT",
        "interval": "1m",
        "close": 60_518.25 + number,
        "score": 0.1 + 0.01 * number,
        "side": "BUY",
        "invalid": "",
        "release": "20261122T120000Z-1a2b3c4d",
        "schema": "0" * 16,
        "outputs": {"low_10_k_lc": 1e-9, "high_10_k_lc": 1 / 3},
    }
    return Signal(**(values | change))  # type: ignore[arg-type]  # as the test says


def entry(event: Signal, published_us: int = 5) -> Entry[Signal]:
    data = codec.encode(event, Meta(received_us=1, published_us=published_us))
    return Entry(
        source=SOURCE,
        id=f"{event.open_time_ms}-0",
        event=event,
        meta=Meta(received_us=1, published_us=published_us),
        fields={"data": data},
    )


def chain(count: int) -> list[Record]:
    records: list[Record] = []
    for number in range(1, count + 1):
        previous = records[-1].hash if records else GENESIS
        records.append(link(entry(signal(number)), previous, number * M + 400))
    return records


def test_a_text_is_the_signal_in_canonical_json() -> None:
    text = text_of(entry(signal(2)), 120_400)
    told = json.loads(text)
    assert told["id"] == "BTCUSDT-1m-120000"
    assert told["recorded_ms"] == 120_400
    assert told["signal"]["score"] == signal(2).score
    assert told["signal"]["outputs"] == signal(2).outputs
    assert text == json.dumps(told, sort_keys=True, separators=(",", ":"))
    assert text_of(entry(signal(2), published_us=9), 120_400) == text  # our own clock is not in it


def test_what_cannot_be_a_number_is_null() -> None:
    told = json.loads(text_of(entry(signal(2, close=math.nan, score=None, side="")), None))
    assert (told["signal"]["close"], told["signal"]["score"]) == (None, None)
    assert told["recorded_ms"] is None


def test_an_unreadable_entry_is_recorded_by_its_bytes() -> None:
    broken = replace(entry(signal(2)), event=None, fields={"data": b"\x81junk"})
    told = json.loads(text_of(broken, 1))
    assert told["unreadable"] == hashlib.sha256(b"\x81junk").hexdigest()


def test_a_hash_is_what_sha256sum_gives(tmp_path: Path) -> None:
    """By the shell alone, as the documentation says."""
    path = tmp_path / "record.txt"
    records = chain(3)
    path.write_text("".join(f"{line_of(record)}\n" for record in records))
    for number, record in enumerate(records, 1):
        command = f"sed -n {number}p {path} | cut -d' ' -f2- | tr -d '\\n' | sha256sum"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == record.hash
    assert [one.previous for one in records] == [GENESIS, *(one.hash for one in records[:-1])]


def test_a_chain_holds_from_file_to_file(tmp_path: Path) -> None:
    records = chain(5)
    path = tmp_path / "record.txt"
    path.write_text("".join(f"{line_of(record)}\n" for record in records))
    assert list(read_file(path)) == records
    found = verify(read_file(path))
    assert (found.records, found.anchor, found.head) == (5, GENESIS, records[-1].hash)
    assert (found.first_ms, found.last_ms, found.problem) == (M, 5 * M, "")
    part = verify(records[2:])
    assert (part.anchor, part.head, part.is_whole) == (records[1].hash, records[-1].hash, True)
    nothing = verify([])
    assert (nothing.records, nothing.head, nothing.is_whole) == (0, GENESIS, True)


LONG = chain(12)


@given(st.data())
def test_no_single_change_goes_unseen(data: st.DataObject) -> None:
    """One character of one line, a line taken out, put in twice, or two that change places."""
    lines = [line_of(record) for record in LONG]
    at = data.draw(st.integers(0, len(lines) - 2))
    kind = data.draw(st.sampled_from(["character", "out", "twice", "places"]))
    if kind == "character":
        place = data.draw(st.integers(0, len(lines[at]) - 1))
        other = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
        if lines[at][place] == other:
            return
        lines[at] = lines[at][:place] + other + lines[at][place + 1 :]
    elif kind == "out":
        if at == 0:
            return  # that the first is missing shows at its anchor, below
        del lines[at]
    elif kind == "twice":
        lines.insert(at, lines[at])
    else:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    try:
        found = verify(record_of(line) for line in lines)
    except BadInput:
        return
    assert not found.is_whole


def test_a_missing_beginning_shows_at_the_anchor() -> None:
    assert verify(LONG[1:]).anchor == LONG[0].hash != GENESIS


def test_a_chain_that_was_computed_anew_has_another_head() -> None:
    """To hide a change all later hashes have to change: whoever kept one of them can tell."""
    anew: list[Record] = []
    for number in range(1, 13):
        event = signal(number, score=0.9) if number == 3 else signal(number)
        previous = anew[-1].hash if anew else GENESIS
        anew.append(link(entry(event), previous, number * M + 400))
    assert verify(anew).is_whole
    assert [a.hash == b.hash for a, b in zip(anew, LONG, strict=True)] == [True] * 2 + [False] * 10


def test_signals_that_say_another_thing_now_are_named() -> None:
    signals = {n * M: entry(signal(n)) for n in range(1, 13)}
    assert list(differing(LONG, signals)) == []
    signals[4 * M] = entry(signal(4, side="SELL"))
    del signals[7 * M]  # trimmed
    assert list(differing(LONG, signals)) == ["BTCUSDT-1m-240000"]


@pytest.mark.parametrize("line", ["", "x", f"{GENESIS} {GENESIS}", f"{GENESIS} {GENESIS} {{}}"])
def test_what_is_no_line_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        record_of(line)
    path = tmp_path / "record.txt"
    path.write_text(f"{line_of(LONG[0])}\n{line}\n")
    with pytest.raises(BadInput, match="line 2: "):
        list(read_file(path))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.txt: cannot read the record: No such file"):
        list(read_file(tmp_path / "none.txt"))
