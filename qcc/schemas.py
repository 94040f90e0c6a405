"""The JSON Schemas of everything that qcc reads or writes as JSON or YAML; ``schemas/`` holds them generated.

Plug-ins add theirs in the group ``qcc.schemas``: a name, and the pydantic model behind it.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from qcc.artifact.manifest import Manifest
from qcc.config import CompileConfig
from qcc.discovery import discover, load
from qcc.errors import PluginError
from qcc.passmgr.latency import LatencyTable
from qcc.passmgr.target import Capabilities
from qcc.points import SearchReport
from qcc.verify.report import VerifyReport

SCHEMAS: Final = "qcc.schemas"

MODELS: Final[Mapping[str, type]] = {
    "capabilities": Capabilities,
    "config": CompileConfig,
    "latency-table": LatencyTable,
    "manifest": Manifest,
    "search-report": SearchReport,
    "verify-report": VerifyReport,
}


def names() -> tuple[str, ...]:
    """The models of the core and of plug-ins. Raises PluginError where two share a name."""
    added = discover(SCHEMAS)
    if twice := sorted(set(added) & set(MODELS)):
        raise PluginError(f"{SCHEMAS}: '{twice[0]}' is a schema of qcc's own")
    return tuple(sorted({*MODELS, *added}))


def json_schema(name: str) -> dict[str, Any]:
    """The schema of the model ``name``, one of ``names``. Raises PluginError."""
    if name in MODELS:
        return TypeAdapter(MODELS[name]).json_schema()
    model = load(SCHEMAS, name)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"{SCHEMAS}: '{name}' is {model!r}, not a pydantic model")
    return model.model_json_schema()


def schema_text(name: str) -> str:
    """The contents of ``schemas/<name>.json``."""
    return json.dumps(json_schema(name), indent=2, sort_keys=True) + "\n"
