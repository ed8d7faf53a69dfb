"""One connection to the Redis-protocol server: commands out in one write, replies back in order.

redis-py's `Connection` does the connecting, authentication, TLS and parsing; its client classes
are left out because they retry silently and cost more than the server does.
"""

import asyncio
import math
from typing import Any

import hiredis
from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.errors import Failure, OutOfSync, Unavailable, Usage

Command = tuple[Any, ...]  # of str, bytes, int and float
_TIMEOUT_S = 5.0
# The server is there but cannot serve now: back off, say so, try again (FAULTS R6).
_BUSY = frozenset(
    (
        "OOM", "MISCONF", "READONLY", "LOADING", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "BUSY",
        "MOVED", "ASK",
    )
)  # fmt: skip
# What we believed of the streams is gone: rebuild (FAULTS R6).
_LOST = frozenset(("NOGROUP", "UNBLOCKED", "WRONGTYPE"))


class Link:
    """A single connection. Not retried, not pooled: an error closes it and its owner rebuilds."""

    def __init__(self, url: str, *, name: str, timeout_s: float = _TIMEOUT_S) -> None:
        try:
            options: dict[str, Any] = dict(redis_connection.parse_url(url))
            kind = options.pop("connection_class", redis_connection.Connection)
            self._connection = kind(
                **options,
                protocol=2,
                socket_timeout=None,  # `call` bounds sending and receiving as a whole (FAULTS R5)
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                client_name=name,
                driver_info=None,
            )
        except (ValueError, TypeError) as error:
            raise Usage(f"redis_url: {error}") from None
        self.timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._open = False

    async def connect(self) -> None:
        """Raises: Unavailable; Failure where the server refuses our user or password."""
        try:
            await self._connection.connect()
        except (AuthenticationError, NoPermissionError) as error:
            await self.close()
            raise Failure(f"Redis refuses us: {error}; check the user in redis_url") from None
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise Unavailable(f"Redis is not reachable: {error}") from None
        self._open = True

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def home(self) -> "Link":
        """Where to ask who else works (of a cluster: one node)."""
        return self

    @property
    def nodes(self) -> list["Link"]:
        return [self]

    async def close(self) -> None:
        self._open = False
        await self._connection.disconnect(nowait=True)

    async def call(self, *commands: Command, wait_s: float = 0.0) -> list[Any]:
        """Replies of all commands, in order; a server error is a value (`ResponseError`).

        wait_s: how long the server itself may block before it answers.

        Raises:
            Unavailable: no or no whole reply; what was sent may or may not have been done.
        """
        async with self._lock:
            if not self._open:  # redis-py would connect again, silently
                raise Unavailable("Redis connection is closed")
            try:
                async with asyncio.timeout(self.timeout_s + wait_s):
                    packed = b"".join([hiredis.pack_command(command) for command in commands])
                    await self._connection.send_packed_command(packed, check_health=False)
                    return [await self._reply() for _ in commands]
            except (RedisConnectionError, OSError, TimeoutError) as error:
                await self.close()
                raise Unavailable(f"Redis does not answer: {str(error) or 'timeout'}") from None
            except BaseException:
                await self.close()  # a reply may still be under way: never reuse the connection
                raise

    async def one(self, *command: str | bytes | int | float, wait_s: float = 0.0) -> Any:
        """The reply of one command.

        Raises:
            Unavailable, OutOfSync, Failure: by the server's error (see `check`).
        """
        return check((await self.call(command, wait_s=wait_s))[0])

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(timeout=math.inf, disable_decoding=True)
        except RedisConnectionError:
            raise  # also a ResponseError in some classes
        except ResponseError as error:
            return error


def error_code(error: Exception) -> str:
    """`OOM`, `NOGROUP`, `ERR` ...: redis-py keeps the code apart where it knows it."""
    return str(getattr(error, "status_code", None) or str(error).split(" ", 1)[0])


def check(reply: Any) -> Any:
    """A reply, or its error by what the caller does about it."""
    if not isinstance(reply, Exception):
        return reply
    code = error_code(reply)
    text = str(reply) if str(reply).startswith(code) else f"{code} {reply}"
    if code in _BUSY or (code == "EXECABORT"):
        raise Unavailable(f"Redis cannot serve now: {text}")
    if code in _LOST:
        raise OutOfSync(f"Redis lost what we knew: {text}")
    if isinstance(reply, NoPermissionError | AuthenticationError):
        raise Failure(f"Redis refuses: {text}; check the user's ACL")
    raise Failure(f"Redis: {text}")
