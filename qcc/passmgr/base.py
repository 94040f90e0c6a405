"""The pass protocol: a pass is a validated, frozen value whose fields are its options."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from qcc.ir.graph import Graph, Stage, Value
from qcc.passmgr.context import PassContext
from qcc.passmgr.spelling import spell


class Pass(BaseModel, ABC):
    """One rewriting or measuring step; subclasses are plug-ins in the group ``qcc.passes``.

    ``accepts`` and ``yields`` are the stages of the graphs that ``run`` takes and returns;
    ``needs`` and ``gives`` are the types of the facts that it reads from and puts into the context.
    The class docstring's first line is what ``qcc passes`` shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    accepts: ClassVar[Stage]
    yields: ClassVar[Stage]
    needs: ClassVar[tuple[type, ...]] = ()
    gives: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """Return a valid graph; the input graph is never changed."""

    def __str__(self) -> str:
        return spell(self.name, self.model_dump(mode="json", exclude_defaults=True))


@runtime_checkable
class InputPass(Protocol):
    """A pass that changes what a graph input takes, and can say what the input took before."""

    def graph_input(self, graph: Graph) -> Value:
        """The input of ``graph``, from before the pass, that it changes. Raises ConfigError."""
        ...

    def to_real(self, codes: NDArray[Any], graph: Graph) -> NDArray[np.float32]:
        """What that input took in the place of ``codes`` [samples, …]. Raises ConfigError."""
        ...
