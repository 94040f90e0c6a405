// Threads as fibers: every thread of a block has a stack of its own, and runs until it must wait for others.
//
// Blocks run one after another in an order that the seed draws; so do the warps of a block between barriers,
// and the lanes of a warp between operations of the whole warp. The lane that completes such an operation goes
// on at once, and the others follow it, so that a warp costs one switch a lane.
#include "simt.h"

#include <link.h>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <numeric>

// The name that TVM gives to dynamic shared memory.
alignas(1024) thread_local unsigned char buf_dyn_shmem[simt::DYNAMIC_BYTES];

namespace simt {

Thread *self;
Warp warps[MOST_THREADS / WARP];
Thread threads[MOST_THREADS];
Launch launch;
uint3 block_index;

namespace {

// Kernels with frames of more than half of it are not compiled (library.py).
constexpr size_t STACK = 32 << 10;
constexpr size_t STACKS = MOST_THREADS * STACK;
char *stacks;
void *outside;  // where the launch itself goes on
unsigned alive, at_barrier;
uint64_t random_state;
char message[512];
bool failed;

}  // namespace

uint64_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545F4914F6CDD1Dull >> 16;
}

#ifdef __x86_64__

// Keeps what the System V ABI lets a callee keep, and goes on with the other stack.
extern "C" void qcc_simt_switch(void **from, void *to);
asm(R"(
.text
.hidden qcc_simt_switch
.globl qcc_simt_switch
.type qcc_simt_switch, @function
qcc_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qcc_simt_switch, .-qcc_simt_switch
)");

namespace {

void begin();

void prepare(Thread &thread) {
  // Not all at one distance, or else they would share a few sets of the cache.
  size_t colour = thread.number * 5 % 64 * 64;
  auto top = reinterpret_cast<void **>(stacks + (thread.number + 1) * STACK - colour);
  *--top = nullptr;                            // a return address, for the alignment that functions expect
  *--top = reinterpret_cast<void *>(&begin);
  thread.stack = top - 6;
}

void go(void **from, void *to) { qcc_simt_switch(from, to); }

}  // namespace

#else

namespace {

void begin();
ucontext_t contexts[MOST_THREADS + 1];

void prepare(Thread &thread) {
  ucontext_t &context = contexts[thread.number];
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + thread.number * STACK;
  context.uc_stack.ss_size = STACK;
  makecontext(&context, &begin, 0);
  thread.stack = &context;
}

void go(void **from, void *to) {
  auto context = from == &outside ? &contexts[MOST_THREADS] : &contexts[reinterpret_cast<Thread *>(from)->number];
  *from = context;
  swapcontext(context, static_cast<ucontext_t *>(to));
}

}  // namespace

#endif

