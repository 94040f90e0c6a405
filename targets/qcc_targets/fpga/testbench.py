"""A testbench for Verilator: files of words in and out, with random pauses of source and sink.

    simulate FRAMES SEED SOURCE SINK LIMIT

SOURCE and SINK are the percentage of cycles in which words are offered and taken. It reads ``in0.bin`` …,
writes ``out0.bin`` …, and prints the cycle in which each frame was done. It fails when nothing moves for
LIMIT cycles, when tlast is misplaced, or when the counters of the registers disagree.
"""

from __future__ import annotations

from typing import Final

from qcc_targets.fpga.rtl.network import Design
from qcc_targets.fpga.rtl.top import bus_bytes

_SOURCE: Final = r"""
#include "Vtop.h"
#include "verilated.h"
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

struct Port {
    void *data;
    CData *valid, *ready, *last;
    size_t bytes, words;
    std::vector<uint8_t> memory;
    size_t at = 0;
    bool offered = false;
};

static int fail(int code, const char *why) {
    fprintf(stderr, "error: %s\n", why);
    return code;
}

static std::vector<uint8_t> load(const char *name) {
    FILE *file = fopen(name, "rb");
    if (!file) exit(fail(2, "an input is missing"));
    std::vector<uint8_t> bytes;
    uint8_t part[65536];
    for (size_t n; (n = fread(part, 1, sizeof part, file));) bytes.insert(bytes.end(), part, part + n);
    fclose(file);
    return bytes;
}

int main(int count, char **arguments) {
    if (count != 6) return fail(2, "give frames, seed, source, sink, limit");
    size_t frames = strtoul(arguments[1], 0, 10);
    std::mt19937 random(strtoul(arguments[2], 0, 10));
    unsigned source = atoi(arguments[3]), sink = atoi(arguments[4]);
    uint64_t limit = strtoull(arguments[5], 0, 10), cycle = 0, moved = 0;
    auto context = std::make_unique<VerilatedContext>();
    context->randReset(2);
    context->randSeed(1 + atoi(arguments[2]));
    auto top = std::make_unique<Vtop>(context.get(), "top");
    std::vector<Port> in = { @INPUTS@ };
    std::vector<Port> out = { @OUTPUTS@ };
    for (size_t i = 0; i < in.size(); ++i) {
        in[i].memory = load(("in" + std::to_string(i) + ".bin").c_str());
        if (in[i].memory.size() != frames * in[i].words * in[i].bytes) return fail(2, "an input has another size");
    }
    top->s_axi_awvalid = top->s_axi_wvalid = top->s_axi_arvalid = 0;
    top->s_axi_bready = top->s_axi_rready = 1;
    for (auto &p : in) *p.valid = *p.last = 0;
    for (auto &p : out) *p.ready = 0;
    auto tick = [&] { top->aclk = 0; top->eval(); top->aclk = 1; top->eval(); };
    top->aresetn = 0;
    for (int i = 0; i < 4; ++i) tick();
    top->aresetn = 1;
    for (int i = 0; i < 2; ++i) tick();
    auto draw = [&](unsigned percent) { return percent >= 100 || random() % 100 < percent; };
    size_t done = 0, total = 0;
    for (auto &p : out) total += frames * p.words;
    while (done < total) {
        top->aclk = 0;
        for (auto &p : in) {
            // A word once offered stays, as AXI wants it.
            p.offered = p.at < frames * p.words && (p.offered || draw(source));
            *p.valid = p.offered;
            *p.last = p.offered && p.at % p.words == p.words - 1;
            if (p.offered) memcpy(p.data, &p.memory[p.at * p.bytes], p.bytes);
        }
        for (auto &p : out) *p.ready = draw(sink);
        top->eval();
        for (auto &p : in) if (*p.valid && *p.ready) { ++p.at; p.offered = false; moved = cycle; }
        for (auto &p : out) if (*p.valid && *p.ready) {
            bool end = p.at % p.words == p.words - 1;
            if (*p.last != end) return fail(3, "tlast is misplaced");
            if (p.at == frames * p.words) return fail(3, "more words than frames hold");
            auto *bytes = (uint8_t *)p.data;
            p.memory.insert(p.memory.end(), bytes, bytes + p.bytes);
            ++p.at, ++done, moved = cycle;
            if (end) printf("frame %zu output %d cycle %" PRIu64 "\n", p.at / p.words - 1, int(&p - &out[0]), cycle);
        }
        top->aclk = 1;
        top->eval();
        if (++cycle > moved + limit) {
            fprintf(stderr, "%zu of %zu words are out\n", done, total);
            return fail(4, "nothing has moved for too long: the network hangs");
        }
    }
    for (auto &p : in) *p.valid = 0;
    auto read = [&](int address) {
        top->s_axi_araddr = address;
        top->s_axi_arvalid = 1;
        do tick(); while (!top->s_axi_rvalid);
        top->s_axi_arvalid = 0;
        uint32_t value = top->s_axi_rdata;
        tick();
        return value;
    };
    for (int i = 0; i < 4; ++i) tick();
    if (read(0) != 0x31434351) return fail(5, "the identity register is wrong");
    uint32_t status = read(8), begun = read(12), ended = read(16);
    printf("registers status %u begun %u done %u\n", status, begun, ended);
    if (status || begun != frames || ended != frames) return fail(5, "the registers count other frames");
    printf("registers cycles %u interval %u\n", read(20), read(28));
    top->final();
    for (size_t i = 0; i < out.size(); ++i) {
        auto &bytes = out[i].memory;
        FILE *file = fopen(("out" + std::to_string(i) + ".bin").c_str(), "wb");
        bool written = file && fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
        if (!file || fclose(file) || !written) return fail(2, "an output cannot be written");
    }
    return 0;
}
"""


def write_testbench(design: Design) -> str:
    """C++ for the module ``top``, built with the prefix ``Vtop``."""

    def ports(prefix: str, boundaries: tuple[object, ...]) -> str:
        rows = []
        for i, b in enumerate(design.inputs if prefix == "s_axis" else design.outputs):
            p = f"top->{prefix}{i}"
            rows.append(f"{{&{p}_tdata, &{p}_tvalid, &{p}_tready, &{p}_tlast, {bus_bytes(b)}, {b.words}, {{}}}}")
        return ", ".join(rows)

    filled = _SOURCE.replace("@INPUTS@", ports("s_axis", design.inputs))
    return filled.replace("@OUTPUTS@", ports("m_axis", design.outputs)).lstrip()
