"""The ONNX node tests of every claimed operation pass, but for the exclusions that are named with a reason."""

import importlib.util
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def conformance() -> ModuleType:
    """The script that runs the node tests, as a module."""
    path = Path(__file__).parents[1] / "bench" / "node_conformance.py"
    spec = importlib.util.spec_from_file_location("node_conformance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_claimed_operations_pass_the_node_tests(conformance: ModuleType, tmp_path: Path) -> None:
    cases = [c for c in conformance.collect() if c.op in conformance.claimed()]
    failed, stale, unused = [], [], {p for patterns in conformance.EXCLUDED.values() for p in patterns}
    for name, case, dynamic in conformance.trials(cases):
        wrong = conformance.run(case, dynamic, tmp_path)
        unused -= {p for p in unused if fnmatchcase(name, p)}
        if wrong is None and conformance.excluded(name):
            stale.append(name)
        elif wrong is not None and not conformance.excluded(name):
            failed.append(f"{name}: {wrong}")
    assert not failed
    assert not stale, "excluded, but they pass"
    assert not unused, "exclusions that name nothing"
    assert conformance.claimed() - {c.op for c in cases} == set()
