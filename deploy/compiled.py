"""`python -m deploy.compiled FOLDER`: compiled functions as an extension module, ahead of time.

A live service then needs neither Numba nor its LLVM: 175 MB and a compiler less in its image, and
half a second less at every start. Numba compiles the same functions as it does at run time, so the
bits are the same (tests/deploy/test_compiled.py). Needs a C++ compiler and Python's headers, once.

Numba calls this compiler (`numba.pycc`) pending deprecation for want of a successor; the version is
pinned, and the test says when it no longer does what it must.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import Failure
from shared.features.ahead import MODULE, SIGNATURES, arguments, exported

_NAME = MODULE.rpartition(".")[2]


def build(folder: Path) -> Path:
    """Writes the module into `folder`; returns its path.

    Raises:
        Failure: there is no Numba or no C++ compiler, or it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from numba import from_dtype, types  # noqa: PLC0415  # not in every image
        from numba.core.errors import NumbaPendingDeprecationWarning  # noqa: PLC0415  # as above

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaPendingDeprecationWarning)
            pycc: Any = importlib.import_module("numba.pycc")
        module = pycc.CC(_NAME, source_module=importlib.import_module(__name__))
        module.output_dir = str(folder)
        for name, (_, returned) in SIGNATURES.items():
            where, _, what = name.rpartition(".")
            given = [
                types.Array(from_dtype(kind), dimensions, "C", readonly=at == 0)
                for at, (dimensions, kind) in enumerate(arguments(name))
            ]
            result = types.float64 if returned else types.void
            function = getattr(importlib.import_module(where), what)
            module.export(exported(name), result(*given))(_calling(function, len(given)))
        module.compile()
    except Exception as error:  # the C compiler's errors have many classes
        raise Failure(f"cannot compile ahead of time: {' '.join(str(error).split())}") from error
    return next(folder.glob(f"{_NAME}.*"))


def _calling(function: Any, arguments: int) -> Any:
    """A plain function that calls the compiled one, whose options (error model) stay its own."""
    names = ", ".join(f"a{at}" for at in range(arguments))
    scope: dict[str, Any] = {"function": function}
    exec(f"def call({names}):\n    return function({names})", scope)  # noqa: S102  # written above
    return scope["call"]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    try:
        path = build(Path(arguments[0]))
    except Failure as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"{path}: {path.stat().st_size:,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
