"""Threads that share one call of a native function; they sleep between calls."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

Job = tuple[tuple[Any, ...], Any]
"""The arguments of a call, and the control memory that it keeps alive."""


class Team:
    """Calls ``share(*arguments, control)`` on ``threads`` threads at once, the caller's among them.

    The function divides the work, returns when all of it is done, and lets threads come late: so
    nobody waits for the others to wake, or to leave. Each call has ``control`` zeroed bytes of its own.
    """

    def __init__(self, share: Callable[..., None], control: int, threads: int) -> None:
        self._share = share
        self._control = ctypes.c_uint8 * (control + 64)
        self._queues: list[SimpleQueue[Job | None]] = [SimpleQueue() for _ in range(threads - 1)]
        for number, queue in enumerate(self._queues):
            threading.Thread(target=_serve, args=(share, queue), name=f"qcc-{number + 1}", daemon=True).start()
        weakref.finalize(self, _dismiss, self._queues)

    def __call__(self, *arguments: Any) -> None:
        memory = self._control()
        start = ctypes.addressof(memory)
        job = ((*arguments, ctypes.c_void_p(start + -start % 64)), memory)
        for queue in self._queues:
            queue.put(job)
        self._share(*job[0])


def _serve(share: Callable[..., None], queue: SimpleQueue[Job | None]) -> None:
    """Help with the latest call until dismissed."""
    while (job := _latest(queue)) is not None:
        share(*job[0])
        del job  # its memory is not needed while this thread sleeps


def _latest(queue: SimpleQueue[Job | None]) -> Job | None:
    job = queue.get()
    try:
        while job is not None:
            job = queue.get_nowait()
    except Empty:
        pass
    return job


def _dismiss(queues: Sequence[SimpleQueue[Job | None]]) -> None:
    for queue in queues:
        queue.put(None)
