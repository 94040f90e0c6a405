// What the kernels of convolutions and dense layers share: their constants, places of pixels, how they end.
#ifndef QCC_SHAPE_CUH
#define QCC_SHAPE_CUH

namespace qcc {

// Begins the constants; the last block tells where in them the vectors lie. Distances are in elements.
struct TensorShape {
  int rows, columns, padded_columns, steps, depth;
  int splits, split_steps;  // parts of the reduction that blocks of their own sum, and the steps of one
  int group_tiles, group_columns, group_x;  // tiles and columns of a group, bytes from one's input to the next's
  int plane, width;  // output pixels of a sample, of a line
  int x_start, x_sample, x_row, x_column;  // in bytes where tensor cores read them
  int y_start, y_sample, y_row, y_column;
  int r_start, r_sample, r_row, r_column;
  int shift, qmin, qmax;
  int y_vectors, r_vectors;  // whether whole 16-byte chunks of a row can be stored, loaded
  int halo_top, halo_left, halo_bottom, halo_right, halo_words, halo_fill;  // words of a pixel; 0: none is written
  int offsets, start, scale, bias, r_scale, weights;
};

__device__ __forceinline__ int place(int row, int plane, int width, int start, int sample, int line, int column) {
  const int in_plane = row % plane;
  return start + row / plane * sample + in_plane / width * line + in_plane % width * column;
}

// Writes the border around every plane of y: all threads of the launch, numbered, together.
template <typename Out>
__device__ __forceinline__ void fill_halo(Out *y, const TensorShape &s, int thread, int threads) {
  if (!s.halo_words) return;
  const int sides = s.halo_left + s.halo_right, width = s.width + sides, height = s.plane / s.width;
  const int above = s.halo_top * width, outside = above + s.halo_bottom * width, border = outside + height * sides;
  const int total = s.rows / s.plane * border * s.halo_words;
  for (int i = thread; i < total; i += threads) {
    const int pixel = i / s.halo_words, sample = pixel / border, p = pixel % border;
    int line, column;
    if (p < outside) {
      line = p < above ? p / width - s.halo_top : height + (p - above) / width;
      column = p % width - s.halo_left;  // `above` is whole lines
    } else {
      line = (p - outside) / sides;
      column = (p - outside) % sides - s.halo_left;
      if (column >= 0) column += s.width;
    }
    Out *to = y + s.y_start + sample * s.y_sample + line * s.y_row + column * s.y_column;
    reinterpret_cast<int *>(to)[i % s.halo_words] = s.halo_fill;
  }
}

// a + b modulo 2^32: what accumulators hold is exact only with the start added.
__device__ __forceinline__ int wrapped_sum(int a, int b) {
  return static_cast<int>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

// The dyadic requantization of acc * m + c (and r * mr).
__device__ __forceinline__ int64_t finished(int64_t total, const TensorShape &s) {
  total >>= s.shift;
  total = total < s.qmax ? total : s.qmax;
  return total > s.qmin ? total : s.qmin;
}

// Ends four channels of a row, from their sums on.
template <bool RESIDUAL, typename Res, typename Out>
__device__ __forceinline__ void finish_four(const int (&sums)[4], int row, int channel, const TensorShape &s,
                                            const Res *r, const uint8_t *constants, Out *y) {
  const int *start = reinterpret_cast<const int *>(constants + s.start);
  const int *scale = reinterpret_cast<const int *>(constants + s.scale);
  const int64_t *bias = reinterpret_cast<const int64_t *>(constants + s.bias);
  const int *r_scale = reinterpret_cast<const int *>(constants + s.r_scale);
  const int r_place = RESIDUAL ? place(row, s.plane, s.width, s.r_start, s.r_sample, s.r_row, s.r_column) : 0;
  Out results[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int c = channel + i;
    int64_t total = static_cast<int64_t>(wrapped_sum(sums[i], start[c])) * scale[c] + bias[c];
    if (RESIDUAL && c < s.columns) total += static_cast<int64_t>(r[r_place + c]) * r_scale[c];
    results[i] = static_cast<Out>(finished(total, s));
  }
  Out *to = y + place(row, s.plane, s.width, s.y_start, s.y_sample, s.y_row, s.y_column) + channel;
  if (sizeof(Out) == 1 && s.y_vectors && channel + 4 <= s.columns) {
    const uint32_t low = static_cast<uint8_t>(results[0]) | static_cast<uint8_t>(results[1]) << 8;
    const uint32_t high = static_cast<uint8_t>(results[2]) | static_cast<uint8_t>(results[3]) << 8;
    *reinterpret_cast<uint32_t *>(to) = low | high << 16;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (channel + i < s.columns) to[i] = results[i];
  }
}

// The four signed bytes number `part` of a word that holds 32 / BITS codes, those of a part BITS bits apart.
template <int BITS>
__device__ __forceinline__ uint32_t unpacked(uint32_t word, int part) {
  if (BITS == 8) return word;
  constexpr uint32_t MASK = BITS == 4 ? 0x0f0f0f0fu : 0x03030303u;
  constexpr uint32_t SIGN = BITS == 4 ? 0x08080808u : 0x02020202u;
  constexpr uint32_t FILL = BITS == 4 ? 0x1eu : 0x7eu;  // times the sign bit: all bits above it
  const uint32_t codes = word >> BITS * part & MASK;
  return codes | (codes & SIGN) * FILL;
}

}  // namespace qcc

#endif
