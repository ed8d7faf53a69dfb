"""The config: one frozen tree, read once from `config.json`, the environment and secret files.

Precedence, highest first: environment (`ITB_SIGNALER__NOTIFICATION_THRESHOLD=2`), secret files
(`ITB_API_SECRET_FILE=/run/secrets/api_secret`), the config file, defaults. An unknown key is an
error that names the nearest known one.
"""

import difflib
import json
import os
import typing
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import json5
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import Usage
from shared.times import interval_ms

PREFIX = "ITB_"
# Read by tests and tools, or by the server of the bus (deploy/bus.py), in whose container people
# run `itb halt`; not by the config.
_OTHER_VARIABLES = frozenset(
    {
        "ITB_TEST_DATA", "ITB_CONFIG", "ITB_KILL_SEED", "ITB_KILLS",
        "ITB_BUS_FOLDER", "ITB_BUS_MEMORY", "ITB_BUS_ACL",
    }
)  # fmt: skip
_MIB = 1024 * 1024


def _split_list(value: Any) -> Any:
    """Lists may come from the environment as JSON or separated by commas."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


Names = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Steps = Annotated[tuple[float, float, float], BeforeValidator(_split_list)]
Directions = Annotated[
    tuple[Literal["long", "short", "both"], ...], BeforeValidator(_split_list), Field(min_length=1)
]


def _mapping(value: Any) -> Any:
    """Mappings may come from the environment as JSON, with comments as in the file."""
    return json5.loads(value) if isinstance(value, str) else value


NamedPlaces = Annotated[dict[str, str], BeforeValidator(_mapping)]
Counts = Annotated[dict[str, int], BeforeValidator(_mapping)]
Space = Annotated[dict[str, dict[str, Any]], BeforeValidator(_mapping)]


LABEL_WORDS: Mapping[str, tuple[str, ...]] = {
    "highlow2": ("high2_20_04", "low2_20_04"),
    "topbot2": ("top2_20_05", "bot2_20_05"),
    "triple_barrier": ("tb_up", "tb_down"),
    "trend_scanning": ("trend_up", "trend_down"),
}
"""What a word without numbers stands for among labels: both sides, with the usual numbers."""


def label_names(given: Iterable[str]) -> tuple[str, ...]:
    """The labels that these names and words stand for, each once."""
    return tuple(dict.fromkeys(one for name in given for one in LABEL_WORDS.get(name, (name,))))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Algorithm(_Section):
    """One way to train every label. `name` is the last part of a model's name (`high_20_k_gb`).

    params, for all: `length` (trailing rows), `every_nth_row`, `is_regression` (true: for labels
    that are values only, false: for yes-or-no labels only), `calibrate` ("none", "platt",
    "isotonic": on a purged tail that the model is not fitted on; svc: "platt"), `tail_share` (0.2),
    `class_weight` ("none", "balanced": outputs are no probabilities then unless calibrated),
    `weights` ("none", "uniqueness": for labels that look unequally far ahead). gb: `preset`
    ("default", "seed"). nn: `layers`, `backend` ("auto": PyTorch where it sees a GPU, "sklearn",
    "torch"). gb and nn: `early_stopping` (on that same tail), `patience`. svc: `max_rows` (10,000).
    nn, lc and svc: `is_scale`.
    """

    name: str = Field(description="last part of the model's name", pattern=r"^[A-Za-z0-9]{1,16}$")
    algo: Literal["gb", "nn", "lc", "svc"] = Field(
        description="gradient boosting, neural net, linear, support vectors (on a sample)"
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="what surrounds the library: rows, weights, calibration, early stopping",
    )
    train: dict[str, Any] = Field(default_factory=dict, description="arguments to the library")


def _algorithms(value: Any) -> Any:
    """`["gb", "lc"]` is short for algorithms with their default settings."""
    entries = _split_list(value)
    if not isinstance(entries, list | tuple):
        return entries
    return tuple({"name": e, "algo": e} if isinstance(e, str) else e for e in entries)


class Analysis(_Section):
    features_horizon: int = Field(
        default=1600, ge=2, description="rows of history that live services keep at hand"
    )


class SignalModel(_Section):
    buy_threshold: float = Field(default=0.15, ge=-1, le=1, description="BUY above this score")
    sell_threshold: float = Field(default=-0.15, ge=-1, le=1, description="SELL below this score")
    aggregate: Literal["ratio", "logit_mean", "difference", "stack", "best"] = Field(
        default="ratio",
        description="how model outputs become the score; best: what told rises from falls best out "
        "of sample",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "SignalModel":
        if self.sell_threshold > self.buy_threshold:
            raise ValueError("sell_threshold must not be above buy_threshold")
        return self


class Signaler(_Section):
    notification_threshold: int = Field(
        default=4, ge=0, le=20, description="steps of 0.05 below which a score stays silent"
    )
    novelty_limit: float | None = Field(
        default=None,
        gt=0,
        description="no score for a candle that is farther from the training rows than so many "
        "times what 99 % of them are; null: whatever it is",
    )
    analysis: Analysis = Field(default_factory=Analysis)
    model: SignalModel = Field(default_factory=SignalModel)


class Collector(_Section):
    history_rows: int | None = Field(
        default=None,
        ge=1,
        description="candles to backfill at start; default: twice the features' look-back, at "
        "least signaler.analysis.features_horizon",
    )
    futures: bool = Field(default=False, description="also collect USD-M klines and funding")
    depth: bool = Field(default=False, description="also collect order-book snapshots")
    depth_limit: int = Field(default=100, ge=5, le=5000, description="book levels of a snapshot")
    depth_bin: float = Field(
        default=0.0001, gt=0, description="width of a depth bin as a share of the price"
    )
    archive: bool = Field(default=True, description="write what was seen to parquet")
    weight_budget: float = Field(
        default=0.5, gt=0, le=1, description="share of the exchange's request weight we may use"
    )
    max_price_jump: float = Field(
        default=0.5, gt=0, description="a close that moves by more than this share is refused"
    )
    silence_factor: float = Field(
        default=2.0, ge=1, description="silent streams reconnect after so many update times"
    )
    rotate_hours: float = Field(
        default=23.0, gt=0, le=24, description="age at which a stream connection is replaced"
    )
    streams_per_connection: int = Field(
        default=200, ge=1, le=1024, description="streams that share one connection"
    )
    follow: bool = Field(
        default=False, description="replay only: wait for the consumers of each candle"
    )


class Loudness(_Section):
    """How a chat is told each kind of message: with a sound, without one, or not at all."""

    score: Literal["loud", "silent", "off"] = Field(default="loud", description="scores and bands")
    trade: Literal["loud", "silent", "off"] = Field(default="loud", description="our orders")
    alert: Literal["loud", "silent", "off"] = Field(default="loud", description="what went wrong")
    daily: Literal["loud", "silent", "off"] = Field(
        default="silent", description="the daily picture and summary"
    )


class Chat(_Section):
    """One user, group or channel that gets messages, its own way."""

    chat: str = Field(
        description="numeric id, or @name of a channel", pattern=r"^(-?[0-9]{1,20}|@\w{4,32})$"
    )
    symbols: Names = Field(default=(), description="what it is told of; default: all symbols")
    language: Literal["en", "de", "ru", "zh"] = Field(default="en", description="of its texts")
    time_zone: str = Field(default="UTC", description="of its clock times: Europe/Berlin")
    notification_threshold: int | None = Field(
        default=None, ge=0, le=20, description="default: signaler.notification_threshold"
    )
    loudness: Loudness = Field(default_factory=Loudness)

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone (such as Europe/Berlin)") from None
        return value


class Band(_Section):
    """Scores from `edge` on (negative bands: below it) make a message of their own look."""

    edge: float = Field(ge=-1, le=1, description="where the band begins")
    frequency: int | None = Field(
        default=None, ge=1, le=1440, description="minutes after which it is told again"
    )
    sign: str = Field(default="", max_length=16, description="before the price: 〉〉")
    bold: bool = Field(default=False, description="printed bold")
    text: str = Field(default="", max_length=40, description="behind the score: BUY ZONE")


def _rows(value: Any) -> Any:
    """Objects may come from the environment as JSON."""
    return json5.loads(value) if isinstance(value, str) else value


class Bands(_Section):
    """Messages when the score enters a band, in place of those in steps of 0.05."""

    positive: Annotated[tuple[Band, ...], BeforeValidator(_rows)] = Field(
        default=(), description="edges above 0, in any order"
    )
    negative: Annotated[tuple[Band, ...], BeforeValidator(_rows)] = Field(
        default=(), description="edges below 0, in any order"
    )
    band_up: bool = Field(default=True, description="told when it gets stronger or turns")
    band_down: bool = Field(default=False, description="told when it gets weaker")

    @model_validator(mode="after")
    def _sides(self) -> "Bands":
        if any(band.edge <= 0 for band in self.positive):
            raise ValueError("positive: edges must be above 0")
        if any(band.edge >= 0 for band in self.negative):
            raise ValueError("negative: edges must be below 0")
        for bands in (self.positive, self.negative):
            if len({band.edge for band in bands}) != len(bands):
                raise ValueError("two bands begin at the same edge")
        return self


def _ids(value: Any) -> Any:
    return [int(part) for part in _split_list(value)] if isinstance(value, str) else value


class Notifier(_Section):
    max_age_s: float = Field(
        default=180.0, gt=0, description="signals older than this (market time) are not sent"
    )
    alerts: bool = Field(default=True, description="send notices of level warning and above")
    messages_per_minute: int = Field(default=20, ge=1, le=1800, description="per chat")
    queue: int = Field(default=1000, ge=10, description="messages held while Telegram is away")
    watch: Names = Field(
        default=("collector", "featurizer", "predictor"),
        description="services whose silence is told even if they were never heard; all others "
        "once they were",
    )
    dead_man_url: SecretStr | None = Field(
        default=None,
        description="address that is called each minute while messages can be sent; whoever "
        "listens there watches the notifier",
    )
    chats: Annotated[tuple[Chat, ...], BeforeValidator(_rows)] = Field(
        default=(), description="further chats, or the first one's own settings"
    )
    users: Annotated[tuple[int, ...], BeforeValidator(_ids)] = Field(
        default=(), description="numeric ids of who may command the bot; empty: nobody"
    )
    daily: str | None = Field(
        default=None,
        pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$",
        description="when each chat gets its picture of the day, its own time: 08:00",
    )
    bands: Annotated[Bands | None, BeforeValidator(_rows)] = Field(
        default=None, description="messages by bands of the score instead of steps"
    )

    @field_validator("dead_man_url", mode="before")
    @classmethod
    def _address(cls, value: Any) -> Any:
        if value and (
            not isinstance(value, str) or urlsplit(value).scheme not in ("http", "https")
        ):
            raise ValueError("not an address such as https://host/your-check")
        return value or None

    @field_validator("chats")
    @classmethod
    def _once(cls, value: tuple[Chat, ...]) -> tuple[Chat, ...]:
        if len({chat.chat for chat in value}) != len(value):
            raise ValueError("a chat is named twice")
        return value


class TradingRules(_Section):
    """What is bought and sold on a score: `shared.rules` says exactly how each rule works."""

    direction: Literal["long", "short", "both"] = Field(
        default="long", description="positions taken; short and both need futures, not spot"
    )
    buy_threshold: float | None = Field(
        default=None, ge=-1, le=1, description="default: signaler.model.buy_threshold"
    )
    sell_threshold: float | None = Field(
        default=None, ge=-1, le=1, description="default: signaler.model.sell_threshold"
    )
    exit_long: float | None = Field(
        default=None, ge=-1, le=1, description="a long is left below it; default: sell threshold"
    )
    exit_short: float | None = Field(
        default=None, ge=-1, le=1, description="a short is left above it; default: buy threshold"
    )
    limit_price_adjustment: float | None = Field(
        default=None,
        gt=-0.5,
        lt=0.5,
        description="share of the close by which a limit order is better; null: market orders",
    )
    sizing: Literal["percent", "fixed", "volatility"] = Field(
        default="percent", description="how large a position is; always at most the percentage"
    )
    percentage_used_for_trade: float = Field(
        default=99.0, gt=0, le=100, description="of the account's worth"
    )
    fixed: float = Field(default=1000.0, gt=0, description="sizing fixed: quote units a position")
    target_volatility: float = Field(
        default=0.5, gt=0, description="sizing volatility: of the account, a year (0.5: 50 %)"
    )
    volatility_candles: int = Field(
        default=1440, ge=3, description="closes that the volatility is measured on"
    )
    stop_loss: float | None = Field(
        default=None, gt=0, lt=1, description="share of the entry price: 0.02 is 2 %"
    )
    take_profit: float | None = Field(
        default=None, gt=0, lt=1, description="share of the entry price"
    )
    trailing_stop: float | None = Field(
        default=None, gt=0, lt=1, description="share of the best price since the entry"
    )
    max_candles: int | None = Field(
        default=None, ge=1, description="a position is left after so many candles"
    )
    cool_down: int = Field(
        default=0, ge=0, description="candles after an exit before the next entry is decided"
    )


class TradingLimits(_Section):
    """What the trader never exceeds; 0 switches a limit off. Each but `open_positions` halts
    trading when it is reached, until `itb resume`. Losses count from the last resume on; days are
    the market's, UTC."""

    max_notional: float = Field(
        default=0.0,
        ge=0,
        description="quote units of one entry, which is cut down to it; halts if one has cost more",
    )
    open_orders: int = Field(
        default=0, ge=0, description="of all symbols, at the exchange at once; a further one halts"
    )
    open_positions: int = Field(
        default=0, ge=0, description="symbols that may be held at once; further entries are dropped"
    )
    orders_per_minute: int = Field(
        default=20, ge=0, le=1_000, description="of all symbols, by the market's clock"
    )
    daily_loss: float | None = Field(
        default=None, ge=0, lt=1, description="share of the account; null: 0.05 live, off in paper"
    )
    drawdown: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of the account below its best; null: 0.2 live, off in paper",
    )
    consecutive_losses: int = Field(default=0, ge=0, description="round trips lost in a row")
    refused_orders: int = Field(
        default=3, ge=0, description="orders that the exchange refused in a row"
    )
    clock_skew_ms: float = Field(
        default=500.0,
        gt=0,
        le=1_000,
        description="no entries while our clock is further off the exchange's (not a halt)",
    )


