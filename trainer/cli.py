"""The trainer's command line: `python -m trainer COMMAND [-c config.json] [--json] ...`.

A command is a module with

* `add_arguments(parser)`: its own options,
* `run(settings, args, progress) -> dict`: does it; the dict is the JSON line that --json prints,
* `summary(result) -> str` (if it likes): the same for a person, in one line.

It raises `shared.errors.Failure` (exit code 1) or `Usage` (2) with a text of cause and remedy. A
module is imported only when its command is given: no command waits for another's libraries.
"""

import argparse
import importlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shared import config
from shared.errors import Failure, Rejected, Unavailable, Usage
from trainer.progress import Progress

# name: (module, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "download": ("trainer.download", "fetch history from Binance's bulk archive and REST"),
    "merge": ("trainer.merge", "put all sources on one regular raster"),
    "features": ("trainer.features", "compute features, from the config or from bare files"),
    "labels": ("trainer.labels", "compute labels"),
    "train": ("trainer.train", "train the models and write a release"),
    "predict": ("trainer.predict", "score candles with a release"),
    "report": ("trainer.report", "write a release's HTML report"),
    "rolling": ("trainer.rolling", "walk forward: train, test on what comes next, step by step"),
    "leaks": ("trainer.leaks", "look for look-ahead in features, labels and the way of training"),
    "signals": ("trainer.signals", "search thresholds over out-of-sample scores"),
    "backtest": ("trainer.backtest", "run the trading rules over out-of-sample scores"),
    "tune": ("trainer.tune", "search model and label parameters, out of sample"),
    "releases": ("trainer.releases", "list the releases, and which one is live"),
    "promote": ("trainer.promote", "make a release live"),
    "rollback": ("trainer.rollback", "make the release before live again"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error does."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (`{self.prog} --help` shows the options)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    name = f"trainer {command}".strip()
    try:
        module = importlib.import_module(COMMANDS[command][0]) if command else None
        args = parser_of(command, module).parse_args(arguments)
        if module is None:
            raise Usage(f"give a command: {', '.join(COMMANDS)}")
        settings = config.load(args.config)
        result = module.run(settings, args, Progress())
        print(_json(result) if args.json else _sentence(command, module, result), flush=True)
    except (Failure, Unavailable, Rejected) as error:
        return _fail(name, str(error), error.exit_code if isinstance(error, Failure) else 1)
    except KeyboardInterrupt:
        return _fail(name, "stopped; run it again to go on", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the interpreter flushes it at exit
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(name, f"{place}{error.strerror or error}", 1)
    except MemoryError:
        return _fail(name, "out of memory: use fewer rows, features or symbols at once", 1)
    except Exception as error:  # noqa: BLE001 - a bug: one line all the same, the rest on request
        if os.environ.get("PYTHONDEVMODE") or sys.flags.dev_mode:
            traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        text = f"this should not happen: {type(error).__name__}: {error} ({place})"
        return _fail(name, f"{text}; `python -X dev -m trainer ...` shows more", 1)
    return 0


def _fail(name: str, text: str, exit_code: int) -> int:
    print(f"{name}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return exit_code


def parser_of(command: str, module: Any) -> argparse.ArgumentParser:
    """All commands; the options of `command`, whose module is given."""
    parser = _Parser(prog="python -m trainer", description="From history to a release of models.")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=_Parser)
    for name, (_, help_text) in COMMANDS.items():
        one = commands.add_parser(name, help=help_text, description=help_text)
        one.add_argument("-c", "--config", metavar="FILE", help="config.json; without: defaults")
        one.add_argument(
            "--json", action="store_true", help="the last line on stdout is one JSON object"
        )
        if name == command:
            module.add_arguments(one)
    return parser


def _json(result: Mapping[str, Any]) -> str:
    return json.dumps(_plain(result), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """As JSON can hold it: paths as text, numpy's numbers as numbers, NaN and inf as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _sentence(command: str, module: Any, result: Mapping[str, Any]) -> str:
    if hasattr(module, "summary"):
        return str(module.summary(result))
    parts = [
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
        for key, value in result.items()
        if isinstance(value, str | int | float | Path)
    ]
    return f"{command}: {', '.join(parts)}"
