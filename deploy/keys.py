"""`python -m deploy.keys [--folder /keys] [--rotate]`: passwords of the bus, and the ACL file.

Every user has a folder of its own, mounted into its container alone: `<folder>/<user>/password`.
The server gets `<folder>/redis/users.acl`, with the hashes of all of them, and the administrator's
password. What is there stays; --rotate makes all passwords new. The grants are always written anew,
so that an upgrade brings its own. Restart the containers afterwards.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.acl import ADMIN, USERS, acl_file
from shared.errors import Failure

SERVER = "redis"
_BYTES = 32


def password_file(folder: Path, user: str) -> Path:
    """Where a user's password is, in the folder that only its container sees."""
    return folder / SERVER / f"{ADMIN}_password" if user == ADMIN else folder / user / "password"


def make(folder: Path, *, rotate: bool = False) -> list[str]:
    """Makes the missing passwords (rotate: all) and the ACL file; the users with new ones.

    Raises:
        Failure: a file cannot be read or written.
    """
    passwords, fresh = {}, []
    try:
        for user in USERS:
            path = password_file(folder, user)
            text = "" if rotate or not path.exists() else path.read_text(encoding="ascii").strip()
            if not text:
                text = secrets.token_urlsafe(_BYTES)
                _write(path, text + "\n")
                fresh.append(user)
            passwords[user] = text
        _write(folder / SERVER / "users.acl", acl_file(passwords))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a password"
        raise Failure(f"{getattr(error, 'filename', folder)}: {reason}") from None
    return fresh


def _write(path: Path, text: str) -> None:
    """Whole or not at all, for nobody else's eyes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.keys", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/keys"), metavar="DIR")
    parser.add_argument("--rotate", action="store_true", help="make all passwords new")
    args = parser.parse_args(argv)
    try:
        fresh = make(args.folder, rotate=args.rotate)
    except Failure as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    told = f"new passwords for {', '.join(fresh)}" if fresh else "all passwords are there"
    sys.stderr.write(f"{args.folder}: {told}; the ACL file is written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
