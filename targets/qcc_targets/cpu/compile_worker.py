"""A child process that compiles: ``python -m qcc_targets.cpu.compile_worker JOB.json``.

The job lists modules as TVM's JSON; each becomes an object file. A compiler that crashes, loops or
eats memory takes this process down and nothing else. A qcc error goes to stderr with exit code 6.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import tvm

from qcc.errors import TargetError
from qcc_targets.cpu.codegen import compile_object


def main(arguments: Sequence[str]) -> int:
    """Run the job that the only argument names; the exit code says how it went."""
    job = json.loads(Path(arguments[0]).read_text())
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for unit in job["units"]:
        module = tvm.ir.load_json(Path(unit["module"]).read_text())
        try:
            compile_object(module, job["target"], unit["packed"], Path(unit["object"]))
        except TargetError as e:
            sys.stderr.write(f"{e}\n")
            return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
