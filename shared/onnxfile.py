"""ONNX files as they lie on disk: the protobuf walked field by field, no library needed.

Live services run graphs but have no `onnx` package. `fields` walks any message; `read_graph` gives
a graph's nodes and constants to whoever wants to know what a model holds. Field numbers are those
of onnx.proto (ONNX 1.23, IR version 10).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput

Message = memoryview
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 11: "<f8"}
_INTS_TAG = 8 << 3  # AttributeProto.ints, one varint each
_MINUS = 1 << 63


def fields(content: "bytes | Message") -> Iterator[tuple[int, "int | Message"]]:
    """Fields of a protobuf message: (number, int or bytes); fixed-width numbers count as 0.

    Raises:
        BadInput: it is no protobuf message, or is cut short.
    """
    view = memoryview(content)
    place, end = 0, len(view)
    while place < end:
        key, place = _varint(view, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(view, place)
            yield number, value
        elif kind == 2:
            size, place = _varint(view, place)
            if place + size > end:
                raise BadInput("it is cut short")
            yield number, view[place : place + size]
            place += size
        elif kind in {1, 5}:
            place += 8 if kind == 1 else 4
            if place > end:
                raise BadInput("it is cut short")
            yield number, 0
        else:
            raise BadInput("it is no ONNX model (unknown wire type)")


def message(value: "int | Message") -> Message:
    """A field that must hold bytes."""
    if isinstance(value, int):
        raise BadInput("it is no ONNX model (a number where a message must be)")
    return value


def text(value: "int | Message") -> str:
    return bytes(message(value)).decode("utf-8", "replace")


def text_of(content: Message, number: int) -> str:
    """The text in a message's field, "" where it has none."""
    for found, value in fields(content):
        if found == number:
            return text(value)
    return ""


def _varint(view: Message, place: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if place >= len(view) or shift > 63:
            raise BadInput("it is cut short")
        byte = view[place]
        place += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, place
        shift += 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One step of a graph. attributes: those that hold whole numbers or a tensor, by name."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes in the order in which they run; constants by name; the file's metadata."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, npt.NDArray[np.generic]]
    metadata: Mapping[str, str]

    def maker(self, name: str) -> Node | None:
        """The node that gives a value, None for an input or a constant."""
        return next((node for node in self.nodes if name in node.outputs), None)

    def takers(self, name: str) -> list[Node]:
        """The nodes that read a value."""
        return [node for node in self.nodes if name in node.inputs]

    def only(self, kind: str) -> Node:
        """
        Raises:
            BadInput: there is not exactly one such node.
        """
        found = [node for node in self.nodes if node.kind == kind]
        if len(found) != 1:
            raise BadInput(f"it has {len(found)} {kind} nodes, not one")
        return found[0]


def read_graph(content: bytes) -> Graph:
    """The graph of an ONNX file.

    Raises:
        BadInput: it is no ONNX model, or holds a tensor of a kind that no model of ours has.
    """
    metadata: dict[str, str] = {}
    graph: Message | None = None
    for number, value in fields(content):
        if number == 7:
            graph = message(value)
        elif number == 14:
            metadata[text_of(message(value), 1)] = text_of(message(value), 2)
    if graph is None:
        raise BadInput("it is no ONNX model")
    nodes: list[Node] = []
    constants: dict[str, npt.NDArray[np.generic]] = {}
    for number, value in fields(graph):
        if number == 1:
            nodes.append(_node(message(value)))
        elif number == 5:
            name, array = _tensor(message(value))
            constants[name] = array
    return Graph(nodes=tuple(nodes), constants=constants, metadata=metadata)


def _node(content: Message) -> Node:
    kind = ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, npt.NDArray[np.generic]] = {}
    for number, value in fields(content):
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            outputs.append(text(value))
        elif number == 4:
            kind = text(value)
        elif number == 5:
            name, array = _attribute(message(value))
            if array is not None:
                attributes[name] = array
    return Node(kind=kind, inputs=tuple(inputs), outputs=tuple(outputs), attributes=attributes)


def _attribute(content: Message) -> tuple[str, npt.NDArray[np.generic] | None]:
    name = ""
    array: npt.NDArray[np.generic] | None = None
    place = 0
    while place < len(content):
        key, after = _varint(content, place)
        if key == _INTS_TAG:  # thousands of them in a tree ensemble: all at once
            array, place = _ints(content, place)
            continue
        number, kind = key >> 3, key & 7
        if kind == 0:
            number_value, place = _varint(content, after)
            if number == 3:
                array = np.array(_signed(number_value))
        elif kind == 2:
            size, start = _varint(content, after)
            place = start + size
            if place > len(content):
                raise BadInput("it is cut short")
            if number == 1:
                name = text(content[start:place])
            elif number == 5:
                _, array = _tensor(content[start:place])
        elif kind in {1, 5}:
            place = after + (8 if kind == 1 else 4)
        else:
            raise BadInput("it is no ONNX model (unknown wire type)")
    return name, array


def _ints(content: Message, place: int) -> tuple[npt.NDArray[np.int64], int]:
    """All `ints` from `place` on, (n,), and where they end.

    The bytes are groups that end in one below 0x80: tag, number, tag, number, ...
    """
    raw = np.frombuffer(content[place:], np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    tags = starts[::2]
    is_tag = (raw[tags] == _INTS_TAG) & (ends[::2] == tags)
    count = len(is_tag) if is_tag.all() else int(is_tag.argmin())
    if count > len(ends) // 2:
        raise BadInput("it is cut short")
    start, end = starts[1::2][:count], ends[1::2][:count]
    values = np.zeros(count, np.uint64)
    for byte in range(int((end - start).max()) + 1 if count else 0):
        here = start + byte <= end
        part = raw[np.minimum(start + byte, end)].astype(np.uint64) & np.uint64(0x7F)
        values[here] |= part[here] << np.uint64(7 * byte)
    return values.view(np.int64), place + int(end[-1]) + 1


def _tensor(content: Message) -> tuple[str, npt.NDArray[np.generic]]:
    shape: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in fields(content):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = text(value)
        elif number == 9:
            raw = message(value)
    if kind not in _DTYPES:
        raise BadInput(f"it holds a tensor of kind {kind}")
    array = np.frombuffer(raw, _DTYPES[kind])
    if array.size != int(np.prod(shape)):
        raise BadInput(f"tensor {name!r} has {array.size} numbers, its shape is {shape}")
    return name, array.reshape(shape)


def _signed(value: int) -> int:
    return value - (1 << 64) if value & _MINUS else value
