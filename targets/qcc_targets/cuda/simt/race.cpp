// The race check: the compiler's own instrumentation for data races, with another meaning behind it.
//
// g++ -fsanitize=thread puts a call before every access to memory that others may see; instead of the sanitizer's
// runtime, these functions are linked. Between barriers the accesses of a block's threads are not ordered, and those
// of different blocks are not ordered within a launch: two of them to one byte, of which one writes, are a race.
// So that this can be told, every byte of memory has a cell with its last write and its last reads. Accesses
// that leave the memory which the launch was given, or are not aligned to their size, are found, too.
#include "simt.h"

#include <sys/mman.h>

#include <cstdio>

namespace simt {

namespace {

// Whose access a cell tells of: the number of a thread, or several.
constexpr uint16_t LANES = 0x8000;  // … lanes of the warp in the low bits
constexpr uint16_t SEVERAL_WARPS = 0xFFFE, SEVERAL_BLOCKS = 0xFFFD;
constexpr uint16_t PENDING = 0xFFFF;  // for a warp's epoch: a copy that is not waited for

// Intervals between barriers are counted over all blocks and launches, from 1.
struct Access {
  uint32_t interval;
  uint16_t who, warp_epoch;
};

struct Cell {
  Access write, read;
};

struct Region {
  Range range;
  bool writable;
  bool shared;
  Cell *cells;  // null where nothing is written
};

std::vector<Region> regions;
const Region *latest;
Region shared_memory{};
Memory own;
uint32_t interval, launch_began, block_began;

Cell *make_cells(size_t bytes) {
  auto all = mmap(nullptr, bytes * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                  -1, 0);
  return all == MAP_FAILED ? nullptr : static_cast<Cell *>(all);
}

unsigned warp_of(uint16_t who) { return who & LANES ? who & ~LANES : who / WARP; }

// Whether `before` comes before what `who` does now, wherever the scheduler had put either.
bool ordered(const Access &before, uint16_t who, bool shared) {
  if (before.interval < launch_began) return true;
  if (before.who == SEVERAL_BLOCKS && !shared) return false;
  if (before.interval < block_began) return shared;
  if (before.warp_epoch == PENDING) return false;
  if (before.interval < interval) return true;
  if (before.who == who) return !(who & LANES);
  if (before.who == SEVERAL_WARPS || warp_of(before.who) != warp_of(who)) return false;
  return before.warp_epoch != own_warp().epoch;
}

const char *name(uint16_t who, char *text, size_t size) {
  if (who == SEVERAL_BLOCKS || who == SEVERAL_WARPS)
    return who == SEVERAL_BLOCKS ? "several blocks" : "several warps";
  if (who & LANES)
    snprintf(text, size, "warp %u", warp_of(who));
  else
    snprintf(text, size, "thread %u", who);
  return text;
}

[[noreturn]] void race(const Region &region, const char *at, uint16_t who, bool writes, const Access &before,
                       bool wrote) {
  char mine[32], theirs[32];
  const char *other = before.interval < block_began ? "another block" : name(before.who, theirs, sizeof theirs);
  const char *missing = before.warp_epoch == PENDING ? "before its copy is waited for" : "with no barrier between";
  fail("race: %s %s byte %zu of %s memory, which %s %s, %s", name(who, mine, sizeof mine), writes ? "writes" : "reads",
       static_cast<size_t>(at - region.range.begin), region.shared ? "shared" : "global", other, wrote ? "writes" : "reads",
       missing);
}

void note_read(Cell &cell, uint16_t who, bool shared) {
  Access &last = cell.read;
  Access now{interval, who, own_warp().epoch};
  bool unordered = last.interval && last.who != who && !ordered(last, who, shared);
  if (unordered) {
    if (last.interval < block_began || last.who == SEVERAL_BLOCKS)
      now.who = SEVERAL_BLOCKS;
    else if (last.who == SEVERAL_WARPS || warp_of(last.who) != warp_of(who))
      now.who = SEVERAL_WARPS;
    else
      now.who = static_cast<uint16_t>(LANES | warp_of(who));
  }
  last = now;
}

const Region *find(const char *at, size_t bytes) {
  if (latest && latest->range.holds(at, bytes)) return latest;
  if (shared_memory.range.holds(at, bytes)) return &shared_memory;
  for (const Region &region : regions)
    if (region.range.holds(at, bytes)) return latest = &region;
  return nullptr;
}

void touch(const void *place, size_t bytes, bool writes, uint16_t who, uint16_t warp_epoch) {
  auto at = static_cast<const char *>(place);
  const Region *region = find(at, bytes);
  const char *what = writes ? "writes" : "reads";
  if (!region && !writes && own.image.holds(at, bytes)) return;
  if (!region) fail("thread %u %s %zu bytes outside of all memory that it was given", self->number, what, bytes);
  if (at + bytes > own.dynamic.end && at < own.dynamic.begin + DYNAMIC_BYTES && at >= own.dynamic.begin)
    fail("thread %u %s beyond the %zu bytes of dynamic shared memory", self->number, what, own.dynamic.size());
  if (writes && !region->writable) fail("thread %u writes to constants or inputs", self->number);
  if (!region->cells) return;
  Cell *cell = region->cells + (at - region->range.begin);
  for (size_t i = 0; i < bytes; ++i, ++cell) {
    if (!ordered(cell->write, who, region->shared)) race(*region, at + i, who, writes, cell->write, true);
    if (writes) {
      if (!ordered(cell->read, who, region->shared)) race(*region, at + i, who, writes, cell->read, false);
      cell->write = {interval, who, warp_epoch};
    } else {
      note_read(*cell, who, region->shared);
    }
  }
}

void check(const void *place, size_t bytes, bool writes) {
  if (own.stacks.holds(place, bytes)) return;
  touch(place, bytes, writes, self->number, own_warp().epoch);
}

void check_aligned(const void *place, size_t bytes, bool writes) {
  if (reinterpret_cast<uintptr_t>(place) % bytes)
    fail("thread %u accesses %zu bytes at an address that is no multiple of them", self->number, bytes);
  check(place, bytes, writes);
}

}  // namespace

bool note_launch(const Memory &memory) {
  launch_began = ++interval;
  own = memory;
  if (shared_memory.range.begin != memory.shared.begin)
    shared_memory = {memory.shared, true, true, make_cells(memory.shared.size())};
  return shared_memory.cells != nullptr;
}

void note_block() { block_began = ++interval; }

void note_barrier() { ++interval; }

void note_copy(void *to, const void *from, int bytes) {
  check(from, static_cast<size_t>(bytes), false);
  touch(to, static_cast<size_t>(bytes), true, self->number, PENDING);
}

void note_arrival(void *to, int bytes) {
  Cell *cell = shared_memory.cells + (static_cast<const char *>(to) - shared_memory.range.begin);
  for (int i = 0; i < bytes; ++i, ++cell) cell->write = {interval, self->number, own_warp().epoch};
}

// The row is read for all lanes, whoever gives its address.
void note_row(const void *row, int bytes) {
  auto warp = static_cast<uint16_t>(LANES | self->number / WARP);
  touch(row, static_cast<size_t>(bytes), false, warp, own_warp().epoch);
}

}  // namespace simt