class Trader(_Section):
    mode: Literal["observe", "paper", "live"] = Field(
        default="paper",
        description="observe: journal decisions, send no orders; paper: trade with play money, on "
        "the simulator or a testnet; live: trade with real money",
    )
    max_age_s: float = Field(
        default=120.0, gt=0, description="older signals (market time) are dropped"
    )
    releases: Names = Field(default=(), description="ids that may trade; none named: all")
    journal_folder: Path | None = Field(
        default=None, description="of the journal file; default: journal in data_folder"
    )
    limits: TradingLimits = Field(default_factory=TradingLimits)
    rules: TradingRules = Field(default_factory=TradingRules)


class Dashboard(_Section):
    """The page in the browser. Without `password_file` or `token_file` it is served to this
    machine alone and nobody can change anything through it."""

    host: str = Field(default="127.0.0.1", description="address that the page is served on")
    port: int = Field(default=8260, ge=1, le=65_535, description="port that it is served on")
    hosts: Names = Field(
        default=(),
        description="further names that people may open the page by, such as bot.example.org",
    )
    https: bool = Field(
        default=False, description="a proxy adds TLS: the login is only ever sent over https"
    )
    password_file: Path | None = Field(
        default=None, description="holds a password's hash, as `itb dashboard-password` writes it"
    )
    token_file: Path | None = Field(
        default=None, description="holds a token to log in with; made where it is not there yet"
    )
    session_hours: float = Field(default=12.0, gt=0, le=720, description="how long a login lasts")
    control: bool = Field(
        default=False,
        description="after a login also halt, reduce_only, flatten (sells everything at market), "
        "resume, promote and roll back; false: only look",
    )
    candles: int = Field(default=3_000, ge=100, le=20_000, description="candles that are shown")
    viewers: int = Field(default=50, ge=1, le=1_000, description="pages that are open at once")


