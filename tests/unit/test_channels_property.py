"""Channels of free classes in any order: the same function in floats, the same bits in integers.

``tests/bench/channels_exact.py`` tries thousands of such networks, also through compiled libraries.
"""

from __future__ import annotations

import numpy as np
from channel_networks import codes_for, integer_pair, networks, samples, shuffled
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph
from qcc.ir.text import render
from qcc.ir.verify import verify
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel
from qcc_passes.channel_groups import channel_groups
from qcc_passes.channel_orders import reordered

CALM = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@CALM
@given(networks(), st.integers(0, 2**32 - 1))
def test_floats_keep_the_function(graph: Graph, seed: int) -> None:
    note(render(graph))
    groups = channel_groups(graph)
    assume(groups.free)
    note(groups.describe())
    after = reordered(graph, groups, shuffled(groups, seed))
    verify(after)
    assert [o.kind for o in after.ops if o.kind != "constant"] == [o.kind for o in graph.ops if o.kind != "constant"]
    names = [o.result.name for o in graph.ops]
    wanted, got = evaluate(graph, samples(seed), keep=names), evaluate(after, samples(seed))
    scale = max(1.0, *(float(np.abs(wanted[n]).max()) for n in names))
    for v in graph.outputs:
        assert np.abs(got[v.name] - wanted[v.name]).max() <= 1e-5 * scale, v.name


@CALM
@given(networks(tables=True), st.integers(0, 2**32 - 1))
def test_integers_keep_every_bit(graph: Graph, seed: int) -> None:
    assume(channel_groups(graph).free)
    note(render(graph))
    plain, moved = integer_pair(graph, seed)
    codes = codes_for(plain, seed + 1)
    wanted, got, judge = evaluate(plain, codes), evaluate(moved, codes), OrtModel(export_onnx(moved)).run(codes)
    for v in plain.outputs:
        assert wanted[v.name].dtype == got[v.name].dtype
        np.testing.assert_array_equal(got[v.name], wanted[v.name])
        np.testing.assert_array_equal(judge[v.name], wanted[v.name])
