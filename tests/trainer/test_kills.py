"""Every command, killed anywhere: what is there is whole, and the next run ends as one that nobody
disturbed, bit for bit.

`ITB_KILL_SEED=7` draws other points, `ITB_KILLS=50` more of them per command.
"""

import asyncio
import json
import os
import random
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shared.releases import current_id, list_releases, read_release
from tests.fakes.archive import FakeBinance, serving
from tests.trainer.lives import KILLED, Life, live
from tests.trainer.test_download import candles

CONFIG: dict[str, Any] = {
    "symbols": ["BTCUSDT"],
    "features_kline": ["close_SMA_5_rel_60", "close_STDDEV_30_rel_120", "close_ROC_15"],
    "labels": ["high_10", "low_10"],
    "algorithms": [
        {"name": "gb", "algo": "gb", "train": {"num_boost_round": 10}},
        {"name": "lc", "algo": "lc"},
    ],
    "trainer": {
        "threads": 1,
        "train_days": 2,
        "label_horizon": 60,
        "rolling": {"folds": 2, "step_rows": 2200, "train_days": 1.5},
        "signals": {
            "buy": [0.05, 0.25, 0.1],
            "sell": [-0.05, -0.25, 0.1],
            "directions": ["long"],
            "periods": 3,
            "min_trades": 1,
            "blocks": 4,
        },
        "tune": {"trials": 3, "folds": 2, "space": {"lc": {"train.C": [0.001, 1.0, "log"]}}},
    },
}
# In the order in which each finds what it needs. The second training is there to be gone back from.
COMMANDS: dict[str, list[str]] = {
    "download": ["download", "--start", "2025-01-31", "--end", "2025-02-05"],
    "merge": ["merge"],
    "features": ["features"],
    "labels": ["labels", "--csv"],
    "rolling": ["rolling", "--backend", "threads"],
    "signals": ["signals"],
    "backtest": ["backtest"],
    "leaks": ["leaks", "--quick", "--cuts", "2"],
    "tune": ["tune", "--what", "lc", "--no-holdout"],
    "train": ["train"],
    "promote": ["promote", "--force"],
    "train --promote": ["train", "--promote"],
    "report": ["report", "--rows", "200"],
    "predict": ["predict"],
    "rollback": ["rollback"],
}


@pytest.fixture(scope="module")
def exchange() -> Iterator[str]:
    """Where the archive and REST are: served by a thread of its own."""
    table = candles(6)
    ready, stop, found = threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serving(FakeBinance(spot={"BTCUSDT": table})) as fake:
            found.append(fake.url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """before, after: the folder around each command; life: how it went."""

    folder: Path
    before: dict[str, Path]
    after: dict[str, dict[str, Any]]
    life: dict[str, Life]
    environment: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, exchange: str) -> Undisturbed:
    base = tmp_path_factory.mktemp("undisturbed")
    folder = base / "work"
    folder.mkdir()
    config = CONFIG | {
        "data_folder": "data",
        "model_folder": "models",
        "archive_url": exchange,
        "binance_rest_url": exchange,
    }
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"OMP_NUM_THREADS": "1", "NO_PROXY": "*", "no_proxy": "*"}
    before, after, life = {}, {}, {}
    for name, command in COMMANDS.items():
        before[name] = base / f"before {name}"
        shutil.copytree(folder, before[name], symlinks=True)
        life[name] = live([*command, "-c", "config.json"], folder, environment)
        assert life[name].exit_code == 0, life[name]
        assert life[name].operations > 0
        after[name] = seen(folder)
        assert after[name] != seen(before[name])
    return Undisturbed(base, before, after, life, environment)


# --- what is there -------------------------------------------------------------------------------


