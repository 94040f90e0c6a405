"""Sizes beyond which a model is refused before anything is computed or allocated."""

from collections.abc import Iterable
from typing import Final

from qcc.errors import ModelError
from qcc.ir.types import BATCH

MAX_FILE_BYTES: Final = 2**31 - 1
"""The largest protobuf message; larger models keep their weights in external files."""

MAX_ELEMENTS: Final = 2**31
"""Elements of one tensor that is computed at run time, for one sample of the batch."""

MAX_FOLDED_ELEMENTS: Final = 2**27
"""Elements of one tensor that is computed at import time."""

MAX_FOLDED_BYTES: Final = 2**30
"""Bytes of all tensors computed at import time, on top of four times the size of the weights."""

MAX_FOLDED_PRODUCTS: Final = 2**33
"""Multiplications of one matrix product that is computed at import time."""

MAX_RANK: Final = 8
"""Dimensions of a tensor that is computed at run time."""

MAX_INDICES: Final = 2**20
"""Length of an index list that an operation carries (gather, resize)."""


def count(shape: Iterable[int]) -> int:
    """Number of elements, exactly; the batch counts as one."""
    total = 1
    for dim in shape:
        total *= 1 if dim == BATCH else dim
    return total


class FoldBudget:
    """Meters what folding allocates, so that a small file cannot ask for much memory.

    ``weights`` is the model's size in bytes: real models fold at most a few copies of their weights.
    """

    def __init__(self, weights: int) -> None:
        self._left = MAX_FOLDED_BYTES + 4 * weights

    def claim(self, shape: Iterable[int], itemsize: int = 8) -> None:
        """Reserve room for one result before it is computed. Raises ModelError when it is too large."""
        size = count(shape)
        if size > MAX_FOLDED_ELEMENTS:
            raise ModelError(f"a constant of {size} elements is computed here, the limit is {MAX_FOLDED_ELEMENTS}")
        self._left -= size * itemsize
        if self._left < 0:
            raise ModelError("the model's constant subgraphs compute more data than any real model needs")

    def multiply(self, products: int) -> None:
        """Refuse a matrix product of more than ``MAX_FOLDED_PRODUCTS`` multiplications."""
        if products > MAX_FOLDED_PRODUCTS:
            raise ModelError(f"a constant product of {products} multiplications is computed here, the limit is 2**33")
