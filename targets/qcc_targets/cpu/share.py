"""Several threads in one inference: the function that each of them calls, and how they meet.

    void qcc_share(input 0, …, output 0, …, constants, arena, control)

Any number of threads may call it with the same arguments, at any time; the work of each step is
claimed piece by piece, so that a thread that comes late, or not at all, delays nobody. It returns when
the inference is complete. ``control`` is zeroed memory, 64 bytes a step, for one inference: the next
piece to claim, and the pieces that are done. It must outlive the last call that was given it.

TensorIR has no atomic operations, so the four that are needed are written for LLVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tvm import tirx
from tvm.ir import StringImm
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

CONTROL_BYTES: Final = 64
"""Control memory of one step: a cache line."""

_RELAX: Final = {"x86_64": "llvm.x86.sse2.pause()", "aarch64": "llvm.aarch64.hint(i32 1)"}
_DECLARED: Final = {"x86_64": "llvm.x86.sse2.pause()", "aarch64": "llvm.aarch64.hint(i32)"}

_ATOMICS: Final = """
declare void @{declared}
declare i32 @sched_yield()

define i32 @qcc_claim(ptr %next) alwaysinline {{
  %old = atomicrmw add ptr %next, i32 1 monotonic
  ret i32 %old
}}

define i32 @qcc_finish(ptr %done) alwaysinline {{
  %old = atomicrmw add ptr %done, i32 1 release
  ret i32 %old
}}

define i32 @qcc_await(ptr %done, i32 %count) {{
entry:
  br label %look
look:
  %tries = phi i32 [ 0, %entry ], [ %more, %relax ], [ %more, %yield ]
  %found = load atomic i32, ptr %done acquire, align 4
  %complete = icmp sge i32 %found, %count
  br i1 %complete, label %end, label %wait
wait:
  %more = add i32 %tries, 1
  %low = and i32 %more, 127
  %long = icmp eq i32 %low, 0
  br i1 %long, label %yield, label %relax
yield:
  %ignored = call i32 @sched_yield()
  br label %look
relax:
  call void @{relax}
  br label %look
end:
  ret i32 %found
}}
"""


class Steps:
    """Writes the body of ``qcc_share`` for a ``machine``, inside a function under construction."""

    def __init__(self, machine: str, control: Any) -> None:
        self._machine = machine
        self._control = T.decl_buffer((1 << 30,), "int32", data=control, layout=None)
        self._number = 0

    def imported(self) -> Any:
        """The scope that all steps must be written in."""
        text = _ATOMICS.format(declared=_DECLARED[self._machine], relax=_RELAX[self._machine])
        return T.attr(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(text))

    def step(self, calls: Sequence[Any]) -> None:
        """Claim and run the pieces ``calls`` until none is left, then wait until all are done."""
        words = CONTROL_BYTES // 4
        following, done = (tirx.address_of(self._control[self._number * words + i]) for i in (0, 1))
        self._number += 1
        claimed = T.alloc_buffer((1,), "int32", scope="global")

        def claim() -> None:
            T.buffer_store(claimed, tirx.call_extern("int32", "qcc_claim", following), [0])

        claim()
        with T.While(claimed[0] < len(calls)):
            for number, call in enumerate(calls):
                with T.If(claimed[0] == number), T.Then():
                    T.evaluate(call)
            T.evaluate(tirx.call_extern("int32", "qcc_finish", done))
            claim()
        T.evaluate(tirx.call_extern("int32", "qcc_await", done, T.int32(len(calls))))
