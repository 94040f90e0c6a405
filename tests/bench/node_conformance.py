"""The ONNX node tests, through ``load_model`` and the reference: ``python tests/bench/node_conformance.py``.

The cases are those that the onnx package generates. Each case of a claimed operation is run in up
to two ways: ``runtime``, where the node's data operands stay graph inputs and its parameters
become initializers, and ``folded``, where everything is an initializer and the importer folds the
node. A case passes when every way that applies gives the expected outputs (rtol 1e-3, atol 1e-5).
"""

# ruff: noqa: T201

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx.backend.test.case.node as case_package
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from qcc.errors import QccError
from qcc.frontend.convert import CONVERTERS
from qcc.frontend.fold import FOLDERS
from qcc.frontend.load import load_model
from qcc.frontend.source import DEFAULT_DOMAINS, MAX_IR, OPSETS
from qcc.verify.interp import evaluate

ALL_DYNAMIC: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "MatMul", "Concat", "Sum", "Mean", "Min", "Max"},
)
"""Operations whose every operand may be computed at run time; of the others only the first is."""

RENAMED: Final = {"batchnorm": "BatchNormalization", "rangeop": "Range"}
"""Case modules that are not called after their operation."""


EXCLUDED: Final[Mapping[str, tuple[str, ...]]] = {
    "integers are not computed with at run time": (
        *(f"test_{op}_{t}:runtime" for op in ("add", "sub", "mul", "div", "min") for t in ("int8", "int16")),
        *(f"test_{op}_uint{n}:runtime" for op in ("add", "sub", "mul", "div", "min") for n in (8, 16, 32, 64)),
        *("test_max_uint64:runtime", "test_min_int32:runtime", "test_min_int64:runtime"),
        *("test_div_int32_trunc:runtime", "test_pow_types_int*:runtime", "test_clip_default_int8_*:runtime"),
        "test_reduce_min_bool_inputs:runtime",
    ),
    "4-bit, 2-bit and 8-bit-float elements are not supported": (
        *(f"test_cast*{t}*:*" for t in ("FLOAT4", "FLOAT8", "INT2", "INT4")),
        *(f"test_dequantizelinear_{t}*:folded" for t in ("e4m3fn", "e5m2", "float4", "int2", "int4", "uint2", "uint4")),
    ),
    "blocked scales are not supported": ("test_dequantizelinear_blocked:folded",),
    "bfloat16 results are not rounded to bfloat16": (
        *("test_celu_bfloat16:runtime", "test_cast_FLOAT_to_BFLOAT16:*", "test_castlike_FLOAT_to_BFLOAT16:*"),
    ),
    "constants that hold NaN or infinity are refused": (
        *(f"test_{op}_{t}_to_*:folded" for op in ("cast", "castlike") for t in ("BFLOAT16", "DOUBLE")),
        *(f"test_{op}_FLOAT16_to_{t}:folded" for op in ("cast", "castlike") for t in ("DOUBLE", "FLOAT")),
        *(f"test_{op}_FLOAT_to_{t}:folded" for op in ("cast", "castlike") for t in ("DOUBLE", "FLOAT16")),
        "test_mod_float_edge_cases_fmod_0_float*:folded",
    ),
    "empty tensors are not supported": (
        *("test_reduce_*_empty_set*:runtime", "test_reduce_m*_empty_set*:folded", "test_split_zero_size_*:runtime"),
        *("test_reshape_allowzero_reordered:runtime", "test_slice_start_out_of_bounds:runtime"),
    ),
    "strings, sequences and optionals are not supported": (
        *("test_equal_string*:folded", "test_identity_sequence:runtime", "test_identity_opt:runtime"),
    ),
    "three spatial axes are not supported": (
        *("test_averagepool_3d_*:runtime", "test_maxpool_3d_*:runtime", "test_convtranspose_3d:runtime"),
    ),
    "training is not supported": (
        *("test_batchnorm_*_training_mode:runtime", "test_training_dropout_*:runtime", "test_training_dropout:runtime"),
    ),
    "second outputs are not supported": ("test_dropout_default_mask*:runtime", "test_maxpool_with_argmax_*:runtime"),
    "select_last_index is not supported": ("test_arg*_select_last_index:runtime",),
    "cubic interpolation is not supported": ("test_resize_*_cubic*:runtime",),
    "antialiased shrinking is not supported": ("test_resize_downsample_*_linear_antialias:runtime",),
    "extrapolation is not supported": ("test_resize_tf_crop_and_resize_extrapolation_value:runtime",),
    "onnxruntime, which is followed here, divides by the rounded size": (
        "test_resize_downsample_scales_linear_align_corners:runtime",
    ),
    "the attribute is of opset 28": ("test_spacetodepth_*_mode_example:runtime",),
}
"""Trials that do not pass, by reason, as patterns of their names; one that does pass is an error."""


@dataclass(frozen=True)
class Case:
    name: str
    op: str
    opset: int
    model: ModelProto
    inputs: list[Any]
    outputs: list[Any]


def claimed() -> frozenset[str]:
    """The operations that the importer has a converter or a folder for."""
    return frozenset(CONVERTERS) | frozenset(FOLDERS)


