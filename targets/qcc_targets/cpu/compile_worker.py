"""A child process that compiles: ``python -m qcc_targets.cpu.compile_worker``.

It loads TVM once, then reads the paths of job files from its standard input, one a line, and forks
for each: a compiler that crashes, loops or eats memory takes only that fork down. Each answer is one
line: the fork's wait status. A job lists modules as TVM's JSON; each becomes an object file. Messages
go to the job's log.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import tvm

from qcc.errors import TargetError
from qcc_targets.cpu.codegen import compile_object


def main() -> int:
    """Serve jobs until the input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_job(json.loads(Path(line.strip()).read_text())))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()
    return 0


def _job(job: dict[str, Any]) -> int:
    """Compile every unit of a job; the exit code says how it went."""
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path(job["log"]).open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        try:
            for unit in job["units"]:
                module = tvm.ir.load_json(Path(unit["module"]).read_text())
                path = Path(unit["object"])
                compile_object(module, job["target"], path, floats=unit["floats"])
        except TargetError as e:
            log.write(f"{e}\n")
            return e.exit_code
        except Exception as e:  # nothing may escape a fork: the parent reads the log
            log.write(f"{type(e).__name__}: {str(e).strip().splitlines()[-1] if str(e) else 'no message'}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
