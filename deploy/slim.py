"""`python3 slim.py ENVIRONMENT [--live]`: takes out of an environment what no service ever reads.

Run while the image is built, on a copy that nobody uses yet; needs nothing but the standard
library, and `strip` (binutils) where it is there. What goes: tests, headers, static libraries,
other languages' bindings, libraries that only optional parts of a package load, symbol tables.
What is left was tried by running every service from the image (tests/docker).
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Relative to site-packages. Each is loaded by an optional part that no code of ours imports.
_UNUSED = (
    "pip", "pip-*.dist-info", "setuptools", "setuptools-*.dist-info", "_distutils_hack",
    "distutils-precedence.pth", "pkg_resources",
    # Arrow: remote file systems, RPC, encryption, ORC, CUDA; the wheel holds some libraries thrice.
    "pyarrow/libarrow_flight.so*", "pyarrow/libarrow_python_flight.so*", "pyarrow/_flight*.so",
    "pyarrow/libarrow_s3.so*", "pyarrow/_s3fs*.so", "pyarrow/_gcsfs*.so", "pyarrow/_azurefs*.so",
    "pyarrow/libarrow_python_parquet_encryption.so*", "pyarrow/_parquet_encryption*.so",
    "pyarrow/_orc*.so", "pyarrow/include", "pyarrow/src",
    # onnxruntime: its C library (Python's module has all of it inside), and tools for exporters.
    "onnxruntime/capi/libonnxruntime.so*", "onnxruntime/transformers", "onnxruntime/quantization",
    "onnxruntime/tools", "onnxruntime/datasets", "onnxruntime/backend",
    # Numba for graphics cards.
    "numba/scripts", "numba/runtests.py",
    "numpy/_core/include", "numpy/random/lib", "numpy/random/_examples",
    "pygments/lexers/[!_]*.py",
)  # fmt: skip
# --live: the kernels are compiled ahead of time (deploy/compiled.py); pictures are PNG only.
_OFFLINE = (
    "numba", "numba-*.dist-info", "llvmlite", "llvmlite-*.dist-info",
    # Of fontTools matplotlib reads a list of glyph names only.
    *(f"fontTools/{name}" for name in (
        "cffLib", "colorLib", "cu2qu", "designspaceLib", "diff", "encodings", "feaLib", "merge",
        "mtiLib", "otlLib", "pens", "qu2cu", "subset", "svgLib", "t1Lib", "ttLib", "ufoLib",
        "unicodedata", "varLib", "voltLib", "misc/*.so",
    )),
    "matplotlib/mpl-data/sample_data",
    "matplotlib/mpl-data/fonts/afm", "matplotlib/mpl-data/fonts/pdfcorefonts",
    "PIL/_avif*.so", "PIL/_webp*.so", "PIL/_imagingft*.so", "PIL/_imagingcms*.so",
    "pillow.libs/libavif*", "pillow.libs/libwebp*", "pillow.libs/libsharpyuv*",
    "pillow.libs/libfreetype*", "pillow.libs/libharfbuzz*", "pillow.libs/libbrotli*",
    "pillow.libs/libpng*", "pillow.libs/liblcms*",
)  # fmt: skip
_SUFFIXES = frozenset((".a", ".c", ".cpp", ".h", ".hpp", ".pxd", ".pyx", ".pxi", ".pyi"))
# Symbol tables of these: half of their size. Not of libraries that auditwheel has patched
# (`*.libs`): strip breaks some of those.
_STRIPPED = (
    "llvmlite", "pyarrow", "uvloop", "aiohttp", "numba", "kiwisolver", "contourpy", "matplotlib",
    "cryptography",
)  # fmt: skip


def main(environment: Path, *, live: bool) -> int:
    packages = next((environment / "lib").glob("python3*/site-packages"))
    before = _size(packages)
    for pattern in (*_UNUSED, *(_OFFLINE if live else ())):
        for path in packages.glob(pattern):
            _remove(path)
    for path in _others(packages):
        _remove(path)
    for link in sorted(packages.glob("pyarrow/*.so")):
        _keep_one(link)
    if shutil.which("strip"):
        for name in _STRIPPED:
            for library in (packages / name).rglob("*.so*"):
                if not library.is_symlink():
                    subprocess.run(  # noqa: S603  # our own arguments
                        ["strip", "--strip-unneeded", str(library)],  # noqa: S607  # as found
                        check=True,
                    )
    for script in (environment / "bin").iterdir():
        if not script.name.lower().startswith(("python", "activate")):
            script.unlink()
    sys.stderr.write(f"{packages}: {before} MB, now {_size(packages)} MB\n")
    return 0


def _others(packages: Path) -> Iterator[Path]:
    """Folders of tests, and files that only a compiler or an editor reads."""
    for path in list(packages.rglob("*")):
        is_test = path.name == "tests" and (path.parent / "__init__.py").exists()
        if (is_test and path.is_dir()) or (path.suffix in _SUFFIXES and path.is_file()):
            yield path


def _keep_one(link: Path) -> None:
    """`libx.so`, `libx.so.26`, `libx.so.26.1` with one content: the loader asks for one of them."""
    twins = sorted(link.parent.glob(link.name + ".*"), key=lambda path: len(path.name))
    if not twins or not link.name.startswith("lib"):
        return
    for extra in (link, *twins[1:]):
        if extra.stat().st_size == twins[0].stat().st_size:
            extra.unlink()
            extra.symlink_to(twins[0].name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) // 1_000_000


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), live="--live" in sys.argv[2:]))
