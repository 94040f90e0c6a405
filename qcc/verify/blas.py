"""Matrix products on one thread.

The reference multiplies many small matrices. Two BLAS threads that wait for each other between them,
on a machine that has other work, make that tens of times slower; and with one thread the order of
float sums does not depend on how many cores there are.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    """Finding the loaded libraries takes milliseconds, so it is done once; numpy's are loaded by now."""
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """While this context lasts, BLAS computes on the calling thread alone."""
    limiter: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limiter
