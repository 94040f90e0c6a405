"""The names that users and plug-ins may rely on; removing one is a breaking change, adding one is a decision."""

import importlib
import inspect

import pytest

API = {
    "qcc": {"__version__"},
    "qcc.errors": {
        "ArtifactError",
        "BudgetError",
        "ConfigError",
        "MismatchError",
        "ModelError",
        "ParseError",
        "PassError",
        "PluginError",
        "QccError",
        "TargetError",
        "UnsupportedError",
        "VerifyError",
    },
    "qcc.config": {"CompileConfig", "make_config", "read_fields"},
    "qcc.driver": {"Compiled", "compile_model"},
    "qcc.runtime": {"Session", "load"},
    "qcc.runtime.backend": {"ALIGNMENT", "Backend"},
    "qcc.artifact.manifest": {"Grid", "Manifest", "TensorSpec"},
    "qcc.artifact.store": {"Artifact", "read_artifact", "write_artifact"},
    "qcc.artifact.contents": {"read_graph"},
    "qcc.passmgr.base": {"InputPass", "Pass"},
    "qcc.passmgr.context": {"PassContext"},
    "qcc.passmgr.facts": {"CalibrationData"},
    "qcc.passmgr.pipeline": {"Pipeline"},
    "qcc.passmgr.plugins": {"Recipe", "make_pass", "make_recipe", "make_target"},
    "qcc.passmgr.target": {"Capabilities", "Target"},
    "qcc.ir.build": {"GraphBuilder"},
    "qcc.ir.graph": {"Graph", "Op", "Stage", "Value", "producers", "rewrite", "users"},
    "qcc.ir.text": {"const_store", "parse", "render"},
    "qcc.ir.types": {"BATCH", "Const", "Dyadic", "Quant", "TensorType"},
    "qcc.ir.verify": {"verify"},
    "qcc.ir.bounds": {"Certificate", "certificates"},
    "qcc.frontend.load": {"Model", "load_model"},
    "qcc.frontend.export": {"export_onnx"},
    "qcc.verify.interp": {"evaluate", "evaluate_op"},
    "qcc.verify.report": {"VerifyReport", "verify_model"},
    "qcc.verification": {"verify_artifact"},
    "qcc.search": {"search"},
    "qcc.points": {"Point", "SearchReport", "read_search"},
    "qcc.latency": {"measured_table"},
    "qcc.passmgr.candidates": {"Candidate", "Candidates", "LayerFacts"},
    "qcc.passmgr.latency": {"LatencyTable", "read_latencies"},
}

PARAMETERS = {
    "qcc.runtime:load": ["path", "threads", "isa", "device"],
    "qcc.runtime:Session.run": ["self", "inputs", "raw"],
    "qcc.driver:compile_model": ["config", "force", "progress"],
    "qcc.search:search": ["config", "sweep", "folder", "force", "progress"],
    "qcc.latency:measured_table": ["config", "path", "progress"],
    "qcc.frontend.load:load_model": ["path", "batch", "shapes"],
    "qcc.frontend.export:export_onnx": ["graph", "keep"],
    "qcc.verify.interp:evaluate": ["graph", "inputs", "keep"],
    "qcc.passmgr.base:Pass.run": ["self", "graph", "ctx"],
    "qcc.passmgr.target:Target.build": ["self", "graph", "ctx", "out"],
}


@pytest.mark.parametrize("module", sorted(API))
def test_names_exist_and_are_documented(module: str) -> None:
    found = importlib.import_module(module)
    assert inspect.getdoc(found)
    for name in API[module]:
        thing = getattr(found, name)
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not issubclass_of_error(thing):
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


def issubclass_of_error(thing: object) -> bool:
    """Errors are documented together, as a tree."""
    return inspect.isclass(thing) and issubclass(thing, Exception)


@pytest.mark.parametrize("module", ["qcc.errors", "qcc.runtime"])
def test_nothing_else_is_public(module: str) -> None:
    found = importlib.import_module(module)
    own = {n for n, v in vars(found).items() if inspect.isclass(v) and not n.startswith("_")}
    declared = set(getattr(found, "__all__", own))
    assert declared == API[module]


@pytest.mark.parametrize("path", sorted(PARAMETERS))
def test_signatures(path: str) -> None:
    module, _, name = path.partition(":")
    thing = importlib.import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part)
    assert list(inspect.signature(thing).parameters) == PARAMETERS[path]  # type: ignore[arg-type]
    assert "return" in inspect.get_annotations(thing)
