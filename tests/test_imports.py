"""Imports point one way, and live services stay small.

`shared` imports no service, no service imports another, only `deploy` and `tests` import several;
a live service runs where the trainer's stack is not installed.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES = frozenset(
    ("collector", "featurizer", "predictor", "notifier", "trader", "auditor", "trainer")
) | {"simulator"}
OURS = SERVICES | {"shared", "deploy", "tests", "dashboard", "benchmarks"}
LIVE = ("collector", "featurizer", "predictor", "notifier", "trader", "auditor", "dashboard")
TRAINING_STACK = (
    "pandas",
    "lightgbm",
    "sklearn",
    "scipy",
    "onnx",
    "joblib",
    "torch",
    "matplotlib",
    "optuna",
    "distributed",
)


def allowed(package: str) -> frozenset[str]:
    if package == "shared":
        return frozenset({"shared"})
    if package in SERVICES or package == "dashboard":
        return frozenset({package, "shared"})
    if package == "deploy":
        return OURS - {"tests", "benchmarks"}
    return OURS


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, first part of the module's name) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module, f"{path}:{node.lineno}: relative import"
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", sorted(OURS - {"tests"}))
def test_a_package_imports_only_what_it_may(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in imports(path)
        if name in OURS and name not in allowed(package)
    ]
    assert not wrong


# Making the stack impossible to import is what an install of the live services alone looks like
# (numba asks for scipy's version where there is one, so that looking at sys.modules says nothing).
_WITHOUT = """
import importlib, pkgutil, sys
for name in sys.argv[2:]:
    sys.modules[name] = None
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.mark.parametrize("service", [*LIVE, "shared"])
def test_a_live_service_needs_nothing_of_the_training_stack(service: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, service, *TRAINING_STACK],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
