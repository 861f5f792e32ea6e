// The selective scan of Mamba-1 over t, forward and backward, for (B, T, N, E) tensors: one thread per group of
// pixels, sixteen channels at a time, the state h of a channel block (S vectors) in registers. Backward recomputes h
// from the inputs. Rows (pixel n of frame t of clip b) lie `stride` elements apart; channels within a row are
// adjacent.
#include "vec.h"
#include <algorithm>
#include <vector>

namespace {

constexpr float LN2 = 0.6931471806f, LOG2E = 1.442695041f;
// Pixels handed to a thread at a time, so that a busy core delays the others by little; the parameter gradients of a chunk
// are summed in float32 before they go into float64.
constexpr long CHUNK = 64;

struct Shape { long clips, frames, pixels, channels; int threads; };

// A (E, S) -> [block][s][lane], times log2(e) so that exp(dt A) is one exp2. Lanes past E are zero.
template <int S> std::vector<vf> blocks_of(const float* A, long E) {
    std::vector<vf> out((E + LANES - 1) / LANES * S, vf{});
    for (long e = 0; e < E; ++e)
        for (int s = 0; s < S; ++s) out[e / LANES * S + s][e % LANES] = A[e * S + s] * LOG2E;
    return out;
}

template <typename T, int S> void read_states(const T* p, long stride, long first, long step, long frames, float* out) {
    for (long t = 0; t < frames; ++t) {
        const vf v = load(p + (first + t * step) * stride, S);
        memcpy(out + t * S, &v, S * sizeof(float));
    }
}

template <typename T, int S>
void forward(Shape n, const T* u, long su, const T* delta, long sd, const float* A, const T* B, long sB, const T* C,
             long sC, const float* D, const T* z, long sz, T* y) {
    const std::vector<vf> decay = blocks_of<S>(A, n.channels);
    const long E = n.channels;
#pragma omp parallel num_threads(n.threads)
    {
        std::vector<float> b(n.frames * S), c(n.frames * S);
        std::vector<vf> dts(n.frames), dtx(n.frames), sum(n.frames);
#pragma omp for schedule(dynamic, CHUNK)
        for (long p = 0; p < n.clips * n.pixels; ++p) {
            const long first = p / n.pixels * n.frames * n.pixels + p % n.pixels;  // the pixel's row in frame 0
            read_states<T, S>(B, sB, first, n.pixels, n.frames, b.data());
            read_states<T, S>(C, sC, first, n.pixels, n.frames, c.data());
            for (long e = 0; e < E; e += LANES) {
                const int lanes = (int)std::min<long>(LANES, E - e);
                const vf* a = &decay[e / LANES * S];
                const vf skip = load(D + e, lanes);
                // Three loops over t instead of one: the long dependency chains of softplus and sigmoid then overlap.
                for (long t = 0, row = first; t < n.frames; ++t, row += n.pixels) {
                    const vf x = load(u + row * su + e, lanes);
                    dts[t] = softplus(load(delta + row * sd + e, lanes));
                    dtx[t] = dts[t] * x;
                    sum[t] = skip * x;
                }
                vf h[S] = {};
                for (long t = 0; t < n.frames; ++t) {
                    vf y = {};
                    for (int s = 0; s < S; ++s) {
                        h[s] = dtx[t] * b[t * S + s] + (t ? exp2_low(dts[t] * a[s]) * h[s] : vf{});
                        y += h[s] * c[t * S + s];
                    }
                    sum[t] += y;
                }
                for (long t = 0, row = first; t < n.frames; ++t, row += n.pixels) {
                    const vf gate = load(z + row * sz + e, lanes);
                    store(y + row * E + e, sum[t] * gate * sigmoid(gate), lanes);
                }
            }
        }
    }
}

// What the backward pass of one pixel remembers of its recomputed forward pass, per frame.
template <int S> struct Tape {
    vf h[S], decay[S], dB[S], dC[S];
    vf x, dt, dtx, y;        // y before the gate
    vf to_delta, to_z, to_y; // d dt / d delta; output gradient times d silu(z) / dz; gradient of y
};

template <typename T, int S>
void backward(Shape n, const T* u, long su, const T* delta, long sd, const float* A, const T* B, long sB,
              const T* C, long sC, const float* D, const T* z, long sz, const T* dy, long sy, T* du, T* ddelta,
              float* dA, T* dB, T* dC, float* dD, T* dz) {
    const std::vector<vf> decay = blocks_of<S>(A, n.channels);
    const long E = n.channels, blocks = (E + LANES - 1) / LANES, total = n.clips * n.pixels;
    std::vector<double> sum_A(E * S, 0.0), sum_D(E, 0.0);
#pragma omp parallel num_threads(n.threads)
    {
        std::vector<Tape<S>> tape(n.frames);
        std::vector<float> b(n.frames * S), c(n.frames * S);
        std::vector<vf> part_A(blocks * S), part_D(blocks);
        std::vector<double> own_A(E * S, 0.0), own_D(E, 0.0);
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < (total + CHUNK - 1) / CHUNK; ++chunk) {
            std::fill(part_A.begin(), part_A.end(), vf{});
            std::fill(part_D.begin(), part_D.end(), vf{});
            for (long p = chunk * CHUNK; p < std::min(total, (chunk + 1) * CHUNK); ++p) {
                const long first = p / n.pixels * n.frames * n.pixels + p % n.pixels;
                read_states<T, S>(B, sB, first, n.pixels, n.frames, b.data());
                read_states<T, S>(C, sC, first, n.pixels, n.frames, c.data());
                for (auto& k : tape) for (int s = 0; s < S; ++s) k.dB[s] = k.dC[s] = vf{};
                for (long e = 0; e < E; e += LANES) {
                    const int lanes = (int)std::min<long>(LANES, E - e);
                    const vf* a = &decay[e / LANES * S];
                    const vf skip = load(D + e, lanes);
                    for (long t = 0, row = first; t < n.frames; ++t, row += n.pixels) {
                        Tape<S>& k = tape[t];
                        const vf raw = load(delta + row * sd + e, lanes), g = load(dy + row * sy + e, lanes);
                        const vf gate = load(z + row * sz + e, lanes), open = sigmoid(gate);
                        k.x = load(u + row * su + e, lanes);
                        k.dt = softplus(raw), k.dtx = k.dt * k.x, k.y = skip * k.x;
                        k.to_delta = sigmoid(raw), k.to_y = g * gate * open;
                        k.to_z = g * open * (1.f + gate * (1.f - open));
                    }
                    for (long t = 0; t < n.frames; ++t) {
                        Tape<S>& k = tape[t];
                        vf y = {};
                        for (int s = 0; s < S; ++s) {
                            k.h[s] = k.dtx * b[t * S + s];
                            if (t) {
                                k.decay[s] = exp2_low(k.dt * a[s]);
                                k.h[s] += k.decay[s] * tape[t - 1].h[s];
                            }
                            y += k.h[s] * c[t * S + s];
                        }
                        k.y += y;
                    }
                    vf dh[S] = {}, grad_A[S] = {}, grad_D = {};
                    for (long t = n.frames - 1; t >= 0; --t) {
                        Tape<S>& k = tape[t];
                        const long row = first + t * n.pixels;
                        grad_D += k.to_y * k.x;
                        vf to_dtx = {}, to_dt = {};
                        for (int s = 0; s < S; ++s) {
                            const vf now = dh[s] + k.to_y * c[t * S + s];
                            k.dC[s] += k.to_y * k.h[s];
                            k.dB[s] += now * k.dtx;
                            to_dtx += now * b[t * S + s];
                            if (t) {
                                dh[s] = now * k.decay[s];
                                const vf to_exponent = dh[s] * tape[t - 1].h[s];
                                to_dt += to_exponent * a[s];
                                grad_A[s] += to_exponent * k.dt;
                            }
                        }
                        store(dz + row * E + e, k.to_z * k.y, lanes);
                        store(du + row * E + e, k.to_y * skip + to_dtx * k.dt, lanes);
                        store(ddelta + row * E + e, (to_dt * LN2 + to_dtx * k.x) * k.to_delta, lanes);
                    }
                    for (int s = 0; s < S; ++s) part_A[e / LANES * S + s] += grad_A[s];
                    part_D[e / LANES] += grad_D;
                }
                for (long t = 0; t < n.frames; ++t) {
                    vf to_B = {}, to_C = {};
                    for (int s = 0; s < S; ++s) to_B[s] = sum_lanes(tape[t].dB[s]), to_C[s] = sum_lanes(tape[t].dC[s]);
                    store(dB + (first + t * n.pixels) * S, to_B, S);
                    store(dC + (first + t * n.pixels) * S, to_C, S);
                }
            }
            for (long e = 0; e < E; ++e) {
                for (int s = 0; s < S; ++s) own_A[e * S + s] += part_A[e / LANES * S + s][e % LANES];
                own_D[e] += part_D[e / LANES][e % LANES];
            }
        }
#pragma omp critical
        {
            for (long i = 0; i < E * S; ++i) sum_A[i] += own_A[i];
            for (long e = 0; e < E; ++e) sum_D[e] += own_D[e];
        }
    }
    std::copy(sum_A.begin(), sum_A.end(), dA);
    std::copy(sum_D.begin(), sum_D.end(), dD);
}

}  // namespace