using namespace simt;

#define VISIBLE __attribute__((visibility("default")))

extern "C" {

// Memory that launches may read, and write where `writable`; all that was told before is forgotten.
VISIBLE void qcc_simt_forget() {
  for (Region &region : regions)
    if (region.cells) munmap(region.cells, region.range.size() * sizeof(Cell));
  regions.clear();
  latest = nullptr;
}

VISIBLE int qcc_simt_region(char *begin, size_t bytes, int writable) {
  Cell *cells = writable ? make_cells(bytes) : nullptr;
  if (writable && !cells) return 0;
  regions.push_back({{begin, begin + bytes}, writable != 0, false, cells});
  latest = nullptr;
  return 1;
}

#define SIZED(N)                                                                  \
  void __tsan_read##N(void *p) { check_aligned(p, N, false); }                    \
  void __tsan_write##N(void *p) { check_aligned(p, N, true); }                    \
  void __tsan_volatile_read##N(void *p) { check_aligned(p, N, false); }           \
  void __tsan_volatile_write##N(void *p) { check_aligned(p, N, true); }           \
  void __tsan_unaligned_read##N(void *p) { check(p, N, false); }                  \
  void __tsan_unaligned_write##N(void *p) { check(p, N, true); }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)

void __tsan_read_range(void *p, size_t bytes) { check(p, bytes, false); }
void __tsan_write_range(void *p, size_t bytes) { check(p, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
