"""The notebook runs from top to bottom on a release that was just trained."""

import json
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from shared.releases import promote
from tests.played import Trained

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "explore_release.ipynb"


def test_the_notebook_runs_on_a_fresh_release(
    made: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mpl.use("agg")
    models = tmp_path / "models"
    shutil.copytree(made.folder, models, symlinks=True)
    promote(models, made.releases[0])
    monkeypatch.setenv("MODEL_FOLDER", str(models))
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        assert cell["outputs"] == [], "results are not committed"
        exec("".join(cell["source"]), names)  # noqa: S102  # our own cells
    assert made.releases[0] in capsys.readouterr().out
    assert len(plt.get_fignums()) == 2
    plt.close("all")
