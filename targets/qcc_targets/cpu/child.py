"""A child process for native work: what crashes, loops or eats memory takes only the child down."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO, TypeVar

from qcc.errors import TargetError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may take: seconds of processor time, bytes of address space more; how many run at once."""

    seconds: int = 600
    memory: int = 8 << 30
    processes: int = 2


class Child:
    """Runs ``work`` from its construction on, in a fork of this process; its messages go to the file ``log``."""

    def __init__(self, work: Callable[[], None], limits: Limits, log: Path) -> None:
        self._limits, self._log, self._ended = limits, log, False
        sys.stdout.flush()
        sys.stderr.flush()
        self._process = os.fork()
        if self._process == 0:
            _live(work, limits, log)

    def failure(self) -> str | None:
        """Wait for the end; what went wrong, if anything did."""
        watch = threading.Timer(4 * self._limits.seconds, self._kill)
        watch.daemon = True
        watch.start()
        try:
            status = self._wait()
        finally:
            watch.cancel()
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return None
        if code < 0:
            seconds, memory = self._limits.seconds, self._limits.memory >> 20
            killed = f"killed by {signal.Signals(-code).name}; its limits are {seconds} s and {memory} MiB"
            return f"native compilation failed: {killed}"
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        detail = (lines or ["no message"])[-1][:300]
        return detail if code == TargetError.exit_code else f"native compilation failed: {detail}"

    def stop(self) -> None:
        """End it, unless it has ended."""
        if not self._ended:
            self._kill()
            self._wait()

    def _wait(self) -> int:
        _, status = os.waitpid(self._process, 0)
        self._ended = True
        return status

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)


def run_shares(work: Callable[[Sequence[T]], None], jobs: Sequence[T], limits: Limits, folder: Path) -> None:
    """``work`` on all ``jobs``, shared among as many children at once as ``limits`` allows; logs lie in ``folder``.

    Raises TargetError when one of them fails, crashes or exceeds its limits.
    """
    count = min(limits.processes, len(jobs))
    shares = [partial(work, jobs[first::count]) for first in range(count)]
    children = [Child(share, limits, folder / f"{n}.log") for n, share in enumerate(shares)]
    try:
        for failure in filter(None, (child.failure() for child in children)):
            raise TargetError(failure)
    finally:
        for child in children:
            child.stop()


def _live(work: Callable[[], None], limits: Limits, log: Path) -> None:
    """The whole life of a child; its exit code says how it went."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        faulthandler.disable()
        _restrict(limits)
        with log.open("w") as messages:
            for stream in (1, 2):
                os.dup2(messages.fileno(), stream)
            code = _try(work, messages)
    finally:
        os._exit(code)


def _try(work: Callable[[], None], messages: TextIO) -> int:
    try:
        work()
    except TargetError as e:
        print(e, file=messages, flush=True)
        return e.exit_code
    except Exception as e:  # nothing may escape: the parent reads the log
        text = str(e).strip().splitlines()
        print(f"{type(e).__name__}: {text[-1] if text else 'no message'}", file=messages, flush=True)
        return 1
    return 0


def _restrict(limits: Limits) -> None:
    """The parent's memory, which a child begins with, does not count."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = limits.memory + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
