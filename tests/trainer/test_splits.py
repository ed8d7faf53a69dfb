"""Splits against their rule, row by row."""

import itertools

import numpy as np
import pytest

from shared.errors import Usage
from trainer.splits import Block, around, before, cpcv, paths, walk_forward

M = 60_000
DAY = 86_400_000


def blocks(**options: object) -> list[tuple[int, int]]:
    given: dict[str, object] = {"train_ms": 100 * DAY, **options}
    found = walk_forward(0, 400 * DAY, M, **given)  # type: ignore[arg-type]
    return [(one.start_ms, one.stop_ms) for one in found]


def test_two_of_start_size_and_folds_give_the_third() -> None:
    assert blocks(start_ms=340 * DAY, size_ms=20 * DAY) == [
        (340 * DAY, 360 * DAY),
        (360 * DAY, 380 * DAY),
        (380 * DAY, 400 * DAY),
    ]
    assert blocks(size_ms=20 * DAY, folds=3) == blocks(start_ms=340 * DAY, size_ms=20 * DAY)
    assert blocks(start_ms=340 * DAY, folds=3) == blocks(start_ms=340 * DAY, size_ms=20 * DAY)
    assert len(blocks(start_ms=340 * DAY, size_ms=20 * DAY, folds=2)) == 2


def test_the_last_block_ends_with_the_data() -> None:
    assert blocks(start_ms=350 * DAY, size_ms=20 * DAY)[-1] == (390 * DAY, 400 * DAY)


def test_without_a_word_testing_begins_after_the_training_days() -> None:
    found = blocks()
    assert found[0] == (100 * DAY, 130 * DAY)
    assert found[-1][1] == 400 * DAY
    # of a short history half is trained on first
    assert blocks(train_ms=500 * DAY)[0][0] == 200 * DAY
    short = walk_forward(0, 8 * DAY, M, train_ms=500 * DAY)
    assert [(b.start_ms, b.stop_ms) for b in short] == [
        (4 * DAY, 5 * DAY),
        (5 * DAY, 6 * DAY),
        (6 * DAY, 7 * DAY),
        (7 * DAY, 8 * DAY),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"start_ms": 400 * DAY},
        {"start_ms": 0},
        {"size_ms": 200 * DAY, "folds": 2},
        {"start_ms": 390 * DAY, "size_ms": 10 * DAY, "folds": 2},
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(Usage, match=r"fold|fit"):
        blocks(**options)


def random_rows(seed: int, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Open times with holes, and t1 of changing length, not monotonic."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.integers(1, 4, rows)).astype(np.int64) * M
    return times, times + random.integers(0, 40, rows) * M


@pytest.mark.parametrize("seed", range(5))
def test_a_row_before_the_block_is_trained_on_only_if_its_label_ended(seed: int) -> None:
    times, t1 = random_rows(seed)
    block = Block(start_ms=int(times[200]), stop_ms=int(times[250]))
    first = int(times[50])
    allowed = before(times, t1, block, first)
    for row in range(len(times)):
        touches = t1[row] >= times[200]
        assert allowed[row] == (times[row] >= first and not touches)
    assert not (allowed & block.holds(times)).any()


@pytest.mark.parametrize(("groups", "tested"), [(6, 2), (5, 1), (5, 4), (7, 3)])
def test_combinations_test_every_row_equally_often(groups: int, tested: int) -> None:
    times, _ = random_rows(1)
    found = cpcv(times, groups, tested)
    chosen = [one.groups for one in found]
    assert chosen == list(itertools.combinations(range(groups), tested))
    counts = np.zeros(len(times), int)
    for one in found:
        for block in one.blocks:
            counts += block.holds(times)
    assert set(counts.tolist()) == {len(found) * tested // groups}


@pytest.mark.parametrize("embargo", [0, 10 * M])
@pytest.mark.parametrize("seed", range(3))
def test_no_training_label_meets_a_tested_one(seed: int, embargo: int) -> None:
    times, t1 = random_rows(seed)
    for one in cpcv(times, 6, 2):
        allowed = around(times, t1, one.blocks, embargo)
        tested = np.logical_or.reduce([block.holds(times) for block in one.blocks])
        assert not (allowed & tested).any()
        for block in one.blocks:
            inside = np.flatnonzero(block.holds(times))
            for row in np.flatnonzero(~tested):
                meets = any(
                    times[row] <= t1[test] and t1[row] >= times[test] for test in inside.tolist()
                )
                is_behind = times[row] > times[inside[-1]]
                last = max(int(t1[inside].max()), int(times[inside[-1]]))
                in_embargo = is_behind and times[row] <= last + embargo
                if meets or in_embargo:
                    assert not allowed[row]
    # and nothing else is lost: far from every block all rows train
    [one] = [c for c in cpcv(times, 6, 2) if c.groups == (0, 1)]
    allowed = around(times, t1, one.blocks, embargo)
    assert allowed[-100:].all()


@pytest.mark.parametrize(("groups", "tested"), [(6, 2), (10, 2), (5, 1), (6, 3)])
def test_paths_use_each_tested_group_of_each_combination_once(groups: int, tested: int) -> None:
    found = paths(groups, tested)
    chosen = list(itertools.combinations(range(groups), tested))
    used = [(int(found[path, g]), g) for path in range(len(found)) for g in range(groups)]
    assert sorted(used) == sorted((n, g) for n, one in enumerate(chosen) for g in one)


def test_numbers_that_make_no_split_are_refused() -> None:
    times, _ = random_rows(0)
    with pytest.raises(Usage, match="nothing to train on"):
        cpcv(times, 4, 4)
    with pytest.raises(Usage, match="too few"):
        cpcv(times[:3], 4, 1)
