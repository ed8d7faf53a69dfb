"""A bus as a run leaves it: candles with holes, two releases one after the other, restarts."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

import featurizer.service
import predictor.service
import trader.service
from shared import codec
from shared.bus import Bus, Source, Write
from shared.config import Algorithm, Settings, load
from shared.events import Kline
from shared.features import FeatureSet
from shared.releases import promote, write_release
from shared.streams import KLINE, Stream
from tests.kills import Plan, run_until_caught_up
from tests.made_releases import release_of
from tests.releases import FEATURES
from tests.resilience.tape import SYMBOL, Tape, record
from tests.valkey import Server
from trainer.export.models import TrainedModel
from trainer.models.fit import Fitter, Job, recipes
from trainer.models.rows import Rows
from trainer.reference import reference

LOOKBACK = FeatureSet.of(FEATURES).lookback
LABEL_HORIZON = 40
_QUICK = {"gb": {"n_estimators": 30}}


@dataclass(frozen=True, slots=True)
class Trained:
    """A model folder with two releases, neither of them in use yet."""

    folder: Path
    releases: tuple[str, str]


def trained(folder: Path) -> Trained:
    """Real models of made-up data, fitted in a moment: what they say is no matter here.

    The first release is one of an earlier version, without a reference.
    """
    models = folder / "models"
    ids = []
    for number, algorithms in enumerate((("gb", "nn", "lc"), ("gb", "lc"))):
        manifest, files = release_of(
            [
                _fitted(algo, f"{side}_10", seed=10 * number + at)
                for at, side in enumerate(("high", "low"))
                for algo in algorithms
            ],
            FEATURES,
            created_s=1_700_000_000 + number,
            symbols=(SYMBOL,),
            horizon=LOOKBACK,
            reference=_reference() if number else None,
            label_horizon=LABEL_HORIZON,
        )
        write_release(models, manifest, files)
        ids.append(manifest.id)
    return Trained(models, (ids[0], ids[1]))


def _made_up(seed: int, rows: int) -> tuple[np.ndarray[Any, Any], np.random.Generator]:
    """(rows, 3) of about the size that the features of the played market have."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, len(FEATURES))).astype(np.float32)
    return x * np.array([0.05, 0.02, 0.5], np.float32), rng


def _reference() -> bytes:
    x, _ = _made_up(5, 20 * 1440)
    open_ms = 60_000 * np.arange(len(x), dtype=np.int64)
    rows = Rows(
        x=x,
        y={},
        open_ms=open_ms,
        t1_ms={},
        index=open_ms // 60_000,
        symbol=np.zeros(len(x), np.int16),
        left_out=np.zeros(len(FEATURES), bool),
    )
    return reference(rows, FEATURES, 60_000, np.tanh(x[:, 0] * 10).astype(float), open_ms)


def _fitted(algo: str, label: str, seed: int) -> TrainedModel:
    """A model that follows the features of the played market, some of them missing."""
    x, rng = _made_up(seed, 400)
    sign = 1 if label.startswith("high") else -1
    y = (sign * 10 * x[:, 0] + sign * x[:, 2] + rng.normal(size=len(x)) > 0.3).astype(float)
    x[rng.random(x.shape) < 0.03] = np.nan
    (recipe,) = recipes([Algorithm(name=algo, algo=algo, train=_QUICK.get(algo, {}))])  # type: ignore[arg-type]  # a literal
    columns = tuple(range(len(FEATURES)))
    job = Job(
        recipe=recipe,
        label=label,
        name=f"{label}_k_{algo}",
        positions=np.arange(len(y)),
        y=y,
        open_ms=np.arange(len(y)) * 60_000,
        t1_ms=(np.arange(len(y)) + 5) * 60_000,
    )
    (model,) = Fitter(x, 1, seed).fit_each([job], lambda _, fitted: fitted)
    return TrainedModel(
        name=job.name,
        label=label,
        inputs="k",
        algorithm=recipe.algo,
        columns=columns,
        fitted=model,
    )


def settings(models: Path, **keys: Any) -> Settings:
    keys = {"trader": {"mode": "observe"}} | keys  # there is no exchange here
    return load(symbol=SYMBOL, model_folder=models, features_kline=FEATURES, **keys)


@dataclass(slots=True)
class Played:
    """What was played, and the bus that holds it."""

    server: Server
    tape: Tape
    models: Path
    releases: tuple[str, str]

    @property
    def settings(self) -> Settings:
        return settings(self.models)

    def signal_id(self, row: int) -> str:
        return f"{SYMBOL}-1m-{self.tape.klines[row].open_time_ms}"

    def events(self, stream: Stream[Any]) -> list[Any]:
        with redis.Redis(port=self.server.port) as client:
            entries: Any = client.xrange(stream.key(SYMBOL, "1m"))
        return [codec.decode(stream.event, fields[b"data"]).event for _, fields in entries]

    def change(self, stream: Stream[Any], row: int, change: Callable[[Any], Any]) -> None:
        """Makes the stream anew with one event changed, as if it had been written so."""
        key = stream.key(SYMBOL, "1m")
        with redis.Redis(port=self.server.port) as client:
            entries: Any = client.xrange(key)
            client.delete(key)
            for at, (entry_id, fields) in enumerate(entries):
                if at == row:
                    decoded = codec.decode(stream.event, fields[b"data"])
                    fields[b"data"] = codec.encode(change(decoded.event), decoded.meta)
                client.xadd(key, fields, id=entry_id)


async def put(url: str, klines: Sequence[Kline]) -> None:
    candles = Source(KLINE, SYMBOL, "1m")
    async with Bus.session(url, service="collector", exclusive=False) as bus:
        await bus.write(
            *(Write(source=candles, event=k, open_time_ms=k.open_time_ms) for k in klines)
        )


async def play(
    server: Server, folder: Path, made: Trained, patch: pytest.MonkeyPatch, rows: int = 300
) -> Played:
    """The services over `rows` candles in four pieces, with new lives between the pieces and
    another release from the third on."""
    models = folder / "models"
    shutil.copytree(made.folder, models, symlinks=True)
    tape = record(folder, history=60, live=rows - 60, seed=9)
    config = settings(models)
    pieces = [rows // 3, rows // 2, rows - 40, rows]
    done = 0
    for number, end in enumerate(pieces):
        promote(models, made.releases[number // 2])
        await put(server.url, tape.klines[done:end])
        done = end
        for name, serve in (
            ("featurizer", featurizer.service.serve),
            ("predictor", predictor.service.serve),
            ("trader", trader.service.serve),
        ):
            await run_until_caught_up(patch, server.url, name, serve, config, Plan())
    return Played(server, tape, models, made.releases)
