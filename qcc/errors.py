"""Every error qcc raises on purpose.

QccError                  exit code 1
 ├─ ConfigError      2    the user's configuration, option or data does not fit
 │   └─ BudgetError       nothing is within the budgets; the message names the tightest that can be reached
 ├─ ModelError       3    the ONNX model is missing, malformed or unsafe
 │   └─ UnsupportedError  the model is sound, but holds nodes that qcc cannot compile
 ├─ PluginError      4    a plug-in is missing, duplicated, malformed, or raised
 ├─ ParseError       5    textual IR does not parse
 ├─ VerifyError      5    an IR invariant does not hold
 ├─ PassError        5    a pass could not do its work
 ├─ TargetError      6    a target cannot build this graph, or its compiler failed
 ├─ ArtifactError    7    an artifact is missing, tampered with, or of a foreign version
 └─ MismatchError    8    two executions that must agree do not

``exit_code`` is what the command line returns; 0 is success, 2 also stands for wrong usage, 1 also
for a bug in qcc or a lack of memory, and 130 for an interruption.
"""

from typing import ClassVar


class QccError(Exception):
    """Base class; catching it catches nothing that is a bug in qcc."""

    exit_code: ClassVar[int] = 1


class ConfigError(QccError):
    exit_code = 2


class BudgetError(ConfigError):
    pass


class ModelError(QccError):
    exit_code = 3


class UnsupportedError(ModelError):
    """Carries one line per unsupported node, so that a user sees all of them at once."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        head = f"{len(reasons)} unsupported node{'s' if len(reasons) > 1 else ''}"
        super().__init__("; ".join((f"{head}: {reasons[0]}", *reasons[1:])))


class PluginError(QccError):
    exit_code = 4


class ParseError(QccError):
    exit_code = 5


class VerifyError(QccError):
    exit_code = 5


class PassError(QccError):
    exit_code = 5


class TargetError(QccError):
    exit_code = 6


class ArtifactError(QccError):
    exit_code = 7


class MismatchError(QccError):
    exit_code = 8
