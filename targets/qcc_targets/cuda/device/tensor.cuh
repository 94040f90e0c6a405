// Convolutions and products with constant weights on integer tensor cores, as one implicit matrix product.
//
// Rows are output pixels, columns output channels. The reduction walks 16-byte chunks of the input, which lie
// at offsets[chunk] from the pixel's first byte, whatever window position they come from; the input's halo
// holds the padding. Four chunks are a step. Weights lie as the steps read them, zero beyond the true reduction, so
// that a chunk may reach over what it stands for. Tiles go through a ring of STAGES buffers in shared memory;
// 16-byte chunks of a row are permuted by (row / 2) % 4, which keeps ldmatrix free of bank conflicts.
//
// Unsigned 16-bit inputs are multiplied byte by byte: an even column sums the low bytes, the odd one beside it
// the high ones, each with weights that are zero at the other bytes; so a result takes two columns.
#ifndef QCC_TENSOR_CUH
#define QCC_TENSOR_CUH

namespace qcc {

__device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint8_t) {
  mma_u8s8(c, a, b);
}
__device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int8_t) {
  mma_s8s8(c, a, b);
}
__device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint16_t) {
  mma_u8s8(c, a, b);
}

template <int BM, int BN, int WARPS_M, int WARPS_N, int STAGES, int VECTOR, int BITS, bool RESIDUAL, typename In,
          typename Res, typename Out>
__device__ __forceinline__ void tensor_product(const In *x, const Res *r, const uint8_t *constants, Out *y) {
  constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
  constexpr int A_BYTES = BM * 64, STAGE = A_BYTES + BN * 8 * BITS;
  constexpr int A_ROWS = BM * 4 / THREADS;
  constexpr int B_CHUNKS = BN * BITS / 2;
  constexpr bool WIDE = sizeof(In) == 2;
  constexpr int RESULTS = WIDE ? BN / 2 : BN;  // of a row of the tile
  constexpr int PITCH = RESULTS * sizeof(Out) + 16;
  constexpr int BYTES = STAGES * STAGE > BM * PITCH ? STAGES * STAGE : BM * PITCH;
  static_assert(WM % 16 == 0 && WN % 16 == 0 && BM * 4 % THREADS == 0 && BYTES <= 49152, "");
  static_assert(BITS == 8 || BITS == 4 || BITS == 2, "");
  alignas(128) __shared__ uint8_t memory[BYTES];

  const TensorShape &s = *reinterpret_cast<const TensorShape *>(constants);
  fill_halo(y, s, blockIdx.x * THREADS + threadIdx.x, gridDim.x * THREADS);
  const int *offsets = reinterpret_cast<const int *>(constants + s.offsets);
  const int tiles = s.padded_columns / BN;
  const int first_row = blockIdx.x / tiles * BM, tile = blockIdx.x % tiles, first_column = tile * RESULTS;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;

  int from[A_ROWS];
#pragma unroll
  for (int i = 0; i < A_ROWS; ++i) {
    const int row = first_row + thread / 4 + i * (THREADS / 4);
    from[i] = place(row < s.rows ? row : s.rows - 1, s.plane, s.width, s.x_start, s.x_sample, s.x_row, s.x_column);
  }

  auto load = [&](int step) {
    uint8_t *a = memory + step % STAGES * STAGE, *b = a + A_BYTES;
    const int offset = offsets[step * 4 + thread % 4];
#pragma unroll
    for (int i = 0; i < A_ROWS; ++i) {
      const int row = thread / 4 + i * (THREADS / 4);
      uint8_t *to = a + row * 64 + ((thread % 4 ^ row / 2 % 4) << 4);
      const uint8_t *source = reinterpret_cast<const uint8_t *>(x) + from[i] + offset;
#pragma unroll
      for (int byte = 0; byte < 16; byte += VECTOR) cp_async<VECTOR>(to + byte, source + byte);
    }
    const uint8_t *w = constants + s.weights;
#pragma unroll
    for (int chunk = thread; chunk < B_CHUNKS; chunk += THREADS) {
      if (BITS == 8) {
        const int column = chunk / 4;
        cp_async<16>(b + column * 64 + ((chunk % 4 ^ column / 2 % 4) << 4),
                     w + (step * s.padded_columns + tile * BN) * 64 + chunk * 16);
      } else {
        const int half = step * (BITS / 2) + chunk / BN;
        cp_async<16>(b + chunk * 16, w + (half * s.padded_columns + tile * BN + chunk % BN) * 16);
      }
    }
  };

  int sums[WM / 16][WN / 8][4];
#pragma unroll
  for (int m = 0; m < WM / 16; ++m)
#pragma unroll
    for (int n = 0; n < WN / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;

#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < s.steps) load(step);
    cp_commit();
  }
  for (int step = 0; step < s.steps; ++step) {
    cp_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < s.steps) load(step + STAGES - 1);
    cp_commit();
    const uint8_t *a = memory + step % STAGES * STAGE, *b = a + A_BYTES;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t left[WM / 16][4], right[WN / 8][2];
#pragma unroll
      for (int m = 0; m < WM / 16; ++m) {
        const int row = warp_m + m * 16 + lane % 16, chunk = half * 2 + lane / 16;
        ldmatrix_x4(left[m], a + row * 64 + ((chunk ^ row / 2 % 4) << 4));
      }
#pragma unroll
      for (int n = 0; n < WN / 8; n += BITS == 8 ? 2 : 1) {
        if (BITS == 8) {
          const int column = warp_n + n * 8 + lane / 16 * 8 + lane % 8, chunk = half * 2 + lane / 8 % 2;
          uint32_t pair[4];
          ldmatrix_x4(pair, b + column * 64 + ((chunk ^ column / 2 % 4) << 4));
          right[n][0] = pair[0], right[n][1] = pair[1], right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
        } else {
          const int column = warp_n + n * 8 + lane / 4 + (BITS == 4 ? half * BN : 0);
          const uint32_t word = *reinterpret_cast<const uint32_t *>(b + column * 16 + lane % 4 * 4);
          right[n][0] = unpacked<BITS>(word, BITS == 4 ? 0 : 2 * half);
          right[n][1] = unpacked<BITS>(word, BITS == 4 ? 1 : 2 * half + 1);
        }
      }
#pragma unroll
      for (int m = 0; m < WM / 16; ++m)
#pragma unroll
        for (int n = 0; n < WN / 8; ++n) multiply(sums[m][n], left[m], right[n], In());
    }
  }
  __syncthreads();

  // The tile of results takes the place of the operands; residual codes first, then what becomes of them.
  constexpr int PER_CHUNK = 16 / sizeof(Out), ROW_CHUNKS = RESULTS / PER_CHUNK;
  constexpr bool STAGED = RESIDUAL && sizeof(Res) == sizeof(Out);
  if (STAGED) {
    for (int i = thread; i < BM * ROW_CHUNKS; i += THREADS) {
      const int row = first_row + i / ROW_CHUNKS, column = first_column + i % ROW_CHUNKS * PER_CHUNK;
      if (row >= s.rows || column >= s.columns) continue;
      const Res *source = r + place(row, s.plane, s.width, s.r_start, s.r_sample, s.r_row, s.r_column) + column;
      Res *to = reinterpret_cast<Res *>(memory + i / ROW_CHUNKS * PITCH) + i % ROW_CHUNKS * PER_CHUNK;
      if (s.r_vectors && column + PER_CHUNK <= s.columns)
        *reinterpret_cast<int4 *>(to) = *reinterpret_cast<const int4 *>(source);
      else
        for (int k = 0; k < PER_CHUNK && column + k < s.columns; ++k) to[k] = source[k];
    }
    __syncthreads();
  }
  const int *start = reinterpret_cast<const int *>(constants + s.start);
  const int *scale = reinterpret_cast<const int *>(constants + s.scale);
  const int64_t *bias = reinterpret_cast<const int64_t *>(constants + s.bias);
  const int *r_scale = reinterpret_cast<const int *>(constants + s.r_scale);
