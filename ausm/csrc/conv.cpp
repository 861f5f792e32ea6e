// silu of the causal depthwise convolution over t (4 taps) for (B, T, N, E) tensors, forward and backward: the three
// previous frames of a channel block stay in registers, and the backward pass recomputes the convolution instead of
// storing it.
#include "vec.h"
#include <algorithm>
#include <vector>

namespace {

constexpr int TAPS = 4;
constexpr long CHUNK = 64;  // as in scan.cpp

struct Shape { long clips, frames, pixels, channels; int threads; };
struct Taps { vf w[TAPS], bias; };

// weight (E, 4), the newest frame's tap last.
std::vector<Taps> blocks_of(const float* weight, const float* bias, long E) {
    std::vector<Taps> out((E + LANES - 1) / LANES, Taps{});
    for (long e = 0; e < E; ++e) {
        for (int k = 0; k < TAPS; ++k) out[e / LANES].w[k][e % LANES] = weight[e * TAPS + k];
        out[e / LANES].bias[e % LANES] = bias[e];
    }
    return out;
}

template <typename T> void forward(Shape n, const T* x, long sx, const float* weight, const float* bias, T* y) {
    const long E = n.channels;
    const std::vector<Taps> taps = blocks_of(weight, bias, E);
#pragma omp parallel for schedule(dynamic, CHUNK) num_threads(n.threads)
    for (long p = 0; p < n.clips * n.pixels; ++p) {
        const long first = p / n.pixels * n.frames * n.pixels + p % n.pixels;
        for (long e = 0; e < E; e += LANES) {
            const int lanes = (int)std::min<long>(LANES, E - e);
            const Taps& k = taps[e / LANES];
            vf x1 = {}, x2 = {}, x3 = {};  // 1, 2 and 3 frames ago
            for (long t = 0; t < n.frames; ++t) {
                const long row = first + t * n.pixels;
                const vf x0 = load(x + row * sx + e, lanes);
                const vf sum = k.bias + k.w[3] * x0 + k.w[2] * x1 + k.w[1] * x2 + k.w[0] * x3;
                store(y + row * E + e, sum * sigmoid(sum), lanes);
                x3 = x2, x2 = x1, x1 = x0;
            }
        }
    }
}

template <typename T>
void backward(Shape n, const T* x, long sx, const float* weight, const float* bias, const T* dy, long sy, T* dx,
              float* dweight, float* dbias) {
    const long E = n.channels, total = n.clips * n.pixels;
    const std::vector<Taps> taps = blocks_of(weight, bias, E);
    std::vector<double> sum(E * (TAPS + 1), 0.0);
#pragma omp parallel num_threads(n.threads)
    {
        std::vector<Taps> part(taps.size());
        std::vector<double> own(E * (TAPS + 1), 0.0);
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < (total + CHUNK - 1) / CHUNK; ++chunk) {
            std::fill(part.begin(), part.end(), Taps{});
            for (long p = chunk * CHUNK; p < std::min(total, (chunk + 1) * CHUNK); ++p) {
                const long first = p / n.pixels * n.frames * n.pixels + p % n.pixels;
                for (long e = 0; e < E; e += LANES) {
                    const int lanes = (int)std::min<long>(LANES, E - e);
                    const Taps& k = taps[e / LANES];
                    Taps& g = part[e / LANES];
                    vf x1 = {}, x2 = {}, x3 = {}, d1 = {}, d2 = {}, d3 = {};
                    // Frame j feeds outputs j..j+3: its gradient is complete when that of output j+3 is known.
                    for (long t = 0; t < n.frames + TAPS - 1; ++t) {
                        vf x0 = {}, d0 = {};
                        const long row = first + t * n.pixels;
                        if (t < n.frames) {
                            x0 = load(x + row * sx + e, lanes);
                            const vf s = k.bias + k.w[3] * x0 + k.w[2] * x1 + k.w[1] * x2 + k.w[0] * x3;
                            const vf open = sigmoid(s);
                            d0 = load(dy + row * sy + e, lanes) * open * (1.f + s * (1.f - open));
                            g.w[3] += d0 * x0, g.w[2] += d0 * x1, g.w[1] += d0 * x2, g.w[0] += d0 * x3;
                            g.bias += d0;
                        }
                        if (t >= TAPS - 1) {
                            const vf d = k.w[3] * d3 + k.w[2] * d2 + k.w[1] * d1 + k.w[0] * d0;
                            store(dx + (row - (TAPS - 1) * n.pixels) * E + e, d, lanes);
                        }
                        x3 = x2, x2 = x1, x1 = x0, d3 = d2, d2 = d1, d1 = d0;
                    }
                }
            }
            for (long e = 0; e < E; ++e) {
                for (int k = 0; k < TAPS; ++k) own[e * TAPS + k] += part[e / LANES].w[k][e % LANES];
                own[E * TAPS + e] += part[e / LANES].bias[e % LANES];
            }
        }
#pragma omp critical
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += own[i];
    }
    std::copy(sum.begin(), sum.begin() + E * TAPS, dweight);
    std::copy(sum.begin() + E * TAPS, sum.end(), dbias);
}

}  // namespace

// `type` 0: float32, 1: bfloat16 (x, y and their gradients). Strides count elements between rows; outputs are
// contiguous. Returns 0.
extern "C" int ausm_conv_forward(int type, int threads, long clips, long frames, long pixels, long channels,
                                 const void* x, long sx, const float* weight, const float* bias, void* y) {
    const Shape n{clips, frames, pixels, channels, threads};
    if (type == 0) forward(n, (const float*)x, sx, weight, bias, (float*)y);
    else forward(n, (const bf16*)x, sx, weight, bias, (bf16*)y);
    return 0;
}

extern "C" int ausm_conv_backward(int type, int threads, long clips, long frames, long pixels, long channels,
                                  const void* x, long sx, const float* weight, const float* bias, const void* dy,
                                  long sy, void* dx, float* dweight, float* dbias) {
    const Shape n{clips, frames, pixels, channels, threads};
    if (type == 0) backward(n, (const float*)x, sx, weight, bias, (const float*)dy, sy, (float*)dx, dweight, dbias);
    else backward(n, (const bf16*)x, sx, weight, bias, (const bf16*)dy, sy, (bf16*)dx, dweight, dbias);
    return 0;
}