def collect(*, everything: bool = False) -> list[Case]:
    """The package's cases of claimed operations, or of all; expanded function bodies are left out."""
    wanted = {op.lower() for op in claimed()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(case_package.__path__):
            op = RENAMED.get(module.name, module.name.replace("_", "")).lower()
            if everything or op in wanted:
                importlib.import_module(f"{case_package.__name__}.{module.name}")
    cases = [c for c in case_package._NodeTestCases if len(c.model.graph.node) == 1]
    return [_case(c) for c in sorted(cases, key=lambda c: c.name) if "_expanded" not in c.name]


def _case(raw: Any) -> Case:
    node = raw.model.graph.node[0]
    opset = max((o.version for o in raw.model.opset_import if o.domain == node.domain), default=0)
    inputs, outputs = raw.data_sets[0]
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return Case(raw.name, op, opset, raw.model, list(inputs), list(outputs))


def trials(cases: Iterable[Case]) -> Iterator[tuple[str, Case, frozenset[str]]]:
    """For each way to run each case: its name, the case, and the graph inputs that stay inputs."""
    for case in cases:
        names = [i.name for i in case.model.graph.input]
        if case.op in CONVERTERS and names:
            yield f"{case.name}:runtime", case, frozenset(names if case.op in ALL_DYNAMIC else names[:1])
        if case.op in FOLDERS:
            yield f"{case.name}:folded", case, frozenset()


def run(case: Case, dynamic: frozenset[str], folder: Path) -> str | None:
    """Import and evaluate ``case``; None if it passes, else what is wrong."""
    model = _restamped(case.model)
    feeds: dict[str, NDArray[Any]] = {}
    for info, raw in zip(case.model.graph.input, case.inputs, strict=True):
        if isinstance(raw, (list, dict)) or raw is None:
            return "its inputs are not tensors"
        stored = raw if isinstance(raw, TensorProto) else numpy_helper.from_array(np.asarray(raw))
        if info.name in dynamic:
            feeds[info.name] = numpy_helper.to_array(stored)
        else:
            model.graph.initializer.add().CopyFrom(stored)
            model.graph.initializer[-1].name = info.name
    path = folder / "case.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        graph = load_model(path).graph
        given = {v.name: feeds[v.name].astype(v.type.numpy) for v in graph.inputs}
        results = evaluate(graph, given)
    except QccError as e:
        return f"{type(e).__name__}: {e}"
    for info, raw in zip(case.model.graph.output, case.outputs, strict=True):
        expected = numpy_helper.to_array(raw) if isinstance(raw, TensorProto) else np.asarray(raw)
        if wrong := compare(results[info.name], expected):
            return f"output {info.name}: {wrong}"
    return None


def _restamped(model: ModelProto) -> ModelProto:
    """``model`` with versions inside the supported range.

    Cases are stamped with the version that last changed their operation, be it only by a new
    element type; the nodes mean the same at the nearest supported one, or are excluded below.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, MAX_IR)
    for entry in copy.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = min(max(entry.version, OPSETS[0]), OPSETS[-1])
    return copy


def compare(actual: NDArray[Any], expected: NDArray[Any]) -> str | None:
    """None where both agree within rtol 1e-3 and atol 1e-5, else the difference."""
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, expected {expected.shape}"
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if np.allclose(a, b, 1e-3, 1e-5, equal_nan=True):
        return None
    finite = np.isfinite(a) & np.isfinite(b)
    return f"differs by up to {np.abs(a[finite] - b[finite]).max(initial=0):.3g}"


def excluded(name: str) -> str | None:
    """Why the trial called ``name`` is not expected to pass, if it is not."""
    return next((why for why, patterns in EXCLUDED.items() if any(fnmatchcase(name, p) for p in patterns)), None)


def main() -> int:
    """Run everything and print counts, exclusions by name, and failures; 1 if there are any."""
    cases = collect(everything=True)
    mine = [c for c in cases if c.op in claimed()]
    others = Counter(c.op for c in cases if c.op not in claimed())
    outcome: dict[str, list[str]] = {"passed": [], "excluded": [], "failed": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, case, dynamic in trials(mine):
            wrong, why = run(case, dynamic, Path(folder)), excluded(name)
            if why is not None:
                outcome["excluded"].append(f"{name}: {why}{'' if wrong else ' (but it passes)'}")
            elif wrong is None:
                outcome["passed"].append(name)
            else:
                outcome["failed"].append(f"{name}: {wrong}")
    print(f"{len(cases)} node tests in the onnx package, of {len({c.op for c in cases})} operations")
    print(f"claimed: {len(mine)} tests of {len({c.op for c in mine})} operations, {len(list(trials(mine)))} trials")
    print(", ".join(f"{what} {len(names)}" for what, names in outcome.items()))
    for line in (*outcome["excluded"], *(f"FAILED {line}" for line in outcome["failed"])):
        print(f"  {line}")
    print(f"not claimed: {sum(others.values())} tests: " + ", ".join(f"{op} {n}" for op, n in sorted(others.items())))
    return 1 if outcome["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
