"""No secret is in the repository: shapes of keys and tokens in every file that git knows."""

import re
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SHAPES = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}"),
    "a Telegram token": re.compile(rb"(?<![\w:])\d{8,10}:AA[A-Za-z0-9_-]{33}(?![\w-])"),
    "an AWS key": re.compile(rb"(?<![A-Z0-9])AKIA[A-Z0-9]{16}(?![A-Z0-9])"),
    "a GitHub token": re.compile(rb"gh[pousr]_[A-Za-z0-9]{36}"),
    "a Binance key": re.compile(
        rb"(?i)(?:api_?key|api_?secret)[\"']?\s*[:=]\s*[\"'][A-Za-z0-9]{64}[\"']"
    ),
}
# Examples of the exchange's documentation, and marks that tests look for afterwards.
_KNOWN = re.compile(
    rb"(?i)canary|example|vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
    rb"|NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
)


def _tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("this is no git repository")
    return [_ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_holds_a_secret() -> None:
    files = [path for path in _tracked() if path.is_file()]
    assert len(files) > 100
    found = []
    for path in files:
        for line in path.read_bytes().splitlines():
            if len(line) > 4096 or _KNOWN.search(line):
                continue
            found += [f"{path}: {name}" for name, shape in _SHAPES.items() if shape.search(line)]
    assert not found


def test_the_scan_finds_what_it_is_for() -> None:
    token = b"123456789:AA" + b"b" * 33
    key = b'api_key = "' + b"q" * 64 + b'"'
    assert _SHAPES["a Telegram token"].search(token)
    assert _SHAPES["a Binance key"].search(key)


def test_no_program_connects_without_the_password() -> None:
    """`settings.redis_url` has no password in it: what connects takes `bus_url`."""
    places = [p for p in _tracked() if p.suffix == ".py" and p.parts[len(_ROOT.parts)] != "tests"]
    wrong = [
        path
        for path in places
        if path.name != "config.py"
        and re.search(r"settings\.redis_url|\)\.redis_url", path.read_text())
    ]
    assert not wrong
