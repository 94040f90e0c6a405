// CUDA C++ as a host compiler reads it: included before a generated source, which is compiled unchanged.
//
// Functions of one thread are defined here. What involves other threads is in the runtime (simt.h), and so
// are the meanings of ptx.cuh, whose guard is defined below, so that its inline assembly is left out.
#ifndef QCC_SIMT_DEVICE_H
#define QCC_SIMT_DEVICE_H

#include <cstdint>
#include <type_traits>

#define QCC_HOST_TYPES
#define QCC_PTX_CUH
#define __CUDA_ARCH__ 900

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define alignas(n) __attribute__((aligned(n)))
// The one storage class that means the same at block scope with extern (dynamic) and without.
#define __shared__ thread_local

struct uint3 {
  unsigned x, y, z;
};

extern "C" {
// Constant as long as a thread lives, and asked by that thread alone.
const uint3 *qcc_simt_thread() __attribute__((const));
const uint3 *qcc_simt_block() __attribute__((const));
const uint3 *qcc_simt_block_dim() __attribute__((const));
const uint3 *qcc_simt_grid_dim() __attribute__((const));
void qcc_simt_barrier();
void qcc_simt_warp_sync(unsigned mask);
void qcc_simt_exchange(unsigned mask, void *to, const void *from, int bytes, int source);
unsigned qcc_simt_ballot(unsigned mask, int predicate);
void qcc_simt_mma(int *c, const uint32_t *a, const uint32_t *b, int is_signed);
void qcc_simt_ldmatrix(uint32_t *r, const void *row);
void qcc_simt_copy(void *shared, const void *global, int bytes);
void qcc_simt_copy_commit();
void qcc_simt_copy_wait(int outstanding);
}

#define threadIdx (*qcc_simt_thread())
#define blockIdx (*qcc_simt_block())
#define blockDim (*qcc_simt_block_dim())
#define gridDim (*qcc_simt_grid_dim())

#define QCC_VECTORS(NAME, T, SIZE)                                          \
  struct __align__(2 * SIZE) NAME##2 { T x, y; };                           \
  struct NAME##3 { T x, y, z; };                                            \
  struct __align__(4 * SIZE > 16 ? 16 : 4 * SIZE) NAME##4 { T x, y, z, w; }; \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
QCC_VECTORS(char, signed char, 1)
QCC_VECTORS(uchar, unsigned char, 1)
QCC_VECTORS(short, short, 2)
QCC_VECTORS(ushort, unsigned short, 2)
QCC_VECTORS(int, int, 4)
QCC_VECTORS(longlong, long long, 8)
QCC_VECTORS(ulonglong, unsigned long long, 8)
#undef QCC_VECTORS
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
inline T __ldg(const T *p) {
  return *p;
}

// Four bytes chosen from the eight of b:a; bit 3 of a selector copies the byte's sign to all of its bits.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
  uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned selector = selectors >> 4 * i & 15;
    unsigned byte = bytes >> 8 * (selector & 7) & 255;
    result |= (selector & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return result;
}

inline void __syncthreads() { qcc_simt_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { qcc_simt_warp_sync(mask); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return qcc_simt_ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return qcc_simt_ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return qcc_simt_ballot(mask, !predicate) == 0; }

template <class T>
inline T qcc_simt_shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  T result;
  qcc_simt_exchange(mask, &result, &value, sizeof(T), source);
  return result;
}
inline int qcc_simt_lane() {
  const uint3 &t = threadIdx, &n = blockDim;
  return static_cast<int>((t.x + n.x * (t.y + n.y * t.z)) % 32);
}
// Lanes are divided into segments of `width`; a source outside of the own segment means the own value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return qcc_simt_shuffle(mask, value, (qcc_simt_lane() & -width) | (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  int lane = qcc_simt_lane(), source = lane ^ bits;
  return qcc_simt_shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = qcc_simt_lane(), source = lane + static_cast<int>(delta);
  return qcc_simt_shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = qcc_simt_lane(), source = lane - static_cast<int>(delta);
  return qcc_simt_shuffle(mask, value, source >= (lane & -width) ? source : lane);
}

namespace qcc {

template <int BYTES>
inline void cp_async(void *shared, const void *global) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "");
  qcc_simt_copy(shared, global, BYTES);
}
inline void cp_commit() { qcc_simt_copy_commit(); }
template <int N>
inline void cp_wait() {
  qcc_simt_copy_wait(N);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void *shared) { qcc_simt_ldmatrix(r, shared); }
inline void mma_u8s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { qcc_simt_mma(c, a, b, 0); }
inline void mma_s8s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { qcc_simt_mma(c, a, b, 1); }

inline uint32_t bytes(uint32_t a, uint32_t b, uint32_t select) { return __byte_perm(a, b, select & 0x7777u); }

inline int warp_sum(int value) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// Sums wrap around, as the machine's do.
template <class A>
inline int add_products(uint32_t a, uint32_t b, int c) {
  uint32_t sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 32; i += 8) sum += static_cast<uint32_t>(static_cast<A>(a >> i) * static_cast<int8_t>(b >> i));
  return static_cast<int>(sum);
}
inline int dot_u8s8(uint32_t a, uint32_t b, int c) { return add_products<uint8_t>(a, b, c); }
inline int dot_s8s8(uint32_t a, uint32_t b, int c) { return add_products<int8_t>(a, b, c); }

}  // namespace qcc

inline int __dp4a(int a, int b, int c) { return qcc::dot_s8s8(static_cast<uint32_t>(a), static_cast<uint32_t>(b), c); }

#endif
