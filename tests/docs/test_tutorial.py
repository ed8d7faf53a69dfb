"""The tutorial, command by command, as a person types it, in an empty folder."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_tutorial_works(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
    environment["PYTHONPATH"] = str(ROOT)
    ran: list[str] = []
    running: subprocess.Popen[bytes] | None = None
    for language, title, block in re.findall(
        r"```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)```|Ctrl-C", TUTORIAL, re.DOTALL
    ):
        if title:
            (tmp_path / title).write_text(block, encoding="utf-8")
            continue
        if not language:  # the words Ctrl-C
            assert running is not None
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=60)
            running = None
            continue
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["make", "demo"]:
                words = ["itb", "demo", *shlex.split(words[2].removeprefix("ARGS="))]
            words[0] = str(BIN / words[0].removeprefix(".venv/bin/"))
            if "--hold" in words:
                running = subprocess.Popen(
                    words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE
                )
                _until_it_holds(running)
            else:
                done = subprocess.run(
                    words, cwd=tmp_path, env=environment, capture_output=True, check=False
                )
                # `doctor` says with 1 that there is no internet here.
                is_doctor = "doctor" in words and done.returncode == 1
                assert done.returncode == 0 or is_doctor, done.stderr.decode()[-2000:]
            ran.append(line)
    assert running is None
    assert len(ran) >= 15
    assert (tmp_path / "mine/models/current/report.html").is_file()


def _until_it_holds(demo: subprocess.Popen[bytes]) -> None:
    """The line of JSON is the last that a demo prints before it holds."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith(b"{"):
            assert b'"lost": 0, "doubled": 0' in line
            return
    raise AssertionError("the demo ended")
