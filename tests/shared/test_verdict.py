"""Verdicts on feature vectors that are near to, and far from, what a release was trained on."""

from pathlib import Path

import numpy as np
import pytest

from predictor.scoring import Judge
from shared.bundle import Bundle
from shared.bus import Entry, Source
from shared.errors import BadInput
from shared.events import Feature, Meta
from shared.features import FeatureSet
from shared.reference import REFERENCE
from shared.streams import FEATURE
from shared.verdict import Asked, Verdict, events, judge
from tests.played import FEATURES, Trained
from tests.resilience.tape import SYMBOL

SCHEMA = FeatureSet.of(FEATURES).schema
NEAR = np.array([0.01, 0.0, 0.2])
FAR = np.array([0.9, 0.0, 0.2])  # 18 spreads


@pytest.fixture
def bundles(made: Trained) -> tuple[Bundle, Bundle]:
    """Without and with a reference."""
    first, second = (Bundle.load(made.folder / "releases" / one) for one in made.releases)
    return first, second


def feature(values: np.ndarray) -> Feature:
    return Feature(open_time_ms=60_000, schema=SCHEMA, values=values.tobytes(), close=100.0)


def verdict(bundle: Bundle, values: np.ndarray, limit: float | None) -> Verdict:
    asked = [Asked(symbol=SYMBOL, feature=feature(values))]
    (found,) = judge(bundle, asked, nan_share=0.2, novelty_limit=limit)
    return found


def test_without_a_limit_novelty_changes_nothing(bundles: tuple[Bundle, Bundle]) -> None:
    found = verdict(bundles[1], FAR, None)
    assert found.score is not None
    assert found.invalid == ""
    assert found.novelty is not None
    assert found.novelty > 2


def test_beyond_the_limit_there_is_no_score_and_the_reason_names_the_features(
    bundles: tuple[Bundle, Bundle],
) -> None:
    bundle = bundles[1]
    assert verdict(bundle, NEAR, 1.0).score is not None
    found = verdict(bundle, FAR, 1.0)
    assert found.score is None
    assert found.invalid.startswith(
        f"novelty {found.novelty:.2f} (spreads from the training median"
    )
    assert f"{FEATURES[0]} +10.0" in found.invalid
    assert found.invalid.endswith("is above the limit 1")
    assert found.outputs == bundle.run(FAR[None]).named()  # they are told all the same
    prediction, signal = events(
        bundle, found, feature(FAR), symbol=SYMBOL, interval="1m", open_time_ms=60_000
    )
    assert (signal.score, signal.side, signal.invalid) == (None, "", found.invalid)
    assert signal.outputs == prediction.outputs == found.outputs


def test_the_limit_is_a_multiple_of_the_farthest_hundredth(
    bundles: tuple[Bundle, Bundle],
) -> None:
    novelty = verdict(bundles[1], FAR, None).novelty
    assert novelty is not None
    assert verdict(bundles[1], FAR, novelty).score is not None
    assert verdict(bundles[1], FAR, np.nextafter(novelty, 0)).score is None


def test_a_release_that_does_not_know_is_not_guessed_for(
    bundles: tuple[Bundle, Bundle],
) -> None:
    assert verdict(bundles[0], NEAR, None).novelty is None
    found = verdict(bundles[0], NEAR, 1.0)
    assert found.score is None
    assert "does not know what it was trained on" in found.invalid
    assert "train again" in found.invalid


def test_many_at_once_have_the_verdicts_of_each(bundles: tuple[Bundle, Bundle]) -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=3) * [0.1, 0.02, 0.5] for _ in range(40)]
    vectors[3][:] = np.nan
    asked = [Asked(symbol=SYMBOL, feature=feature(one)) for one in vectors]
    asked.append(Asked(symbol="OTHER", feature=feature(NEAR)))
    asked.append(Asked(symbol=SYMBOL, feature=None, problem="junk"))
    together = judge(bundles[1], asked, nan_share=0.2, novelty_limit=1.0)
    alone = [judge(bundles[1], [one], nan_share=0.2, novelty_limit=1.0)[0] for one in asked]
    assert together == alone
    assert {one.score is None for one in together[:40]} == {True, False}
    assert "trained on" in together[40].invalid
    assert together[41].invalid == "unreadable features: junk"


def test_the_predictor_tells_the_newest_novelty_of_each_symbol(
    bundles: tuple[Bundle, Bundle],
) -> None:
    class Current:
        bundle = bundles[1]

    one = Judge(Current(), nan_share=0.2, novelty_limit=None)
    nothing = Meta(received_us=0, published_us=0)
    entries = [
        Entry(
            source=Source(FEATURE, SYMBOL, "1m"),
            id=f"{at}-0",
            event=feature(values),
            meta=nothing,
        )
        for at, values in enumerate((NEAR, FAR))
    ]
    one.look(entries)
    assert one.novelty == {SYMBOL: verdict(bundles[1], FAR, None).novelty}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (b"{}", "sha256 differs"),
        (None, "reference.json is missing"),
    ],
)
def test_a_release_whose_reference_is_another_is_refused(
    made: Trained, tmp_path: Path, change: bytes | None, text: str
) -> None:
    import shutil

    folder = tmp_path / made.releases[1]
    shutil.copytree(made.folder / "releases" / made.releases[1], folder)
    (folder / REFERENCE).unlink()
    if change is not None:
        (folder / REFERENCE).write_bytes(change)
    with pytest.raises(BadInput, match=text):
        Bundle.load(folder)
