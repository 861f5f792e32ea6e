// Sixteen floats at a time, in the vector extensions of GCC and Clang: one source for AVX-512, AVX2, SSE and NEON.
// Storage is float32, bfloat16 (as uint16_t) or float16; arithmetic is always float32.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

static inline vf splat(float x) { return x - vf{}; }
static inline vf at_least(vf x, float low) { return x < splat(low) ? splat(low) : x; }  // NaN stays NaN
static inline vf at_most(vf x, float high) { return x > splat(high) ? splat(high) : x; }

static inline vf widen(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline void narrow(float* p, vf v) { memcpy(p, &v, sizeof v); }

static inline vf widen(const bf16* p) {
    vh h; memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
static inline void narrow(bf16* p, vf v) {
    vu bits = (vu)v;
    bits += 0x7fffu + ((bits >> 16) & 1u);  // round to nearest, ties to even
    vh h = __builtin_convertvector(bits >> 16, vh);
    memcpy(p, &h, sizeof h);
}

#if defined(__AVX512F__)
static inline vf widen(const fp16* p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline void narrow_unclamped(fp16* p, vf v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
static inline vf widen(const fp16* p) {
    __m256 half[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
                      _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
    vf v; memcpy(&v, half, sizeof v); return v;
}
static inline void narrow_unclamped(fp16* p, vf v) {
    __m256 half[2]; memcpy(half, &v, sizeof v);
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(half[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(half[1], _MM_FROUND_TO_NEAREST_INT));
}
#else  // a compiler without _Float16 fails here, and the caller falls back to PyTorch
static inline vf widen(const fp16* p) {
    vf v;
    for (int i = 0; i < LANES; ++i) { _Float16 x; memcpy(&x, p + i, 2); v[i] = (float)x; }
    return v;
}
static inline void narrow_unclamped(fp16* p, vf v) {
    for (int i = 0; i < LANES; ++i) { _Float16 x = (_Float16)v[i]; memcpy(p + i, &x, 2); }
}
#endif
// An infinite state would stay infinite for the rest of a stream: float16 saturates.
static inline void narrow(fp16* p, vf v) { narrow_unclamped(p, at_most(at_least(v, -65504.f), 65504.f)); }

// The first n of 16 lanes, zeros elsewhere: channel counts need not be multiples of 16.
template <typename T> static inline vf load(const T* p, int n) {
    if (n >= LANES) return widen(p);
    T part[LANES] = {};
    memcpy(part, p, n * sizeof(T));
    return widen(part);
}
template <typename T> static inline void store(T* p, vf v, int n) {
    if (n >= LANES) return narrow(p, v);
    T part[LANES];
    narrow(part, v);
    memcpy(p, part, n * sizeof(T));
}
template <typename T> static inline float load_one(const T* p) { return load(p, 1)[0]; }
template <typename T> static inline void store_one(T* p, float x) { store(p, splat(x), 1); }

// 2^x for x <= 127: x = k + r with |r| <= 1/2, a polynomial for 2^r (minimax, exact at 0, within 0.7 units in the last
// place as evaluated, no bias that would compound in slow decays), then k is added to the exponent.
static inline vf exp2_low(vf x) {
    x = at_least(x, -126.f);
    const vf shifted = x + 12582912.f;  // 1.5 * 2^23: the sum's low mantissa bits hold round(x)
    const vf r = x - (shifted - 12582912.f);
    vf y = splat(1.535335759e-4f);
    y = y * r + 1.339887851e-3f;
    y = y * r + 9.618437849e-3f;
    y = y * r + 5.550332367e-2f;
    y = y * r + 2.402264774e-1f;
    y = y * r + 6.931471825e-1f;
    y = y * r + 1.f;
    return (vf)((vu)y + ((vu)shifted << 23));
}
static inline vf exp_any(vf x) { return exp2_low(at_most(x * 1.442695041f, 126.f)); }
static inline vf sigmoid(vf x) { return 1.f / (1.f + exp_any(-x)); }

// softplus(x) = max(x, 0) + log1p(e), e = exp(-|x|) in (0, 1]; log1p(e) = 2 atanh(e / (2 + e)), whose series in
// s <= 1/3 keeps relative accuracy where e is tiny (time steps of 1e-3 and below).
static inline vf softplus(vf x) {
    const vf magnitude = x < vf{} ? -x : x;
    const vf e = exp_any(-magnitude);
    const vf s = e / (2.f + e), q = s * s;
    vf p = splat(1.f / 17);
    p = p * q + 1.f / 15;
    p = p * q + 1.f / 13;
    p = p * q + 1.f / 11;
    p = p * q + 1.f / 9;
    p = p * q + 1.f / 7;
    p = p * q + 1.f / 5;
    p = p * q + 1.f / 3;
    p = p * q + 1.f;
    return at_least(x, 0.f) + 2.f * s * p;
}

static inline float sum_lanes(vf v) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    v8 a[2]; memcpy(a, &v, sizeof v);
    const v8 b = a[0] + a[1];
    v4 c[2]; memcpy(c, &b, sizeof b);
    const v4 d = c[0] + c[1];
    return (d[0] + d[1]) + (d[2] + d[3]);
}
