"""The config tree: sources, precedence, and the lines that mistakes get."""

from pathlib import Path

import pytest

from shared.config import load
from shared.errors import Usage


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ITB_"):
            monkeypatch.delenv(name)


def _write(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_the_defaults_are_bitcoin_by_the_minute() -> None:
    settings = load()
    assert settings.symbols == ("BTCUSDT",)
    assert (settings.interval, settings.step_ms) == ("1m", 60_000)
    assert settings.base_of("BTCUSDT") == "BTC"
    assert settings.trader.mode == "paper"


def test_comments_and_urls_in_the_file_are_understood(tmp_path: Path) -> None:
    path = _write(
        tmp_path, '{// mine\n"symbol": "ETHUSDT", /* x */ "binance_rest_url": "http://h/p",}'
    )
    settings = load(path)
    assert settings.symbols == ("ETHUSDT",)
    assert settings.binance_rest_url == "http://h/p"


def test_environment_wins_over_file_and_file_over_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, '{"signaler": {"notification_threshold": 3}, "symbols": ["AUSDT"]}')
    monkeypatch.setenv("ITB_SIGNALER__NOTIFICATION_THRESHOLD", "2")
    monkeypatch.setenv("ITB_SIGNALER__MODEL__BUY_THRESHOLD", "0.3")
    settings = load(path)
    assert settings.signaler.notification_threshold == 2
    assert settings.signaler.model.buy_threshold == 0.3
    assert settings.symbols == ("AUSDT",)
    monkeypatch.setenv("ITB_SYMBOLS", "BUSDT, CUSDT")
    assert load(path).symbols == ("BUSDT", "CUSDT")
    monkeypatch.setenv("ITB_SYMBOLS", '["DUSDT"]')
    assert load(path).symbols == ("DUSDT",)


def test_the_symbol_variable_replaces_the_symbols_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITB_SYMBOL", "XRPUSDT")
    assert load(_write(tmp_path, '{"symbols": ["AUSDT", "BUSDT"]}')).symbols == ("XRPUSDT",)


def test_a_secret_comes_from_its_file_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-secret\n")
    monkeypatch.setenv("ITB_API_SECRET_FILE", str(secret))
    settings = load()
    assert settings.api_secret is not None
    assert settings.api_secret.get_secret_value() == "canary-secret"
    assert "canary" not in repr(settings)
    assert "canary" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"symbl": "BTCUSDT"}', "unknown key 'symbl'; did you mean 'symbol'?"),
        (
            '{"signaler": {"model": {"buy_treshold": 1}}}',
            "unknown key 'signaler.model.buy_treshold'; did you mean 'buy_threshold'?",
        ),
        ('{"interval": "1w"}', "interval: interval '1w' is not supported"),
        ('{"symbols": ["btcusdt"]}', "symbols: 'btcusdt' is no symbol"),
        ('{"symbols": []}', "symbols: name at least one symbol"),
        ('{"symbol": "A", "symbols": ["A"]}', "give `symbol` or `symbols`, not both"),
        ('{"signaler": {"model": {"buy_threshold": 2}}}', "signaler.model.buy_threshold"),
        ('{"signaler": {"model": {"buy_threshold": -0.5}}}', "sell_threshold must not be above"),
        ('{"algorithms": [{"name": "x", "algo": "svm"}]}', "algorithms.0.algo"),
        ('{"algorithms": [{"name": "x", "algo": "gb", "prams": {}}]}', "did you mean 'params'?"),
        ('{"symbol": "A", "symbol": "B"}', "not valid JSON"),
        ('{"labels": []}', "labels: name at least one label"),
        ('{"algorithms": []}', "algorithms: name at least one algorithm"),
        ('{"algorithms": ["gb", "gb"]}', "algorithms: an algorithm is named twice"),
        ('{"binance_rest_url": "nonsense"}', "binance_rest_url: not an address such as"),
        ("[1]", "must be one JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(Usage) as caught:
        load(_write(tmp_path, text))
    assert line in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_mistyped_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITB_SIGNALR__X", "1")
    with pytest.raises(
        Usage, match="ITB_SIGNALR__X: unknown key 'signalr'; did you mean 'signaler'"
    ):
        load()


def test_variables_count_in_any_case_and_are_all_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("itb_signaler__notification_threshold", "2")
    monkeypatch.setenv("Itb_Symbol", "XRPUSDT")
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv("itb_api_secret_file", str(tmp_path / "secret"))
    loaded = load()
    assert loaded.signaler.notification_threshold == 2
    assert loaded.symbols == ("XRPUSDT",)
    assert loaded.api_secret is not None
    assert loaded.api_secret.get_secret_value() == "hush"


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("itb_signalr__x", "itb_signalr__x: unknown key 'signalr'; did you mean 'signaler'"),
        ("itb_interval__x", "itb_interval__x: 'interval' has no keys of its own"),
        ("itb_symbols_file", "only secrets come from files"),
        ("itb_config", "itb_config: write it in capitals: ITB_CONFIG"),
        ("itb_interval", "ITB_INTERVAL and itb_interval are one key: set one of them"),
    ],
)
def test_a_variable_in_lower_case_is_not_ignored_either(
    monkeypatch: pytest.MonkeyPatch, variable: str, line: str
) -> None:
    monkeypatch.setenv("ITB_INTERVAL", "1m")
    monkeypatch.setenv(variable, "5m")
    with pytest.raises(Usage, match=line):
        load()


def test_symbol_and_symbols_in_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ITB_SYMBOL", "AUSDT")
    monkeypatch.setenv("ITB_SYMBOLS", "BUSDT")
    with pytest.raises(Usage, match="give ITB_SYMBOL or ITB_SYMBOLS, not both"):
        load()


@pytest.mark.parametrize("variable", ["ITB_INTERVAL__X", "ITB_SYMBOL__X", "ITB_SYMBOLS__0"])
def test_a_variable_below_a_plain_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(Usage, match=f"{variable}: '.*' has no keys of its own"):
        load()


def test_a_bad_secret_value_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITB_API_SECRET_FILE", str(tmp_path / "absent"))
    with pytest.raises(Usage, match=r"cannot read .*absent: No such file"):
        load()
    monkeypatch.delenv("ITB_API_SECRET_FILE")
    with pytest.raises(Usage) as caught:
        load(_write(tmp_path, '{"api_secret": ["canary"]}'))
    assert "canary" not in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="no such config file; `itb init` writes one"):
        load(tmp_path / "none.json")


def test_the_password_of_the_bus_comes_from_a_file_and_joins_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("p/@ss:word\n")
    monkeypatch.setenv("ITB_REDIS_PASSWORD_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("ITB_REDIS_URL", "rediss://trader@bus:6380/0?ssl_ca_certs=/run/ca.crt")
    settings = load()
    assert settings.redis_url == "rediss://trader@bus:6380/0?ssl_ca_certs=/run/ca.crt"
    expected = "rediss://trader:p%2F%40ss%3Aword@bus:6380/0?ssl_ca_certs=/run/ca.crt"
    assert settings.bus_url == expected
    assert "p/@ss" not in repr(settings)


def test_a_password_in_the_url_and_one_in_a_file_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ITB_REDIS_PASSWORD", "one")
    monkeypatch.setenv("ITB_REDIS_URL", "redis://trader:two@bus:6379/0")
    with pytest.raises(Usage, match="not in both") as error:
        load()
    assert "two" not in str(error.value)
    monkeypatch.setenv("ITB_REDIS_URL", "redis://bus:6379/0")
    assert load().bus_url == "redis://:one@bus:6379/0"
