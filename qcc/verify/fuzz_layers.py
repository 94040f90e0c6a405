"""Shrinking of one failing convolution or matrix product: no residual, one group, one output channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from qcc.ir.graph import Op, Value, constant, constants, live
from qcc.ir.opset import OPSET
from qcc.ir.types import BATCH
from qcc.verify.fuzz_case import Case

Array = NDArray[Any]


def simpler_layers(case: Case) -> Iterator[Case]:
    """Simpler versions of a case whose last operation, a layer over graph inputs, makes its only output."""
    last = case.graph.ops[-1] if case.graph.ops else None
    if last is None or last.kind not in ("iconv2d", "idense") or case.graph.outputs != (last.result,):
        return
    known = {v.name for v in case.graph.inputs} | constants(case.graph).keys()
    if not all(v.name in known for v in last.operands):
        return
    if len(last.operands) == 6:
        yield _rebuilt(case, replace(last, operands=last.operands[:4]), {}, {})
    channels, groups = last.operands[1].type.shape[0], groups_of(last)
    if groups > 1:
        for g in range(groups):
            yield _part(case, last, g, channels // groups, one_group=True)
    elif channels > 1:
        for channel in range(channels):
            yield _part(case, last, channel, 1, one_group=False)


def groups_of(o: Op) -> int:
    return o.int_attr("groups") if o.kind == "iconv2d" else 1


def _part(case: Case, last: Op, index: int, size: int, *, one_group: bool) -> Case:
    """The layer with ``size`` output channels from ``index * size`` on, and the inputs of their group."""
    rows = slice(index * size, (index + 1) * size)
    axis = 1 if last.kind == "iconv2d" else last.result.type.rank - 1
    depth = last.operands[1].type.shape[1]
    arrays: dict[str, Array] = {}
    cuts: dict[str, tuple[int, slice]] = {}
    for slot, v in enumerate(last.operands):
        if slot == 0:
            if one_group:
                cuts[v.name] = (axis, slice(index * depth, (index + 1) * depth))
        elif slot == 4:
            cuts[v.name] = (axis, rows)
        else:
            whole = constants(case.graph)[v.name]
            arrays[v.name] = whole[rows] if len(whole) == last.operands[1].type.shape[0] else whole
    attrs = MappingProxyType({**last.attrs, "groups": 1}) if one_group else last.attrs
    return _rebuilt(case, replace(last, attrs=attrs), arrays, cuts)


def _rebuilt(case: Case, last: Op, arrays: dict[str, Array], cuts: dict[str, tuple[int, slice]]) -> Case:
    """The case with these constants in place of others, and these parts of its inputs."""
    env: dict[str, Value] = {}
    ops: list[Op] = []
    inputs: dict[str, Array] = {}
    stored = constants(case.graph)
    for v in dict.fromkeys(last.operands):
        if v.name in stored:
            array = arrays.get(v.name, stored[v.name])
            quant = v.type.quant
            if quant is not None and quant.axis == 0:
                quant = replace(quant, scale=quant.scale[: len(array)])
            ops.append(constant(v.name, array, quant=quant))
            env[v.name] = ops[-1].result
        else:
            axis, part = cuts.get(v.name, (0, slice(None)))
            inputs[v.name] = case.inputs[v.name][(slice(None),) * axis + (part,)]
            batched = v.type.shape[:1] == (BATCH,)
            shape = inputs[v.name].shape
            env[v.name] = v.typed(shape=(BATCH, *shape[1:]) if batched else shape)
    made = replace(last, operands=tuple(env[v.name] for v in last.operands))
    result = last.result.typed(shape=OPSET[last.kind].shape(made))
    ops.append(replace(made, results=(result,)))
    graph = replace(case.graph, inputs=tuple(env[name] for name in inputs), ops=live(ops, [result]), outputs=(result,))
    return replace(case, graph=graph, inputs=inputs)