def visible(folder: Path) -> Iterator[Path]:
    """Files and links that readers look at: no name on the way is hidden."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and (path.is_file() or path.is_symlink()):
            yield path


def check_whole(folder: Path) -> None:
    """Nothing that a reader can see is a part of anything."""
    for path in visible(folder):
        if path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n"), path
    models = folder / "models"
    for release in list_releases(models):
        read_release(models / "releases" / release)
    live_one = current_id(models)
    if live_one is not None:
        read_release(models / "releases" / live_one)


TIMES = frozenset({"seconds", "created", "time", "written", "finished"})


def seen(folder: Path) -> dict[str, Any]:
    """What readers find, without what tells the time of day: ids of releases by their order."""
    names = {id_: f"R{at}" for at, id_ in enumerate(list_releases(folder / "models"))}

    def renamed(text: str) -> str:
        for id_, name in names.items():
            text = text.replace(id_, name)
        return text

    found: dict[str, Any] = {}
    for path in visible(folder):
        name = renamed(str(path.relative_to(folder)))
        if path.is_symlink():
            found[name] = renamed(str(path.readlink()))
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(renamed(path.read_text())))
        elif path.name == "history.jsonl":
            # earlier lines, and what was live before, may tell of a switch that was killed
            last = json.loads(renamed(path.read_text().splitlines()[-1]))
            found[name] = last["action"], last["release"]
        elif path.suffix == ".db":
            found[name] = trials(path)
        elif path.suffix == ".html":
            text = re.sub(
                r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?", "TIME", renamed(path.read_text())
            )
            found[name] = text
        elif path.suffix in {".parquet", ".onnx"}:
            found[name] = path.read_bytes()
        else:
            found[name] = renamed(path.read_text())
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def trials(path: Path) -> list[Any]:
    """Parameters and worth of every finished trial, in the order of drawing."""
    query = (
        "select t.state, p.param_name, p.param_value, v.value from trials t "
        "left join trial_params p on p.trial_id = t.trial_id "
        "left join trial_values v on v.trial_id = t.trial_id "
        "where t.state in ('COMPLETE', 'PRUNED') order by t.number, p.param_name"
    )
    with sqlite3.connect(path) as database:
        return database.execute(query).fetchall()


# --- kills ---------------------------------------------------------------------------------------


def points(life: Life, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Where to kill: at operations anywhere and a moment after them, at the last one, and from
    outside at any time."""
    operations = sorted(rng.sample(range(1, life.operations + 1), min(count, life.operations)))
    found: list[dict[str, Any]] = [{"at_operation": at} for at in operations]
    found += [
        {"at_operation": at, "delay_s": 10 ** rng.uniform(-4.5, -2)}
        for at in rng.choices(range(1, life.operations + 1), k=count)
    ]
    found += [{"at_operation": life.operations}]
    return found + [{"after_s": life.seconds * rng.random()} for _ in range(count // 2)]


def kill_and_run_again(
    undisturbed: Undisturbed, name: str, tmp_path: Path, count: int, rng: random.Random
) -> None:
    kills = 0
    for at, point in enumerate(points(undisturbed.life[name], count, rng)):
        folder = tmp_path / str(at)
        shutil.copytree(undisturbed.before[name], folder, symlinks=True)

        def again(folder: Path = folder, **when: Any) -> Life:
            command = [*COMMANDS[name], "-c", "config.json"]
            return live(command, folder, undisturbed.environment, **when)

        here = dict(point)
        for _ in range(1 + at % 2):  # every other time it is killed twice
            killed = again(**here)
            kills += killed.exit_code in KILLED
            assert killed.exit_code in (0, *KILLED), (point, killed)
            check_whole(folder)
            here = {"at_operation": rng.randrange(1, undisturbed.life[name].operations + 1)}
            if killed.exit_code == 0 or is_done(undisturbed, name, folder):
                break
        if killed.exit_code != 0 and not is_done(undisturbed, name, folder):
            last = again()
            assert last.exit_code == 0, (point, last)
        check_whole(folder)
        compare(seen(folder), undisturbed.after[name], f"{name}, {point}")
        shutil.rmtree(folder)
    assert kills > 0


def is_done(undisturbed: Undisturbed, name: str, folder: Path) -> bool:
    """A second `rollback` would go back further, and a `train` that has taken its work folder away
    has ended: another one makes a second release. Where the first was killed behind its last
    effect, nobody runs it again."""
    if name == "rollback":
        return seen(folder)["models/current"] == undisturbed.after[name]["models/current"]
    if name not in {"train", "train --promote"}:
        return False
    before = list_releases(undisturbed.before[name] / "models")
    has_new = len(list_releases(folder / "models")) > len(before)
    return has_new and not list((folder / "data").glob(".train/*/release.json"))


def compare(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    assert sorted(found) == sorted(expected), where
    for name, content in expected.items():
        assert found[name] == content, f"{where}: {name}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_anywhere_ends_as_if_nothing_had_happened(
    undisturbed: Undisturbed, name: str, tmp_path: Path
) -> None:
    rng = random.Random(f"{os.environ.get('ITB_KILL_SEED', '1')} {name}")
    count = int(os.environ.get("ITB_KILLS", "6"))
    if name == "report":  # a life takes longest, and it writes one file
        count = max(1, count // 3)
    kill_and_run_again(undisturbed, name, tmp_path, count, rng)
