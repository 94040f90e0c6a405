"""The JSON Schemas of everything that qcc reads or writes as JSON; ``schemas/`` holds them generated."""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from qcc.artifact.manifest import Manifest
from qcc.config import CompileConfig
from qcc.passmgr.latency import LatencyTable
from qcc.passmgr.target import Capabilities
from qcc.points import SearchReport
from qcc.verify.report import VerifyReport

MODELS: Final[Mapping[str, type]] = {
    "capabilities": Capabilities,
    "config": CompileConfig,
    "latency-table": LatencyTable,
    "manifest": Manifest,
    "search-report": SearchReport,
    "verify-report": VerifyReport,
}


def json_schema(name: str) -> dict[str, Any]:
    """The schema of the model ``name``, a key of ``MODELS``."""
    return TypeAdapter(MODELS[name]).json_schema()


def schema_text(name: str) -> str:
    """The contents of ``schemas/<name>.json``."""
    return json.dumps(json_schema(name), indent=2, sort_keys=True) + "\n"
