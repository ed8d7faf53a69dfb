"""How much each training row counts: uniqueness of its label's window, balance of the classes."""

import numpy as np
import numpy.typing as npt

from trainer.models.options import Around

FloatArray = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]


def row_weights(around: Around, y: FloatArray, open_ms: Times, t1_ms: Times) -> FloatArray | None:
    """(n,) weights with a mean of 1; None where all rows count alike.

    y: (n,) 0 or 1, or values where `around` balances no classes.
    """
    weights = np.ones(len(y))
    if around.weights == "uniqueness":
        weights *= uniqueness(open_ms, t1_ms)
    if around.class_weight == "balanced":
        true = y > 0.5
        total = weights.sum()
        for of_class in (true, ~true):
            weights[of_class] *= total / (2 * weights[of_class].sum())
    elif around.weights == "none":
        return None
    return np.asarray(weights / weights.mean())


def uniqueness(open_ms: Times, t1_ms: Times) -> FloatArray:
    """Average uniqueness of each row's label among the others, in (0, 1].

    A label looks at the candles after its own, those that open in (open_ms, t1_ms]; `c` of them
    look at a candle. Uniqueness is the mean of 1 / c over a label's candles (Lopez de Prado,
    Advances in Financial Machine Learning, 4.4). Rows of several symbols are not told apart: all of
    one time share it. n log n, whatever the number of candles.
    """
    # c is constant between neighbouring edges: its reciprocal is summed up edge by edge
    edges = np.unique(np.concatenate([open_ms, t1_ms]))
    begins = np.bincount(np.searchsorted(edges, open_ms), minlength=len(edges))
    ends = np.bincount(np.searchsorted(edges, t1_ms), minlength=len(edges))
    concurrent = np.cumsum(begins - ends)[:-1]
    lengths = np.diff(edges)
    shares = np.divide(
        lengths, concurrent, out=np.zeros(len(lengths)), where=concurrent > 0, dtype=np.float64
    )
    sums = np.concatenate([[0.0], np.cumsum(shares)])
    own = sums[np.searchsorted(edges, t1_ms)] - sums[np.searchsorted(edges, open_ms)]
    return np.asarray(own / (t1_ms - open_ms))
