"""The README's Python block does what it says."""

import re
from pathlib import Path

import numpy as np

from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_a_feature_file_can_be_used_as_it_is(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "my_features.py"
    path.write_text(block)
    rows = np.full((40, len(KLINE_COLUMNS)), 100.0)
    rows[-1, KLINE_COLUMNS.index("close")] = 110.0
    found = FeatureSet.of(["momentum_30"], path).batch(1, rows)
    assert np.isnan(found[:30]).all()
    assert found[-1, 0] == 100 * (110.0 / 100.0 - 1)
