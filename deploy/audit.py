"""`python -m deploy.audit TOOLS`: known holes in what is installed, and the cluster's manifests.

TOOLS is the `bin` of an environment made from requirements-audit.lock (`make audit` makes it). The
vulnerability service is first asked about one package: where it cannot be reached the audit says so
loudly and is not counted as passed. Exit 0: nothing found, or not reachable; 1: something found.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_LOCKS = ("requirements-live.lock", "requirements-demo.lock")
_MANIFESTS = Path("deploy/kubernetes")
_TIMEOUT_S = 300


def pins(lock: str) -> list[str]:
    """`name==version` of every package in a lock file; environment markers are left out."""
    return re.findall(r"^([A-Za-z0-9._-]+==[^\s;\\]+)", lock, re.MULTILINE)


def holes(tools: Path, packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """(known vulnerabilities, packages that nobody could tell of)."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages) + "\n")
        file.flush()
        done = subprocess.run(  # noqa: S603  # our own tool
            [tools / "pip-audit", "-r", file.name, "--no-deps", "--disable-pip", "-f", "json",
             "--progress-spinner", "off", "--timeout", "10"],
            capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip
    try:
        report = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], list(packages)
    found = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in report
        for hole in one.get("vulns", ())
    ]
    return found, [one["name"] for one in report if "skip_reason" in one]


def main(argv: Sequence[str] | None = None) -> int:
    tools = Path((sys.argv[1:] if argv is None else argv)[0])
    files = sorted(str(path) for path in _MANIFESTS.glob("*.yaml"))
    files.remove(str(_MANIFESTS / "kustomization.yaml"))
    code = subprocess.run(  # noqa: S603  # our own tool
        [tools / "kubernetes-validate", "--strict", "--quiet", *files], check=False
    ).returncode
    print(f"{len(files)} Kubernetes manifests: {'valid' if code == 0 else 'NOT VALID'}")
    packages = sorted({pin for lock in _LOCKS for pin in pins(Path(lock).read_text())})
    _, unknown = holes(tools, packages[:1])
    if unknown:
        sys.stderr.write(
            f"WARNING: no vulnerability service can be reached here: {len(packages)} packages "
            "were NOT audited\n"
        )
        return 1 if code else 0
    found, unknown = holes(tools, packages)
    for line in found:
        sys.stderr.write(f"{line}\n")
    for name in unknown:
        sys.stderr.write(f"WARNING: nothing is known of {name}\n")
    print(f"{len(packages)} packages: {len(found)} known vulnerabilities")
    return 1 if code or found else 0


if __name__ == "__main__":
    sys.exit(main())