namespace {

void leave() {
  void *forgotten;
#ifdef __x86_64__
  go(&forgotten, outside);
#else
  (void)forgotten;
  setcontext(static_cast<ucontext_t *>(outside));
#endif
}

void resume(Thread &thread) {
  Thread *before = self;
  if (&thread == before) return;
  warps[thread.number / WARP].turn = thread.number % WARP;
  self = &thread;
  go(&before->stack, thread.stack);
}

[[noreturn]] void stuck() {
  unsigned waiting = 0;
  for (unsigned i = 0; i < launch.threads; ++i) waiting += threads[i].state == State::IN_WARP;
  if (waiting)
    fail("%u threads wait for lanes of their warps that never come: %u are at a barrier, %u have ended", waiting,
         at_barrier, launch.threads - alive);
  fail("%u threads wait at a barrier that %u threads never reach: they have ended", at_barrier,
       launch.threads - alive);
}

Thread *ready_in(unsigned number) {
  Warp &warp = warps[number];
  if (!warp.ready) return nullptr;
  Thread *lanes = threads + number * WARP, *thread = lanes + warp.turn;
  do thread = lanes + thread->next;
  while (thread->state != State::READY);
  return thread;
}

// Another warp with work, or null.
Thread *ready_elsewhere(unsigned own) {
  unsigned first = static_cast<unsigned>(random_bits() % launch.warps);
  for (unsigned i = 0; i < launch.warps; ++i) {
    unsigned number = first + i < launch.warps ? first + i : first + i - launch.warps;
    if (number == own) continue;
    if (Thread *thread = ready_in(number)) return thread;
  }
  return nullptr;
}

// Goes on with another thread; returns when this one's turn has come.
void dispatch() {
  unsigned own = self->number / WARP;
  Thread *thread = ready_in(own);
  if (!thread) thread = ready_elsewhere(own);
  if (!thread) stuck();
  resume(*thread);
}

void begin() {
  void **a = launch.arguments;
  if (launch.arguments[8])
    reinterpret_cast<void (*)(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                              void *, void *, void *, void *, void *)>(launch.kernel)(
        a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]);
  else
    reinterpret_cast<void (*)(void *, void *, void *, void *, void *, void *, void *, void *)>(launch.kernel)(
        a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
  self->state = State::ENDED;
  --own_warp().ready;
  if (--alive) dispatch();
  leave();
}

void shuffle(uint8_t *lanes, unsigned count) {
  std::iota(lanes, lanes + count, uint8_t{0});
  for (unsigned i = count; i > 1; --i) std::swap(lanes[i - 1], lanes[random_bits() % i]);
}

void run_block() {
  unsigned count = launch.threads;
  alive = count;
  at_barrier = 0;
  for (unsigned w = 0; w < launch.warps; ++w) {
    uint8_t order[WARP], lanes = static_cast<uint8_t>(count - w * WARP < WARP ? count - w * WARP : WARP);
    shuffle(order, lanes);
    warps[w] = {lanes, lanes, 0, order[lanes - 1], Kind::SYNC, 0, 0};
    for (unsigned i = 0; i < lanes; ++i) {
      Thread &thread = threads[w * WARP + order[i]];
      thread.next = order[i + 1 < lanes ? i + 1 : 0];
      thread.state = State::READY;
      thread.copies.clear();
      thread.groups = 0;
      prepare(thread);
    }
  }
  note_block();
  Thread *first = ready_elsewhere(~0u);
  warps[first->number / WARP].turn = first->number % WARP;
  self = first;
  go(&outside, first->stack);
  self = nullptr;
}

// This library: its thread-local variables, which are its shared variables, and its image.
int find_library(dl_phdr_info *info, size_t, void *found) {
  auto &memory = *static_cast<Memory *>(found);
  auto anchor = reinterpret_cast<char *>(buf_dyn_shmem), tls = static_cast<char *>(info->dlpi_tls_data);
  const dl_phdr_info &here = *info;
  memory.image = {};
  for (int i = 0; i < here.dlpi_phnum; ++i) {
    const auto &part = here.dlpi_phdr[i];
    auto place = reinterpret_cast<char *>(here.dlpi_addr + part.p_vaddr);
    if (part.p_type == PT_TLS && tls) memory.shared = {tls, tls + part.p_memsz};
    if (part.p_type != PT_LOAD) continue;
    if (!memory.image.begin) memory.image.begin = place;
    memory.image.end = place + part.p_memsz;
  }
  return tls && memory.shared.holds(anchor, 1);
}

void make_stacks() {
  auto all = mmap(nullptr, STACKS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return;
  stacks = static_cast<char *>(all);
  madvise(stacks, STACKS, MADV_HUGEPAGE);
}

}  // namespace

void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  int used = snprintf(message, sizeof message, "block (%u, %u, %u): ", block_index.x, block_index.y, block_index.z);
  vsnprintf(message + used, sizeof message - static_cast<size_t>(used), format, values);
  va_end(values);
  failed = true;
  leave();
  __builtin_unreachable();
}

