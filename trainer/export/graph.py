"""A small builder for ONNX graphs: constants are stored once, equal steps are computed once."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPSET = 21
ML_OPSET = 5
IR_VERSION = 10
ML_DOMAIN = "ai.onnx.ml"


class Graph:
    """Nodes in the order in which they were added; values are known by name.

    Names come from a counter and nothing depends on time or hash order: equal calls give equal
    bytes.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._known: dict[bytes, str] = {}
        self._constants: list[onnx.TensorProto] = []
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._uses_ml = False

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Name of a constant tensor."""
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constant_names:
            name = f"c{len(self._constants)}"
            self._constant_names[key] = name
            self._constants.append(numpy_helper.from_array(array, name))
        return self._constant_names[key]

    def add(
        self,
        kind: str,
        *inputs: str,
        outputs: int = 1,
        domain: str = "",
        called: str | None = None,
        **attributes: Any,
    ) -> str:
        """Adds a node and returns the name of its (first) output, `called` if that is given.

        A node with the same inputs and attributes is not added twice, unless `called` names it.
        With `outputs` > 1 the others are called `<first>_1`, `<first>_2`, ...
        """
        first = called or f"v{len(self._nodes)}"
        names = [first, *(f"{first}_{i}" for i in range(1, outputs))]
        node = helper.make_node(kind, list(inputs), names, domain=domain or None, **attributes)
        if called is None:
            same = onnx.NodeProto()
            same.CopyFrom(node)
            del same.output[:]
            key = same.SerializeToString(deterministic=True)
            if key in self._known:
                return self._known[key]
            self._known[key] = first
        self._uses_ml |= domain == ML_DOMAIN
        self._nodes.append(node)
        return first

    def each(self, kind: str, value: str, width: int) -> str:
        """`Exp` or `Log` of each number of a (n, width) double value, the same bits for any n.

        onnxruntime takes two neighbouring doubles at a time by one formula and a number left over
        by another. With an even width no pair reaches into the next row and none is left over.
        """
        if width % 2 == 0:
            return self.add(kind, value)
        last = self.constant([width - 1], np.int64)
        pairs = self.add("Concat", value, self.add("Gather", value, last, axis=1), axis=1)
        own = self.constant(np.arange(width), np.int64)
        return self.add("Gather", self.add(kind, pairs), own, axis=1)

    def exp_alone(self, value: str, width: int) -> str:
        """`Exp` of each number of a (n, width) double value by itself: the C library's own `exp`,
        bit for bit, for any n."""
        number = onnx.TensorProto.DOUBLE
        one = [helper.make_tensor_value_info(name, number, [1]) for name in ("x", "y")]
        body = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "exp", one[:1], one[1:])
        flat = self.add("Reshape", value, self.constant([-1, 1], np.int64))
        found = self.add("Scan", flat, body=body, num_scan_inputs=1)
        return self.add("Reshape", found, self.constant([-1, width], np.int64))

    def cast(self, value: str, dtype: npt.DTypeLike) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", value, to=kind)

    def model(
        self,
        features: int,
        outputs: Mapping[str, Sequence[int | str]],
        metadata: Mapping[str, Any],
    ) -> bytes:
        """The finished model: input `features` (n, features) double, double outputs.

        outputs: name -> shape.
        """
        graph = helper.make_graph(
            self._nodes,
            "itb",
            [helper.make_tensor_value_info("features", onnx.TensorProto.DOUBLE, ["n", features])],
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, list(shape))
                for name, shape in outputs.items()
            ],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self._uses_ml:
            opsets.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))
        model = helper.make_model(
            graph, producer_name="itb", opset_imports=opsets, ir_version=IR_VERSION
        )
        for key, value in metadata.items():
            text = value if isinstance(value, str) else json.dumps(value)
            model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=text))
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))
