"""axe-core, the accessibility audit: fetched from npm by its name when a browser test needs it."""

import functools
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Tab

_PACKAGE = "axe-core@4.14.1"


@functools.cache
def _script() -> str:
    """Skips the test, and says so, where npm or the registry is not there."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no accessibility audit: npm is not installed (apt-get install npm)")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [npm, "pack", _PACKAGE, "--silent"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            pytest.skip(
                f"no accessibility audit: npm pack {_PACKAGE} failed: {done.stderr.strip()}"
            )
        with tarfile.open(Path(folder) / done.stdout.split()[-1]) as archive:
            file = archive.extractfile("package/axe.min.js")
            assert file is not None
            return file.read().decode()


def audit(tab: Tab) -> list[str]:
    """What axe finds on the page as it is now: `impact rule: elements`, all impacts."""
    tab.call("Runtime.evaluate", expression=_script())
    expression = "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r))"
    found = tab.call(
        "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
    )
    assert "exceptionDetails" not in found, found
    violations: list[dict[str, Any]] = json.loads(found["result"]["value"])["violations"]
    return [
        f"{one['impact']} {one['id']}: {'; '.join(str(node['target']) for node in one['nodes'])}"
        for one in violations
    ]
