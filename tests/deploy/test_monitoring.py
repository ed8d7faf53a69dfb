"""Dashboards and alert rules ask only for what the services tell, and a real Prometheus answers.

Without a Prometheus on this machine (Debian: `apt install prometheus`) the static half remains.
"""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from deploy import page
from deploy.demo import SERVICES
from deploy.reference import with_tables
from shared.bus import Source, now_us
from shared.endpoint import serving
from shared.metrics import AGE, CATALOG, EVENTS, LATENCY, SCORE, Metric, Metrics
from shared.streams import KLINE
from tests.valkey import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
BOARDS = sorted((FOLDER / "grafana").glob("*.json"))
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
# Of the process, by prometheus_client; `up` and ALERTS are Prometheus' own.
OTHERS = {"up": {"job"}, "ALERTS": {"alertname", "alertstate", "severity"}}
OTHERS |= {f"process_{n}": {"job"} for n in ("resident_memory_bytes", "cpu_seconds_total")}
VARIABLES = {"$symbol": ".*", "$__rate_interval": "5s"}


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, PromQL with its variables filled in)."""
    for path in BOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", filled(target["expr"])
        for note in board["annotations"]["list"]:
            yield f"{path.stem}: {note['name']}", filled(note["expr"])


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def known() -> dict[str, set[str]]:
    """Labels by the names that Prometheus stores."""
    found: dict[str, set[str]] = {}
    for metric in CATALOG:
        labels = {"service", "instance", *metric.labels}
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{s}": labels for s in ("sum", "count")}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found | {name: labels | {"instance"} for name, labels in OTHERS.items()}


def check_names(where: str, expression: str) -> None:
    """Every metric and label of a query exists."""
    names = known()
    bare = re.sub(r'"[^"]*"', '""', expression)
    found = re.findall(r"\b(itb_\w+|process_\w+|up|ALERTS)\b(?:\{([^}]*)\})?", bare)
    assert found or "vector(" in expression, f"{where} asks for nothing: {expression}"
    may_group_by = {"job"}
    for name, matchers in found:
        assert name in names, f"{where}: no metric {name}"
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers or ""))
        assert used <= names[name], f"{where}: {name} has no labels {used - names[name]}"
        may_group_by |= names[name]
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare):
        wanted = {label.strip() for label in group.split(",")}
        assert wanted <= may_group_by, f"{where}: {wanted - may_group_by} are no labels there"


def test_every_query_and_rule_asks_for_metrics_and_labels_that_exist() -> None:
    asked = [*queries(), *((rule["alert"], rule["expr"]) for rule in ALERTS)]
    assert len(asked) > 60
    for where, expression in asked:
        check_names(where, expression)


def test_every_metric_stands_on_a_dashboard() -> None:
    shown = " ".join(expression for _, expression in queries())
    missing = [m.name for m in CATALOG if not re.search(rf"\b{m.name}(_bucket)?\b", shown)]
    assert not missing


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_no_two_panels_on_one_place(path: Path) -> None:
    board = json.loads(path.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_has_a_text_a_severity_a_test_and_a_page() -> None:
    cases = yaml.safe_load((Path(__file__).parent / "monitoring" / "alerts_test.yml").read_text())
    tested = {
        case["alertname"]
        for test in cases["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in ALERTS:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert f"### {rule['alert']}\n" in page, f"docs/monitoring.md says nothing of {rule}"
    assert tested == {rule["alert"] for rule in ALERTS}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here (Debian: apt install prometheus): rules are not evaluated")
    return found


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_prometheus_takes_the_config_and_the_rules() -> None:
    done = promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    cases = Path(__file__).parent / "monitoring" / "alerts_test.yml"
    done = promtool("test", "rules", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr
    broken = (FOLDER / "alerts.yml").read_text().replace("> 30\n", "> 300\n")
    (tmp_path / "alerts.yml").write_text(broken)
    text = cases.read_text().replace("../../../deploy/monitoring/alerts.yml", "alerts.yml")
    (tmp_path / "alerts_test.yml").write_text(text)
    done = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    assert done.returncode != 0, "the test of the rules would see a wrong one"


def say_everything(metrics: Metrics) -> None:
    """A sample of every metric, counters higher with each call."""
    for metric in CATALOG:
        labels = ["BUY" if label == "side" else f"a-{label}" for label in metric.labels]
        if metric in (AGE, EVENTS, LATENCY, SCORE):
            continue
        for values in (labels, _interesting(metric, labels)):
            if metric.kind == "counter":
                metrics.add(metric, *values)
            else:
                metrics.set(metric, 1.0, *values)
    metrics.observe(SCORE, 0.2)
    at_us = now_us()
    open_ms = at_us // 60_000_000 * 60_000 - 60_000
    metrics.progress(
        Source(KLINE, "BTCUSDT", "1m"),
        open_ms,
        market_ms=at_us // 1000,
        published_us=at_us,
        received_us=at_us,
        at_us=at_us,
    )


def _interesting(metric: Metric, labels: list[str]) -> list[str]:
    known_values = {"state": "UNKNOWN", "stream": "dead", "kind": "gaps", "side": "invalid"}
    named = zip(metric.labels, labels, strict=True)
    return [known_values.get(name, value) for name, value in named]


@contextlib.asynccontextmanager
async def prometheus(folder: Path, targets: dict[str, int]) -> AsyncIterator[str]:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    shutil.copy(FOLDER / "alerts.yml", folder / "alerts.yml")
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def ask(http: aiohttp.ClientSession, url: str, expression: str) -> list[Any] | str:
    """The result, or why there is none."""
    try:
        async with http.get(f"{url}/api/v1/query", params={"query": expression}) as reply:
            body = await reply.json()
    except aiohttp.ClientError as error:
        return f"{type(error).__name__}: {error}"
    if body["status"] != "success":
        return str(body["error"])
    found: list[Any] = body["data"]["result"]
    return found


async def test_a_real_prometheus_answers_every_query(tmp_path: Path) -> None:
    program("prometheus")
    jobs = [job["job_name"] for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())[
        "scrape_configs"
    ]]  # fmt: skip
    assert sorted(jobs) == sorted((*SERVICES, "auditor", page.NAME))
    all_metrics = {job: Metrics(job, f"{job}-1") for job in jobs}
    ports = {job: free_port() for job in jobs}
    async with contextlib.AsyncExitStack() as stack:
        for job, metrics in all_metrics.items():
            await stack.enter_async_context(
                serving(
                    metrics,
                    host="127.0.0.1",
                    port=ports[job],
                    live=lambda: True,
                    ready=lambda: {"ready": True},
                )
            )
        url = await stack.enter_async_context(prometheus(tmp_path, ports))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        # `ALERTS` has nothing to show until one fires; that is what the rules' own test is for.
        open_queries = {expr: where for where, expr in queries() if not expr.startswith("ALERTS")}
        answers: dict[str, Any] = {}
        deadline = asyncio.get_running_loop().time() + 60
        while open_queries:
            late = asyncio.get_running_loop().time() > deadline
            assert not late, {where: (e, answers[e]) for e, where in open_queries.items()}
            for metrics in all_metrics.values():
                say_everything(metrics)
            for expression in list(open_queries):
                answers[expression] = await ask(http, url, expression)
                if isinstance(answers[expression], list) and answers[expression]:
                    del open_queries[expression]
            await asyncio.sleep(0.1)
        for rule in ALERTS:
            result = await ask(http, url, rule["expr"])
            assert isinstance(result, list), f"{rule['alert']}: {result}"
        # Our `instance` wins over the address that was scraped.
        found = await ask(http, url, 'itb_ready{service="trader"}')
        assert isinstance(found, list) and found[0]["metric"]["instance"] == "trader-1"


def test_the_page_lists_every_metric_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert with_tables(page) == page, "run `make docs`"
