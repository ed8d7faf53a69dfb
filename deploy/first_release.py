"""`python -m deploy.first_release`: models from the exchange's history, if there are none.

What a person would type (trainer download, merge, train --promote), once; where a release is live
it does nothing. The demo's containers run it.
"""

import subprocess
import sys
from collections.abc import Sequence

from shared import config
from shared.errors import Failure
from shared.releases import current_id

_COMMANDS: Sequence[Sequence[str]] = (("download",), ("merge",), ("train", "--promote"))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        settings = config.load()
        live = current_id(settings.model_folder)
    except Failure as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if live is not None:
        sys.stderr.write(f"release {live} is live: nothing to train\n")
        return 0
    for command in _COMMANDS:
        line = [sys.executable, "-m", "trainer", *command, *arguments]
        code = subprocess.run(line, check=False).returncode  # noqa: S603  # our own program
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
