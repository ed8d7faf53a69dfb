"""Who may do what on the bus: one user of the server per service, with just its commands and keys.

The grants are made from the streams themselves (shared/streams.py), so they cannot drift from them;
tests/security tries every one against a server. `python -m deploy.keys` writes them with passwords.

A consumer needs more than reading on its input (a group is part of the stream), so it is given the
group's commands there and no others: it cannot add to, trim or delete what it reads.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from notifier.chats import preferences_key, updates_key
from shared.control import CONTROL_KEY
from shared.streams import (
    ALERT,
    DAILY,
    DEPTH,
    DRIFT,
    FEATURE,
    FUNDING,
    FUTURES_KLINE,
    KLINE,
    NOTICE,
    NOTIFICATION,
    ORDER,
    OUTCOME,
    PARITY,
    PREDICTION,
    RECORD,
    SIGNAL,
    STREAMS,
    WATCHED_KEY,
    Stream,
    dead_letters,
    health_key,
    intent_key,
    of_chat,
    schema_key,
)

Streams = Sequence[Stream[Any]]

ADMIN = "admin"
READER = "itb"

# Of every session: no key is named in these.
_SESSION = (
    "+ping +multi +exec +info +waitaof +client|id +client|list +client|setname +cluster|slots"
)
_LOOK = "+xrange +xrevrange +xread +xlen +xinfo|groups +xinfo|stream"
_CONSUME = "+xreadgroup +xack +xpending +xclaim +xautoclaim +xgroup|create +xgroup|destroy"
_WRITE = "+xadd +xtrim +del"
_PUT = "+get +set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """consumes: by a group of its own. writes: adds to and trims. looks: reads as everybody can.

    puts, gets: patterns of plain keys. scans: may list the names of keys.
    """

    consumes: Streams = ()
    writes: Streams = ()
    looks: Streams = ()
    puts: Sequence[str] = ()
    gets: Sequence[str] = ()
    scans: bool = False


_MESSAGES = (NOTIFICATION, ALERT, DAILY)
ACCESS: Mapping[str, Access] = {
    "collector": Access(
        writes=(KLINE, FUTURES_KLINE, DEPTH, FUNDING),
        looks=(FEATURE, PREDICTION, SIGNAL),  # how far the others are
    ),
    "featurizer": Access(
        consumes=(KLINE,),
        writes=(FEATURE,),
        looks=(FUTURES_KLINE, DEPTH),
        puts=(schema_key("*"),),
    ),
    "predictor": Access(consumes=(FEATURE,), writes=(PREDICTION, SIGNAL), looks=(KLINE,)),
    "notifier": Access(
        consumes=(SIGNAL, NOTICE),
        writes=(*_MESSAGES, *(of_chat(stream, "*") for stream in _MESSAGES)),
        looks=(*STREAMS, dead_letters("*")),
        puts=(WATCHED_KEY, preferences_key("*"), updates_key("*"), CONTROL_KEY),
        gets=(health_key("*", "*"), schema_key("*")),  # the latter for /why
        scans=True,
    ),
    "trader": Access(
        consumes=(SIGNAL,),
        writes=(ORDER,),
        looks=(KLINE,),
        puts=(intent_key("*", "*"), CONTROL_KEY),
    ),
    "dashboard": Access(
        looks=(*STREAMS, dead_letters("*")),
        puts=(CONTROL_KEY,),
        gets=(health_key("*", "*"), schema_key("*")),
        scans=True,
    ),
    "auditor": Access(
        writes=(RECORD, PARITY, DRIFT, OUTCOME),
        looks=(KLINE, FUTURES_KLINE, DEPTH, FEATURE, PREDICTION, SIGNAL),
        gets=(schema_key("*"),),
    ),
}
# What a person with the `itb` command or redis-cli reads with: everything, and nothing else.
_READER = "%R~* -@all +@read +@connection +info +xinfo|help +acl|whoami -client|kill -client|pause"
USERS = (*ACCESS, READER, ADMIN)


def grants(service: str) -> str:
    """The rules of a service's user, as `ACL SETUSER` takes them, without its password."""
    return " ".join(_rules(service, ACCESS[service]))


def acl_file(passwords: Mapping[str, str]) -> str:
    """The server's ACL file: a line per user with the sha256 of its password. Nobody else gets in.

    passwords: of every user in USERS.
    """
    lines = ["user default off resetchannels -@all"]
    rules = {name: f"resetchannels -@all {grants(name)}" for name in ACCESS}
    rules[READER] = f"resetchannels {_READER}"
    rules[ADMIN] = "~* &* +@all"
    for name in USERS:
        digest = hashlib.sha256(passwords[name].encode()).hexdigest()
        lines.append(f"user {name} on #{digest} {rules[name]}")
    return "\n".join(lines) + "\n"


def _rules(service: str, access: Access) -> Iterator[str]:
    yield _SESSION
    if access.scans:
        yield "+scan"
    # Everybody tells people something, and keeps what it could not process.
    dead = [dead_letters(_pattern(stream)) for stream in access.consumes]
    writes: list[Stream[Any]] = [*access.writes, NOTICE, *dead]
    looks = {*map(_pattern, (*access.looks, *access.consumes, *writes))}
    yield f"({_LOOK} {_keys(looks, '%R~')})"
    yield f"({_WRITE} {_keys(map(_pattern, writes), '~')})"
    yield f"(+xpending {_keys(map(_pattern, writes), '%R~')})"
    if access.consumes:
        yield f"({_CONSUME} {_keys(map(_pattern, access.consumes), '~')})"
    own = (health_key(service, "*"), *access.puts)
    yield f"({_PUT} {_keys(own, '~')})"
    if access.gets:
        yield f"(+get {_keys(access.gets, '%R~')})"


def _pattern(stream: Stream[Any]) -> str:
    return stream.key("*", "*")


def _keys(patterns: Any, kind: str) -> str:
    return " ".join(f"{kind}{pattern}" for pattern in sorted(patterns))
