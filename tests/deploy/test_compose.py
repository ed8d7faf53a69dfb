"""What docker-compose.yml tells its containers, read without an engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import container
from deploy.container import mode_problem
from shared.config import load

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ONE_MODE = "${ITB_TRADER__MODE:-paper}"
# They read no config of ours that has to do with trading.
FOREIGN = {"prometheus", "grafana"}
WITHOUT_MODE = {"keys", "paper-exchange", "demo-exchange"} | FOREIGN


def environment(service: str) -> dict[str, str | None]:
    found: dict[str, str | None] = SERVICES[service].get("environment", {})
    return found


def test_all_services_are_told_one_mode_and_it_is_paper_unless_env_says_otherwise() -> None:
    modes = {name: environment(name).get("ITB_TRADER__MODE") for name in SERVICES}
    modes = {name: mode for name, mode in modes.items() if name not in WITHOUT_MODE}
    assert {"trader", "live-trader", "notifier", "dashboard", "auditor", "itb"} <= set(modes)
    assert "demo-trader" in modes
    for name, mode in modes.items():
        is_demo = name.startswith("demo-") and name != "demo-redis"
        assert mode == ("paper" if is_demo else ONE_MODE), name


@pytest.mark.parametrize(
    ("service", "mode", "starts"),
    [
        ("trader", "paper", True), ("trader", "observe", True), ("trader", "live", False),
        ("live-trader", "live", True), ("live-trader", "paper", False),
        ("live-trader", "observe", False), ("live-trader", "Live", False),
        ("live-trader", "", False), ("demo-trader", "paper", True),
    ],
)  # fmt: skip
def test_a_trader_starts_in_no_mode_but_its_containers(
    service: str, mode: str, starts: bool
) -> None:
    variables = {k: v or "" for k, v in environment(service).items()} | {"ITB_TRADER__MODE": mode}
    problem = mode_problem("trader", variables)
    assert (problem == "") is starts
    assert starts or (mode or "not set") in problem


def test_the_wrong_mode_ends_the_container_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["container", "trader"])
    monkeypatch.setenv("ITB_TRADER__MODE", "paper")
    monkeypatch.setenv("ALLOWED_TRADER_MODES", "live")
    monkeypatch.setattr("os.execvp", lambda *_: pytest.fail("it was started all the same"))
    assert container.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ITB_TRADER__MODE is paper, but this container trades live only")
    assert said.count("\n") == 1


def test_without_modes_of_its_own_a_container_starts_what_the_config_says() -> None:
    assert mode_problem("trader", {"ITB_TRADER__MODE": "live"}) == ""
    assert mode_problem("notifier", {"ALLOWED_TRADER_MODES": "live"}) == ""


def test_what_env_does_not_set_leaves_the_config_file_its_say() -> None:
    """An empty variable would win over the file's key: only one without a value is passed on
    where it is set and left out where it is not."""
    assert environment("notifier")["ITB_TELEGRAM_CHAT_ID"] is None
    emptied = {
        variable
        for name in SERVICES
        for variable, value in environment(name).items()
        if variable.startswith("ITB_") and str(value).endswith((":-}", "-}"))
    }
    assert emptied == {"ITB_CONFIG"}  # which is no key, and empty is the same as absent


@pytest.mark.parametrize("service", [name for name in SERVICES if name not in FOREIGN])
def test_every_container_can_run_itb(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker compose exec redis itb halt` reads the config, with what the server was told beside
    it in the environment."""
    secret = tmp_path / "secret"
    secret.write_text("a password")
    for variable, value in environment(service).items():
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        if variable.endswith("_FILE") and "DASHBOARD" not in variable:
            text = str(secret)
        if value is not None:
            monkeypatch.setenv(variable, text)
    load()


def names_on(service: str, network: str) -> set[str]:
    """What the others on that network know it by; none where it is not there."""
    networks = SERVICES[service].get("networks", [])
    if network not in networks:
        return set()
    more = networks[network] or {} if isinstance(networks, dict) else {}
    return {service, *more.get("aliases", ())}


def test_prometheus_asks_every_service_that_has_metrics_under_a_name_it_can_reach() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())
    asked = {
        (name, place["port"])
        for job in config["scrape_configs"]
        for place in job["dns_sd_configs"]
        for name in place["names"]
    }
    seen = 0
    for service in SERVICES:
        port = environment(service).get("ITB_METRICS_PORT")
        if port is None:
            continue
        seen += 1
        reached = [n for at in SERVICES["prometheus"]["networks"] for n in names_on(service, at)]
        assert any((name, port) in asked for name in reached), f"nobody asks {service}"
    assert seen >= 15


def test_service_down_looks_at_every_job() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())
    down = next(r for g in rules["groups"] for r in g["rules"] if r["alert"] == "ServiceDown")
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert jobs == set(down["expr"].split('"')[1].split("|"))


def test_whoever_reads_releases_has_them_and_only_the_trainer_may_write_them() -> None:
    """Without them the notifier says on /model that there is no release, and cannot tell why."""
    readers = ("predictor", "notifier", "dashboard", "auditor", "itb")
    for prefix, volume in (("", "models"), ("demo-", "demo-models")):
        mounts = {name: SERVICES[prefix + name]["volumes"] for name in (*readers, "trainer")}
        for name in readers:
            assert f"{volume}:/models:ro" in mounts[name], f"{prefix}{name}"
        assert f"{volume}:/models" in mounts["trainer"]
    writers = {
        name
        for name, one in SERVICES.items()
        if any(str(mount).endswith(":/models") for mount in one.get("volumes", ()))
    }
    assert writers == {"trainer", "demo-trainer"}
