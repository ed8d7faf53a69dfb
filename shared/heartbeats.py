"""The heartbeats that services leave on the bus, as others read them."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from shared.bus import Bus
from shared.streams import health_key

log = logging.getLogger(__name__)
_KEYS = health_key("*", "*")
_PREFIX = _KEYS.partition("*")[0]


async def heartbeats(bus: Bus) -> dict[str, dict[str, Any]]:
    """Last heartbeat per service instance (`service:instance`) that is alive. What is none, since
    somebody else wrote it, is logged and left out."""
    found: dict[str, dict[str, Any]] = {}
    for key in await bus.keys(_KEYS):
        text = await bus.get(key)
        if text is None:
            continue  # its time to live has just ended
        try:
            beat = json.loads(text)
        except ValueError:
            beat = None
        if isinstance(beat, dict):
            found[key.removeprefix(_PREFIX)] = beat
        else:
            log.warning("a heartbeat cannot be read", extra={"key": key})
    return found


def trading(beats: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The heartbeat of the trader that trades, of those that `heartbeats` found: one that stands by
    tells of no switch. None where there is no trader at all."""
    traders = [beat for name, beat in sorted(beats.items()) if name.partition(":")[0] == "trader"]
    return max(traders, key=lambda beat: "switch" in beat, default=None)
