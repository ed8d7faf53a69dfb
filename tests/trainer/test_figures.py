"""The figures: what they keep of the data, and that they are the same bytes every time."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from trainer import figures

M = 60_000
NAN = float("nan")


def minutes(count: int) -> np.ndarray:
    return 1_700_000_040_000 + M * np.arange(count, dtype=np.int64)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(NAN)), min_size=0, max_size=400),
    points=st.integers(8, 60),
)
def test_a_thinned_line_keeps_both_ends_every_peak_and_every_trough(
    values: list[float], points: int
) -> None:
    y = np.array(values, np.float64)
    t = minutes(len(y))
    thin_t, thin_y = figures.thinned(t, y, points)
    assert len(thin_y) <= max(points + 4, len(y) if len(y) <= points else 0)
    assert (np.diff(thin_t) > 0).all()
    place = np.searchsorted(t, thin_t)
    assert np.array_equal(t[place], thin_t)
    assert np.array_equal(y[place], thin_y, equal_nan=True)
    known = y[~np.isnan(y)]
    kept = thin_y[~np.isnan(thin_y)]
    if len(known):
        assert (kept.min(), kept.max(), kept[0], kept[-1]) == (
            known.min(),
            known.max(),
            known[0],
            known[-1],
        )


def test_a_stretch_without_values_breaks_the_line() -> None:
    y = np.ones(1000)
    y[400:600] = NAN
    _, thin = figures.thinned(minutes(1000), y, 40)
    assert np.isnan(thin).any()
    assert not np.isnan(thin[0])


@pytest.mark.parametrize("rows", [1, 7, 100, 101, 999])
def test_joined_candles_are_those_of_pandas(rows: int) -> None:
    random = np.random.default_rng(rows)
    close = 100 + random.normal(size=rows).cumsum()
    opened = np.concatenate([[100.0], close[:-1]])
    frame = pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) + 1,
            "low": np.minimum(opened, close) - 1,
            "close": close,
        }
    )
    frame.loc[random.random(rows) < 0.3] = NAN
    frame.iloc[:4] = NAN
    columns = {name: frame[name].to_numpy() for name in frame}
    candles = figures.Candles(times=minutes(rows), **columns)
    joined = candles.joined(10)
    size = -(-rows // 10)
    expected = frame.groupby(np.arange(rows) // size).agg(
        {"open": "first", "high": "max", "low": "min", "close": "last"}
    )
    assert len(joined) == len(expected) <= 10
    assert joined.times.tolist() == minutes(rows)[::size].tolist()
    for name in ("open", "high", "low", "close"):
        np.testing.assert_array_equal(getattr(joined, name), expected[name].to_numpy())


def some_candles(rows: int) -> figures.Candles:
    close = 100 + np.sin(np.arange(rows) / 5)
    return figures.Candles(
        times=minutes(rows), open=close, high=close + 0.1, low=close - 0.1, close=close
    )


def line(values: list[float]) -> figures.Line:
    return figures.Line(name="s", times=minutes(len(values)), values=np.array(values))


NOTHING = np.array([])
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "dots": lambda: figures.dots(
        [
            figures.Spread(
                name="a_$x$", value=0.7, low=0.6, high=0.8, singles=[0.5, 0.9], alarm=0.8
            ),
            figures.Spread(name="<b>", value=NAN),
        ],
        "AUC",
        0.5,
    ),
    "dots of one": lambda: figures.dots([figures.Spread(name="a", value=0.5)], "AUC"),
    "reliability of a constant": lambda: figures.reliability(
        [figures.Curve(panel="p", name="gb", said=np.array([0.0]), happened=np.array([0.0]))]
    ),
    "reliability": lambda: figures.reliability(
        [
            figures.Curve(panel=p, name=n, said=np.array([0.1, 0.2]), happened=np.array([0.0, 0.3]))
            for p in ("one", "two", "three")
            for n in ("gb", "lc")
        ]
    ),
    "bars": lambda: figures.bars(["a", "b"], np.array([0.1, -0.2]), np.array([0.0, 0.1]), "u"),
    "histogram": lambda: figures.histogram(
        np.array([0.1, NAN, -0.3]), "score", {"buy above": 0.15, "sell below": -0.15}
    ),
    "histogram of nothing": lambda: figures.histogram(np.array([NAN]), "score", {}),
    "steps": lambda: figures.steps(
        ["1", "2"],
        np.array([1.0, -1.0]),
        np.array([NAN, -2.0]),
        np.array([NAN, 0.0]),
        np.array([0.5, NAN]),
        "x",
        "y",
    ),
    "surface": lambda: figures.surface(
        np.array([0.1, 0.2]),
        np.array([-0.2, -0.1]),
        np.array([[1.0, NAN], [-2.0, 0.0]]),
        {"best": (0.1, -0.2), "robust": (0.1, -0.2)},
        "%",
    ),
    "surface of one point": lambda: figures.surface(
        np.array([0.1]), np.array([-0.2]), np.array([[NAN]]), {}, "%"
    ),
    "equity": lambda: figures.equity(
        [line([NAN, 100, 120, 60, 90]), line([NAN] * 5), line([5.0] * 5)], wide=True
    ),
    "candles": lambda: figures.candles(
        some_candles(300),
        [
            figures.Marks(name="buy", times=minutes(2), prices=np.array([1.0, 2.0]), marker="^"),
            figures.Marks(name="sell", times=minutes(0), prices=NOTHING, marker="x"),
        ],
        line([0.1, NAN] * 150),
        {"buy above": 0.2, "sell below": -0.2},
        wide=False,
    ),
    "one candle": lambda: figures.candles(some_candles(1), [], None, {}, wide=True),
    "no candle known": lambda: figures.candles(
        figures.Candles(
            times=minutes(3),
            open=np.full(3, NAN),
            high=np.full(3, NAN),
            low=np.full(3, NAN),
            close=np.full(3, NAN),
        ),
        [],
        None,
        {},
        wide=False,
    ),
    "gaps": lambda: figures.gaps(
        0, 10**9, np.array([5 * M, 9 * M]), np.array([1.0, 300.0]), wide=True
    ),
    "one gap in one candle": lambda: figures.gaps(0, 0, np.array([0]), np.array([1.0]), wide=False),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_one_piece_of_svg_that_asks_for_nothing(name: str) -> None:
    text = figures.svg(DRAWINGS[name](), "fig", "what &amp; why")
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    assert root.get("role") == "img"
    assert root.get("aria-label") == "what & why"
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    assert all(one is not None and one.startswith("fig-") for one in ids)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]*)", text))
    assert used <= set(ids)
    # nothing that a browser would fetch: namespaces aside there is no address in it
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink)\")", text)
    assert "<style" not in text
    assert "<metadata" not in text
    assert "font:" not in text


@pytest.mark.parametrize("name", ["bars", "surface of one point"])
def test_a_figure_has_the_same_bytes_again(name: str) -> None:
    one, two = (figures.svg(DRAWINGS[name](), "fig", "") for _ in range(2))
    assert one == two


def test_text_stays_text_and_colours_become_variables() -> None:
    text = figures.svg(DRAWINGS["dots"](), "fig", "")
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    words = {"".join(one.itertext()) for one in root.iter() if one.tag.endswith("}text")}
    assert {"a_$x$", "<b>", "AUC", "chance"} <= words
    assert "currentColor" in text
    assert "var(--blue, #0072b2)" in text
    assert figures.INK not in text


def test_small_numbers_on_an_axis_keep_their_digits() -> None:
    figure = figures.bars(["a"], np.array([0.0025]), np.array([0.0]), "u")
    root = ElementTree.fromstring(figures.svg(figure, "f", ""))  # noqa: S314 - our own
    words = ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("}text")]
    assert "0.0025" in words or "0.0020" in words


def test_equity_shows_gain_from_the_first_value_and_distance_from_the_peak() -> None:
    figure = figures.equity([line([NAN, 100, 120, 60, 90])], wide=True)
    top, below = figure.axes
    gain: Any = top.lines[0].get_ydata()
    drawdown: Any = below.lines[0].get_ydata()
    np.testing.assert_allclose(gain, [NAN, 0, 20, -40, -10])
    np.testing.assert_allclose(drawdown, [NAN, 0, 0, -50, -25])


def test_two_figures_of_a_page_share_no_id() -> None:
    one, two = (figures.svg(DRAWINGS["one candle"](), name, "") for name in ("one", "two"))
    ids = [set(re.findall(r' id="([^"]*)"', text)) for text in (one, two)]
    assert not ids[0] & ids[1]


def test_a_png_is_whole_on_white_and_the_same_bytes_again(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("one", "two"):
        figures.png(DRAWINGS["bars"](), tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert "Software" not in image.info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]