class Auditor(_Section):
    """The service that computes everything again and keeps the track record."""

    chunk: int = Field(
        default=256, ge=1, le=4_096, description="signals that are computed again at a time"
    )
    pause_s: float = Field(
        default=5.0, gt=0, description="between two looks for signals to compute again"
    )


class Backtest(_Section):
    """What trading is assumed to cost, in `backtest` and in `signals`."""

    capital: float = Field(default=10_000.0, gt=0, description="quote units at the start")
    fee: float = Field(default=0.001, ge=0, lt=0.5, description="share of each trade: 0.1 %")
    fee_from: Literal["received", "quote"] = Field(
        default="received",
        description="a buy's fee: from the asset received (spot) or on top, in quote (futures)",
    )
    slippage: float = Field(
        default=0.0002, ge=0, lt=0.5, description="share by which market fills are worse"
    )


class SignalSearch(_Section):
    """The threshold search over every pair of the two lists."""

    buy: Steps = Field(default=(0.10, 0.49, 0.01), description="buy thresholds: from, to, step")
    sell: Steps = Field(default=(-0.10, -0.49, 0.01), description="sell thresholds: from, to, step")
    directions: Directions = Field(
        default=("long", "short", "both"), description="searched one after the other"
    )
    objective: Literal["sharpe", "sortino", "return"] = Field(
        default="sharpe", description="what a pair of thresholds is judged by"
    )
    neighbourhood: int = Field(
        default=2, ge=0, description="steps on each side whose median a pair is judged by"
    )
    periods: int = Field(
        default=8, ge=2, description="equal parts: chosen on the earlier, shown on the next"
    )
    min_trades: int = Field(
        default=10, ge=1, description="round trips that a pair needs to be chosen"
    )
    blocks: int = Field(
        default=10, ge=4, le=16, description="parts of the data for the overfitting estimate, even"
    )

    @field_validator("blocks")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("half of the blocks must be a whole number: give an even one")
        return value