#pragma unroll
  for (int n = 0; n < WN / 8; ++n) {
#pragma unroll
    for (int second = 0; second < (WIDE ? 1 : 2); ++second) {
      const int in_tile = WIDE ? (warp_n + n * 8) / 2 + lane % 4 : warp_n + n * 8 + lane % 4 * 2 + second;
      const int column = first_column + in_tile, m = scale[column];
      const int64_t c = bias[column];
#pragma unroll
      for (int i = 0; i < WM / 8; ++i) {
        const int in_rows = warp_m + i * 8 + lane / 4;
        Out *to = reinterpret_cast<Out *>(memory + in_rows * PITCH) + in_tile;
        uint32_t sum = static_cast<uint32_t>(sums[i / 2][n][i % 2 * 2 + second]) + start[column];
        if (WIDE) sum += static_cast<uint32_t>(sums[i / 2][n][i % 2 * 2 + 1]) << 8;
        int64_t total = static_cast<int64_t>(static_cast<int>(sum)) * m + c;
        if (STAGED) {
          total += static_cast<int64_t>(*reinterpret_cast<Res *>(to)) * r_scale[column];
        } else if (RESIDUAL) {
          const int row = first_row + in_rows;
          if (row < s.rows && column < s.columns)
            total += static_cast<int64_t>(
                         r[place(row, s.plane, s.width, s.r_start, s.r_sample, s.r_row, s.r_column) + column]) *
                     r_scale[column];
        }
        *to = static_cast<Out>(finished(total, s));
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < BM * ROW_CHUNKS; i += THREADS) {
    const int row = first_row + i / ROW_CHUNKS, column = first_column + i % ROW_CHUNKS * PER_CHUNK;
    if (row >= s.rows || column >= s.columns) continue;
    Out *to = y + place(row, s.plane, s.width, s.y_start, s.y_sample, s.y_row, s.y_column) + column;
    const Out *source = reinterpret_cast<const Out *>(memory + i / ROW_CHUNKS * PITCH) + i % ROW_CHUNKS * PER_CHUNK;
    if (s.y_vectors && column + PER_CHUNK <= s.columns)
      *reinterpret_cast<int4 *>(to) = *reinterpret_cast<const int4 *>(source);
    else
      for (int k = 0; k < PER_CHUNK && column + k < s.columns; ++k) to[k] = source[k];
  }
}

}  // namespace qcc

#endif