// Waits until all lanes of the warp are in the same operation; the last one to come does it for all.
void collective(Kind kind, unsigned mask) {
  Warp &warp = own_warp();
  unsigned all = warp.lanes == WARP ? ~0u : (1u << warp.lanes) - 1;
  if ((mask & all) != all) fail("an operation of a warp names the lanes %08x of %08x: all are wanted", mask, all);
  if (!warp.arrived)
    warp.kind = kind;
  else if (warp.kind != kind)
    fail("lanes of warp %u wait in different operations", self->number / WARP);
  if (++warp.arrived < warp.lanes) {
    self->state = State::IN_WARP;
    --warp.ready;
    dispatch();
    return;
  }
  Thread *lanes = threads + self->number / WARP * WARP;
  perform(warp, lanes);
  for (unsigned i = 0; i < warp.lanes; ++i) lanes[i].state = State::READY;
  warp.arrived = 0;
  warp.ready = warp.lanes;
  if (random_bits() % 8 == 0)
    if (Thread *other = ready_elsewhere(self->number / WARP)) {
      resume(*other);
    }
}

}  // namespace simt

using namespace simt;

extern "C" {

const uint3 *qcc_simt_thread() { return &self->index; }
const uint3 *qcc_simt_block() { return &block_index; }
const uint3 *qcc_simt_block_dim() { return &launch.block; }
const uint3 *qcc_simt_grid_dim() { return &launch.grid; }

void qcc_simt_barrier() {
  if (++at_barrier < launch.threads) {
    self->state = State::AT_BARRIER;
    --own_warp().ready;
    dispatch();
    return;
  }
  at_barrier = 0;
  note_barrier();
  self->state = State::READY;
  for (unsigned i = 0; i < launch.threads; ++i) threads[i].state = State::READY;
  for (unsigned w = 0; w < launch.warps; ++w) warps[w].ready = warps[w].lanes;
  if (Thread *other = ready_elsewhere(~0u)) resume(*other);
}

// Runs a launch, its blocks and threads in an order drawn from `seed`; null, or what is wrong with it.
__attribute__((visibility("default"))) const char *qcc_simt_launch(void (*kernel)(), void *const *arguments,
                                                                   unsigned count, const unsigned *extents,
                                                                   unsigned shared, uint64_t seed) {
  if (!stacks) make_stacks();
  launch = {};
  launch.kernel = kernel;
  launch.grid = {extents[0], extents[1], extents[2]};
  launch.block = {extents[3], extents[4], extents[5]};
  launch.threads = extents[3] * extents[4] * extents[5];
  launch.warps = (launch.threads + WARP - 1) / WARP;
  launch.shared = shared;
  if (!stacks) return "no memory for the stacks of threads";
  if (count > MOST_ARGUMENTS) return "a kernel of more than 16 arguments";
  if (!launch.threads || launch.threads > MOST_THREADS) return "a block has 1 to 1024 threads";
  if (shared > DYNAMIC_BYTES) return "more than 227 KiB of dynamic shared memory";
  memcpy(launch.arguments, arguments, count * sizeof *arguments);
  for (unsigned i = 0; i < launch.threads; ++i) {
    threads[i].number = static_cast<uint16_t>(i);
    threads[i].index = {i % extents[3], i / extents[3] % extents[4], i / extents[3] / extents[4]};
  }
  random_state = (seed + 1) * 0x9E3779B97F4A7C15ull | 1;
  Memory memory{};
  if (!dl_iterate_phdr(find_library, &memory)) return "the library does not find its own shared memory";
  memory.stacks = {stacks, stacks + STACKS};
  memory.dynamic.begin = reinterpret_cast<char *>(buf_dyn_shmem);
  memory.dynamic.end = memory.dynamic.begin + shared;
  memset(memory.shared.begin, static_cast<int>(random_bits() | 1), memory.shared.size());
  if (!note_launch(memory)) return "no memory for the race check";
  failed = false;
  uint64_t blocks = uint64_t{extents[0]} * extents[1] * extents[2];
  uint64_t first = random_bits() % blocks, step = random_bits() % blocks | 1;
  while (std::gcd(step, blocks) != 1) step += 2;
  for (uint64_t i = 0, at = first; i < blocks && !failed; ++i, at = (at + step) % blocks) {
    block_index = {static_cast<unsigned>(at % extents[0]), static_cast<unsigned>(at / extents[0] % extents[1]),
                   static_cast<unsigned>(at / extents[0] / extents[1])};
    run_block();
  }
  return failed ? message : nullptr;
}
}
