"""A TCP proxy in front of Valkey that cuts, freezes, delays, chops and loses what passes."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

_PIECE = 65_536
Match = Callable[[bytes], bool]


def any_request(_: bytes) -> bool:
    return True


def commits(request: bytes) -> bool:
    """A transaction."""
    return b"\r\nEXEC\r\n" in request


def reads(request: bytes) -> bool:
    return b"\r\nXREADGROUP\r\n" in request


@dataclass(slots=True, eq=False)
class Proxy:
    """Faults are attributes that may be set while it runs; connections come and go.

    delay_s: added to each piece, both ways. frozen: bytes are taken in and passed nowhere (a
    half-open link). chop: replies are passed in pieces of so many bytes. bytes_per_s: of replies.
    refuse: new connections are reset.
    """

    upstream_port: int
    port: int = 0
    delay_s: float = 0.0
    frozen: bool = False
    chop: int = 0
    bytes_per_s: int = 0
    refuse: bool = False
    stats: Counter[str] = field(default_factory=Counter)
    _lose: Match | None = None
    _stop_before: Match | None = None
    _half: bool = False
    _links: set["_Link"] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # -- faults ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """Every connection is reset now."""
        for link in list(self._links):
            link.abort()

    def lose_reply(self, match: Match) -> None:
        """The next request that matches takes effect; its reply never arrives."""
        self._lose = match

    def lose_request(self, match: Match) -> None:
        """The next request that matches never arrives."""
        self._stop_before = match

    def cut_inside(self) -> None:
        """Of the next request only one half arrives."""
        self._half = True

    def calm(self) -> None:
        """No fault any more."""
        self.delay_s, self.frozen, self.chop, self.bytes_per_s = 0.0, False, 0, 0
        self.refuse = self._half = False
        self._lose = self._stop_before = None

    # -------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats["connections"] += 1
        if self.refuse:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, up_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(link, reader, up_writer, is_request=True))
                tasks.create_task(self._pump(link, up_reader, writer, is_request=False))
        except* OSError:
            pass
        finally:
            self._links.discard(link)
            link.abort()

    async def _pump(
        self,
        link: "_Link",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_request: bool,
    ) -> None:
        while data := await reader.read(_PIECE):
            while self.frozen and not link.is_cut:  # noqa: ASYNC110  # an attribute is no event
                await asyncio.sleep(0.01)
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if is_request:
                data = self._struck(link, data)
            elif link.loses_reply:
                self.stats["replies lost"] += 1
                link.abort()
            if link.is_cut:
                break
            await self._pass(writer, data, is_request=is_request)
            if link.cuts_after_request and is_request:
                link.abort()
        link.abort()

    def _struck(self, link: "_Link", request: bytes) -> bytes:
        """What of a request goes on, by the faults that wait for one."""
        if self._stop_before is not None and self._stop_before(request):
            self._stop_before = None
            self.stats["requests lost"] += 1
            link.abort()
        elif self._lose is not None and self._lose(request):
            self._lose = None
            link.loses_reply = True
        elif self._half and len(request) > 1:
            self._half = False
            self.stats["requests halved"] += 1
            link.cuts_after_request = True
            return request[: len(request) // 2]
        return request

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes, *, is_request: bool) -> None:
        size = len(data)
        if not is_request and self.chop:
            size = self.chop
        elif not is_request and self.bytes_per_s:
            size = max(1, self.bytes_per_s // 50)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            if size < len(data):
                await asyncio.sleep(0 if self.chop else 0.02)


@dataclass(slots=True, eq=False)
class _Link:
    """One connection through the proxy."""

    down: asyncio.StreamWriter
    up: asyncio.StreamWriter
    is_cut: bool = False
    loses_reply: bool = False
    cuts_after_request: bool = False

    def abort(self) -> None:
        self.is_cut = True
        for writer in (self.down, self.up):
            with contextlib.suppress(OSError, RuntimeError):
                # Half a request must arrive before the end of the connection does.
                if self.cuts_after_request and writer is self.up:
                    writer.close()
                else:
                    writer.transport.abort()
