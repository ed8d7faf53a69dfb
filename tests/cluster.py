"""A Redis Cluster of three masters for tests, from the same server binary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from tests.valkey import Server, free_port
from tests.waiting import wait_until

_SLOTS = 16_384


class ThreeNodes:
    """`url` is one node's; the others are found from there."""

    def __init__(self, folder: Path) -> None:
        self._bus_ports = [free_port() for _ in range(3)]
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-port")
        self.servers = [
            Server(folder / f"node{n}", *options, str(port))
            for n, port in enumerate(self._bus_ports)
        ]

    @property
    def url(self) -> str:
        return self.servers[0].url

    def start(self) -> "ThreeNodes":
        for server in self.servers:
            server.start()
        first = self.client(0)
        for number, server in enumerate(self.servers):
            bounds = [_SLOTS * n // 3 for n in (number, number + 1)]
            self.client(number).execute_command(
                "CLUSTER", "ADDSLOTSRANGE", bounds[0], bounds[1] - 1
            )
            if number:
                first.execute_command(
                    "CLUSTER", "MEET", "127.0.0.1", server.port, self._bus_ports[number]
                )
        self.until(lambda: all(self._is_whole(n) for n in range(3)), "a whole cluster")
        return self

    def _is_whole(self, number: int) -> bool:
        info = self.client(number).execute_command("CLUSTER", "INFO")
        text = info if isinstance(info, dict) else dict(
            line.split(":") for line in info.decode().split()
        )  # fmt: skip
        return text["cluster_state"] == "ok" and text["cluster_known_nodes"] == "3"

    def until(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(condition, what)

    def client(self, number: int) -> "redis.Redis":
        """A plain client of one node: it follows no redirection."""
        return redis.Redis(port=self.servers[number].port)

    def node_of(self, key: str) -> int:
        slot = self.client(0).execute_command("CLUSTER", "KEYSLOT", key)
        return next(n for n in range(3) if slot < _SLOTS * (n + 1) // 3)

    def on(self, key: str) -> "redis.Redis":
        """The node that has a key."""
        return self.client(self.node_of(key))

    def empty(self) -> None:
        for number in range(3):
            self.client(number).flushall()

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
