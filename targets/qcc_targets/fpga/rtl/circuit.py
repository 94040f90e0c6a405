"""Arithmetic as a pipeline: every signal knows what it can be and how many steps after the start it is valid.

All registers of a module move together, when its ``en`` says so. Operands that come at different times are
delayed to meet. Everything is signed, and as wide as its interval needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qcc.ir.bounds import Interval


@dataclass(frozen=True, slots=True)
class Signal:
    """``text`` reads it; ``time`` is None for a constant, which is there at all times."""

    text: str
    codes: Interval
    time: int | None

    @property
    def bits(self) -> int:
        return self.codes.bits

    @property
    def constant(self) -> bool:
        return self.time is None


def literal(value: int) -> Signal:
    codes = Interval(value, value)
    text = f"{codes.bits + 1}'sd{abs(value)}"
    return Signal(f"-{text}" if value < 0 else text, codes, None)


@dataclass(slots=True)
class Circuit:
    """Lines of a module's body: declarations, and assignments made at the clock while ``en``."""

    declared: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    clocked: list[str] = field(default_factory=list)
    _delayed: dict[tuple[str, int], Signal] = field(default_factory=dict)
    _count: int = 0

    def declare(self, *declarations: str) -> None:
        """Names are declared before anything uses them."""
        self.declared += [f"{d};" for d in declarations]

    def net(self, name: str, text: str, bits: int = 0, signed: bool = False) -> None:
        """A wire ``name`` of one bit, or of ``bits``, that is ``text`` at all times."""
        self.declare(f"wire{' signed' if signed else ''}{f' [{bits - 1}:0]' if bits else ''} {name}")
        self.lines.append(f"assign {name} = {text};")

    def wire(self, text: str, codes: Interval, time: int | None) -> Signal:
        name = self._name()
        self.net(name, text, codes.bits, signed=True)
        return Signal(name, codes, time)

    def register(self, signal: Signal) -> Signal:
        """``signal`` one step later."""
        if signal.time is None:
            return signal
        key = signal.text, signal.time
        if key not in self._delayed:
            name = self._name()
            self.declare(f"reg signed [{signal.bits - 1}:0] {name}")
            self.clocked.append(f"{name} <= {signal.text};")
            self._delayed[key] = Signal(name, signal.codes, signal.time + 1)
        return self._delayed[key]

    def at(self, signal: Signal, time: int) -> Signal:
        """``signal`` delayed until ``time``."""
        while signal.time is not None and signal.time < time:
            signal = self.register(signal)
        return signal

    def together(self, signals: Sequence[Signal]) -> tuple[list[Signal], int | None]:
        """``signals`` delayed to the time of the latest, and that time."""
        times = [s.time for s in signals if s.time is not None]
        if not times:
            return list(signals), None
        return [self.at(s, max(times)) for s in signals], max(times)

    def binary(self, operator: str, a: Signal, b: Signal, codes: Interval) -> Signal:
        (a, b), time = self.together([a, b])
        return self.wire(f"{_wide(a, codes)} {operator} {_wide(b, codes)}", codes, time)

    def add(self, a: Signal, b: Signal) -> Signal:
        return self.binary("+", a, b, a.codes + b.codes)

    def subtract(self, a: Signal, b: Signal) -> Signal:
        return self.binary("-", a, b, Interval(a.codes.low - b.codes.high, a.codes.high - b.codes.low))

    def multiply(self, a: Signal, b: Signal) -> Signal:
        """The product, registered: one step, and two more where several multipliers make it up."""
        if (number := next((s for s in (a, b) if s.codes.low == s.codes.high), None)) is not None:
            other = b if number is a else a
            if number.codes.low in (0, 1):
                return other if number.codes.low else literal(0)
        product = self.register(self.binary("*", a, b, a.codes * b.codes))
        wide = min(a.bits, b.bits) > 18 or max(a.bits, b.bits) > 27
        return self.at(product, product.time + 2) if wide and product.time is not None else product

    def maximum(self, a: Signal, b: Signal) -> Signal:
        codes = Interval(max(a.codes.low, b.codes.low), max(a.codes.high, b.codes.high))
        return self._choice(">", a, b, codes)

    def minimum(self, a: Signal, b: Signal) -> Signal:
        codes = Interval(min(a.codes.low, b.codes.low), min(a.codes.high, b.codes.high))
        return self._choice("<", a, b, codes)

    def _choice(self, operator: str, a: Signal, b: Signal, codes: Interval) -> Signal:
        (a, b), time = self.together([a, b])
        return self.wire(f"(({a.text}) {operator} ({b.text})) ? ({a.text}) : ({b.text})", codes, time)

    def shift_right(self, a: Signal, steps: int) -> Signal:
        return self.wire(f"{a.text} >>> {steps}", Interval(a.codes.low >> steps, a.codes.high >> steps), a.time)

    def select(self, condition: Signal, yes: Signal, no: Signal) -> Signal:
        """``condition`` is a single bit."""
        (condition, yes, no), time = self.together([condition, yes, no])
        codes = Interval(min(yes.codes.low, no.codes.low), max(yes.codes.high, no.codes.high))
        return self.wire(f"{condition.text} ? {_wide(yes, codes)} : {_wide(no, codes)}", codes, time)

    def tree(self, terms: Sequence[Signal], operation: str) -> Signal:
        """All ``terms`` by ``add`` or ``maximum``, registered behind every second level."""
        level, signals = 0, list(terms)
        while len(signals) > 1:
            joined = [getattr(self, operation)(a, b) for a, b in zip(signals[::2], signals[1::2], strict=False)]
            signals = joined + signals[2 * len(joined) :]
            level += 1
            if level % 2 == 0 and len(signals) > 1:
                signals = [self.register(s) for s in signals]
        return signals[0]

    def all_of(self, bits: Sequence[Signal]) -> Signal:
        """Whether all of several single bits hold."""
        (first, *rest), time = self.together(bits)
        return self.wire(" && ".join(b.text for b in (first, *rest)), Interval(-1, 0), time) if rest else first

    def flag(self, text: str, time: int) -> Signal:
        """One bit that is valid at ``time``, as a number that is -1 or 0."""
        return self.wire(text, Interval(-1, 0), time)

    def _name(self) -> str:
        self._count += 1
        return f"n{self._count}"


def _wide(signal: Signal, codes: Interval) -> str:
    """``signal`` at least as wide as a result, so that nothing is lost on the way."""
    return f"{max(signal.bits, codes.bits)}'({signal.text})" if signal.bits < codes.bits else f"({signal.text})"
