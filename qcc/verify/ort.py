"""onnxruntime as a judge: a session by name in, by name out, with bounded threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from qcc.errors import ModelError, VerifyError

Array = NDArray[Any]

_NUMPY: Final[Mapping[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}


class OrtModel:
    """A model loaded into onnxruntime's CPU provider.

    With one setting of ``threads`` and ``optimize``, runs are deterministic. ``optimize`` off leaves
    the graph as written: slower, and free of fusions that change rounding. ``arena`` off gives memory
    back between runs, for when many models are loaded at once.
    Raises ModelError when onnxruntime refuses the model.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, *, threads: int = 2, optimize: bool = True, arena: bool = True
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.enable_cpu_mem_arena = arena
        options.log_severity_level = 4
        # Idle threads would otherwise spin, and take the cores from whatever runs beside this session.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exceptions share no narrower base
            where = str(model) if isinstance(model, Path) else f"model '{model.graph.name}'"
            raise ModelError(f"{where}: onnxruntime refuses it: {_first_line(e)}") from e
        self._types = {i.name: i.type for i in self._session.get_inputs()}
        self._inputs: dict[str, tuple[Any, ...]] = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]

    @property
    def inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Shapes by input name; a symbolic dimension is its name, or None."""
        return dict(self._inputs)

    @property
    def outputs(self) -> Sequence[str]:
        return list(self._outputs)

    def input_dtype(self, name: str) -> np.dtype[Any]:
        """The element type that the input ``name`` takes. Raises VerifyError for an unknown name or type."""
        if (kind := self._types.get(name)) is None or kind not in _NUMPY:
            raise VerifyError(f"onnxruntime model has no tensor input '{name}' (type {kind})")
        return _NUMPY[kind]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name.

        Raises VerifyError when names, shapes or element types do not fit, or onnxruntime fails.
        """
        self._check(inputs)
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as e:  # onnxruntime's exceptions share no narrower base
            raise VerifyError(f"onnxruntime failed: {_first_line(e)}") from e
        return dict(zip(self._outputs, results, strict=True))

    def run_batched(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """``run`` in parts of ``batch`` samples along axis 0 of every input, joined again."""
        samples = min(len(a) for a in inputs.values())
        parts = [self.run({k: a[at : at + batch] for k, a in inputs.items()}) for at in range(0, samples, batch)]
        return {name: np.concatenate([p[name] for p in parts]) for name in self._outputs}

    def _check(self, inputs: Mapping[str, Array]) -> None:
        for name in self._inputs:
            if name not in inputs:
                raise VerifyError(f"onnxruntime model: no array for the input '{name}'")
        for name, array in inputs.items():
            if name not in self._inputs:
                raise VerifyError(f"onnxruntime model has no input '{name}'; inputs: {', '.join(self._inputs)}")
            if array.dtype != self.input_dtype(name):
                raise VerifyError(f"onnxruntime input '{name}' takes {self.input_dtype(name)}, got {array.dtype}")
            shape = self._inputs[name]
            if len(shape) != array.ndim or any(
                isinstance(d, int) and d != a for d, a in zip(shape, array.shape, strict=True)
            ):
                raise VerifyError(f"onnxruntime input '{name}' takes shape {list(shape)}, got {list(array.shape)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
