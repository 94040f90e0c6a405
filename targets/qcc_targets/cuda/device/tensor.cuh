// Convolutions and products with constant weights on integer tensor cores, as one implicit matrix product.
//
// Rows are output pixels, columns output channels. The reduction walks 16-byte chunks of the input, which lie
// at offsets[chunk] from the pixel's first byte, whatever window position they come from; the input's halo
// holds the padding. Four chunks are a step. Weights lie as the steps read them, zero beyond the true reduction, so
// that a chunk may reach over what it stands for. Tiles go through a ring of STAGES buffers in shared memory;
// 16-byte chunks of a row are permuted by (row / 2) % 4, which keeps ldmatrix free of bank conflicts.
//
// 16-bit inputs are multiplied byte by byte: an even column sums the low bytes, the odd one beside it the high
// ones, each with weights that are zero at the other bytes; so a result takes two columns. Signed ones become
// unsigned by 2^15 more, which their sign bit turned over is and what the accumulators start with takes back.
//
// Groups of channels have tiles of their own: padded columns are those of one group after another.
//
// Where there are few results and a long reduction, blocks sum parts of it (tensor_partial): [split][row][column]
// int32 in the scratch memory, columns padded. Another kernel adds them up (tensor_sum). Integer sums do not
// depend on their order.
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
__device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int16_t) {
  mma_u8s8(c, a, b);
}

template <int BM, int BN, int WARPS_M, int WARPS_N, int STAGES, int VECTOR, int BITS, bool RESIDUAL, bool PARTIAL,
          typename In, typename Res, typename Out>
