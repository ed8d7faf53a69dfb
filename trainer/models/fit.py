"""Fits every label with every algorithm on chosen rows; what labels can share is made once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

from shared.config import Algorithm
from trainer.models import gb, lc, nn, options
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Fitted = gb.Boosting | nn.Network | lc.Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An algorithm of the config, checked."""

    name: str
    algo: Literal["gb", "nn", "lc"]
    rows: options.RowChoice
    options: gb.Options | nn.Options | lc.Options


def recipes(algorithms: Sequence[Algorithm]) -> list[Recipe]:
    """Raises Usage where the config is wrong; nothing has been computed by then."""
    parsers: dict[str, Any] = {"gb": gb.parse, "nn": nn.parse, "lc": lc.parse}
    found: list[Recipe] = []
    for algorithm in algorithms:
        if any(recipe.name == algorithm.name for recipe in found):
            raise options.refused(algorithm, "two algorithms have this name")
        found.append(
            Recipe(
                name=algorithm.name,
                algo=algorithm.algo,
                rows=options.row_choice(algorithm),
                options=parsers[algorithm.algo](algorithm),
            )
        )
    return found


class Fitter:
    """Fits on some of the rows of one matrix; bins and scalings are kept for the next label."""

    def __init__(self, x: Float32Array, threads: int, seed: int) -> None:
        """x: (n, n_used) float32, the used columns of all rows."""
        self.x = x
        self._threads = threads
        self._seed = seed
        self._rows_key = b""
        self._rows: Float32Array = x[:0]
        self._trainers: dict[str, gb.Trainer] = {}
        self._scalings: dict[bool, tuple[Scaling, FloatArray, Float32Array]] = {}

    def fit(
        self, recipe: Recipe, positions: npt.NDArray[np.intp], y: FloatArray, name: str
    ) -> Fitted:
        """positions: which rows; y: (len(positions),) 0 or 1. The same call gives the same model.

        Raises:
            Failure: a library refused the arguments of the config.
        """
        self._take(positions)
        match recipe.options:
            case gb.Options() as chosen:
                trainer = self._trainers.get("gb")
                if trainer is None:
                    trainer = gb.Trainer(self._rows, self._threads, self._seed)
                    self._trainers["gb"] = trainer
                return trainer.fit(chosen, y, name)
            case lc.Options() as chosen:
                scaling, scaled, _ = self._scaled(chosen.is_scale)
                # One thread: small products gain nothing from more, and their sums would depend
                # on how many there are.
                with threadpool_limits(1):
                    return lc.fit(chosen, scaling, scaled, y, self._seed, name)
            case nn.Options() as chosen:
                scaling, _, scaled32 = self._scaled(chosen.is_scale)
                with threadpool_limits(1):
                    return nn.fit(chosen, scaling, scaled32, y, self._seed, name)

    def _take(self, positions: npt.NDArray[np.intp]) -> None:
        key = positions.tobytes()
        if key != self._rows_key:
            self._rows_key = key
            self._rows = self.x[positions]
            self._trainers.clear()
            self._scalings.clear()

    def _scaled(self, is_scale: bool) -> tuple[Scaling, FloatArray, Float32Array]:
        if is_scale not in self._scalings:
            scaling = Scaling.fit(self._rows, is_identity=not is_scale)
            scaled = scaling.apply(self._rows)
            self._scalings[is_scale] = (scaling, scaled, scaled.astype(np.float32))
        return self._scalings[is_scale]
