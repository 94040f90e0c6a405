// Products without tensor cores: depthwise convolutions, and dense layers of few rows.
#ifndef QCC_DOT_CUH
#define QCC_DOT_CUH

namespace qcc {

__device__ __forceinline__ int dot(uint32_t a, uint32_t b, int c, uint8_t) { return dot_u8s8(a, b, c); }
__device__ __forceinline__ int dot(uint32_t a, uint32_t b, int c, int8_t) { return dot_s8s8(a, b, c); }

// A depthwise convolution: a thread computes four channels of a pixel. Four window positions at a time, whose
// bytes are transposed, so that one instruction multiplies four positions of a channel. `offsets` are those of
// the window positions, `steps` their number by four; weights are [step][channel][4], zero beyond the window.
template <bool RESIDUAL, typename In, typename Res, typename Out>
__device__ __forceinline__ void depthwise(const In *x, const Res *r, const uint8_t *constants, Out *y) {
  const TensorShape &s = *reinterpret_cast<const TensorShape *>(constants);
  const int quads = s.padded_columns / 4;
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  fill_halo(y, s, number, gridDim.x * blockDim.x);
  const int row = number / quads, channel = number % quads * 4;
  if (row >= s.rows) return;
  const int *offsets = reinterpret_cast<const int *>(constants + s.offsets);
  const int4 *weights = reinterpret_cast<const int4 *>(constants + s.weights);
  const In *source = x + place(row, s.plane, s.width, s.x_start, s.x_sample, s.x_row, s.x_column) + channel;
  int sums[4] = {0, 0, 0, 0};
  for (int step = 0; step < s.steps; ++step) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = *reinterpret_cast<const uint32_t *>(source + offsets[step * 4 + i]);
    const uint32_t low01 = bytes(v[0], v[1], 0x5140), high01 = bytes(v[0], v[1], 0x7362);
    const uint32_t low23 = bytes(v[2], v[3], 0x5140), high23 = bytes(v[2], v[3], 0x7362);
    const int4 w = weights[step * quads + channel / 4];
    sums[0] = dot(bytes(low01, low23, 0x5410), w.x, sums[0], In());
    sums[1] = dot(bytes(low01, low23, 0x7632), w.y, sums[1], In());
    sums[2] = dot(bytes(high01, high23, 0x5410), w.z, sums[2], In());
    sums[3] = dot(bytes(high01, high23, 0x7632), w.w, sums[3], In());
  }
  finish_four<RESIDUAL>(sums, row, channel, s, r, constants, y);
}

// The products of four elements with four weights.
template <typename In>
__device__ __forceinline__ int four(const In *x, uint32_t w, int sum) {
  if constexpr (sizeof(In) == 1) {
    return dot(*reinterpret_cast<const uint32_t *>(x), w, sum, In());
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += x[i] * static_cast<int8_t>(w >> 8 * i);
    return sum;
  }
}

// A dense layer: a warp computes one column of all ROWS rows, its lanes sharing the reduction over `depth` elements.
// Weights are [column][step][lane] words of 32 / BITS codes, zero beyond the reduction.
template <int ROWS, int BITS, bool RESIDUAL, typename In, typename Res, typename Out>
__device__ __forceinline__ void row_product(const In *x, const Res *r, const uint8_t *constants, Out *y) {
  constexpr int PARTS = 8 / BITS;
  const TensorShape &s = *reinterpret_cast<const TensorShape *>(constants);
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int column = blockIdx.x * warps + threadIdx.x / 32;
  if (column >= s.columns) return;  // whole warps
  const uint32_t *w = reinterpret_cast<const uint32_t *>(constants + s.weights) + column * s.steps * 32 + lane;
  int sums[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) sums[i] = 0;
  for (int step = 0; step < s.steps; ++step) {
    const uint32_t word = w[step * 32];
    const int from = (step * 32 + lane) * (4 * PARTS);
    if (from >= s.depth) continue;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const In *source = x + s.x_start + from + i * s.x_column;
#pragma unroll
      for (int part = 0; part < PARTS; ++part) sums[i] = four(source + 4 * part, unpacked<BITS>(word, part), sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int sum = warp_sum(sums[i]);
    if (lane) continue;
    const int start = reinterpret_cast<const int *>(constants + s.start)[column];
    const int scale = reinterpret_cast<const int *>(constants + s.scale)[column];
    int64_t total = static_cast<int64_t>(wrapped_sum(sum, start)) * scale +
                    reinterpret_cast<const int64_t *>(constants + s.bias)[column];
    if (RESIDUAL)
      total += static_cast<int64_t>(r[s.r_start + i * s.r_column + column]) *
               reinterpret_cast<const int *>(constants + s.r_scale)[column];
    y[s.y_start + i * s.y_column + column] = static_cast<Out>(finished(total, s));
  }
}

}  // namespace qcc

#endif
