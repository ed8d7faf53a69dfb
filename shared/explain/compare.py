"""Whether two events have the same bits, and where they first differ."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from shared.events import Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """stage: `feature`, `prediction` or `signal`. field: of its event, of a feature vector the
    feature's name, of outputs the model's. bus, recomputed: as text, floats with all their bits."""

    stage: str
    field: str
    bus: str
    recomputed: str

    def __str__(self) -> str:
        return f"{self.stage} {self.field}: {self.bus} on the bus, {self.recomputed} recomputed"


def difference(stage: str, bus: Any, recomputed: Any, names: Sequence[str]) -> Difference | None:
    """The first field in which two events of one kind differ, None where all bits are equal.

    bus: None where there is no such entry. names: of the features, in order.
    """
    if bus is None:
        return Difference(stage=stage, field="entry", bus="absent", recomputed="there")
    for one in fields(recomputed):
        left, right = getattr(bus, one.name), getattr(recomputed, one.name)
        if one.name == "values" and isinstance(recomputed, Feature):
            if (found := _of_values(stage, left, right, names)) is not None:
                return found
        elif isinstance(left, dict) and isinstance(right, dict):
            if (found := _of_outputs(stage, left, right)) is not None:
                return found
        elif _bits(left) != _bits(right):
            return Difference(stage=stage, field=one.name, bus=_text(left), recomputed=_text(right))
    return None


def _of_values(stage: str, left: bytes, right: bytes, names: Sequence[str]) -> Difference | None:
    if left == right:
        return None
    if len(left) != len(right) or len(left) % 8:
        return Difference(
            stage=stage,
            field="values",
            bus=f"{len(left)} bytes",
            recomputed=f"{len(right)} bytes",
        )
    one, two = np.frombuffer(left, "<u8"), np.frombuffer(right, "<u8")
    at = int((one != two).argmax())
    return Difference(
        stage=stage,
        field=names[at] if at < len(names) else f"values[{at}]",
        bus=_text(float(one.view("<f8")[at])),
        recomputed=_text(float(two.view("<f8")[at])),
    )


def _of_outputs(
    stage: str, left: Mapping[str, float], right: Mapping[str, float]
) -> Difference | None:
    for name in [*right, *(n for n in left if n not in right)]:
        one, two = left.get(name), right.get(name)
        if _bits(one) != _bits(two):
            return Difference(stage=stage, field=name, bus=_text(one), recomputed=_text(two))
    return None


def _bits(value: Any) -> Any:
    """What is compared: of a float its bits, so that NaN equals itself and 0.0 is not -0.0."""
    return struct.pack("<d", value) if isinstance(value, float) else value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value!r} ({struct.pack('>d', value).hex()})"
    return repr(value) if isinstance(value, str) else str(value)
