"""`python -m deploy.openmp FOLDER`: an OpenMP runtime for LightGBM where the system has none.

LightGBM's wheel expects the system's `libgomp.so.1`, which slim Linux images leave out.
scikit-learn's wheel brings the same library under another name: FOLDER gets a link to it, and the
Makefile runs everything with FOLDER on the loader's path.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

_NAME = "libgomp.so.1"


def provide(folder: Path) -> Path | None:
    """The link that was made; None where none is needed or possible."""
    if sys.platform != "linux" or _loads(_NAME):
        return None
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parents[1] / "scikit_learn.libs"
    for library in sorted(bundled.glob("libgomp*.so*")):
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / _NAME
        link.unlink(missing_ok=True)
        link.symlink_to(library.resolve())
        return link
    return None


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    link = provide(Path(arguments[0]))
    if link is not None:
        sys.stderr.write(f"no OpenMP runtime in this system: {link} stands in for it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
