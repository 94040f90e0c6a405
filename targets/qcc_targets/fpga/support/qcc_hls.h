/* Integers of exact width, streams and words: an HLS tool's own types, or plain C++17 with the same values.
 *
 * The plain forms check what hardware would not survive: a read from an empty stream, and codes left over at the end.
 */
#ifndef QCC_HLS_H
#define QCC_HLS_H

#include <stdint.h>

#ifdef __SYNTHESIS__

#include <ap_int.h>
#include <hls_stream.h>

template <int N> using qcc_int = ap_int<N>;
template <int N> using qcc_uint = ap_uint<N>;
template <typename T> using qcc_stream = hls::stream<T>;

#else

#include <deque>
#include <stdio.h>
#include <stdlib.h>

/* N bits in two's complement; assignment wraps. */
template <int N> class qcc_int {
    int64_t value;
  public:
    qcc_int(int64_t v = 0) : value((int64_t)((uint64_t)v << (64 - N)) >> (64 - N)) {}
    operator int64_t() const { return value; }
};

/* N bits without a sign; assignment wraps. */
template <int N> class qcc_uint {
    int64_t value;
  public:
    qcc_uint(int64_t v = 0) : value((int64_t)((uint64_t)v & (~(uint64_t)0 >> (64 - N)))) {}
    operator int64_t() const { return value; }
};

template <typename T> class qcc_stream {
    std::deque<T> queue;
    const char *name;
    [[noreturn]] void fail(const char *why) const
    {
        fprintf(stderr, "stream %s: %s\n", name, why);
        exit(3);
    }
  public:
    explicit qcc_stream(const char *n) : name(n) {}
    ~qcc_stream()
    {
        if (!queue.empty()) fail("elements are left over");
    }
    void write(const T &element) { queue.push_back(element); }
    T read()
    {
        if (queue.empty()) fail("read while empty");
        T element = queue.front();
        queue.pop_front();
        return element;
    }
};

#endif

/* What a stream carries in a cycle: L neighbouring channels. */
template <typename T, int L> struct qcc_word {
    T lane[L];
};

/* Take words until ``until`` elements of the frame are in the ring ``line``; the frame's first element lies at 0. */
template <typename T, int L, int SIZE>
static inline void qcc_take(qcc_stream<qcc_word<T, L>> &x, T (&line)[SIZE], int &at, int &taken, int until)
{
    while (taken < until) {
#pragma HLS PIPELINE II=1
        const qcc_word<T, L> word = x.read();
        for (int i = 0; i < L; ++i) {
#pragma HLS UNROLL
            line[SIZE % L == 0 || at + i < SIZE ? at + i : at + i - SIZE] = word.lane[i];
        }
        taken += L;
        at = at + L < SIZE ? at + L : at + L - SIZE;
    }
}

/* The last index that a window needs, where the axis has ``extent`` places. */
static inline int qcc_last(int index, int extent)
{
    return index < extent ? index : extent - 1;
}

#endif
