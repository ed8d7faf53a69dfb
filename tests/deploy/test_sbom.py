"""`make sbom`: valid CycloneDX, with every package of the lock files and its hashes."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from deploy.audit import pins

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".stamps" / "tools"
CHECK = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(str(wrong) if wrong else 0)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bills_of_materials_are_valid_and_whole(tmp_path: Path) -> None:
    if not (TOOLS / ".ready").exists():
        pytest.skip("the audit's tools are not installed here: `make audit` installs them")
    done = subprocess.run(
        ["make", "-s", "sbom"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for kind, lock in (("live", "requirements-live.lock"), ("trainer", "requirements-demo.lock")):
        path = ROOT / f"sbom-{kind}.json"
        checked = subprocess.run(
            [TOOLS / "bin" / "python", "-c", CHECK, path],
            capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stderr
        bill, text = json.loads(path.read_text()), (ROOT / lock).read_text()
        assert bill["specVersion"] == "1.6"
        assert bill["metadata"]["component"]["name"] == "itb"
        found = {f"{one['name']}=={one['version']}" for one in bill["components"]}
        assert found == set(pins(text))
        hashes = {
            one["content"]
            for part in bill["components"]
            for place in part["externalReferences"]
            for one in place.get("hashes", ())
        }
        assert hashes == set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))
        broken = tmp_path / "broken.json"
        broken.write_text(json.dumps(bill | {"components": [{"name": "no type"}]}))
        refused = subprocess.run(
            [TOOLS / "bin" / "python", "-c", CHECK, broken],
            capture_output=True, check=False, timeout=100,
        )  # fmt: skip
        assert refused.returncode != 0