class Merge(_Section):
    sources: NamedPlaces = Field(
        default_factory=dict,
        description="prefix: symbol whose candles are merged in as columns prefix_open ...",
    )


class Rolling(_Section):
    """Walk-forward. Two of start, step (days or rows) and folds give the third."""

    start: str | None = Field(
        default=None,
        description="first test time, UTC: 2024-01-01 or 2024-01-01T12:00; default: after "
        "train_days of candles, or half of all where there are fewer",
    )
    step_days: float | None = Field(
        default=None, gt=0, description="days tested before models are trained again; default: 30"
    )
    step_rows: int | None = Field(default=None, ge=1, description="the same in candles")
    folds: int | None = Field(
        default=None, ge=1, description="how many steps; default: up to the end of the candles"
    )
    train_days: float | None = Field(
        default=None, gt=0, description="trailing days of each step; default: trainer.train_days"
    )
    groups: int = Field(default=10, ge=2, description="--cpcv: parts that the candles are cut into")
    test_groups: int = Field(default=2, ge=1, description="--cpcv: groups tested at a time")
    embargo_rows: int | None = Field(
        default=None,
        ge=0,
        description="--cpcv: candles behind a test block that are not trained on, beyond what its "
        "labels look at; default: label_horizon",
    )

    @field_validator("start")
    @classmethod
    def _start(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("not a time such as 2024-01-01 or 2024-01-01T12:00") from None
        return value

    @model_validator(mode="after")
    def _one_step(self) -> "Rolling":
        if self.step_days is not None and self.step_rows is not None:
            raise ValueError("give step_days or step_rows, not both")
        return self

    @property
    def start_ms(self) -> int | None:
        if self.start is None:
            return None
        time = datetime.fromisoformat(self.start)
        return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


class Tune(_Section):
    trials: int = Field(default=40, ge=1, description="trials of each study, all runs together")
    folds: int = Field(default=3, ge=1, le=50, description="walk-forward folds of a trial")
    holdout_share: float = Field(
        default=0.2, gt=0, lt=0.9, description="last part of the time that no trial sees"
    )
    space: Space = Field(
        default_factory=dict,
        description="per kind (gb, nn, lc, labels) what is tried; default: trainer/tune.py's",
    )


class Trainer(_Section):
    train_days: float = Field(default=548, gt=0, description="trailing days that are trained on")
    stride: int | None = Field(
        default=None, ge=1, description="train on every n-th row; default: by the number of rows"
    )
    label_horizon: int = Field(default=180, ge=1, description="rows that a label looks ahead")
    test_share: float = Field(
        default=0.2, gt=0, lt=0.9, description="purged tail on which models are measured"
    )
    calm_labels: bool = Field(
        default=True,
        description="a side whose every label has too few cases gets highv or lowv instead, "
        "and says so",
    )
    seed: int = Field(default=7, ge=0, description="makes a training run repeatable")
    threads: int | None = Field(default=None, ge=1, description="default: all cores")
    merge: Merge = Field(default_factory=Merge)
    rolling: Rolling = Field(default_factory=Rolling)
    signals: SignalSearch = Field(default_factory=SignalSearch)
    backtest: Backtest = Field(default_factory=Backtest)
    tune: Tune = Field(default_factory=Tune)


class Limits(_Section):
    """Caps that keep one bad message or file from hurting a service."""

    message_bytes: int = Field(default=_MIB, ge=1024, description="largest bus entry decoded")
    model_bytes: int = Field(default=256 * _MIB, ge=1024, description="largest model file read")
    nan_share: float = Field(
        default=0.2, ge=0, lt=1, description="above this share of NaN features: no score"
    )


class _SecretFiles(PydanticBaseSettingsSource):
    """`ITB_<SECRET>_FILE=path`: the secret is the file's first line."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # __call__ does all the work

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for variable, path in os.environ.items():
            name = variable.upper().removeprefix(PREFIX).removesuffix("_FILE").lower()
            if name not in SECRETS or variable.upper() != f"{PREFIX}{name.upper()}_FILE":
                continue
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not a text file"
                raise Usage(f"{variable}: cannot read {path}: {reason}") from None
        return found


class Settings(BaseSettings):
    """Everything that a service or command may be told."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,
        hide_input_in_errors=True,
    )

    symbols: Names = Field(default=("BTCUSDT",), description="what to collect, score and trade")
    interval: str = Field(default="1m", description="length of a candle: 1s .. 1d")
    base_asset: str | None = Field(default=None, description="default: the symbol without quote")
    quote_asset: str = Field(default="USDT", description="what prices are counted in")
    data_folder: Path = Field(default=Path("DATA"), description="candles, features, archive")
    model_folder: Path = Field(default=Path("MODELS"), description="releases and `current`")
    labels: Names = Field(
        default=("high_10", "high_15", "high_20", "low_10", "low_15", "low_20"),
        description="what the models predict (`python -m trainer labels --list`)",
    )
    algorithms: Annotated[tuple[Algorithm, ...], BeforeValidator(_algorithms)] = Field(
        default_factory=lambda: tuple(Algorithm(name=a, algo=a) for a in ("gb", "nn", "lc")),
        description="how they are trained, per label",
    )
    features_kline: Names | None = Field(default=None, description="default: the seed's 51")
    features_futur: Names = Field(default=(), description="f_ features; the seed's 38: ['seed']")
    features_depth: Names = Field(default=(), description="book features; its 33: ['seed']")
    features_other: str | None = Field(
        default=None,
        description="one of `symbols`: whose candles CORREL, RCORREL, BETA and o_ features read",
    )
    features_file: Path | None = Field(default=None, description="Python file of your features")
    instance: str | None = Field(default=None, description="default: the service's name")
    shards: Counts = Field(
        default_factory=dict,
        description="replicas of collector, featurizer, predictor that share the symbols",
    )
    shard: int | None = Field(
        default=None,
        ge=0,
        description="which part this replica takes, from 0; null: the first free one (not the "
        "collector)",
    )

    api_key: SecretStr | None = Field(
        default=None, description="of your exchange account; a file is safer: ITB_API_KEY_FILE"
    )
    api_secret: SecretStr | None = Field(
        default=None, description="of your exchange account; a file is safer: ITB_API_SECRET_FILE"
    )
    telegram_bot_token: SecretStr | None = Field(
        default=None, description="from @BotFather; null: messages go to the console"
    )
    telegram_chat_id: str | None = Field(
        default=None, description="user, group or @channel that gets the messages"
    )

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="also unix:///path; TLS: rediss://host:6379/0?ssl_ca_certs=/path/ca.crt",
    )
    redis_password: SecretStr | None = Field(
        default=None,
        description="of the user in redis_url; a file is safer: ITB_REDIS_PASSWORD_FILE",
    )
    binance_rest_url: str = Field(
        default="https://data-api.binance.vision", description="market data by request"
    )
    binance_ws_url: str = Field(
        default="wss://data-stream.binance.vision", description="market data streams"
    )
    binance_ws_api_url: str = Field(
        default="wss://ws-api.binance.com:443/ws-api/v3", description="user data stream"
    )
    account_rest_url: str | None = Field(
        default=None,
        description="where orders go; null: binance_rest_url, or where that has data only: "
        "the simulator's http://127.0.0.1:8290 in paper, https://api.binance.com live",
    )
    futures_rest_url: str = Field(
        default="https://fapi.binance.com", description="USD-M futures data by request"
    )
    futures_ws_url: str = Field(
        default="wss://fstream.binance.com", description="USD-M futures streams"
    )
    archive_url: str = Field(
        default="https://data.binance.vision", description="bulk files; empty: REST only"
    )
    telegram_url: str = Field(
        default="https://api.telegram.org", description="where bots are served"
    )
    market_speed: float = Field(
        default=1.0, gt=0, description="market seconds per second; only a replay is not 1"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is logged: debug, info, warning, error"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="port of /metrics, /live and /ready; null: none. Services that `itb up` starts "
        "take this one and those after it",
    )
    metrics_host: str = Field(default="127.0.0.1", description="address of that port")

    signaler: Signaler = Field(default_factory=Signaler)
    collector: Collector = Field(default_factory=Collector)
    notifier: Notifier = Field(default_factory=Notifier)
    trader: Trader = Field(default_factory=Trader)
    dashboard: Dashboard = Field(default_factory=Dashboard)
    auditor: Auditor = Field(default_factory=Auditor)
    trainer: Trainer = Field(default_factory=Trainer)
    limits: Limits = Field(default_factory=Limits)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, _SecretFiles(settings_cls), init_settings

    @field_validator("symbols")
    @classmethod
    def _symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one symbol")
        for symbol in value:
            if not symbol or symbol != symbol.upper() or set(symbol) & set("{}:/ \t\n"):
                raise ValueError(f"{symbol!r} is no symbol (upper case, such as BTCUSDT)")
        if len(set(value)) != len(value):
            raise ValueError("a symbol is named twice")
        return value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one label")
        return label_names(value)

    @field_validator("algorithms")
    @classmethod
    def _algorithm_names(cls, value: tuple[Algorithm, ...]) -> tuple[Algorithm, ...]:
        if not value:
            raise ValueError("name at least one algorithm")
        if len({algorithm.name for algorithm in value}) != len(value):
            raise ValueError("an algorithm is named twice")
        return value

    @field_validator(
        "binance_rest_url",
        "binance_ws_url",
        "binance_ws_api_url",
        "account_rest_url",
        "futures_rest_url",
        "futures_ws_url",
        "archive_url",
        "telegram_url",
    )
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname):
            raise ValueError("not an address such as https://host or wss://host:port")
        return value.rstrip("/")

    @field_validator("interval")
    @classmethod
    def _interval(cls, value: str) -> str:
        try:
            interval_ms(value)
        except Usage as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("api_key", "api_secret", "telegram_bot_token", "redis_password", mode="before")
    @classmethod
    def _no_empty_secret(cls, value: Any) -> Any:
        return value or None

    @field_validator("shards")
    @classmethod
    def _shards(cls, value: dict[str, int]) -> dict[str, int]:
        for service, count in value.items():
            if service not in SHARED_SERVICES:
                known = ", ".join(sorted(SHARED_SERVICES))
                raise ValueError(f"{service} has one replica only; shared are {known}")
            if not 1 <= count <= 1024:
                raise ValueError(f"{service}: {count} is not 1 to 1024")
        return value

    def parts_of(self, service: str) -> int:
        """How many processes share that service's symbols."""
        return self.shards.get(service, 1)

    def of_part(self, part: int, parts: int) -> "Settings":
        """The same for one replica: of the symbols only its own.

        A symbol's part depends on its name and the number of parts alone, so that replicas agree
        on it although one has read a newer list of symbols.
        """
        if parts == 1:
            return self
        own = tuple(s for s in self.symbols if zlib.crc32(s.encode()) % parts == part)
        return self.model_copy(update={"symbols": own})

    @model_validator(mode="after")
    def _one_password(self) -> "Settings":
        if self.redis_password is not None and urlsplit(self.redis_url).password:
            raise ValueError("give the password in redis_url or in redis_password, not in both")
        return self

    @property
    def bus_url(self) -> str:
        """`redis_url` with the password in it: a secret, to connect with and for nothing else."""
        if self.redis_password is None:
            return self.redis_url
        parts = urlsplit(self.redis_url)
        user, _, place = parts.netloc.rpartition("@")
        password = quote(self.redis_password.get_secret_value(), safe="")
        return parts._replace(netloc=f"{user.rstrip(':')}:{password}@{place}").geturl()

    @property
    def step_ms(self) -> int:
        return interval_ms(self.interval)

    def chats(self) -> tuple[Chat, ...]:
        """Who gets messages: `telegram_chat_id` first, then the others of `notifier.chats`."""
        listed = {chat.chat: chat for chat in self.notifier.chats}
        if self.telegram_chat_id:
            first = listed.pop(self.telegram_chat_id, None)
            first = first or Chat.model_construct(chat=self.telegram_chat_id, loudness=Loudness())
            return (first, *listed.values())
        return tuple(listed.values())

    def base_of(self, symbol: str) -> str:
        """Base asset: `BTC` of `BTCUSDT`."""
        if self.base_asset is not None and len(self.symbols) == 1:
            return self.base_asset
        return symbol.removesuffix(self.quote_asset) or symbol


