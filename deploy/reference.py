"""Every config key, from the code that reads them: the commented config.json and README's tables.

`python -m deploy.reference README.md` writes the tables; a test fails when they differ from it.
"""

import argparse
import json
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shared.config import PREFIX, SECRETS, Settings
from shared.errors import Failure, Usage
from shared.features.catalogue import catalogue
from shared.metrics import CATALOG
from shared.streams import schema_text

# A value that a user might set; README shows it, and a test loads every one of them.
_EXAMPLES: dict[str, Any] = {
    "symbols": ["BTCUSDT", "ETHUSDT"],
    "interval": "15m",
    "base_asset": "BTC",
    "quote_asset": "USDC",
    "data_folder": "/var/lib/itb/data",
    "model_folder": "/var/lib/itb/models",
    "labels": ["high_20", "low_20"],
    "algorithms": ["gb", "lc"],
    "features_kline": ["close_5", "close_60", "volume_60"],
    "features_futur": ["seed"],
    "features_other": "ETHUSDT",
    "features_depth": ["seed"],
    "features_file": "my_features.py",
    "instance": "collector-2",
    "shards": {"featurizer": 3},
    "shard": 0,
    "api_key": "your-key",
    "api_secret": "your-secret",
    "telegram_bot_token": "your-token",
    "telegram_chat_id": "@my_channel",
    "redis_url": "redis://collector@10.0.0.5:6379/0",
    "redis_password": "your-password",
    "binance_rest_url": "http://127.0.0.1:8290",
    "binance_ws_url": "ws://127.0.0.1:8290",
    "binance_ws_api_url": "ws://127.0.0.1:8290/ws-api/v3",
    "account_rest_url": "https://testnet.binance.vision",
    "futures_rest_url": "http://127.0.0.1:8290",
    "futures_ws_url": "ws://127.0.0.1:8290",
    "archive_url": "",
    "telegram_url": "http://127.0.0.1:8081",
    "market_speed": 60,
    "log_level": "debug",
    "metrics_port": 9100,
    "metrics_host": "0.0.0.0",  # noqa: S104  # an example for containers
    "signaler.notification_threshold": 2,
    "signaler.novelty_limit": 1.5,
    "signaler.analysis.features_horizon": 3000,
    "signaler.model.buy_threshold": 0.25,
    "signaler.model.sell_threshold": -0.25,
    "signaler.model.aggregate": "logit_mean",
    "collector.history_rows": 10000,
    "collector.futures": True,
    "collector.depth": True,
    "collector.depth_limit": 500,
    "collector.depth_bin": 0.0002,
    "collector.archive": False,
    "collector.weight_budget": 0.25,
    "collector.max_price_jump": 0.3,
    "collector.silence_factor": 3,
    "collector.rotate_hours": 12,
    "collector.streams_per_connection": 100,
    "collector.follow": True,
    "notifier.max_age_s": 60,
    "notifier.alerts": False,
    "notifier.messages_per_minute": 10,
    "notifier.queue": 200,
    "notifier.chats": [{"chat": "@my_channel", "language": "de", "time_zone": "Europe/Berlin"}],
    "notifier.users": [123456789],
    "notifier.daily": "08:00",
    "notifier.bands": {"positive": [{"edge": 0.2, "sign": "〉", "text": "strong"}]},
    "notifier.watch": ["collector", "featurizer", "predictor", "trader"],
    "notifier.dead_man_url": "https://hc-ping.com/your-check",
    "trader.mode": "observe",
    "trader.max_age_s": 60,
    "trader.releases": ["20261122T120000Z-1a2b3c4d"],
    "trader.journal_folder": "/var/lib/itb/journal",
    "trader.limits.max_notional": 500,
    "trader.limits.open_orders": 40,
    "trader.limits.open_positions": 3,
    "trader.limits.orders_per_minute": 10,
    "trader.limits.daily_loss": 0.03,
    "trader.limits.drawdown": 0.1,
    "trader.limits.consecutive_losses": 6,
    "trader.limits.refused_orders": 2,
    "trader.limits.clock_skew_ms": 250,
    "trader.rules.direction": "both",
    "trader.rules.buy_threshold": 0.3,
    "trader.rules.sell_threshold": -0.3,
    "trader.rules.exit_long": 0.0,
    "trader.rules.exit_short": 0.0,
    "trader.rules.limit_price_adjustment": 0.0005,
    "trader.rules.sizing": "volatility",
    "trader.rules.percentage_used_for_trade": 50,
    "trader.rules.fixed": 500,
    "trader.rules.target_volatility": 0.3,
    "trader.rules.volatility_candles": 720,
    "trader.rules.stop_loss": 0.02,
    "trader.rules.take_profit": 0.03,
    "trader.rules.trailing_stop": 0.015,
    "trader.rules.max_candles": 240,
    "trader.rules.cool_down": 30,
    "dashboard.host": "0.0.0.0",  # noqa: S104  # an example, not what is done
    "dashboard.port": 8080,
    "dashboard.hosts": ["bot.example.org"],
    "dashboard.https": True,
    "dashboard.password_file": "/run/secrets/dashboard_password",
    "dashboard.token_file": "/run/secrets/dashboard_token",
    "dashboard.session_hours": 1,
    "dashboard.control": True,
    "dashboard.candles": 5000,
    "dashboard.viewers": 10,
    "auditor.chunk": 64,
    "auditor.pause_s": 30,
    "trainer.train_days": 365,
    "trainer.stride": 5,
    "trainer.label_horizon": 60,
    "trainer.test_share": 0.1,
    "trainer.seed": 1,
    "trainer.threads": 1,
    "trainer.calm_labels": False,
    "trainer.merge.sources": {"eth": "ETHUSDT"},
    "trainer.signals.buy": [0.05, 0.5, 0.05],
    "trainer.signals.sell": [-0.05, -0.5, 0.05],
    "trainer.signals.directions": ["long"],
    "trainer.signals.objective": "return",
    "trainer.signals.neighbourhood": 1,
    "trainer.signals.periods": 4,
    "trainer.signals.min_trades": 30,
    "trainer.signals.blocks": 16,
    "trainer.backtest.capital": 1000,
    "trainer.backtest.fee": 0.00075,
    "trainer.backtest.fee_from": "quote",
    "trainer.backtest.slippage": 0.0005,
    "trainer.tune.trials": 100,
    "trainer.tune.folds": 4,
    "trainer.tune.holdout_share": 0.1,
    "trainer.tune.space": {"lc": {"train.C": [0.001, 10.0, "log"]}},
    "trainer.rolling.start": "2024-01-01",
    "trainer.rolling.step_days": 14,
    "trainer.rolling.step_rows": 20160,
    "trainer.rolling.folds": 6,
    "trainer.rolling.train_days": 180,
    "trainer.rolling.groups": 8,
    "trainer.rolling.test_groups": 3,
    "trainer.rolling.embargo_rows": 1440,
    "limits.message_bytes": 524288,
    "limits.model_bytes": 67108864,
    "limits.nan_share": 0.1,
}


