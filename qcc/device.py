"""From an integer graph to a target's files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from qcc.errors import ConfigError, PluginError, QccError, TargetError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import Target


def check_device(graph: Graph, target: Target) -> None:
    """Raise ConfigError unless ``graph`` is at stage INTEGER, TargetError unless ``target`` has all its operations."""
    if graph.stage is not Stage.INTEGER:
        raise ConfigError(f"the pipeline ends at stage {graph.stage}; an artifact needs stage {Stage.INTEGER}")
    ops = target.capabilities.ops
    foreign = [str(o) for o in graph.ops if ops is not None and o.kind not in ops and o.kind != "constant"]
    if foreign:
        raise TargetError(f"target '{target.name}' cannot run: {'; '.join(foreign)}")


def build_device(target: Target, graph: Graph, ctx: PassContext) -> dict[str, bytes]:
    """The files that ``target`` makes of ``graph``, by path in the artifact. Raises TargetError, PluginError."""
    with tempfile.TemporaryDirectory(prefix="qcc-build-") as scratch:
        out = Path(scratch).resolve()
        try:
            written = [Path(p) for p in target.build(graph, ctx, out)]
        except (QccError, MemoryError):
            raise
        except Exception as e:
            raise PluginError(f"target '{target.name}' raised {type(e).__name__}: {e}") from e
        files = {}
        for path in sorted(written):
            if not path.resolve().is_relative_to(out) or not path.is_file():
                raise PluginError(f"target '{target.name}' reports the file {path}, which it did not write")
            files[f"device/{path.resolve().relative_to(out).as_posix()}"] = path.read_bytes()
        return files