// `type` 0: float32, 1: bfloat16 (u, delta, B, C, z, y and their gradients; A, D, dA, dD are float32). `states` S is 8
// or 16. Strides count elements between rows. Outputs are contiguous. Returns 1 for an S that was not built.
#define BUILT(CALL)                                          \
    if (type == 0 && states == 8) { CALL(float, 8); }        \
    else if (type == 0 && states == 16) { CALL(float, 16); } \
    else if (type == 1 && states == 8) { CALL(bf16, 8); }    \
    else if (type == 1 && states == 16) { CALL(bf16, 16); }  \
    else return 1;                                           \
    return 0;

extern "C" int ausm_scan_forward(int type, int threads, long clips, long frames, long pixels, long channels,
                                 long states, const void* u, long su, const void* delta, long sd, const float* A,
                                 const void* B, long sB, const void* C, long sC, const float* D, const void* z,
                                 long sz, void* y) {
    const Shape n{clips, frames, pixels, channels, threads};
#define CALL(T, S)                                                                                                 \
    forward<T, S>(n, (const T*)u, su, (const T*)delta, sd, A, (const T*)B, sB, (const T*)C, sC, D, (const T*)z, sz, \
                  (T*)y)
    BUILT(CALL)
#undef CALL
}

extern "C" int ausm_scan_backward(int type, int threads, long clips, long frames, long pixels, long channels,
                                  long states, const void* u, long su, const void* delta, long sd, const float* A,
                                  const void* B, long sB, const void* C, long sC, const float* D, const void* z,
                                  long sz, const void* dy, long sy, void* du, void* ddelta, float* dA, void* dB,
                                  void* dC, float* dD, void* dz) {
    const Shape n{clips, frames, pixels, channels, threads};
#define CALL(T, S)                                                                                                   \
    backward<T, S>(n, (const T*)u, su, (const T*)delta, sd, A, (const T*)B, sB, (const T*)C, sC, D, (const T*)z, sz, \
                   (const T*)dy, sy, (T*)du, (T*)ddelta, dA, (T*)dB, (T*)dC, dD, (T*)dz)
    BUILT(CALL)
#undef CALL
}
