// The operations of whole warps, as the PTX ISA defines them, and asynchronous copies.
#include "simt.h"

#include <cstring>

namespace simt {

void collective(Kind kind, unsigned mask);

namespace {

void want_whole(const Warp &warp, const char *what) {
  if (warp.lanes != WARP) fail("%s in a warp of %u lanes", what, warp.lanes);
}

// mma.sync.m16n8k32: a[16 x 32] row by row, b[32 x 8] column by column, c[16 x 8], in fragments.
template <class A>
void multiply(Thread *lanes) {
  int32_t a[16][32], b[32][8];
  for (unsigned lane = 0; lane < WARP; ++lane) {
    unsigned g = lane / 4, t = lane % 4;
    A from_a[16];
    int8_t from_b[8];
    memcpy(from_a, lanes[lane].given.a, sizeof from_a);
    memcpy(from_b, lanes[lane].given.b, sizeof from_b);
    for (unsigned i = 0; i < 16; ++i) a[g + 8 * (i / 4 % 2)][4 * t + 16 * (i / 8) + i % 4] = from_a[i];
    for (unsigned i = 0; i < 8; ++i) b[4 * t + 16 * (i / 4) + i % 4][g] = from_b[i];
  }
  uint32_t sums[16][8] = {};
  for (unsigned m = 0; m < 16; ++m)
    for (unsigned k = 0; k < 32; ++k)
      for (unsigned n = 0; n < 8; ++n) sums[m][n] += static_cast<uint32_t>(a[m][k] * b[k][n]);
  for (unsigned lane = 0; lane < WARP; ++lane) {
    unsigned g = lane / 4, t = lane % 4;
    auto c = static_cast<uint32_t *>(lanes[lane].given.to);
    for (unsigned i = 0; i < 4; ++i) c[i] += sums[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

// ldmatrix.m8n8.x4: lanes 8i to 8i+7 give the rows of matrix i, and lane l gets four bytes of row l / 4 of each.
void load_matrices(Thread *lanes) {
  for (unsigned lane = 0; lane < WARP; ++lane) {
    auto row = lanes[lane].given.a;
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix from an address that is no multiple of 16 bytes");
    note_row(row, 16);
  }
  for (unsigned lane = 0; lane < WARP; ++lane) {
    auto to = static_cast<char *>(lanes[lane].given.to);
    for (unsigned i = 0; i < 4; ++i)
      memcpy(to + 4 * i, static_cast<const char *>(lanes[8 * i + lane / 4].given.a) + lane % 4 * 4, 4);
  }
}

void exchange(const Warp &warp, Thread *lanes) {
  for (unsigned lane = 0; lane < warp.lanes; ++lane) {
    auto &given = lanes[lane].given;
    unsigned source = static_cast<unsigned>(given.source);
    memcpy(given.to, lanes[source < warp.lanes ? source : lane].given.a, static_cast<size_t>(given.bytes));
  }
}

}  // namespace

void perform(Warp &warp, Thread *lanes) {
  switch (warp.kind) {
    case Kind::SYNC:
      ++warp.epoch;
      break;
    case Kind::EXCHANGE:
      exchange(warp, lanes);
      break;
    case Kind::BALLOT:
      warp.ballot = 0;
      for (unsigned i = 0; i < warp.lanes; ++i) warp.ballot |= static_cast<uint32_t>(lanes[i].given.source != 0) << i;
      for (unsigned i = 0; i < warp.lanes; ++i) lanes[i].given.source = static_cast<int>(warp.ballot);
      break;
    case Kind::MMA_U8:
      want_whole(warp, "mma");
      multiply<uint8_t>(lanes);
      break;
    case Kind::MMA_S8:
      want_whole(warp, "mma");
      multiply<int8_t>(lanes);
      break;
    case Kind::LDMATRIX:
      want_whole(warp, "ldmatrix");
      load_matrices(lanes);
      break;
  }
}

}  // namespace simt

using namespace simt;

extern "C" {

void qcc_simt_warp_sync(unsigned mask) { collective(Kind::SYNC, mask); }

void qcc_simt_exchange(unsigned mask, void *to, const void *from, int bytes, int source) {
  self->given = {to, from, nullptr, bytes, source};
  collective(Kind::EXCHANGE, mask);
}

unsigned qcc_simt_ballot(unsigned mask, int predicate) {
  self->given.source = predicate;
  collective(Kind::BALLOT, mask);
  return static_cast<unsigned>(self->given.source);
}

void qcc_simt_mma(int *c, const uint32_t *a, const uint32_t *b, int is_signed) {
  self->given = {c, a, b, 0, 0};
  collective(is_signed ? Kind::MMA_S8 : Kind::MMA_U8, ~0u);
}

void qcc_simt_ldmatrix(uint32_t *r, const void *row) {
  self->given = {r, row, nullptr, 0, 0};
  collective(Kind::LDMATRIX, ~0u);
}

// Between its beginning and its end a copy's target holds neither the old bytes nor the new ones: whoever reads
// it too early, or began the copy while others still read the old bytes, computes something else.
void qcc_simt_copy(void *shared, const void *global, int bytes) {
  auto places = {reinterpret_cast<uintptr_t>(shared), reinterpret_cast<uintptr_t>(global)};
  for (uintptr_t place : places)
    if (place % static_cast<unsigned>(bytes)) fail("cp.async of %d bytes at an address that is no multiple", bytes);
  note_copy(shared, global, bytes);
  uint64_t noise = random_bits();
  for (int i = 0; i < bytes; i += 4) memcpy(static_cast<char *>(shared) + i, &noise, 4);
  self->copies.push_back({static_cast<char *>(shared), static_cast<const char *>(global), bytes, self->groups});
}

void qcc_simt_copy_commit() { ++self->groups; }

void qcc_simt_copy_wait(int outstanding) {
  auto &copies = self->copies;
  unsigned kept = 0;
  for (const Copy &copy : copies) {
    // A copy whose group is not committed is no part of any group, and is not waited for.
    if (copy.group + static_cast<unsigned>(outstanding) >= self->groups) {
      copies[kept++] = copy;
      continue;
    }
    memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    note_arrival(copy.to, copy.bytes);
  }
  copies.resize(kept);
}
}
