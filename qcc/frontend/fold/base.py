"""The folder protocol."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from qcc.frontend.limits import Budget
from qcc.frontend.node import Node

Folder = Callable[[Node, Budget], Sequence[NDArray[Any]]]
"""Computes a node's outputs from known inputs; claims its results' sizes before it allocates them."""
