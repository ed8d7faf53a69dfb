"""Candles as matplotlib holds them, before they are pixels."""

import numpy as np
import pytest

from shared.candlesticks import draw_candles


def test_bodies_and_wicks_stand_where_the_prices_are() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    bars = np.array([[10.0, 13.0, 9.0, 12.0], [12.0, 12.5, 8.0, 8.5], [8.5, 9.0, 8.0, 8.5]])
    draw_candles(axes, [0, 5, 10], bars, width=2.0, up="#00ff00", down="#ff0000")
    bodies = {
        (p.get_x() + p.get_width() / 2, p.get_y(), p.get_height(), p.get_facecolor()[:3])
        for p in axes.patches
    }
    assert bodies == {
        (0.0, 10.0, 2.0, (0.0, 1.0, 0.0)),
        (5.0, 8.5, 3.5, (1.0, 0.0, 0.0)),
        (10.0, 8.5, 0.0, (0.0, 1.0, 0.0)),
    }
    wicks = [tuple(map(tuple, line)) for c in axes.collections for line in c.get_segments()]
    assert wicks == [((0, 9), (0, 13)), ((10, 8), (10, 9)), ((5, 8), (5, 12.5))]
