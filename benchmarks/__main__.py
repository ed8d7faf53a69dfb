"""`make bench`: every benchmark, one after the other, each in a process of its own.

    python -m benchmarks [NAME ...] [--list]

Each prints seconds and the ratio to a named peer of the same run. Read ratios, not seconds; a
machine that does something else meanwhile shows it in the medians.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(names()))
    parser.add_argument("--list", action="store_true", help="name them and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(names()))
        return 0
    unknown = set(args.names) - set(names())
    if unknown:
        parser.error(f"no benchmark {min(unknown)!r}; there are: {' '.join(names())}")
    failed = []
    for name in args.names or names():
        print(f"\n== {name}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent, check=False
        )
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"error: failed: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
