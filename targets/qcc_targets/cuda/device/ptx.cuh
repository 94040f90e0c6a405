// Every instruction that C++ cannot spell, as device functions; all inline assembly of the target is here.
//
// A compiler of another machine defines QCC_PTX_CUH and gives functions of the same meaning instead:
//
//   cp_async<BYTES>(shared, global)  copies 4, 8 or 16 bytes, aligned to their number, to shared memory. The
//                                    thread sees them after cp_wait, the others after a barrier behind it.
//   cp_commit()                      the copies begun since the last one are a group.
//   cp_wait<N>()                     waits until at most the N latest groups are outstanding.
//   ldmatrix_x4(r, shared)           four 8 x 16 byte matrices: lanes 8i .. 8i+7 give the addresses of the rows
//                                    of matrix i; lane l gets bytes 4 (l % 4) .. + 3 of row l / 4 in r[i].
//   mma_u8s8(c, a, b), mma_s8s8      c[16 x 8] += a[16 x 32] b[32 x 8] in int32. With g = lane / 4, t = lane % 4:
//                                    a[0..3] hold rows g, g+8, g, g+8 and columns 4t, 4t, 16+4t, 16+4t (.. + 3),
//                                    b[0..1] hold column g and rows 4t, 16+4t (.. + 3),
//                                    c[0..3] hold rows g, g, g+8, g+8 and columns 2t, 2t+1, 2t, 2t+1.
//   dot_u8s8(a, b, c), dot_s8s8      c + the sum of the products of four bytes.
//   bytes(a, b, select)              byte i of the result is byte (select >> 4 i & 7) of a (0 .. 3) and b (4 .. 7).
//   warp_sum(value)                  the sum of the 32 lanes' values, in every lane.
#ifndef QCC_PTX_CUH
#define QCC_PTX_CUH

namespace qcc {

__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if __CUDA_ARCH__ >= 800

template <int BYTES>
__device__ __forceinline__ void cp_async(void *shared, const void *global) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "");
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES)
                 : "memory");
}

__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#define QCC_MMA(NAME, TYPE)                                                                                  \
  __device__ __forceinline__ void NAME(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {        \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." TYPE ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "      \
                 "{%8,%9}, {%0,%1,%2,%3};"                                                                   \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                        \
  }

#else  // sm_75: plain copies, and tensor cores that take a quarter at a time

template <int BYTES>
__device__ __forceinline__ void cp_async(void *shared, const void *global) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "");
  if (BYTES == 16)
    *static_cast<int4 *>(shared) = *static_cast<const int4 *>(global);
  else if (BYTES == 8)
    *static_cast<int2 *>(shared) = *static_cast<const int2 *>(global);
  else
    *static_cast<int *>(shared) = *static_cast<const int *>(global);
}

__device__ __forceinline__ void cp_commit() {}

template <int N>
__device__ __forceinline__ void cp_wait() {}

#define QCC_MMA(NAME, TYPE)                                                                                  \
  __device__ __forceinline__ void NAME(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {        \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1}, {%4}, {%8}, {%0,%1};\n\t"    \
                 "mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%2,%3}, {%5}, {%8}, {%2,%3};\n\t"    \
                 "mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1}, {%6}, {%9}, {%0,%1};\n\t"    \
                 "mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%2,%3}, {%7}, {%9}, {%2,%3};"        \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                        \
  }

#endif

QCC_MMA(mma_u8s8, "u8")
QCC_MMA(mma_s8s8, "s8")
#undef QCC_MMA

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}

__device__ __forceinline__ int dot_u8s8(uint32_t a, uint32_t b, int c) {
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

__device__ __forceinline__ int dot_s8s8(uint32_t a, uint32_t b, int c) {
  int d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

__device__ __forceinline__ uint32_t bytes(uint32_t a, uint32_t b, uint32_t select) {
  return __byte_perm(a, b, select);
}

__device__ __forceinline__ int warp_sum(int value) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

}  // namespace qcc

#endif
