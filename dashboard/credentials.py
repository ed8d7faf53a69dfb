"""What opens the page: a password, kept as its scrypt hash, or a token, both in files of their own.

Secrets are compared in constant time and held in memory only as hashes.
"""

import base64
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from dashboard.guard import is_loopback
from shared.config import Settings
from shared.errors import Usage

MIN_PASSWORD = 10
MIN_TOKEN = 24
LONGEST = 1_024
# RFC 7914: 32 MiB and about a tenth of a second for each attempt.
_COST = (1 << 15, 8, 1)
_MOST_MEMORY = 256 << 20
_REMEDY = (
    "set dashboard.password_file to a file that `itb dashboard-password FILE` wrote, or "
    "dashboard.token_file to one in which a token is to be made"
)


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """What a password file holds: `scrypt$n$r$p$salt$digest`, the last two in base64."""

    n: int
    r: int
    p: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, password: str, *, cost: tuple[int, int, int] = _COST) -> "PasswordHash":
        """
        Raises:
            Usage: the password is too short or too long.
        """
        if not MIN_PASSWORD <= len(password) <= LONGEST:
            raise Usage(f"a password has {MIN_PASSWORD} to {LONGEST} characters")
        salt = secrets.token_bytes(16)
        return cls(*cost, salt, _scrypt(password, salt, *cost))

    @classmethod
    def parse(cls, text: str) -> "PasswordHash":
        """
        Raises:
            ValueError: it is no such line, or asks for more memory than we give.
        """
        kind, n, r, p, salt, digest = text.strip().split("$")
        found = cls(int(n), int(r), int(p), _bytes(salt), _bytes(digest))
        is_power = found.n > 1 and found.n & (found.n - 1) == 0
        if kind != "scrypt" or not (is_power and 0 < found.r <= 32 and 0 < found.p <= 16):
            raise ValueError("not scrypt, or not its parameters")
        if 128 * found.n * found.r >= _MOST_MEMORY or len(found.salt) < 8 or len(found.digest) < 16:
            raise ValueError("sizes")
        return found

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode() for part in (self.salt, self.digest))
        return f"scrypt${self.n}${self.r}${self.p}${salt}${digest}"

    def is_of(self, password: str) -> bool:
        """Blocks for a tenth of a second and takes 32 MiB, on purpose."""
        made = _scrypt(password, self.salt, self.n, self.r, self.p)
        return hmac.compare_digest(made, self.digest)


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MOST_MEMORY)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A password's hash, a token's hash, or both: either will do."""

    password: PasswordHash | None = None
    token_sha256: bytes | None = field(default=None, repr=False)

    @property
    def are_set(self) -> bool:
        return self.password is not None or self.token_sha256 is not None

    def accept(self, text: str) -> bool:
        """Whether `text` is the password or the token. Blocks, see `PasswordHash.is_of`."""
        if len(text) > LONGEST:
            return False
        try:
            content = text.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            return False
        by_token = self.token_sha256 is not None and hmac.compare_digest(
            hashlib.sha256(content).digest(), self.token_sha256
        )
        return by_token or (self.password is not None and self.password.is_of(text))


def read_credentials(settings: Settings) -> Credentials:
    """What the config names; a token file that is not there yet is made.

    Raises:
        Usage: a file cannot be read or holds something else; without a login the page would be open
            to other machines, or could change something.
    """
    config = settings.dashboard
    password = None
    if config.password_file is not None:
        try:
            password = PasswordHash.parse(_read("dashboard.password_file", config.password_file))
        except ValueError:
            raise Usage(
                f"dashboard.password_file: {config.password_file} holds no password hash; `itb "
                f"dashboard-password {config.password_file}` writes one"
            ) from None
    token_sha256 = None
    if config.token_file is not None:
        token_sha256 = hashlib.sha256(_token(config.token_file).encode()).digest()
    found = Credentials(password, token_sha256)
    if not found.are_set and config.control:
        raise Usage(f"dashboard.control needs a login: {_REMEDY}")
    if not found.are_set and not is_loopback(config.host):
        raise Usage(f"dashboard.host {config.host} is open to other machines: {_REMEDY}")
    return found


def _read(key: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Usage(f"{key}: cannot read {path}: {reason}") from None


def _token(path: Path) -> str:
    """The token in `path`; a new one where there is no such file."""
    try:
        with _created(path) as file:
            token = secrets.token_urlsafe(32)
            file.write(f"{token}\n")
            return token
    except FileExistsError:
        token = _read("dashboard.token_file", path)
    except OSError as error:
        raise Usage(f"dashboard.token_file: cannot write {path}: {error.strerror}") from None
    if not MIN_TOKEN <= len(token) <= LONGEST:
        raise Usage(
            f"dashboard.token_file: the token in {path} needs {MIN_TOKEN} to {LONGEST} characters; "
            "delete the file, and a good one is made"
        )
    return token


def write_password(path: Path, password: PasswordHash) -> None:
    """Writes a password file that only its owner can read, in place of one that is there.

    Raises:
        Usage: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with _created(fresh) as file:
            file.write(f"{password}\n")
        fresh.replace(path)
    except OSError as error:
        raise Usage(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        fresh.unlink(missing_ok=True)


def _created(path: Path) -> TextIO:
    """A new file that only its owner can read, open for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8")
