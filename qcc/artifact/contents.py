"""The graph inside an artifact: its text, its constants, and the specs of its border."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from qcc.artifact.manifest import Grid, Sha256, TensorSpec
from qcc.errors import ArtifactError, QccError, VerifyError
from qcc.ir.graph import Graph, Value
from qcc.ir.layout import Blocks, Widths
from qcc.ir.packing import Packing, stored
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import Const
from qcc.ir.verify import verify
from qcc.validation import Strict, explain

GRAPH: Final = "graph.qir"
WEIGHTS: Final = "weights.safetensors"
PACKED: Final = "packed"
"""The one entry of the metadata of ``WEIGHTS``: JSON that says of packed tensors, by digest, what they hold."""


Size = Annotated[int, Field(ge=0)]


class Packed(Strict):
    """A tensor of ``shape`` whose codes, ``bits`` wide, were packed by ``qcc.ir.packing``.

    ``blocks`` are the codes that share an exponent and the bits of one; ``widths`` the channels and bits of
    precision groups along axis 0, of which ``bits`` are the most.
    """

    dtype: Literal["u8", "i8"]
    shape: tuple[Size, ...]
    bits: int = Field(ge=2, le=8)
    blocks: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=3)]] | None = None
    widths: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=2, le=8)]], ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Packed:
        runs = self.widths
        if self.blocks is not None and (runs is not None or len(self.shape) < 2 or self.dtype != "i8"):
            raise ValueError("'blocks' are of signed tensors of two axes or more without 'widths'")
        if runs is not None and (self.shape[:1] != (sum(n for n, _ in runs),) or max(b for _, b in runs) != self.bits):
            raise ValueError("'widths' do not fit the tensor")
        if runs is None and self.bits == 8:
            raise ValueError("8 bits are packed only beside others")
        return self

    @classmethod
    def of(cls, const: Const, how: Packing) -> Packed:
        """How ``const`` was packed."""
        layout = how.layout
        fields: dict[str, Any] = {"dtype": const.dtype, "shape": const.array.shape, "bits": how.bits}
        if isinstance(layout, Blocks):
            fields["blocks"] = (layout.size, layout.exponent_bits)
        elif layout is not None:
            fields["widths"] = layout.runs
        return cls.model_validate(fields)

    def unpacked(self, data: NDArray[Any]) -> NDArray[Any]:
        """The codes. Raises VerifyError where ``data`` are not what packing gives."""
        layout: Blocks | Widths | None = Blocks(*self.blocks) if self.blocks else None
        if self.widths is not None:
            layout = Widths(0, self.widths)
        return Packing(self.bits, layout).unpack(data, self.shape, self.dtype)


_PACKED_TENSORS: Final = TypeAdapter(dict[Sha256, Packed])


def graph_files(graph: Graph) -> dict[str, bytes]:
    """``graph`` as files: its text, and the constants that the text names, by digest.

    Constants on grids narrower than a byte are packed.
    """
    store, how = const_store(graph), stored(graph)
    arrays: dict[str, NDArray[Any]] = {}
    packed: dict[str, Packed] = {}
    for digest in sorted(store):
        const = store[digest]
        arrays[digest] = const.array
        if const in how:
            arrays[digest] = how[const].pack(const.array)
            packed[digest] = Packed.of(const, how[const])
    metadata = {PACKED: _PACKED_TENSORS.dump_json(packed, exclude_none=True).decode()} if packed else None
    return {GRAPH: render(graph).encode(), WEIGHTS: safetensors.numpy.save(arrays, metadata)}


def read_graph(files: Mapping[str, Path]) -> Graph:
    """The integer graph among the files of a checked artifact. Raises ArtifactError."""
    try:
        store = _read_constants(files[WEIGHTS])
        graph = parse(files[GRAPH].read_text(encoding="utf-8"), store)
        verify(graph)
    except KeyError as e:
        raise ArtifactError(f"the artifact holds no {e.args[0]}") from None
    except ValidationError as e:
        raise ArtifactError(f"{WEIGHTS}: {explain(e)[:300]}") from e
    except (QccError, safetensors.SafetensorError, UnicodeDecodeError, OSError) as e:
        raise ArtifactError(f"the artifact's graph cannot be read: {e}") from e
    return graph


def _read_constants(path: Path) -> dict[str, Const]:
    """The constants in the file at ``path``, unpacked, by digest."""
    with safetensors.safe_open(path, framework="numpy") as stored:
        names = stored.keys()
        arrays: dict[str, NDArray[Any]] = {name: stored.get_tensor(name) for name in names}
        packed = _PACKED_TENSORS.validate_json((stored.metadata() or {}).get(PACKED, "{}"))
    if missing := sorted(set(packed) - set(arrays)):
        raise ArtifactError(f"{WEIGHTS}: holds no tensor {missing[0][:16]}…")
    for digest, form in packed.items():
        arrays[digest] = form.unpacked(arrays[digest])
    return {digest: Const(array) for digest, array in arrays.items()}


def tensor_spec(value: Value) -> TensorSpec:
    """The border of a graph input or output at stage INTEGER. Raises VerifyError for per-channel grids."""
    quant = value.type.quant
    if quant is not None and quant.axis is not None:
        raise VerifyError(f"%{value.name}: an input or output cannot have per-channel scales")
    grid = None
    if quant is not None:
        (scale,) = quant.scale
        grid = Grid(bits=quant.bits, mult=scale.mult, shift=scale.shift, zero_point=quant.zero_point)
    fields = {
        "name": value.name,
        "shape": tuple(None if d < 0 else d for d in value.type.shape),
        "dtype": value.type.numpy.name,
        "quant": grid,
        "real": "float32" if grid else None,
    }
    return TensorSpec.model_validate(fields)
