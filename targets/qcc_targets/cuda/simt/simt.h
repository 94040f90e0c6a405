// The runtime's own parts: threads as fibers, blocks one after another, and what the race check is told.
//
// A library holds one network and runs one launch at a time; its state is global. Names that begin with
// qcc_simt_ are called by generated code (device.h) or from Python (library.py).
#ifndef QCC_SIMT_H
#define QCC_SIMT_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace simt {

constexpr unsigned WARP = 32, MOST_THREADS = 1024, MOST_ARGUMENTS = 16;
constexpr size_t DYNAMIC_BYTES = 227 << 10;  // of shared memory, as sm_90 has it

struct uint3 {
  unsigned x, y, z;
};

// One copy of cp.async that is not waited for; `group` counts the commits before it.
struct Copy {
  char *to;
  const char *from;
  int bytes;
  unsigned group;
};

enum class State : uint8_t { READY, IN_WARP, AT_BARRIER, ENDED };

enum class Kind : uint8_t { SYNC, EXCHANGE, BALLOT, MMA_U8, MMA_S8, LDMATRIX };

struct Thread {
  void *stack;  // where it goes on
  uint3 index;
  uint16_t number;
  State state;
  uint8_t next;  // the lane whose turn comes behind this one's
  struct {       // of the collective operation that it waits in
    void *to;
    const void *a, *b;
    int bytes, source;
  } given;
  std::vector<Copy> copies;
  unsigned groups;
};

struct Warp {
  uint8_t lanes, ready, arrived;
  uint8_t turn;  // the lane that ran last
  Kind kind;
  uint16_t epoch;  // counts __syncwarp
  uint32_t ballot;
};

struct Launch {
  void (*kernel)();
  void *arguments[MOST_ARGUMENTS];
  uint3 grid, block;
  unsigned threads, warps;
  size_t shared;  // bytes of dynamic shared memory
};

struct Range {
  char *begin, *end;
  size_t size() const { return static_cast<size_t>(end - begin); }
  bool holds(const void *at, size_t bytes) const {
    auto place = static_cast<const char *>(at);
    return place >= begin && place + bytes <= end;
  }
};

struct Memory {
  Range shared, stacks;
  Range dynamic;  // the part of shared memory that a launch asks for
  Range image;    // the library's code and data, which kernels may read
};

extern Thread *self;
extern Warp warps[MOST_THREADS / WARP];
extern Thread threads[MOST_THREADS];
extern Launch launch;
extern uint3 block_index;

// Ends the launch with a message; does not return.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t random_bits();

// Called by the last lane of a warp to arrive.
void perform(Warp &warp, Thread *lanes);

inline Warp &own_warp() { return warps[self->number / WARP]; }

// What the race check learns; nothing in libraries that are built without it.
#ifdef QCC_SIMT_RACECHECK
bool note_launch(const Memory &memory);
void note_block();
void note_barrier();
void note_copy(void *to, const void *from, int bytes);
void note_arrival(void *to, int bytes);
void note_row(const void *row, int bytes);
#else
inline bool note_launch(const Memory &) { return true; }
inline void note_block() {}
inline void note_barrier() {}
inline void note_copy(void *, const void *, int) {}
inline void note_arrival(void *, int) {}
inline void note_row(const void *, int) {}
#endif

}  // namespace simt

#endif
