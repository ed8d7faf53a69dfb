"""Functions that Numba compiled while an image was built, for services that run without Numba.

deploy/compiled.py makes the module `shared.features.compiled` from the functions named here; the
machine code is what Numba would make at run time, so the bits are the same. It takes arrays as they
lie in memory and trusts their types: what it is given is checked here first.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

MODULE = "shared.features.compiled"

# By "module.function": dimensions and kind of each argument (f float64, i int64, b bool), all of
# them C-contiguous arrays; what it returns ("" nothing, "f" a float64).
SIGNATURES = {
    "shared.features.kernel.advance": ("2f 2f 2i 2f 1f 2f", ""),
    "shared.features.ta_kernel.advance": ("2f 2f 2i 2f 1f 1f 2f", ""),
    "shared.contributions._shapley": ("1f 1f 1i 1i 1f 1f 1b 1f 1f 1f 1f", "f"),
}
_TYPES = {"f": np.dtype(np.float64), "i": np.dtype(np.int64), "b": np.dtype(np.bool_)}


def is_there() -> bool:
    """Whether this installation has the compiled module."""
    return importlib.util.find_spec(MODULE) is not None


def exported(name: str) -> str:
    """Its name in the compiled module."""
    return name.replace(".", "_")


def arguments(name: str) -> list[tuple[int, np.dtype[Any]]]:
    """(dimensions, type) of each argument."""
    return [(int(code[0]), _TYPES[code[1]]) for code in SIGNATURES[name][0].split()]


def ahead(function: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled form of a function.

    Raises:
        ModuleNotFoundError: only Numba can compile it, and there is none.
    """
    name = f"{function.__module__}.{function.__name__}"
    if name not in SIGNATURES:
        raise ModuleNotFoundError(f"{name} needs Numba, and there is none here", name="numba")
    compiled = getattr(importlib.import_module(MODULE), exported(name))
    expected = arguments(name)

    def checked(*arrays: Any) -> Any:
        for array, (dimensions, kind) in zip(arrays, expected, strict=True):
            fits = array.dtype == kind and array.ndim == dimensions and array.flags.c_contiguous
            if not fits:
                raise TypeError(f"{name}: {array.dtype} array {array.shape} where {kind} is needed")
        return compiled(*arrays)

    return checked
