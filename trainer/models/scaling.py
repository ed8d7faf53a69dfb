"""What stands before a model that needs numbers of one size: fill, standardise, clip."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
CLIP = 5.0
_BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """`clip((fill(x) - mean) / scale, -5, 5)` per column, fill = the training median for NaN.

    median, mean, scale: (n_columns,) float64. The steps are those of the ONNX graph, in double
    and in this order, so that both give the same bits. is_identity: only NaN is filled.
    """

    median: FloatArray
    mean: FloatArray
    scale: FloatArray
    is_identity: bool = False

    @classmethod
    def fit(cls, x: npt.NDArray[np.float32], *, is_identity: bool = False) -> "Scaling":
        """Statistics of the training rows; a column without a value becomes 0 throughout."""
        columns = x.shape[1]
        median, mean, scale = np.zeros(columns), np.zeros(columns), np.ones(columns)
        for column in range(columns):
            values = x[:, column].astype(np.float64)
            missing = np.isnan(values)
            if missing.all():
                continue
            median[column] = np.median(values[~missing])
            values[missing] = median[column]
            mean[column] = values.mean()
            spread = values.std()
            # A constant column has a spread of rounding errors only.
            if spread > 1e-12 * max(1.0, abs(mean[column])):
                scale[column] = spread
        return cls(median=median, mean=mean, scale=scale, is_identity=is_identity)

    def apply(
        self, x: npt.NDArray[np.float32], dtype: npt.DTypeLike = np.float64
    ) -> npt.NDArray[Any]:
        """(n, n_columns) without NaN, computed in double; block by block, for the memory's sake."""
        out = np.empty(x.shape, dtype)
        for start in range(0, len(x), _BLOCK_ROWS):
            block = x[start : start + _BLOCK_ROWS]
            filled = np.where(np.isnan(block), self.median, block.astype(np.float64))
            if not self.is_identity:
                filled -= self.mean
                filled /= self.scale
                np.clip(filled, -CLIP, CLIP, out=filled)
            out[start : start + _BLOCK_ROWS] = filled
        return out
