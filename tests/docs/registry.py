"""Who runs which command of the pages. The first rule that matches counts.

What stands between braces is known to test_commands.py: {signal}, {release}, {first}, {last} and
{split} (a time some days before the last candle) are those of the demo that was played, as are the
ports {bus} and {dashboard}; {port} is a free one.
"""

import re

from tests.docs.commands import How, Rule

# What the words of containers are in the demo, the one system that can run without the internet:
# its services are the same ones, by other names. There is no terminal, so `exec` gets -T.
_IN_THE_DEMO = (
    (r"docker compose exec (?!-T)", "docker compose exec -T "),
    (r"docker compose --profile demo exec ", "docker compose --profile demo exec -T "),
    (r"\blive-trader\b", "trader"),
    (r"run --rm trainer\b", "run --rm demo-trainer trainer"),
    (r"(docker compose (?:exec|run|stop|start|restart)(?: --?\S+)*)"
     r" (redis|trader|notifier|dashboard|itb)\b", r"\1 demo-\2"),
    (r"\bitb_(?:live-)?(journal|models|bus)\b", r"{project}_demo-\1"),
    (r"/journal/live\.journal", "/journal/paper.journal"),
    (r"docker compose", "{compose}"),
    (r"docker build ", "docker build --build-arg BASE={base} "),
    (r"> deploy/config/config.json", "> config.json"),
)  # fmt: skip


def in_the_demo(text: str, *, compose: str, project: str, base: str) -> str:
    """A command of containers for the demo of docker-compose.yml under that project's name."""
    for pattern, new in _IN_THE_DEMO:
        text = re.sub(pattern, new, text)
    words = {"{compose}": compose, "{project}": project, "{base}": base}
    return re.sub(r"\{(compose|project|base)\}", lambda found: words[found[0]], text)


_PLAYED = (
    ("BTCUSDT-1m-1735689540000", "{signal}"),
    ("20261127T175734Z-0491dd9d", "{release}"),
    ("2026-11-01", "{first}"),
    ("2026-11-07T23:59", "{last}"),
)
_HOLDS = '"lost": 0, "doubled": 0'  # what a demo prints at its end
_REAL_EXCHANGE = "trades on the exchange's live prices, which need the internet"
_REAL_KEYS = "needs keys of the real exchange, and the internet"
_CLUSTER = "needs a Kubernetes cluster; tests/deploy/test_kubernetes.py holds the manifests"
_ITB = r"(\.venv/bin/)?itb"

