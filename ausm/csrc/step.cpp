// One frame of the recurrent form, on a state updated in place: the 4-tap convolution with its shift, and the scan's
// update with its gate. The state is stored as float32, bfloat16 or float16; the arithmetic is float32.
#include "vec.h"
#include <algorithm>
#include <vector>

namespace {

constexpr int TAPS = 4, PAST = TAPS - 1;
constexpr long CHUNK = 64;  // as in scan.cpp

#define PICK(A, B, ...) (__builtin_shufflevector(A, B, __VA_ARGS__))

// 48 adjacent values, three taps for each of sixteen channels -> one vector per tap, and back.
inline void split_taps(const vf* v, vf* tap) {
    tap[0] = PICK(PICK(v[0], v[1], 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0), v[2],
                  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
    tap[1] = PICK(PICK(v[0], v[1], 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0), v[2],
                  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
    tap[2] = PICK(PICK(v[0], v[1], 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0), v[2],
                  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
}
inline void join_taps(const vf* tap, vf* v) {
    v[0] = PICK(PICK(tap[0], tap[1], 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5), tap[2],
                0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
    v[1] = PICK(PICK(tap[0], tap[1], 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26), tap[2],
                0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
    v[2] = PICK(PICK(tap[0], tap[1], 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0), tap[2],
                26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
}

// state: (N, E, 3) contiguous, oldest tap first.
template <typename T, typename H>
void conv_step(int threads, long N, long E, const T* x, long sx, const float* weight, const float* bias, H* state,
               T* y) {
#pragma omp parallel for schedule(dynamic, CHUNK) num_threads(threads)
    for (long i = 0; i < N; ++i) {
        for (long e = 0; e < E; e += LANES) {
            const int lanes = (int)std::min<long>(LANES, E - e);
            H* at = state + (i * E + e) * PAST;
            vf w[TAPS], raw[PAST], past[PAST];
            for (int k = 0; k < TAPS; ++k) w[k] = load(weight + k * E + e, lanes);
            for (int k = 0; k < PAST; ++k) raw[k] = load(at + k * LANES, std::max(lanes * PAST - k * LANES, 0));
            split_taps(raw, past);
            const vf now = load(x + i * sx + e, lanes);
            const vf sum = load(bias + e, lanes) + w[3] * now + w[2] * past[2] + w[1] * past[1] + w[0] * past[0];
            store(y + i * E + e, sum * sigmoid(sum), lanes);
            past[0] = past[1], past[1] = past[2], past[2] = now;
            join_taps(past, raw);
            for (int k = 0; k < PAST; ++k) store(at + k * LANES, raw[k], std::max(lanes * PAST - k * LANES, 0));
        }
    }
}

// v[j] holds the S addends of 16 / S channels: v[0 .. S) -> the sum of each of the 16 channels, by a tree of shuffles
// (a fifth of the instructions of separate sums). v is overwritten.
template <int S> inline vf sums(vf* v) {
    if (S == 16)  // channel i and i + 8 share a vector from here on
        for (int i = 0; i < 8; ++i)
            v[i] = PICK(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   PICK(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; ++i)
        v[i] = PICK(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               PICK(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; ++i)
        v[i] = PICK(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               PICK(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    const vf all = PICK(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
                   PICK(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    if (S == 16) return all;  // in channel order; with S = 8 even channels come first, then the odd ones
    return PICK(all, all, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
}

// Sixteen channels of one pixel: h = exp(step A) h + input B in place, returns C . h for each. b, c: B and C repeated
// 16 / S times. A vector holds the states of 16 / S channels, so the state is read and written in the order it lies in
// memory.
template <typename H, int S, bool FULL>
inline vf update(const float* A, H* state, vf step, vf input, vf b, vf c, int lanes) {
    constexpr int PER = LANES / S;
    const vi second = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    float steps[LANES], inputs[LANES];
    memcpy(steps, &step, sizeof step);
    memcpy(inputs, &input, sizeof input);
    vf products[LANES] = {};
    for (int j = 0; j < S; ++j) {
        const int count = FULL ? LANES : std::min((lanes - j * PER) * S, LANES);
        if (count <= 0) break;
        vf step_j = splat(steps[j * PER]), input_j = splat(inputs[j * PER]);
        if (PER == 2) {
            step_j = second ? splat(steps[j * PER + 1]) : step_j;
            input_j = second ? splat(inputs[j * PER + 1]) : input_j;
        }
        H* at = state + j * LANES;
        const vf h = exp2_low(step_j * load(A + j * LANES, count)) * load(at, count) + input_j * b;
        store(at, h, count);
        products[j] = h * c;
    }
    return sums<S>(products);
}
#undef PICK

// A (E, S) and state (N, E, S) contiguous; the rest as in scan.cpp with one frame.
template <typename T, typename H, int S>
void scan_step(int threads, long N, long E, const T* u, long su, const T* delta, long sd, const float* A,
               const T* B, long sB, const T* C, long sC, const float* D, const T* z, long sz, H* state, T* y) {
    const long blocks = (E + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        // Three loops over the channels instead of one: the long dependency chains of softplus and sigmoid then
        // overlap.
        std::vector<vf> inputs(blocks), steps(blocks), sum(blocks);
#pragma omp for schedule(dynamic, CHUNK)
        for (long i = 0; i < N; ++i) {
            vf b = load(B + i * sB, S), c = load(C + i * sC, S);
            for (int j = S; j < LANES; ++j) b[j] = b[j - S], c[j] = c[j - S];
            for (long k = 0, e = 0; k < blocks; ++k, e += LANES) {
                const int lanes = (int)std::min<long>(LANES, E - e);
                const vf x = load(u + i * su + e, lanes), dt = softplus(load(delta + i * sd + e, lanes));
                steps[k] = dt * 1.442695041f;  // log2(e): exp(dt A) = 2^(step A)
                inputs[k] = dt * x;
                sum[k] = load(D + e, lanes) * x;
            }
            for (long k = 0, e = 0; k < blocks; ++k, e += LANES) {
                const int lanes = (int)std::min<long>(LANES, E - e);
                const float* a = A + e * S;
                H* h = state + (i * E + e) * S;
                sum[k] += lanes == LANES ? update<H, S, true>(a, h, steps[k], inputs[k], b, c, lanes)
                                         : update<H, S, false>(a, h, steps[k], inputs[k], b, c, lanes);
            }
            for (long k = 0, e = 0; k < blocks; ++k, e += LANES) {
                const int lanes = (int)std::min<long>(LANES, E - e);
                const vf gate = load(z + i * sz + e, lanes);
                store(y + i * E + e, sum[k] * gate * sigmoid(gate), lanes);
            }
        }
    }
}

}  // namespace

// `type` of x, y, u, ...: 0 float32, 1 bfloat16; `stored`, of the state: 0 float32, 1 bfloat16, 2 float16.
// weight is (4, E), the newest frame's tap last. Strides count elements. Returns 1 for an S that was not built.
#define WITH_STORAGE(T)                        \
    if (stored == 0) { CALL(T, float); }       \
    else if (stored == 1) { CALL(T, bf16); }   \
    else { CALL(T, fp16); }
#define WITH_TYPES                             \
    if (type == 0) { WITH_STORAGE(float) }     \
    else { WITH_STORAGE(bf16) }

extern "C" int ausm_conv_step(int type, int stored, int threads, long N, long E, const void* x, long sx,
                              const float* weight, const float* bias, void* state, void* y) {
#define CALL(T, H) conv_step(threads, N, E, (const T*)x, sx, weight, bias, (H*)state, (T*)y)
    WITH_TYPES
#undef CALL
    return 0;
}

extern "C" int ausm_scan_step(int type, int stored, int threads, long N, long E, long S, const void* u, long su,
                              const void* delta, long sd, const float* A, const void* B, long sB, const void* C,
                              long sC, const float* D, const void* z, long sz, void* state, void* y) {
#define STEP(T, H, S)                                                                                          \
    scan_step<T, H, S>(threads, N, E, (const T*)u, su, (const T*)delta, sd, A, (const T*)B, sB, (const T*)C, sC, D, \
                       (const T*)z, sz, (H*)state, (T*)y)
    if (S != 8 && S != 16) return 1;
#define CALL(T, H)                \
    if (S == 8) STEP(T, H, 8);    \
    else STEP(T, H, 16)
    WITH_TYPES
#undef CALL
    return 0;
}