@dataclass(frozen=True, slots=True)
class Key:
    """One config key. path: `signaler.model.buy_threshold`; default and example: as JSON holds it.

    example is None where there is none.
    """

    path: str
    meaning: str
    default: Any
    example: Any

    @property
    def variable(self) -> str:
        return PREFIX + self.path.upper().replace(".", "__")

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Key]:
    """Every key, sections included, in the order of the code."""
    for name, field in model.model_fields.items():
        path = prefix + name
        section = _section(field.annotation)
        if section is not None:
            yield from keys(section, path + ".")
            continue
        default = _plain(field.get_default(call_default_factory=True))
        yield Key(path, field.description or "", default, _EXAMPLES.get(path))


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _plain(value: Any) -> Any:
    """As JSON holds it; algorithms with default settings by their short form."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        shown = value.model_dump(exclude_defaults=True)
        return shown["name"] if set(shown.values()) == {shown["name"]} else shown
    return str(value) if isinstance(value, Path) else value


def config_text() -> str:
    """A config.json with every key at its default, each explained in a comment."""
    lines = [
        "// Settings of the trading bot. Comments and trailing commas are allowed.",
        "// Every key has the value it has without this file; delete what you do not change.",
        f"// Any key can be set by environment instead: {PREFIX}INTERVAL=15m,",
        f"// {PREFIX}SIGNALER__NOTIFICATION_THRESHOLD=2; secrets also by file:",
        f"// {PREFIX}API_SECRET_FILE=/run/secrets/api_secret",
        "{",
        *_body(Settings, "", "  "),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _body(model: type[BaseModel], prefix: str, indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            yield f'{indent}"{name}": {{'
            yield from _body(section, f"{prefix}{name}.", indent + "  ")
            yield f"{indent}}},"
            continue
        key = next(k for k in keys(model, prefix) if k.path == prefix + name)
        yield f"{indent}// {key.meaning}"
        yield f'{indent}"{name}": {json.dumps(key.default)},'


def config_table() -> str:
    """Markdown: every key with its meaning, default and an example."""
    rows = ["| key | meaning | default | example |", "| --- | --- | --- | --- |"]
    for key in keys():
        example = "" if key.example is None else _code({key.name: key.example})
        secret = " (secret)" if key.path in SECRETS else ""
        meaning = key.meaning.replace("|", "\\|") + secret
        default = "" if key.default is None else f"`{_short(key.default)}`"
        rows.append(f"| `{key.path}` | {meaning} | {default} | {example} |")
    return "\n".join(rows)


def _code(value: dict[str, Any]) -> str:
    return f"`{json.dumps(value)[1:-1]}`"


def _short(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def command_help() -> str:
    """Every `itb` command with its options, as `--help` shows them."""
    from deploy.cli import parser  # noqa: PLC0415  # cli imports this module

    whole = parser()
    commands = typing.cast(
        "argparse._SubParsersAction[argparse.ArgumentParser]",
        next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction)),
    )
    parts = []
    for name, command in commands.choices.items():
        options = []
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            if action.option_strings and action.nargs != 0:
                shown += f" {action.metavar or action.dest.upper()}".replace("|", "\\|")
            options.append(f"| `{shown}` | {action.help} |")
        table = ["", "| option | |", "| --- | --- |", *options] if options else []
        parts.append("\n".join([f"### `itb {name}`", "", str(command.description), *table]))
    return "\n\n".join(parts)


def metrics_table() -> str:
    """Markdown: every metric with its kind, labels and meaning."""
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in CATALOG:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |")
    return "\n".join(rows)


def streams_table() -> str:
    """Markdown: every stream with its key, its ids, and its event field by field."""
    parts = []
    for shape in json.loads(schema_text()):
        fields = ", ".join(f"`{name}` {kind}" for name, kind in shape["data"].items())
        parts.append(f"### `{shape['stream']}`\n\nid `{shape['id']}`; data: {fields}")
    return "\n\n".join(parts)


def features_table() -> str:
    """Markdown: every family of features."""
    rows = ["| form | looks back, rows | formula | such as |", "| --- | --- | --- | --- |"]
    for entry in catalogue():
        cells = (f"`{entry.form}`", entry.lookback, entry.formula, f"`{entry.example}`")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def labels_table() -> str:
    """Markdown: every form of label with examples at the default horizon."""
    from trainer.labels.forms import FORMS, HORIZON, spec  # noqa: PLC0415  # only where trained

    parts = [f"At a horizon of {HORIZON} rows (`trainer.label_horizon`)."]
    for form in FORMS:
        rows = ["| label | side | definition | t1 |", "| --- | --- | --- | --- |"]
        for name in form.examples:
            one = spec(name, HORIZON)
            cells = (f"`{name}`", one.side or "value", one.definition, one.t1)
            rows.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
        note = f"{form.note}\n\n" if form.note else ""
        parts.append(f"### {form.shown}\n\n{note}" + "\n".join(rows))
    return "\n\n".join(parts)


def json_schema() -> str:
    """JSON Schema of `config.json`, for editors."""
    schema = Settings.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "config.json"
    schema["properties"]["symbol"] = {"type": "string", "description": "short for one of symbols"}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


_TABLES = {
    "config": config_table,
    "commands": command_help,
    "metrics": metrics_table,
    "streams": streams_table,
    "features": features_table,
    "labels": labels_table,
}
_BLOCK = re.compile(r"(<!-- (\w+): written by `make docs` -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """`text` with each generated block as the code has it now."""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        if name not in _TABLES:
            raise Failure(f"no table is called {name}; there are {', '.join(_TABLES)}")
        return f"{match[1]}\n{_TABLES[name]()}\n\n{match[3]}"

    return _BLOCK.sub(fill, text)


def write_config(path: Path, *, force: bool) -> None:
    """Writes the commented config.

    Raises:
        Usage: the file is there already, or cannot be written.
    """
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(config_text())
    except FileExistsError:
        raise Usage(f"{path} is there already; --force replaces it") from None
    except OSError as error:
        raise Usage(f"{path}: cannot be written: {error.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites the tables of the given files; a file that ends in .schema.json is the schema."""
    for name in sys.argv[1:] if argv is None else argv:
        path = Path(name)
        is_schema = path.name.endswith(".schema.json")
        text = json_schema() if is_schema else with_tables(path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
