"""The C target: bit-identical with the reference, strict C99, integers only."""

import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.trial import trial_session, try_target
from qcc.verify.fuzz import Engine, fuzz
from qcc.verify.fuzz_graphs import make_case
from qcc.verify.interp import evaluate
from qcc_targets.c.source import identifier
from qcc_targets.c.target import HEADER, SOURCE, CTarget
from qcc_targets.c.toolchain import STRICT

Array = NDArray[Any]


def engine(target: CTarget) -> Engine:
    def run(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        with trial_session(graph, target) as session:
            return session.run(dict(inputs), raw=True)

    return run


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_random_graphs_agree_with_the_reference(optimize: Literal["speed", "size"]) -> None:
    report = fuzz(8, 7, {"c": engine(CTarget(optimize=optimize))})
    assert not report.failures, "\n".join(map(str, report.failures))
    assert report.refused["c"] == 0


def test_small_layer_runs() -> None:
    try_target(CTarget())


def test_sources_are_strict_c99_without_floats_or_allocation(tmp_path: Path) -> None:
    CTarget().build(make_case(7, 3).graph, PassContext(), tmp_path)
    assert {"-std=c99", "-Wall", "-Werror", "-pedantic"} <= set(STRICT)
    text = (tmp_path / SOURCE).read_text() + (tmp_path / HEADER).read_text()
    assert not re.search(r"\b(float|double|malloc|free|printf)\b", re.sub(r"/\*.*?\*/", "", text, flags=re.S))
    assert set(re.findall(r"#include (\S+)", text)) == {'"network.h"', "<string.h>", "<stdint.h>"}


def test_big_endian_compilers_are_refused(tmp_path: Path) -> None:
    CTarget().build(make_case(7, 0).graph, PassContext(), tmp_path)
    command = ["cc", "-U__BYTE_ORDER__", "-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__", "-c", "-o", "x.o", SOURCE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "the constants of this network are little-endian" in done.stderr


def test_two_builds_give_equal_bytes(tmp_path: Path) -> None:
    graph = make_case(7, 5).graph
    built = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = CTarget().build(graph, PassContext(), tmp_path / name)
        built.append({f.name: f.read_bytes() for f in files})
    assert built[0] == built[1]


def test_threads_do_not_disturb_each_other() -> None:
    case = next(c for c in (make_case(7, i) for i in range(50)) if any(v.type.shape[0] == -1 for v in c.graph.inputs))
    expected = evaluate(case.graph, case.inputs)
    with trial_session(case.graph, CTarget()) as session, ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: session.run(dict(case.inputs), raw=True), range(40)):
            assert all(np.array_equal(got[k], expected[k]) for k in expected)


def test_a_missing_or_failing_compiler_is_named(tmp_path: Path) -> None:
    graph = make_case(7, 0).graph
    with pytest.raises(TargetError, match="no C compiler 'no-such-cc' on the PATH"):
        CTarget(cc="no-such-cc").build(graph, PassContext(), tmp_path)
    with pytest.raises(TargetError, match="false failed on the generated code"):
        CTarget(cc="false").build(graph, PassContext(), tmp_path)


@pytest.mark.parametrize(("name", "expected"), [("a b/c:0", "a_b_c_0"), ("9lives", "n_9lives"), ("é", "network")])
def test_names_become_identifiers(name: str, expected: str) -> None:
    assert identifier(name) == expected


@pytest.mark.parametrize("number", [0, 3, 5, 9])
def test_no_access_leaves_its_array(number: int, tmp_path: Path) -> None:
    """Inputs, outputs, constants and the arena in arrays of just their size, and every access checked."""
    case = make_case(7, number)
    CTarget(prefix="net", optimize="size" if number % 2 else "speed").build(case.graph, PassContext(), tmp_path)
    values = [*case.graph.inputs, *case.graph.outputs]
    sizes = [v.type.numpy.itemsize * int(np.prod([abs(d) for d in v.type.shape])) for v in values]
    pairs = enumerate(zip(values, sizes, strict=True))
    arrays = "".join(f"    {v.type.numpy}_t *a{i} = calloc(1, {n});\n" for i, (v, n) in pairs)
    passed = ", ".join(f"a{i}" for i in range(len(values)))
    freed = "".join(f"    free(a{i});\n" for i in range(len(values)))
    body = f"{arrays}    net_run({passed});\n{freed}    return 0;\n"
    (tmp_path / "host.c").write_text(f'#include "network.h"\n#include <stdlib.h>\nint main(void)\n{{\n{body}}}\n')
    command = ["cc", *STRICT, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", "network.c", "host.c"]
    subprocess.run([*command, "-o", "host"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "host"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
