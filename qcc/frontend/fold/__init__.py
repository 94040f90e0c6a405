"""Evaluation of ONNX nodes whose inputs are all known: one table over the families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.dims import UndecidedError, settled
from qcc.frontend.fold import elementwise, reduction, structure
from qcc.frontend.fold.base import Folder
from qcc.frontend.limits import MAX_SYMBOLIC_ELEMENTS, Budget
from qcc.frontend.node import FIX_BATCH, Known, Node, UnsupportedNodeError

FOLDERS: Final[Mapping[str, Folder]] = {**elementwise.FOLDERS, **structure.FOLDERS, **reduction.FOLDERS}


def fold(node: Node, budget: Budget) -> list[NDArray[Any]]:
    """The outputs of ``node``; floats as float32.

    Raises ModelError when the node is malformed or its result too large, UnsupportedNodeError when
    the result depends on the batch in a way that cannot be tracked.
    """
    arrays = [t.array for t in node.inputs if isinstance(t, Known)]
    budget.spend(sum(a.nbytes for a in arrays))
    symbolic = any(a.dtype == object for a in arrays)
    if symbolic:
        budget = Budget(MAX_SYMBOLIC_ELEMENTS)
        budget.claim((sum(a.size for a in arrays),))
    try:
        results = FOLDERS[node.op](node, budget)
    except UndecidedError:
        raise UnsupportedNodeError("its result depends on the batch size", FIX_BATCH) from None
    except TypeError:
        if not symbolic:
            raise
        raise UnsupportedNodeError("its result depends on the batch size", FIX_BATCH) from None
    return [_single(settled(np.asarray(r))) for r in results]


def _single(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