SHARED_SERVICES = frozenset({"collector", "featurizer", "predictor"})
SECRETS = frozenset({"api_key", "api_secret", "telegram_bot_token", "redis_password"})


def load(path: Path | str | None = None, **overrides: Any) -> Settings:
    """Reads the config; with no path (and no ITB_CONFIG) the defaults hold.

    `overrides` are top-level keys from the command line; they win over the file, not over the
    environment.

    Raises:
        Usage: the file is missing or malformed, a key is unknown, or a value is not allowed.
    """
    path = path or os.environ.get("ITB_CONFIG") or None
    data = _read(Path(path)) if path else {}
    place = str(path) if path else "config"
    data.update({k: v for k, v in overrides.items() if v is not None})
    if "symbol" in data:
        if "symbols" in data:
            raise Usage(f"{place}: give `symbol` or `symbols`, not both")
        data["symbols"] = [data.pop("symbol")]
    environment = _environment(os.environ)
    try:
        if "symbol" in environment:
            if "symbols" in environment:
                raise Usage(f"give {PREFIX}SYMBOL or {PREFIX}SYMBOLS, not both")
            data.pop("symbols", None)
            data["symbols"] = [environment["symbol"]]
        return Settings(**data)
    except ValidationError as error:
        raise Usage(f"{place}: {_explain(error)}") from None
    except json.JSONDecodeError as error:
        raise Usage(f"{place}: a list in the environment is not JSON: {error.msg}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Usage(f"{path}: no such config file; `itb init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Usage(f"{path}: cannot read the config: {reason}") from None
    try:
        data = json5.loads(text, allow_duplicate_keys=False)
    except (ValueError, RecursionError) as error:
        raise Usage(f"{path}: not valid JSON: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise Usage(f"{path}: the config must be one JSON object")
    return data


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Checks that every ITB_ variable names a key; a mistyped one must not be ignored.

    As pydantic reads them: in any case.
    """
    known = set(Settings.model_fields) | {"symbol"}
    sections = {
        name
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
    }
    found: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for variable, value in sorted(variables.items()):
        capitals = variable.upper()
        if not capitals.startswith(PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if capitals in _OTHER_VARIABLES:
            raise Usage(f"{variable}: write it in capitals: {capitals}")
        if capitals in spelled:
            raise Usage(f"{spelled[capitals]} and {variable} are one key: set one of them")
        spelled[capitals] = variable
        name, *inner = variable[len(PREFIX) :].lower().split("__")
        if name.endswith("_file") and name not in known:
            name = name.removesuffix("_file")
            if name not in SECRETS:
                raise Usage(
                    f"{variable}: only secrets come from files: {', '.join(sorted(SECRETS))}"
                )
        if name not in known:
            raise Usage(f"{variable}: unknown key {name!r}{_nearest(name, known)}")
        if inner and name not in sections:
            raise Usage(f"{variable}: {name!r} has no keys of its own")
        found[name] = value
    return found


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def _explain(error: ValidationError) -> str:
    """The first fault as one line, without the value (it may be a secret)."""
    first = error.errors(include_input=False, include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        section: Any = Settings
        for part in location[:-1]:
            field = getattr(section, "model_fields", {}).get(part)
            section = field.annotation if field is not None else Algorithm
        known = set(getattr(section, "model_fields", {}))
        if section is Settings:
            known |= {"symbol"}
        return f"unknown key {where!r}{_nearest(location[-1], known)}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{where or 'config'}: {message}{more}"
