"""HAWQ-V3's bit assignment by our integer program: its published solutions, and objectives of the others.

    python tests/bench/hawqv3.py

From its published traces, weight errors and latencies (arXiv:2011.10680, section 3.3): W4A4 or W8A8 per layer,
a downsample convolution tied to the first one of its block. Limits lie a share of the way from all layers at 4
bits to all at 8.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
from typing import Any

from zoo import data_folder

from qcc_passes.assignment import Assignment, Choice, Group, assign, total

METRICS = ("modelsize", "bops", "latency")
SHARES = (0.75, 0.5, 0.25)


def hawq_groups(net: dict[str, Any]) -> tuple[list[Group], list[list[int]]]:
    """The groups of a network, and the layers of each."""
    owner = {second: first for first, second in net["pairs_tied"]}
    members = [[i, *(j for j, o in owner.items() if o == i)] for i in range(len(net["parameters"])) if i not in owner]
    groups = []
    for layers in members:
        choices = []
        for bits in (4, 8):
            omega = [net["Hutchinson_trace"][i] * net[f"delta_weights_{bits}bit_square"][i] for i in layers]
            costs = {
                "modelsize": sum(net["parameters"][i] for i in layers) * bits / 8,
                "bops": sum(net["bops"][i] for i in layers) * bits * bits / 1024,
                "latency": sum(net[f"latency_int{bits}"][i] for i in layers),
            }
            choices.append(Choice(bits, bits, sum(omega), costs))
        groups.append(Group(net["layers"][layers[0]], tuple(choices)))
    return groups, members


def layer_bits(found: Assignment, groups: list[Group], members: list[list[int]]) -> list[int]:
    """Bits of the layers, in order."""
    bits = {i: g.choices[p].weight_bits for p, g, m in zip(found.picks, groups, members, strict=True) for i in m}
    return [bits[i] for i in sorted(bits)]


def main() -> None:
    print("| network | limit | objective | proven gap | layers at 8 bits | as published |")
    print("|---|---|---|---|---|---|")
    for name, net in json.loads((data_folder() / "hawqv3_ilp.json").read_text()).items():
        groups, members = hawq_groups(net)
        for metric in METRICS:
            least, most = (total(groups, [p] * len(groups), metric) for p in (0, 1))
            for share in SHARES:
                found = assign(groups, {metric: least + share * (most - least)})
                bits = layer_bits(found, groups, members)
                known = net.get("solutions", {}).get(f"{metric}_{share}")
                same = "not given" if known is None else "yes" if bits == known["bits_published"] else "NO"
                eights = f"{bits.count(8)} of {len(bits)}"
                print(f"| {name} | {metric} {share} | {found.objective:.6g} | {found.gap:.1g} | {eights} | {same} |")


if __name__ == "__main__":
    main()
