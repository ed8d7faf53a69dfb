"""`itb`: the whole system on one machine, and a look into it. One clear line on every error."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shared.config import load
from shared.errors import Failure, Rejected, Unavailable, Usage

if TYPE_CHECKING:
    from shared.control import Word

_STOPPED = 130
_HERE = Path()  # `--verify` without a file
Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error does."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (`{self.prog} --help` shows the options)")


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `command` in the result is the function that does it."""
    whole = _Parser(prog="itb", description=__doc__)
    commands = whole.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=run)
        return one

    demo = command(
        "demo", _demo, "Candles from files, or a synthetic market, through the whole pipeline."
    ).add_argument
    demo(
        "--data", nargs="+", type=Path, default=[], metavar="FILE",
        help="kline files (zip, csv, csv.gz, parquet) or folders of them; none: synthetic",
    )  # fmt: skip
    demo("--symbol", type=_symbol, metavar="S", help="default: by the file's name")
    demo("--interval", metavar="I", help="default: by the file's name, or its spacing")
    demo("--bars", type=_positive, default=300, metavar="N", help="candles streamed (300)")
    demo(
        "--speed", type=_speed, metavar="X|max",
        help="seconds of market per second; max: as fast as everyone follows; default: ten "
        "candles a second",
    )  # fmt: skip
    demo("--workdir", type=Path, metavar="DIR", help="default: work/demo; emptied at the start")
    demo(
        "--redis-port", type=_port, metavar="P", help="of the embedded Valkey; default: a free one"
    )
    demo("--port", type=_port, metavar="P", help="of the simulator; default: a free one")
    demo("--hold", action="store_true", help="keep all running after the last candle")
    demo("--json", action="store_true", help="nothing but the JSON line on stdout")

    up = _with_config(
        command("up", _up, "The live system on an embedded Valkey; trains first without models.")
    )
    up("--workdir", type=Path, default=Path("work/live"), metavar="DIR", help="work/live")
    up("--redis-port", type=_port, default=6379, metavar="P", help="of the embedded Valkey (6379)")
    up("--no-train", action="store_true", help="without a release: wait for one")

    init = command("init", _init, "Writes a config.json with every key, its default and meaning.")
    init.add_argument(
        "path", nargs="?", type=Path, default=Path("config.json"), metavar="FILE",
        help="where to (config.json)",
    )  # fmt: skip
    init.add_argument("--force", action="store_true", help="replace a file that is there")

    streams = _with_config(
        command(
            "streams", _streams, "Every stream on the bus: length, newest entry, who is behind."
        )
    )
    streams("--redis-url", metavar="U", help="instead of the config's")
    streams("--schema", action="store_true", help="every stream's key, ids and fields, as JSON")
    streams("--json", action="store_true", help="one JSON list on stdout")

    tail = _with_config(command("tail", _tail, "Prints a stream's entries as they come, decoded."))
    tail("stream", metavar="STREAM", help="a key such as 'signal:{BTCUSDT}:1m', or just signal")
    tail("--redis-url", metavar="U", help="instead of the config's")
    tail("-n", "--count", type=_positive, default=10, metavar="N", help="first the last N (10)")
    tail("--no-follow", action="store_true", help="end after those")
    tail("--json", action="store_true", help="one JSON object a line")

    ready = _with_config(
        command("ready", _ready, "Is a service ready? One line; exit code 0 if so, else 1.")
    )
    ready(
        "service", metavar="SERVICE",
        help="collector, featurizer, predictor, notifier, trader, auditor, dashboard",
    )  # fmt: skip

    explain = _with_config(
        command(
            "explain",
            _explain,
            "Why a signal says what it says; computes it again from the candles on the bus and "
            "ends with 1 where a bit differs.",
        )
    )
    explain("signal_id", metavar="SIGNAL_ID", help="such as BTCUSDT-1m-1700000000000")
    explain("--redis-url", metavar="U", help="instead of the config's")
    explain("--png", type=Path, metavar="FILE", help="also as a picture")
    explain("--json", action="store_true", help="one JSON object on stdout")

    replay = _with_config(
        command(
            "replay",
            _replay,
            "A stretch of the bus, or of files, through the whole chain again, also with another "
            "release, config or threshold; ends with 1 where the recorded run has other bits.",
        )
    )
    replay("--redis-url", metavar="U", help="instead of the config's")
    replay("--symbol", type=_symbol, metavar="S", help="default: the config's first")
    replay("--interval", metavar="I", help="default: the config's, or the file's")
    replay(
        "--from", dest="first_ms", type=_time, metavar="TIME",
        help="first candle, UTC: 2025-01-31, 2025-01-31T12:00, or epoch milliseconds",
    )  # fmt: skip
    replay("--to", dest="last_ms", type=_time, metavar="TIME", help="last candle")
    replay(
        "--klines", nargs="+", type=Path, default=[], metavar="FILE",
        help="candles from these files instead of the bus; compared are the live release and the "
        "config with what is changed",
    )  # fmt: skip
    replay("--release", metavar="ID", help="score by this release")
    replay("--with", dest="other", type=Path, metavar="CONFIG", help="trade by this config")
    replay("--threshold", type=_threshold, metavar="X", help="BUY above X and SELL below -X")
    replay("--buy", type=_threshold, metavar="X", help="BUY above X")
    replay("--sell", type=_threshold, metavar="X", help="SELL below X")
    replay("--png", type=Path, metavar="FILE", help="both runs as a picture")
    replay("--html", type=Path, metavar="FILE", help="as a page")
    replay("--json", action="store_true", help="one JSON object on stdout")

    drift = _with_config(
        command(
            "drift",
            _drift,
            "How far the newest candles are from what the models were trained on, as the auditor "
            "last found.",
        )
    )
    drift("--redis-url", metavar="U", help="instead of the config's")
    drift("--json", action="store_true", help="one JSON list on stdout")

    outcomes = _with_config(
        command(
            "outcomes",
            _outcomes,
            "What became of the signals: every model and the score live beside what training "
            "measured, and what trading earned beside a backtest over the same signals.",
        )
    )
    outcomes("--redis-url", metavar="U", help="instead of the config's")
    outcomes("--symbol", type=_symbol, metavar="S", help="default: the config's first")
    outcomes("--json", action="store_true", help="one JSON object on stdout")

    record = _with_config(
        command(
            "record",
            _record,
            "The track record of every signal: printed, verified, exported; ends with 1 where its "
            "chain of hashes does not hold.",
        )
    )
    record("--redis-url", metavar="U", help="instead of the config's")
    record("--symbol", type=_symbol, metavar="S", help="of this symbol alone")
    record(
        "--verify", nargs="?", type=Path, const=_HERE, metavar="FILE",
        help="check the chain, and the signals that are still on the bus; with FILE: an exported "
        "record by itself",
    )  # fmt: skip
    record("--export", type=Path, metavar="FILE", help="write the whole record to a file")
    record("--json", action="store_true", help="one JSON list on stdout")

    for name, run, text in (
        (
            "halt",
            _halt,
            "No order is sent any more, no exit either; an entry that still waits is cancelled; "
            "stops and targets at the exchange stay.",
        ),
        ("resume", _resume, "Ends a halt, also one that a limit ordered."),
        ("flatten", _flatten, "Everything is sold at market, then nothing is bought."),
    ):
        switch = _with_config(command(name, run, text))
        switch("--redis-url", metavar="U", help="instead of the config's")
        if name == "halt":
            switch(
                "--reduce-only", action="store_true", help="no entries, but exits and protection"
            )
        if name == "resume":
            switch(
                "--new-account", action="store_true",
                help="the account is another one now, or was reset: what the journal holds is gone",
            )  # fmt: skip

    backup = _with_config(
        command("backup", _backup, "The bus as one file, taken while everything runs.")
    )
    backup("--redis-url", metavar="U", help="instead of the config's")
    backup("file", nargs="?", type=Path, metavar="FILE", help="where to (stdout)")
    restore = command(
        "restore", _restore, "Puts a backup of the bus in the place of what is there."
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="the backup; -: stdin")
    restore.add_argument(
        "--folder", type=Path, default=Path(os.environ.get("ITB_BUS_FOLDER", "work/live/valkey")),
        metavar="DIR", help="of the server (work/live/valkey; in its container: /bus)",
    )  # fmt: skip

    doctor = _with_config(
        command("doctor", _doctor, "Checks everything the system needs; says what to do.")
    )
    doctor("--redis-url", metavar="U", help="instead of the config's")
    doctor("--json", action="store_true", help="one JSON list on stdout")

    password = command(
        "dashboard-password", _dashboard_password,
        "Asks for a password and writes its hash, for dashboard.password_file.",
    )  # fmt: skip
    password.add_argument(
        "path", nargs="?", type=Path, default=Path("dashboard_password"), metavar="FILE",
        help="where to (dashboard_password)",
    )  # fmt: skip
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 bad usage or config."""
    try:
        args = parser().parse_args(argv)
        code: int = args.command(args)
        sys.stdout.flush()
    except (Failure, Unavailable, Rejected) as error:
        return _fail(str(error), error.exit_code if isinstance(error, Failure) else 1)
    except BaseExceptionGroup as group:
        first = next(_leaves(group))
        if isinstance(first, Failure):
            return _fail(str(first), first.exit_code)
        raise first from None
    except KeyboardInterrupt:
        return _fail("stopped", _STOPPED)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return code


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"itb: {' '.join(text.split())}\n")
    return code


def _run(main: Callable[[], Awaitable[int]], *, stopped: int = _STOPPED) -> int:
    """Runs until it ends, or until Ctrl-C or SIGTERM: then everything it started ends first."""

    async def until_stopped() -> int:
        task = asyncio.ensure_future(main())
        was_stopped = False

        def stop() -> None:
            nonlocal was_stopped
            was_stopped = True
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            return await task
        except asyncio.CancelledError:
            if was_stopped:
                return stopped
            raise

    return asyncio.run(until_stopped())


def _demo(args: argparse.Namespace) -> int:
    from deploy import demo  # noqa: PLC0415  # commands load only what they need
    from deploy.screen import Screen  # noqa: PLC0415

    options = demo.Options(
        data=tuple(args.data),
        symbol=args.symbol,
        interval=args.interval,
        bars=args.bars,
        speed=args.speed,
        workdir=args.workdir,
        redis_port=args.redis_port,
        port=args.port,
        hold=args.hold,
        json=args.json,
    )
    return _run(lambda: demo.run(options, Screen()), stopped=0 if args.hold else _STOPPED)


def _up(args: argparse.Namespace) -> int:
    from deploy import up  # noqa: PLC0415
    from deploy.screen import Screen  # noqa: PLC0415

    options = up.Options(
        config=args.config,
        workdir=args.workdir,
        redis_port=args.redis_port,
        train=not args.no_train,
    )
    return _run(lambda: up.run(options, Screen()), stopped=0)


def _init(args: argparse.Namespace) -> int:
    from deploy.reference import write_config  # noqa: PLC0415

    write_config(args.path, force=args.force)
    # Not to stdout, which may be that very file: /dev/stdout of a container.
    sys.stderr.write(f"wrote {args.path}; next: `itb doctor -c {args.path}`\n")
    return 0


def _streams(args: argparse.Namespace) -> int:
    from deploy import streams  # noqa: PLC0415
    from deploy.observer import Observer  # noqa: PLC0415
    from shared.streams import schema_text  # noqa: PLC0415

    if args.schema:
        sys.stdout.write(schema_text() + "\n")
        return 0
    url = args.redis_url or load(args.config).bus_url

    async def describe() -> int:
        async with Observer(url, patience_s=3.0) as observer:
            found = await observer.ask(streams.describe)
        text = json.dumps(found) if args.json else streams.describe_text(found)
        sys.stdout.write(text + "\n")
        return 0

    return _run(describe)


def _tail(args: argparse.Namespace) -> int:
    from deploy import streams  # noqa: PLC0415

    url = args.redis_url or load(args.config).bus_url
    return _run(
        lambda: streams.tail(
            url,
            args.stream,
            count=args.count,
            follow=not args.no_follow,
            as_json=args.json,
            out=sys.stdout,
        ),
        stopped=0,
    )


def _ready(args: argparse.Namespace) -> int:
    from shared.ready import check  # noqa: PLC0415

    is_ready, line = check(args.service, args.config)
    sys.stdout.write(f"{line}\n")
    return 0 if is_ready else 1


def _explain(args: argparse.Namespace) -> int:
    from deploy import explain  # noqa: PLC0415

    options = explain.Options(
        signal_id=args.signal_id,
        config=args.config,
        redis_url=args.redis_url,
        json=args.json,
        png=args.png,
    )
    return _run(lambda: explain.run(options, sys.stdout))


def _replay(args: argparse.Namespace) -> int:
    from deploy import replay  # noqa: PLC0415

    buy, sell = args.buy, args.sell
    if args.threshold is not None:
        if buy is not None or sell is not None:
            raise Usage("--threshold stands for both --buy and --sell: give it, or them")
        buy, sell = abs(args.threshold), -abs(args.threshold)
    options = replay.Options(
        config=args.config,
        redis_url=args.redis_url,
        symbol=args.symbol,
        interval=args.interval,
        klines=tuple(args.klines),
        first_ms=args.first_ms,
        last_ms=args.last_ms,
        release=args.release,
        other=args.other,
        buy=buy,
        sell=sell,
        json=args.json,
        png=args.png,
        html=args.html,
    )
    return _run(lambda: replay.run(options, sys.stdout))


def _drift(args: argparse.Namespace) -> int:
    from deploy import drift  # noqa: PLC0415

    options = drift.Options(config=args.config, redis_url=args.redis_url, json=args.json)
    return _run(lambda: drift.run(options, sys.stdout))


def _outcomes(args: argparse.Namespace) -> int:
    from deploy import outcomes  # noqa: PLC0415

    options = outcomes.Options(
        config=args.config, redis_url=args.redis_url, symbol=args.symbol, json=args.json
    )
    return _run(lambda: outcomes.run(options, sys.stdout))


def _record(args: argparse.Namespace) -> int:
    from deploy import record  # noqa: PLC0415

    options = record.Options(
        config=args.config,
        redis_url=args.redis_url,
        symbol=args.symbol,
        verify=args.verify is not None,
        file=None if args.verify is _HERE else args.verify,
        export=args.export,
        json=args.json,
    )
    return _run(lambda: record.run(options, sys.stdout))


def _halt(args: argparse.Namespace) -> int:
    from shared.control import Word  # noqa: PLC0415

    return _throw(args, Word.REDUCE_ONLY if args.reduce_only else Word.HALT)


def _resume(args: argparse.Namespace) -> int:
    from shared.control import Word  # noqa: PLC0415

    return _throw(args, Word.RESUME, new_account=args.new_account)


def _flatten(args: argparse.Namespace) -> int:
    from shared.control import Word  # noqa: PLC0415

    return _throw(args, Word.FLATTEN)


def _throw(args: argparse.Namespace, word: "Word", *, new_account: bool = False) -> int:
    from deploy.switch import throw  # noqa: PLC0415

    settings = load(args.config)
    url = args.redis_url or settings.bus_url

    async def switch() -> int:
        confirmed, text = await throw(word, settings, url, new_account=new_account)
        sys.stdout.write(text + "\n")
        return 0 if confirmed else 1

    return _run(switch)


def _backup(args: argparse.Namespace) -> int:
    from deploy.backup import back_up  # noqa: PLC0415

    url = args.redis_url or load(args.config).bus_url
    if args.file is None and sys.stdout.isatty():
        raise Usage("a backup is a file: `itb backup FILE`, or `itb backup > FILE`")

    async def save() -> int:
        if args.file is None:
            await back_up(url, sys.stdout.buffer)
            return 0
        part = args.file.with_name(args.file.name + ".part")
        try:
            with part.open("xb") as out:
                count = await back_up(url, out)
                out.flush()
                os.fsync(out.fileno())
            part.replace(args.file)
        except OSError as error:
            raise Failure(f"{args.file} cannot be written: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)
        sys.stdout.write(f"wrote {args.file}: {count} files, {args.file.stat().st_size:,} bytes\n")
        return 0

    return _run(save)


def _restore(args: argparse.Namespace) -> int:
    from deploy.backup import restore  # noqa: PLC0415

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    try:
        with contextlib.ExitStack() as stack:
            is_stdin = str(args.file) == "-"
            source = sys.stdin.buffer if is_stdin else stack.enter_context(args.file.open("rb"))
            count = restore(source, args.folder, say)
    except FileNotFoundError:
        raise Usage(f"{args.file} is not there") from None
    sys.stdout.write(f"restored {count} files into {args.folder}; start the system again\n")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from deploy.doctor import Mark, examine  # noqa: PLC0415

    async def check() -> int:
        found = []
        async for line in examine(args.config, args.redis_url):
            found.append(line)
            if not args.json:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        if args.json:
            sys.stdout.write(json.dumps([dataclasses.asdict(line) for line in found]) + "\n")
        return 1 if any(line.mark is Mark.FAIL for line in found) else 0

    return _run(check)


def _dashboard_password(args: argparse.Namespace) -> int:
    from getpass import getpass  # noqa: PLC0415

    from dashboard.credentials import PasswordHash, write_password  # noqa: PLC0415

    if sys.stdin.isatty():
        password = getpass("Password: ")
        if getpass("Again: ") != password:
            raise Usage("the two are not the same; nothing was written")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    write_password(args.path, PasswordHash.of(password))
    sys.stdout.write(f"wrote {args.path}; name it in dashboard.password_file of your config\n")
    return 0


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= (value := int(text)) <= 65_535:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")


def _speed(text: str) -> float | str:
    if text == "max":
        return text
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor `max`")


def _threshold(text: str) -> float:
    with contextlib.suppress(ValueError):
        if -1 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a score (-1 to 1)")


def _time(text: str) -> int:
    """Epoch milliseconds of a time; without a zone it is UTC."""
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as 2025-01-31, 2025-01-31T12:00 or 1738324800000"
        ) from None
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _symbol(text: str) -> str:
    if not text or text != text.upper() or set(text) & set("{}:/ \t\n"):
        raise argparse.ArgumentTypeError(f"{text!r} is no symbol (upper case, such as BTCUSDT)")
    return text


def _with_config(one: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    one.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="config.json; none: built-in settings"
    )
    return one.add_argument


if __name__ == "__main__":
    sys.exit(main())
