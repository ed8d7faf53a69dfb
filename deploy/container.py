"""What a container runs: `SERVICE [arguments]`, or any other command as it is.

`docker run itb collector` is `python -m collector` in this image, `itb streams` the command of
that name. A container's root file system is read-only, so the kernels that were compiled while the
image was built are first laid where Numba looks for them and may add to them.
"""

import importlib
import importlib.util
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAMS = {
    name: name
    for name in (
        "collector", "featurizer", "predictor", "notifier", "trader", "dashboard", "auditor",
        "simulator", "trainer",
    )
} | {
    "itb": "deploy.cli", "bus": "deploy.bus", "keys": "deploy.keys",
    "first-release": "deploy.first_release",
}  # fmt: skip
_PREPARE = "prepare-image"
_READY = "ready"
# Of the trainer's target: imported where the command needs them.
_TRAINING = (
    "distributed", "joblib", "lightgbm", "matplotlib", "onnx", "optuna", "pandas", "scipy",
    "sklearn",
)  # fmt: skip
_EXCHANGE_PORT = 8290
_TIMEOUT_S = 4.0
_MODE, _ALLOWED_MODES = "ITB_TRADER__MODE", "ALLOWED_TRADER_MODES"
_FIRST_PROCESS = Path("/proc/1/cmdline")
_KERNELS = Path(__file__).parents[1] / "kernels"


def command_line(argv: Sequence[str]) -> list[str]:
    """What is executed in this process's place."""
    if argv and argv[0] in PROGRAMS:
        return [sys.executable, "-m", PROGRAMS[argv[0]], *argv[1:]]
    return list(argv)


def mode_problem(program: str, variables: Mapping[str, str]) -> str:
    """Why this container's trader must not start in the mode that all services were told, "" =
    it may. Where the container allows no modes by name, the config alone decides."""
    allowed = variables.get(_ALLOWED_MODES, "").split()
    mode = variables.get(_MODE, "")
    if program != "trader" or not allowed or mode in allowed:
        return ""
    return (
        f"{_MODE} is {mode or 'not set'}, but this container trades {' or '.join(allowed)} only: "
        f"in `.env`, COMPOSE_PROFILES and {_MODE} must name the same (both live: real money), then "
        "`docker compose up -d` again"
    )


def lay_kernels(kernels: Path = _KERNELS) -> None:
    """Copies the compiled kernels, unless they are there already or have no place."""
    target = os.environ.get("NUMBA_CACHE_DIR")
    if target and kernels.is_dir() and not Path(target).exists():
        shutil.copytree(kernels, target)


def running(command: bytes) -> str:
    """The program of a process's command line (NUL-separated); "" where it is none of ours."""
    arguments = command.decode(errors="replace").split("\0")
    if any(Path(argument).name == "valkey-server" for argument in arguments):
        return "bus"
    names = {module: name for name, module in PROGRAMS.items()} | {name: name for name in PROGRAMS}
    return next((names[argument] for argument in arguments if argument in names), "")


def is_ready(program: str) -> tuple[bool, str]:
    """What a container's health check asks: is the program that runs here ready to do its work?"""
    if program == "bus":
        return _server_answers()
    if program == "simulator":
        return _exchange_answers()
    if program in ("", "trainer", "itb", "keys", "first-release"):
        return True, "nothing here is ever waited for"
    from shared.ready import check  # noqa: PLC0415  # only where it is asked

    return check(program, os.environ.get("ITB_CONFIG") or None)


def _server_answers() -> tuple[bool, str]:
    password = Path("/run/keys/admin_password").read_text(encoding="ascii").strip()
    try:
        with socket.create_connection(("127.0.0.1", 6379), timeout=_TIMEOUT_S) as link:
            link.sendall(f"AUTH admin {password}\r\nPING\r\nQUIT\r\n".encode())
            answer = b"".join(iter(lambda: link.recv(4096), b"")).decode(errors="replace")
    except OSError as error:
        return False, f"the server does not answer: {error}"
    lines = answer.split("\r\n")
    return "+PONG" in lines, next((line for line in lines if line.startswith("-")), "PONG")


def _exchange_answers() -> tuple[bool, str]:
    try:
        url = f"http://127.0.0.1:{_EXCHANGE_PORT}/api/v3/ping"
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S):
            return True, "the exchange answers"
    except OSError as error:
        return False, f"the exchange does not answer: {error}"


def prepare() -> int:
    """Compiles, while the image is built, what every start would compile again: byte code of all
    that the services import, and the kernels of both kinds of features."""
    modules = [f"{name}{part}" for name in PROGRAMS.values() for part in (".service", ".__main__")]
    modules += [name for name in PROGRAMS.values() if "." in name]
    modules += [name for name in _TRAINING if importlib.util.find_spec(name) is not None]
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module + ".").startswith(error.name + "."):
                sys.stderr.write(f"{module} is left out: it needs {error.name}\n")
    if importlib.util.find_spec("numba") is None:
        return 0  # the kernels are compiled ahead of time
    from deploy.warm import warm  # noqa: PLC0415  # imports Numba
    from shared.config import load  # noqa: PLC0415  # as above

    for features in (None, ["close_SMA_20"]):
        sys.stderr.write(f"kernels: {warm(load(features_kline=features)):.1f} s\n")
    return 0


def main() -> int:
    line = command_line(sys.argv[1:])
    if line == [_PREPARE]:
        return prepare()
    if line == [_READY]:
        ready, text = is_ready(running(_FIRST_PROCESS.read_bytes()))
        sys.stdout.write(f"{text}\n")
        return 0 if ready else 1
    if not line:
        names = ", ".join(sorted(PROGRAMS))
        sys.stderr.write(f"error: say what this container is to run: {names}\n")
        return 2
    if problem := mode_problem(sys.argv[1], os.environ):
        sys.stderr.write(f"error: {problem}\n")
        return 2
    lay_kernels()
    try:
        os.execvp(line[0], line)  # noqa: S606  # the container's own command
    except OSError as error:
        sys.stderr.write(f"error: {line[0]}: {error.strerror}; programs: {', '.join(PROGRAMS)}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
