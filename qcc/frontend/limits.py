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

MAX_SYMBOLIC_ELEMENTS: Final = 2**16
"""Elements of one tensor that depends on the batch; what it holds are sizes, so it is short."""

MAX_FOLDED_BYTES: Final = 2**29
"""Bytes that import-time computation may read and write, on top of eight times the weights."""

MAX_FOLDED_PRODUCTS: Final = 2**34
"""Multiplications in all matrix products that are computed at import time."""

MAX_RANK: Final = 8
"""Dimensions of a tensor that is computed at run time."""

MAX_INDICES: Final = 2**20
"""Length of an index list that an operation carries (gather, resize)."""

MAX_ALL_INDICES: Final = 2**24
"""Length of all such lists together."""


def count(shape: Iterable[int]) -> int:
    """Number of elements, exactly; the batch counts as one."""
    total = 1
    for dim in shape:
        total *= 1 if dim == BATCH else dim
    return total


class Budget:
    """Meters what an import computes, so that a small file cannot ask for much time or memory.

    Real models fold their weights a few times over: every stored tensor enlarges the budget.
    """

    def __init__(self, max_elements: int = MAX_FOLDED_ELEMENTS) -> None:
        self._max_elements = max_elements
        self._bytes = MAX_FOLDED_BYTES
        self._products = MAX_FOLDED_PRODUCTS

    def grant(self, size: int) -> None:
        """Account for ``size`` bytes of stored weights."""
        self._bytes += 8 * size

    def claim(self, shape: Iterable[int]) -> None:
        """Reserve room for a result before it is computed. Raises ModelError when it is too large."""
        size = count(shape)
        if size > self._max_elements:
            raise ModelError(f"a constant of {size} elements is computed here, the limit is {self._max_elements}")
        self.spend(size * 8)

    def spend(self, size: int) -> None:
        """Account for ``size`` bytes read or written. Raises ModelError when there were too many."""
        self._bytes -= size
        if self._bytes < 0:
            raise ModelError("the model's constant subgraphs compute more data than any real model needs")

    def multiply(self, products: int) -> None:
        """Account for the multiplications of a matrix product. Raises ModelError when there were too many."""
        self._products -= products
        if self._products < 0:
            raise ModelError(f"constant matrix products need more than {MAX_FOLDED_PRODUCTS} multiplications")
