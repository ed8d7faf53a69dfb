"""What stands before a model that needs numbers of one size: fill, standardise, clip."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
CLIP = 5.0


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

    def apply(self, x: npt.NDArray[np.float32]) -> FloatArray:
        """(n, n_columns) float64 without NaN."""
        filled = np.where(np.isnan(x), self.median, x.astype(np.float64))
        if self.is_identity:
            return filled
        filled -= self.mean
        filled /= self.scale
        return np.asarray(np.clip(filled, -CLIP, CLIP, out=filled))