RULES = (
    Rule(how=How.TUTORIAL, pages=("tutorial.md",), pattern=".*"),
    # -- the demo, and what one sees in it ------------------------------------------------------
    Rule(how=How.LOCAL, pattern="itb demo --hold", until=_HOLDS,
         changes=(("--hold", "--hold --bars 120 --speed max"),)),
    Rule(how=How.LOCAL, pattern='make demo ARGS="--hold"', until=_HOLDS,
         changes=(('--hold"', '--hold --bars 120 --speed max"'),)),
    Rule(how=How.LOCAL, pattern='make demo ARGS="--data ETHUSDT-15m.*--hold"', until=_HOLDS,
         changes=(('--hold"', '--hold --speed max"'),)),
    Rule(how=How.LOCAL, pattern='make demo ARGS="--data BTCUSDT-1m-2024.*"'),
    Rule(how=How.LOCAL, pattern="make demo",
         changes=(("make demo", 'make demo ARGS="--bars 120 --speed max"'),)),
    Rule(how=How.LOCAL, pattern=_ITB + r" tail [^ ]+", until=r"(signal|parity):\{BTCUSDT\}:1m"),
    Rule(how=How.LOCAL, changes=_PLAYED,
         pattern=_ITB + " (streams|tail|explain|replay|drift|outcomes|record)( .*)?"),
    Rule(how=How.LOCAL, pattern="redis-cli XREVRANGE .*",
         changes=(("redis-cli", "redis-cli -p {bus}"),)),
    Rule(how=How.LOCAL, pages=("record.md",), pattern="while .*",
         never="changed|does not follow|command not found"),
    Rule(how=How.LOCAL, pattern="itb ready predictor"),
    Rule(how=How.LOCAL, pattern=r"echo \$\?"),
    Rule(how=How.LOCAL, pages=("trading.md", "operations.md"),
         pattern="itb (halt|halt --reduce-only|flatten|resume|resume --new-account)"),
    Rule(how=How.LOCAL, pattern="itb (backup|restore) bus.tar"),
    # -- the live system, on the simulator's market ---------------------------------------------
    Rule(how=How.LOCAL, pattern=_ITB + " init", changes=(("init", "init new.json"),)),
    Rule(how=How.LOCAL, pattern=_ITB + " doctor -c config.json"),
    Rule(how=How.LOCAL, pattern=_ITB + " up -c config.json", until=r"close [\d.]+ [+-]0",
         changes=(("up ", "up --redis-port {port} "),)),
    Rule(how=How.LOCAL, pattern="python -m dashboard -c config.json", until="port {dashboard}"),
    Rule(how=How.LOCAL, pattern="itb dashboard-password .*", stdin="a long password\n"),
    Rule(how=How.LOCAL, pattern="python -m (auditor|collector) -c config.json",
         until="port {port}", changes=(("python", "ITB_METRICS_PORT={port} python"),)),
    Rule(how=How.LOCAL, pattern="python -m simulator( .*)?", until="simulator ready at .*:{port}",
         changes=(("--port 8290", ""), ("simulator", "simulator --port {port}"))),
    # -- training -------------------------------------------------------------------------------
    # Two releases that have not seen the last days: one is live, the other one challenges it.
    Rule(how=How.LOCAL, pattern="python -m trainer promote .* --challenge",
         before="python -m trainer train -c config.json --until {split} --promote && "
                "ITB_TRAINER__SEED=2 python -m trainer train -c config.json --until {split}"),
    Rule(how=How.LOCAL, pattern="python -m trainer .*"),
    Rule(how=How.NOT_HERE, pattern="python -m benchmarks.*", reason="measures for minutes"),
    Rule(how=How.NOT_HERE, pattern=".* pip install .*", reason="fetches gigabytes of PyTorch"),
    # -- files ----------------------------------------------------------------------------------
    Rule(how=How.LOCAL, pattern="python -m deploy.keys --folder keys"),
    Rule(how=How.LOCAL, pattern="(mkdir -p secrets && )?printf .* > secrets/.*"),
    Rule(how=How.LOCAL, pattern="sudo chown .* secrets/.* && sudo chmod .*"),
    Rule(how=How.LOCAL, pattern="sed -i .* .env"),
    Rule(how=How.LOCAL, pattern="echo ITB_TRADER__MODE=live >> .env"),
    Rule(how=How.LOCAL, pattern="git update-index --skip-worktree .env"),
    # -- containers -----------------------------------------------------------------------------
    Rule(how=How.DOCKER, pattern="docker compose --profile demo .*"),
    Rule(how=How.DOCKER, pattern="docker compose run --rm (--no-deps -T )?(itb|trainer) .*"),
    Rule(how=How.DOCKER, pattern="docker compose ps"),
    Rule(how=How.DOCKER, pages=("drift.md",), pattern="ITB_IMAGE=itb:trainer docker compose .*"),
    Rule(how=How.DOCKER, pages=("operations.md",), pattern="docker .*"),
    Rule(how=How.DOCKER, pages=("run.md",), pattern="docker (compose )?build.*"),
    Rule(how=How.NOT_HERE, pages=("monitoring.md",), pattern="docker compose up -d",
         reason="Grafana's and Prometheus' images come from a registry on the internet"),
    Rule(how=How.NOT_HERE, pages=("run.md", "README.md"), pattern="docker compose up -d",
         reason=_REAL_EXCHANGE),
    Rule(how=How.NOT_HERE, pages=("run.md",), pattern="docker compose (down|logs .*)",
         reason=_REAL_KEYS),
    Rule(how=How.NOT_HERE, pattern="git pull", reason="needs the repository's own server"),
    Rule(how=How.NOT_HERE, pages=("kubernetes.md",), pattern="docker build .* docker push .*",
         reason="needs a registry to push to; tests/docker builds the image"),
    Rule(how=How.NOT_HERE, pages=("kubernetes.md",), pattern="(kubectl|for user in).*",
         reason=_CLUSTER),
    # -- the suites -----------------------------------------------------------------------------
    Rule(how=How.NOT_HERE, pattern="make test", reason="is what runs this test"),
    Rule(how=How.NOT_HERE, pattern=".*make chaos.*",
         reason="takes ten minutes or hours; CI runs `make chaos` by itself"),
)  # fmt: skip
