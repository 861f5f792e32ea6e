// softmax(q k^T / sqrt(D)) v in bfloat16 without the N x N matrix, for CPUs that multiply bfloat16 pairs (AVX512-BF16):
// a few queries at a time against runs of keys whose scores stay in the first-level cache. Sums are float32.
#include "vec.h"
#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr long RUN = 640;         // keys whose scores are held at once, a multiple of 32
constexpr float CLOSED = -1e30f;  // score of a key that may not be seen; its weight is 2^-126
constexpr int PAIRS = LANES;      // pairs of bfloat16 in a vector; the partners are neighbours along the sum

struct Shape {
    long clips, heads, queries, keys, padded;  // padded: keys rounded up to a multiple of 32
    int threads;
};

inline uint32_t pair(const bf16* first, const bf16* second) { return first->bits | (uint32_t)second->bits << 16; }
inline __m512i pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }

// sum += the products of one pair with sixteen.
inline vf add_products(vf sum, uint32_t a, __m512i b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
}

inline float largest(vf v) { return _mm512_reduce_max_ps((__m512)v); }

// Sixteen keys of one head as [D / 2][16] pairs, their values as [8][D] pairs; zeros beyond the last key.
template <int D>
void pack(const Shape& n, const bf16* k, long sk, const bf16* v, long sv, long from, uint32_t* keys, uint32_t* values) {
    const bf16 none{};
    for (long i = 0; i < LANES; ++i)
        for (int c = 0; c < D / 2; ++c) {
            const bf16* at = k + (from + i) * sk + 2 * c;
            keys[c * PAIRS + i] = from + i < n.keys ? pair(at, at + 1) : 0;
        }
    for (long i = from; i < from + LANES; i += 2)
        for (int e = 0; e < D; ++e) {
            const bf16 *first = i < n.keys ? v + i * sv + e : &none, *second = i + 1 < n.keys ? first + sv : &none;
            *values++ = pair(first, second);
        }
}

// Which of sixteen keys a query may see.
inline __mmask16 open_keys(long left, const uint8_t* allowed) {
    const __mmask16 there = left >= LANES ? 0xffff : (1u << std::max(left, 0L)) - 1;
    if (!allowed) return there;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, allowed);
    return _mm_mask_test_epi8_mask(there, bytes, bytes);
}

// Sixteen bfloat16, zero where `open` is not set; reads nothing there.
inline vf widen_open(__mmask16 open, const bf16* p) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(open, p)), 16);
}

// Queries of a tile: their sums and two operands fill the registers.
template <int D> constexpr int ROWS = 16 / std::max(D / LANES, 2);

// `count` queries of one head against all its keys. allowed, bias: (queries, keys) of these queries, or null.
template <int D>
void attend(const Shape& n, const bf16* q, long sq, int count, const uint32_t* keys, const uint32_t* values,
            const uint8_t* allowed, const bf16* bias, bf16* y, long sy) {
    constexpr int C = D / 2, W = D / LANES, R = ROWS<D>;
    const float log2e = 1.442695041f, scale = log2e / std::sqrt((float)D);  // scores in powers of two
    uint32_t query[R][C] = {};
    for (int r = 0; r < count; ++r) memcpy(query[r], q + r * sq, D * sizeof(bf16));
    alignas(64) float scores[R][RUN];
    vf out[R][W] = {};
    float top[R], sum[R] = {};
    for (int r = 0; r < R; ++r) top[r] = CLOSED;
    for (long from = 0; from < n.padded; from += RUN) {
        const long run = std::min(RUN, n.padded - from);
        vf best[R];
        for (int r = 0; r < R; ++r) best[r] = splat(CLOSED);
        for (long at = 0; at < run; at += 2 * LANES) {
            const uint32_t* block = keys + (from + at) * C;
            vf s[R][2] = {};
            for (int c = 0; c < C; ++c) {
                const __m512i k0 = pairs(block + c * PAIRS), k1 = pairs(block + (C + c) * PAIRS);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    s[r][0] = add_products(s[r][0], query[r][c], k0);
                    s[r][1] = add_products(s[r][1], query[r][c], k1);
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const long key = from + at + half * LANES, cell = r * n.keys + key;
                    const bool real = r < count;
                    const __mmask16 open = open_keys(n.keys - key, real && allowed ? allowed + cell : nullptr);
                    vf x = s[r][half] * scale;
                    if (real && bias) x += widen_open(open, bias + cell) * log2e;
                    x = (vf)_mm512_mask_mov_ps((__m512)splat(CLOSED), open, (__m512)x);
                    narrow(scores[r] + at + half * LANES, x);
                    best[r] = best[r] > x ? best[r] : x;
                }
        }
        for (int r = 0; r < R; ++r) {
            const float high = std::max(top[r], largest(best[r]));
            const float shrink = exp2_low(splat(top[r] - high))[0];
            vf total = {};
            for (long at = 0; at < run; at += LANES) {
                const vf p = exp2_low(widen(scores[r] + at) - high);
                total += p;
                // in place, half the width: never ahead of what is still to be read
                _mm256_storeu_si256((__m256i*)((bf16*)scores[r] + at), (__m256i)_mm512_cvtneps_pbh((__m512)p));
            }
            top[r] = high, sum[r] = sum[r] * shrink + sum_lanes(total);
            for (int w = 0; w < W; ++w) out[r][w] *= shrink;
        }
        const uint32_t* value = values + from / 2 * D;
        for (long i = 0; i < run / 2; ++i, value += D) {
            __m512i v[W];
#pragma GCC unroll 4
            for (int w = 0; w < W; ++w) v[w] = pairs(value + w * PAIRS);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                uint32_t weights;
                memcpy(&weights, (const uint32_t*)scores[r] + i, sizeof weights);
#pragma GCC unroll 4
                for (int w = 0; w < W; ++w) out[r][w] = add_products(out[r][w], weights, v[w]);
            }
        }
    }
    for (int r = 0; r < count; ++r)
        for (int w = 0; w < W; ++w) narrow(y + r * sy + w * LANES, out[r][w] / sum[r]);
}

