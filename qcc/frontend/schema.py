"""What the ONNX standard says about a node's form, checked before any converter reads it."""

from __future__ import annotations

from onnx import NodeProto, defs

from qcc.errors import ModelError
from qcc.frontend.node import label


def check_form(proto: NodeProto, opset: int) -> None:
    """Raise ModelError unless the node has the attributes, inputs and outputs that ``opset`` allows.

    An attribute that this opset does not know may change what the node means: ignoring it would
    give wrong numbers, so it is an error, as it is in onnxruntime.
    """
    name = label(proto)
    try:
        schema = defs.get_schema(proto.op_type, opset, "")
    except defs.SchemaError:
        raise ModelError(f"{name}: opset {opset} has no such operation") from None
    if schema.deprecated:
        raise ModelError(f"{name}: opset {opset} has this operation no more")
    known = set(schema.attributes)
    given = [a.name for a in proto.attribute]
    if unknown := sorted(set(given) - known):
        raise ModelError(f"{name}: opset {opset} knows no attribute '{unknown[0]}' of it")
    if len(set(given)) != len(given):
        raise ModelError(f"{name}: an attribute is given twice")
    if not schema.min_input <= len(proto.input) <= schema.max_input:
        raise ModelError(f"{name}: has {len(proto.input)} inputs")
    if not schema.min_output <= len(proto.output) <= schema.max_output:
        raise ModelError(f"{name}: has {len(proto.output)} outputs")
