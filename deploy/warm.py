"""`python -m deploy.warm [-c config.json]`: compiles the feature kernels into Numba's cache.

Whoever computes a feature first on a machine compiles for some ten seconds; later processes load
the result from disk in a tenth of one. A fresh demo starts two such processes at once: compiled
beforehand it is done once. The same for an image or an installation, so that no service's first
start waits for it.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shared import config
from shared.config import Settings
from shared.errors import Failure

_KERNEL = Path(__file__).parents[1] / "shared" / "features" / "kernel.py"


def is_warm() -> bool:
    """Whether this machine seems to have compiled the kernel as it is now. Imports nothing."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    there = Path(folder).rglob("kernel.*.nbi") if folder else _beside()
    changed_s = _KERNEL.stat().st_mtime
    return any(path.stat().st_mtime >= changed_s for path in there)


def _beside() -> list[Path]:
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return list((_KERNEL.parent / "__pycache__").glob(f"kernel.*{version}.nbi"))


def warm(settings: Settings) -> float:
    """Compiles what the configured features need; returns how many seconds that took.

    Raises:
        Usage: an unknown feature, or a fault in the user's feature file.
    """
    # Here, so that `is_warm` costs nothing.
    from shared.features.configured import configured  # noqa: PLC0415  # as said

    started = time.monotonic()
    configured(settings).window()
    return time.monotonic() - started


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.warm", description=__doc__)
    parser.add_argument("-c", "--config", help="config.json (default: built-in settings)")
    try:
        seconds = warm(config.load(parser.parse_args(argv).config))
    except Failure as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stderr.write(f"the feature kernels are compiled ({seconds:.1f} s)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
