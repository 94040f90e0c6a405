// Maxima of windows over bytes, four channels at a time.
#ifndef QCC_POOL_CUH
#define QCC_POOL_CUH

namespace qcc {

// Begins the constants; `offsets` tells where in them the offsets of the window's positions lie.
struct PoolShape {
  int rows, columns, quads, positions;
  int plane, width;  // output pixels of a sample, of a line
  int x_start, x_sample, x_row, x_column;
  int y_start, y_sample, y_row, y_column;
  int y_words;  // whether four results can be stored as a word
  int offsets;
};

template <typename Code>
__device__ __forceinline__ void max_pool(const Code *x, const uint8_t *constants, Code *y) {
  const PoolShape &s = *reinterpret_cast<const PoolShape *>(constants);
  const int *offsets = reinterpret_cast<const int *>(constants + s.offsets);
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  const int row = number / s.quads, channel = number % s.quads * 4;
  if (row >= s.rows) return;
  const Code *source = x + place(row, s.plane, s.width, s.x_start, s.x_sample, s.x_row, s.x_column) + channel;
  int greatest[4] = {-128, -128, -128, -128};
  for (int position = 0; position < s.positions; ++position) {
    const uint32_t word = *reinterpret_cast<const uint32_t *>(source + offsets[position]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int code = static_cast<Code>(word >> 8 * i);
      greatest[i] = greatest[i] > code ? greatest[i] : code;
    }
  }
  Code *to = y + place(row, s.plane, s.width, s.y_start, s.y_sample, s.y_row, s.y_column) + channel;
  if (s.y_words && channel + 4 <= s.columns) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) word |= (greatest[i] & 255u) << 8 * i;
    *reinterpret_cast<uint32_t *>(to) = word;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (channel + i < s.columns) to[i] = static_cast<Code>(greatest[i]);
  }
}

}  // namespace qcc

#endif