template <int D>
void attention(const Shape& n, const bf16* q, long sq, const bf16* k, long sk, const bf16* v, long sv,
               const uint8_t* allowed, const bf16* bias, bf16* y) {
    const long cells = n.padded * D / 2, all = n.clips * n.heads, blocks = n.padded / LANES, sy = n.heads * D;
    const long tiles = (n.queries + ROWS<D> - 1) / ROWS<D>;
    std::vector<uint32_t> keys(all * cells), values(all * cells);
#pragma omp parallel num_threads(n.threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < all * blocks; ++i) {
            const long each = i / blocks, clip = each / n.heads, head = each % n.heads, from = i % blocks * LANES;
            pack<D>(n, k + clip * n.keys * sk + head * D, sk, v + clip * n.keys * sv + head * D, sv, from,
                    keys.data() + each * cells + from * D / 2, values.data() + each * cells + from * D / 2);
        }
#pragma omp for schedule(dynamic, 8)
        for (long i = 0; i < all * tiles; ++i) {
            const long each = i / tiles, clip = each / n.heads, head = each % n.heads, first = i % tiles * ROWS<D>;
            const long row = clip * n.queries + first;
            attend<D>(n, q + row * sq + head * D, sq, (int)std::min<long>(ROWS<D>, n.queries - first),
                      keys.data() + each * cells, values.data() + each * cells,
                      allowed ? allowed + row * n.keys : nullptr,
                      bias ? bias + (head * n.queries + first) * n.keys : nullptr, y + row * sy + head * D, sy);
        }
    }
}

}  // namespace
#endif

// q (clips, queries, heads * D), k and v (clips, keys, heads * D), bfloat16, strides between rows; allowed (clips,
// queries, keys) bytes or null, the same for all heads, at least one key per query; bias (heads, queries, keys)
// bfloat16, added to the scores, the same for all clips, or null; y contiguous. Returns 1 for a D that was not built and for a CPU
// without these instructions.
extern "C" int ausm_attention(int threads, long clips, long heads, long queries, long keys, long D, const void* q,
                              long sq, const void* k, long sk, const void* v, long sv, const void* allowed,
                              const void* bias, void* y) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)
    const Shape n{clips, heads, queries, keys, (keys + 2 * LANES - 1) / (2 * LANES) * (2 * LANES), threads};
#define CALL(D) \
    attention<D>(n, (const bf16*)q, sq, (const bf16*)k, sk, (const bf16*)v, sv, (const uint8_t*)allowed,     \
                 (const bf16*)bias, (bf16*)y)
    if (D == 16) { CALL(16); return 0; }
    if (D == 32) { CALL(32); return 0; }
    if (D == 64) { CALL(64); return 0; }
#endif
    return 1;
}