__device__ __forceinline__ void tensor_tile(const In *x, const Res *r, const uint8_t *constants, Out *y,
                                            int *partial) {
  constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
  constexpr int A_BYTES = BM * 64, STAGE = A_BYTES + BN * 8 * BITS;
  constexpr int A_ROWS = BM * 4 / THREADS;
  constexpr int B_CHUNKS = BN * BITS / 2;
  constexpr bool WIDE = sizeof(In) == 2, SIGNED = In(-1) < In(0);
  constexpr int RESULTS = WIDE ? BN / 2 : BN;  // of a row of the tile
  constexpr int PITCH = RESULTS * sizeof(Out) + 16;
  constexpr int BYTES = STAGES * STAGE > BM * PITCH ? STAGES * STAGE : BM * PITCH;
  static_assert(WM % 16 == 0 && WN % 16 == 0 && BM * 4 % THREADS == 0 && BYTES <= 49152, "");
  static_assert(BITS == 8 || BITS == 4 || BITS == 2, "");
  alignas(128) __shared__ uint8_t memory[BYTES];

  const TensorShape &s = *reinterpret_cast<const TensorShape *>(constants);
  if (!PARTIAL) fill_halo(y, s, blockIdx.x * THREADS + threadIdx.x, gridDim.x * THREADS);
  const int *offsets = reinterpret_cast<const int *>(constants + s.offsets);
  const int tiles = s.padded_columns / BN;
  const int blocks = PARTIAL ? gridDim.x / s.splits : gridDim.x, split = blockIdx.x / blocks;
  const int block = blockIdx.x % blocks, tile = block % tiles;
  const int group = tile / s.group_tiles, end_column = (group + 1) * s.group_columns;
  const int first_row = block / tiles * BM, first_vector = tile * RESULTS;
  const int first_column = group * s.group_columns + (tile - group * s.group_tiles) * RESULTS;
  const int first_step = PARTIAL ? split * s.split_steps : 0;
  const int steps = PARTIAL && s.steps - first_step > s.split_steps ? s.split_steps : s.steps - first_step;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;

  // A thread loads one chunk of every (THREADS / 4)th row, and every THREADSth chunk of weights.
  const int chunk = thread & 3, row = thread >> 2;
  const int a_to = row * 64 + ((chunk ^ row >> 1 & 3) << 4);
  int from[A_ROWS];
#pragma unroll
  for (int i = 0; i < A_ROWS; ++i) {
    const int r = first_row + row + i * (THREADS / 4);
    from[i] = place(r < s.rows ? r : s.rows - 1, s.plane, s.width, s.x_start, s.x_sample, s.x_row, s.x_column);
  }
  const int *offset = offsets + first_step * 4 + chunk;
  const int b_step = s.padded_columns * (8 * BITS), b_half = BITS == 8 ? 0 : s.padded_columns * 16 - BN * 16;
  const uint8_t *b_from = constants + s.weights + first_step * b_step + tile * (BITS == 8 ? BN * 64 : BN * 16);

  auto load = [&](int step, int stage) {
    uint8_t *a = memory + stage * STAGE, *b = a + A_BYTES;
    const uint8_t *source = reinterpret_cast<const uint8_t *>(x) + group * s.group_x + offset[step * 4];
#pragma unroll
    for (int i = 0; i < A_ROWS; ++i)
#pragma unroll
      for (int byte = 0; byte < 16; byte += VECTOR)
        cp_async<VECTOR>(a + a_to + i * (THREADS * 16) + byte, source + from[i] + byte);
#pragma unroll
    for (int i = 0; i < (B_CHUNKS + THREADS - 1) / THREADS; ++i) {
      const int c = thread + i * THREADS;
      if (B_CHUNKS % THREADS && c >= B_CHUNKS) break;
      const uint8_t *w = b_from + step * b_step + c * 16;
      if (BITS == 8)  // the chunks of a column lie as the chunks of a row of the input do
        cp_async<16>(b + a_to + i * (THREADS * 16), w);
      else
        cp_async<16>(b + c * 16, w + c / BN * b_half);
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
    if (step < steps) load(step, step);
    cp_commit();
  }
  // Where a lane's rows and columns begin, for the even 16-byte chunk; the odd one is beside it.
  const int a_lane = warp_m + (lane & 15), a_swap = a_lane >> 1 & 3, a_half = lane >> 4;
  const int b_lane = warp_n + (lane >> 4) * 8 + (lane & 7), b_swap = b_lane >> 1 & 3, b_odd = lane >> 3 & 1;
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    cp_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) load(step + STAGES - 1, stage ? stage - 1 : STAGES - 1);
    cp_commit();
    const uint8_t *a = memory + stage * STAGE, *b = a + A_BYTES;
    stage = stage + 1 < STAGES ? stage + 1 : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t left[WM / 16][4], right[WN / 8][2];
#pragma unroll
      for (int m = 0; m < WM / 16; ++m) {
        ldmatrix_x4(left[m], a + (a_lane + m * 16) * 64 + ((half * 2 + a_half ^ a_swap) << 4));
#pragma unroll
        for (int i = 0; WIDE && SIGNED && i < 4; ++i) left[m][i] ^= 0x80008000u;
      }
#pragma unroll
      for (int n = 0; n < WN / 8; n += BITS == 8 ? 2 : 1) {
        if (BITS == 8) {
          uint32_t pair[4];
          ldmatrix_x4(pair, b + (b_lane + n * 8) * 64 + ((half * 2 + b_odd ^ b_swap) << 4));
          right[n][0] = pair[0], right[n][1] = pair[1], right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
        } else {
          const int column = warp_n + n * 8 + (lane >> 2) + (BITS == 4 ? half * BN : 0);
          const uint32_t word = *reinterpret_cast<const uint32_t *>(b + column * 16 + (lane & 3) * 4);
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
  if (PARTIAL) {
    const int padded = s.padded_columns / (WIDE ? 2 : 1);
#pragma unroll
    for (int i = 0; i < WM / 8; ++i) {
      const int row = first_row + warp_m + i * 8 + (lane >> 2);
      if (row >= s.rows) continue;
      int *to = partial + (split * s.rows + row) * padded + first_vector;
#pragma unroll
      for (int n = 0; n < WN / 8; ++n) {
        const int low = sums[i / 2][n][i % 2 * 2], high = sums[i / 2][n][i % 2 * 2 + 1];
        if (WIDE)
          to[(warp_n + n * 8) / 2 + (lane & 3)] =
              wrapped_sum(low, static_cast<int>(static_cast<uint32_t>(high) << 8));
        else
          *reinterpret_cast<int2 *>(to + warp_n + n * 8 + (lane & 3) * 2) = int2{low, high};
      }
    }
    return;
  }
  __syncthreads();

  // The tile of results takes the place of the operands; residual codes first, then what becomes of them.
  constexpr int PER_CHUNK = 16 / sizeof(Out), ROW_CHUNKS = RESULTS / PER_CHUNK;
  constexpr bool STAGED = RESIDUAL && sizeof(Res) == sizeof(Out);
  if (STAGED) {
    for (int i = thread; i < BM * ROW_CHUNKS; i += THREADS) {
      const int row = first_row + i / ROW_CHUNKS, column = first_column + i % ROW_CHUNKS * PER_CHUNK;
      if (row >= s.rows || column >= end_column) continue;
      const Res *source = r + place(row, s.plane, s.width, s.r_start, s.r_sample, s.r_row, s.r_column) + column;
      Res *to = reinterpret_cast<Res *>(memory + i / ROW_CHUNKS * PITCH) + i % ROW_CHUNKS * PER_CHUNK;
      if (s.r_vectors && column + PER_CHUNK <= end_column)
        *reinterpret_cast<int4 *>(to) = *reinterpret_cast<const int4 *>(source);
      else
        for (int k = 0; k < PER_CHUNK && column + k < end_column; ++k) to[k] = source[k];
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
      const int in_tile = WIDE ? (warp_n + n * 8) / 2 + (lane & 3) : warp_n + n * 8 + (lane & 3) * 2 + second;
      const int vector = first_vector + in_tile, column = first_column + in_tile, m = scale[vector];
      const int64_t c = bias[vector];
#pragma unroll
      for (int i = 0; i < WM / 8; ++i) {
        const int in_rows = warp_m + i * 8 + (lane >> 2);
        Out *to = reinterpret_cast<Out *>(memory + in_rows * PITCH) + in_tile;
        uint32_t sum = static_cast<uint32_t>(sums[i / 2][n][i % 2 * 2 + second]) + start[vector];
        if (WIDE) sum += static_cast<uint32_t>(sums[i / 2][n][i % 2 * 2 + 1]) << 8;
        int64_t total = static_cast<int64_t>(static_cast<int>(sum)) * m + c;
        if (STAGED) {
          total += static_cast<int64_t>(*reinterpret_cast<Res *>(to)) * r_scale[vector];
        } else if (RESIDUAL) {
          const int row = first_row + in_rows;
          if (row < s.rows && column < end_column)
            total += static_cast<int64_t>(
                         r[place(row, s.plane, s.width, s.r_start, s.r_sample, s.r_row, s.r_column) + column]) *
                     r_scale[vector];
        }
        *to = static_cast<Out>(finished(total, s));
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < BM * ROW_CHUNKS; i += THREADS) {
    const int row = first_row + i / ROW_CHUNKS, column = first_column + i % ROW_CHUNKS * PER_CHUNK;
    if (row >= s.rows || column >= end_column) continue;
    Out *to = y + place(row, s.plane, s.width, s.y_start, s.y_sample, s.y_row, s.y_column) + column;
    const Out *source = reinterpret_cast<const Out *>(memory + i / ROW_CHUNKS * PITCH) + i % ROW_CHUNKS * PER_CHUNK;
    if (s.y_vectors && column + PER_CHUNK <= end_column)
      *reinterpret_cast<int4 *>(to) = *reinterpret_cast<const int4 *>(source);
    else
      for (int k = 0; k < PER_CHUNK && column + k < end_column; ++k) to[k] = source[k];
  }
}

template <int BM, int BN, int WARPS_M, int WARPS_N, int STAGES, int VECTOR, int BITS, bool RESIDUAL, typename In,
          typename Res, typename Out>
__device__ __forceinline__ void tensor_product(const In *x, const Res *r, const uint8_t *constants, Out *y) {
  tensor_tile<BM, BN, WARPS_M, WARPS_N, STAGES, VECTOR, BITS, RESIDUAL, false>(x, r, constants, y,
                                                                              static_cast<int *>(nullptr));
}

template <int BM, int BN, int WARPS_M, int WARPS_N, int STAGES, int VECTOR, int BITS, typename In>
__device__ __forceinline__ void tensor_partial(const In *x, const uint8_t *constants, void *partial) {
  tensor_tile<BM, BN, WARPS_M, WARPS_N, STAGES, VECTOR, BITS, false, true>(
      x, x, constants, static_cast<uint8_t *>(nullptr), static_cast<int *>(partial));
}

// A thread ends four columns of a row; results of 16-bit inputs have taken two padded columns each.
template <bool RESIDUAL, typename In, typename Res, typename Out>
__device__ __forceinline__ void tensor_sum(const Res *r, const uint8_t *constants, Out *y, const void *partial) {
  const TensorShape &s = *reinterpret_cast<const TensorShape *>(constants);
  const int number = blockIdx.x * blockDim.x + threadIdx.x, quads = s.padded_columns / (sizeof(In) == 2 ? 8 : 4);
  fill_halo(y, s, number, gridDim.x * blockDim.x);
  const int row = number / quads, column = number % quads * 4;
  if (row >= s.rows) return;
  const int4 *sums = static_cast<const int4 *>(partial) + number;
  int4 sum = *sums;
  for (int split = 1; split < s.splits; ++split) {
    const int4 more = sums[split * s.rows * quads];
    sum.x = wrapped_sum(sum.x, more.x), sum.y = wrapped_sum(sum.y, more.y);
    sum.z = wrapped_sum(sum.z, more.z), sum.w = wrapped_sum(sum.w, more.w);
  }
  const int four[4] = {sum.x, sum.y, sum.z, sum.w};
  finish_four<RESIDUAL>(four, row, column, s, r, constants, y);
}

}  // namespace qcc

#endif
