// What surrounds the network's products on the frame path, each in one pass over the data: sums and layer norms of
// tokens, group norms of feature maps with what is added to them, pixels to normalised numbers. bfloat16 storage,
// float32 arithmetic. Channels are adjacent and a multiple of 16.
#include "vec.h"
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr long WIDEST = 1024 / LANES;  // vectors of a token
constexpr long PIECE = 64;             // pixels whose sums are kept in float32

template <typename T>
void add_norm(int threads, long rows, long D, const T* x, const bf16* y, const float* weight, const float* bias,
              float eps, const float* place, long places, float* sum, float* normed, bf16* half, bf16* placed) {
    const long n = D / LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < rows; ++i) {
        vf v[WIDEST], total = {}, square = {};
        for (long k = 0; k < n; ++k) {
            v[k] = widen(x + i * D + k * LANES);
            if (y) v[k] += widen(y + i * D + k * LANES);
            if (sum) narrow(sum + i * D + k * LANES, v[k]);
            total += v[k];
        }
        const float mean = sum_lanes(total) / D;
        for (long k = 0; k < n; ++k) {
            v[k] -= mean;
            square += v[k] * v[k];
        }
        const float scale = 1.f / std::sqrt(sum_lanes(square) / D + eps);
        const float* code = place ? place + i % places * D : nullptr;
        for (long k = 0; k < n; ++k) {
            const long at = i * D + k * LANES;
            const vf r = v[k] * scale * widen(weight + k * LANES) + widen(bias + k * LANES);
            if (normed) narrow(normed + at, r);
            if (half) narrow(half + at, r);
            if (placed) narrow(placed + at, code ? r + widen(code + k * LANES) : r);
        }
    }
}

// Sums and sums of squares of the channels of `count` pixels.
void moments(const bf16* x, long count, long C, float* sums) {
    for (long c = 0; c < C; c += LANES) {
        vf total = {}, square = {};
        for (long i = 0; i < count; ++i) {
            const vf v = widen(x + i * C + c);
            total += v;
            square += v * v;
        }
        narrow(sums + c, total);
        narrow(sums + C + c, square);
    }
}

// One row of `small` (h, w, C) twice as high, as bilinear interpolation without aligned corners has it.
void between_rows(const bf16* small, long h, long w, long C, long row, float* out) {
    const long near = row / 2, far = std::clamp(near + (row % 2 ? 1 : -1), 0L, h - 1);
    for (long i = 0; i < w * C; i += LANES)
        narrow(out + i, widen(small + near * w * C + i) * 0.75f + widen(small + far * w * C + i) * 0.25f);
}

}  // namespace

// sum = x + y, normed = layer norm of it, placed = normed + place[i % places]; y, place and each output may be null.
// x (rows, D) float32 (`type` 0) or bfloat16 (1), y bfloat16; sum and normed float32, half (= normed) and placed bfloat16.
// Returns 1 for a D it does not take.
extern "C" int ausm_add_norm(int type, int threads, long rows, long D, const void* x, const void* y,
                             const float* weight, const float* bias, float eps, const float* place, long places,
                             float* sum, float* normed, void* half, void* placed) {
    if (D % LANES || D > WIDEST * LANES) return 1;
#define CALL(T) add_norm(threads, rows, D, (const T*)x, (const bf16*)y, weight, bias, eps, place, places, sum, normed, \
                         (bf16*)half, (bf16*)placed)
    if (type == 0) CALL(float);
    else CALL(bf16);
#undef CALL
    return 0;
}

// Group norm of x (pixels, C) as one factor and one addend per channel. Sums are added in a fixed order: the same
// result whatever the number of threads.
extern "C" int ausm_group_scale(int threads, long pixels, long C, long groups, const void* x, const float* weight,
                                const float* bias, float eps, float* scale, float* shift) {
    if (C % LANES || C % groups) return 1;
    const long pieces = (pixels + PIECE - 1) / PIECE, each = C / groups;
    std::vector<float> parts(pieces * 2 * C);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pieces; ++p)
        moments((const bf16*)x + p * PIECE * C, std::min(PIECE, pixels - p * PIECE), C, parts.data() + p * 2 * C);
    for (long g = 0; g < groups; ++g) {
        double total = 0, square = 0;
        for (long p = 0; p < pieces; ++p)
            for (long c = g * each; c < (g + 1) * each; ++c) {
                total += parts[p * 2 * C + c];
                square += parts[p * 2 * C + C + c];
            }
        const double count = (double)pixels * each, mean = total / count;
        const double rstd = 1 / std::sqrt(std::max(square / count - mean * mean, 0.0) + eps);
        for (long c = g * each; c < (g + 1) * each; ++c) {
            scale[c] = (float)(weight[c] * rstd);
            shift[c] = (float)(bias[c] - mean * rstd * weight[c]);
        }
    }
    return 0;
}

// y = x * scale + shift + small at twice its size, negative values to zero if `relu`. x, y (2 h, 2 w, C) and small
// (h, w, C) bfloat16; scale and shift (C), or null for 1 and 0; small may be null.
extern "C" int ausm_mix(int threads, long h, long w, long C, const void* x, const float* scale, const float* shift,
                        const void* small, int relu, void* y) {
    if (C % LANES) return 1;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(small ? w * C : 0);
#pragma omp for schedule(static)
        for (long r = 0; r < 2 * h; ++r) {
            if (small) between_rows((const bf16*)small, h, w, C, r, row.data());
            for (long i = 0; i < 2 * w; ++i) {
                const long near = i / 2 * C, far = std::clamp(i / 2 + (i % 2 ? 1 : -1), 0L, w - 1) * C;
                for (long c = 0; c < C; c += LANES) {
                    const long at = (r * 2 * w + i) * C + c;
                    vf v = widen((const bf16*)x + at);
                    if (scale) v = v * widen(scale + c) + widen(shift + c);
                    if (small) v += widen(row.data() + near + c) * 0.75f + widen(row.data() + far + c) * 0.25f;
                    narrow((bf16*)y + at, relu ? at_least(v, 0.f) : v);
                }
            }
        }
    }
    return 0;
}

// y (rows, columns, 3) = image * factor + addend per channel, zero beyond the image (height, width, 3).
extern "C" int ausm_normalise(int threads, long height, long width, long rows, long columns, const uint8_t* image,
                              const float* factor, const float* addend, void* y) {
    typedef uint8_t v16b __attribute__((vector_size(16)));
    float pattern[2][3 * LANES];  // 16 pixels are three vectors, whose channels repeat after 48 numbers
    for (int i = 0; i < 3 * LANES; ++i) pattern[0][i] = factor[i % 3], pattern[1][i] = addend[i % 3];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long r = 0; r < rows; ++r) {
        bf16* out = (bf16*)y + r * columns * 3;
        const long used = r < height ? width * 3 : 0;
        const uint8_t* in = image + r * width * 3;
        long i = 0;
        for (; i + LANES <= used; i += LANES) {
            v16b bytes;
            memcpy(&bytes, in + i, sizeof bytes);
            const long at = i % (3 * LANES);
            narrow(out + i, __builtin_convertvector(bytes, vf) * widen(pattern[0] + at) + widen(pattern[1] + at));
        }
        for (; i < used; ++i) store_one(out + i, in[i] * factor[i % 3] + addend[i % 3]);
        memset(out + used, 0, (columns * 3 - used) * sizeof(bf16));
    }
    return 0;
}
