"""C++ source of the radial network, for any sizes; `_cpu` says what is computed.

One library per dtype: sizes are arguments, columns are padded to whole registers in the packed
weights and in the buffers of a tile. A tile's features and slopes stand one below the other, so
that both are one matrix product.
"""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.exponential import exponential
from eqtp.kernels.codegen.matrix_product import MATRIX_PRODUCT

__all__ = ["source"]

_BODY = """
constexpr int TILE = 16;    // distinct lengths per tile: its 64 features stay in the L2 cache
constexpr int CHUNKS = 16;  // partial sums of the gradients of the weights, whatever the threads
static inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// c [m, n] (+)= a [m, depth] b [depth, n]; a has any strides.
static void multiply(int64_t m, int64_t n, int64_t depth, const real* a, int64_t row,
                     int64_t column, const real* b, int64_t ldb, real* c, int64_t ldc, bool add) {
    product(
        m, n, depth, [=](int64_t i, int64_t k) { return a[i * row + k * column]; },
        [=](int64_t k) { return b + k * ldb; }, [=](int64_t i) { return c + i * ldc; }, add);
}

static inline void add_row(real* sum, const real* row, int64_t columns) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) store(sum + j, load(sum + j) + load(row + j));
    for (; j < columns; ++j) sum[j] += row[j];
}

struct Network {
    int64_t layers, activated;  // the first `activated` layers have the activation
    const int64_t* sizes;       // layers + 1 of them
    real gain;
    std::vector<const real*> forward, backward;  // W / sqrt(fan_in), and its transpose
    std::vector<const real*> bias;               // padded; empty where there are none

    int64_t width(int64_t k) const { return padded(sizes[k + 1]); }

    Network(int64_t layers, int64_t activated, const int64_t* sizes, double gain,
            const real* const* weights, const real* const* biases, bool transposed)
        : layers(layers), activated(activated), sizes(sizes), gain(gain) {
        static thread_local std::vector<real> buffer;
        int64_t total = 0;
        for (int64_t k = 0; k < layers; ++k)
            total += (sizes[k] + 1) * width(k) + transposed * sizes[k + 1] * padded(sizes[k]);
        real* next = memory(buffer, total);
        for (int64_t k = 0; k < layers; ++k) {
            const int64_t in = sizes[k], out = sizes[k + 1];
            const real scale = 1 / std::sqrt((double)in);
            forward.push_back(next);
            for (int64_t i = 0; i < in; ++i, next += width(k)) {
                for (int64_t j = 0; j < out; ++j) next[j] = scale * weights[k][i * out + j];
                std::fill(next + out, next + width(k), (real)0);
            }
            backward.push_back(next);
            for (int64_t j = 0; transposed && j < out; ++j, next += padded(in)) {
                for (int64_t i = 0; i < in; ++i) next[i] = scale * weights[k][i * out + j];
                std::fill(next + in, next + padded(in), (real)0);
            }
            if (!biases) continue;
            bias.push_back(next);
            std::copy(biases[k], biases[k] + out, next);
            std::fill(next + out, next + width(k), (real)0);
            next += width(k);
        }
    }
};

// Features and slopes of one tile after every layer, and what their gradients need.
struct Tile {
    const Network& net;
    bool slopes;
    std::vector<real*> features, first, second;  // h over h', gain silu'(z), gain silu''(z) z'
    real *upper, *lower;                         // gradients of the features, of the sums

    Tile(const Network& net, bool slopes, bool gradients)
        : net(net), slopes(slopes), upper(nullptr), lower(nullptr) {
        static thread_local std::vector<real> buffer;
        int64_t widest = padded(net.sizes[0]), total = 0;
        for (int64_t k = 0; k < net.layers; ++k) {
            widest = std::max(widest, net.width(k));
            total += 4 * TILE * net.width(k);
        }
        real* next = memory(buffer, total + 4 * TILE * widest);
        for (int64_t k = 0; k < net.layers; ++k, next += 4 * TILE * net.width(k - 1)) {
            features.push_back(next);
            first.push_back(gradients ? next + 2 * TILE * net.width(k) : nullptr);
            second.push_back(gradients ? next + 3 * TILE * net.width(k) : nullptr);
        }
        upper = next;
        lower = next + 2 * TILE * widest;
    }

    // The first `layers` layers; `basis` and `slope` are the first of `n` rows.
    void forward(int64_t n, const real* basis, const real* slope, int64_t layers) {
        for (int64_t k = 0; k < layers; ++k) {
            const int64_t in = net.sizes[k], width = net.width(k);
            real* h = features[k];
            const bool add = !net.bias.empty();  // a bias has no slope
            for (int64_t i = 0; add && i < n; ++i)
                std::copy(net.bias[k], net.bias[k] + width, h + i * width);
            if (add && slopes) std::fill(h + n * width, h + 2 * n * width, (real)0);
            if (k == 0) {
                multiply(n, width, in, basis, in, 1, net.forward[0], width, h, width, add);
                if (slopes)
                    multiply(n, width, in, slope, in, 1, net.forward[0], width, h + n * width,
                            width, add);
            } else {
                multiply((1 + slopes) * n, width, in, features[k - 1], net.width(k - 1), 1,
                        net.forward[k], width, h, width, add);
            }
            if (k >= net.activated) continue;
            for (int64_t i = 0; i < n * width; i += LANES) {
                const vec z = load(h + i);
                const vec sigmoid = 1 / (1 + exponential(-z));
                const vec slope1 = net.gain * sigmoid * (1 + z * (1 - sigmoid));
                store(h + i, net.gain * z * sigmoid);
                if (first[k]) store(first[k] + i, slope1);
                if (slopes) {
                    const vec tangent = load(h + n * width + i);
                    store(h + n * width + i, slope1 * tangent);
                    if (second[k])
                        store(second[k] + i, net.gain * sigmoid * (1 - sigmoid) *
                                                 (2 + z * (1 - 2 * sigmoid)) * tangent);
                }
            }
        }
    }

    // From `upper`, the gradients of the last features; adds to those of the packed weights, and
    // of the padded biases below them.
    void backward(int64_t n, const real* basis, const real* slope, real* const* gradients) {
        for (int64_t k = net.layers - 1; k >= 0; --k) {
            const int64_t in = net.sizes[k], out = net.sizes[k + 1], width = net.width(k);
            if (k >= net.activated) std::swap(upper, lower);
            for (int64_t i = 0; k < net.activated && i < n * width; i += LANES) {
                const vec d = load(first[k] + i);
                vec sum = d * load(upper + i);
                if (slopes) {
                    const vec tangent = load(upper + n * width + i);
                    sum += load(second[k] + i) * tangent;
                    store(lower + n * width + i, d * tangent);
                }
                store(lower + i, sum);
            }
            for (int64_t i = 0; !net.bias.empty() && i < n; ++i)
                add_row(gradients[k] + in * width, lower + i * width, width);
            if (k == 0) {
                multiply(in, width, n, basis, 1, in, lower, width, gradients[0], width, true);
                if (slopes)
                    multiply(in, width, n, slope, 1, in, lower + n * width, width, gradients[0],
                            width, true);
            } else {
                const int64_t before = net.width(k - 1);
                multiply(in, width, (1 + slopes) * n, features[k - 1], 1, before, lower, width,
                        gradients[k], width, true);
                multiply((1 + slopes) * n, before, out, lower, width, 1, net.backward[k], before,
                        upper, before, false);
            }
        }
    }
};

EXPORT void forward(int64_t layers, int64_t activated, const int64_t* sizes, double gain,
                    const real* const* weights, const real* const* biases, int64_t num,
                    const real* basis, const real* slope, const int64_t* order,
                    const int64_t* pointers, real* features, real* slopes, int threads) {
    const Network net(layers, activated, sizes, gain, weights, biases, false);
    const int64_t in = sizes[0], out = sizes[layers], width = net.width(layers - 1);
#pragma omp parallel num_threads(threads)
    {
        Tile tile(net, slopes != nullptr, false);
#pragma omp for
        for (int64_t start = 0; start < num; start += TILE) {
            const int64_t n = std::min<int64_t>(TILE, num - start);
            tile.forward(n, basis + start * in, slope + start * in, layers);
            const real* row = tile.features[layers - 1];
            for (int64_t p = start; p < start + n; ++p, row += width) {
                for (int64_t e = pointers[p]; e < pointers[p + 1]; ++e)
                    std::memcpy(features + order[e] * out, row, out * sizeof(real));
                if (slopes)
                    std::memcpy(slopes + p * out, row + n * width, out * sizeof(real));
            }
        }
    }
}

EXPORT void backward(int64_t layers, int64_t activated, const int64_t* sizes, double gain,
                     const real* const* weights, const real* const* biases, int64_t num,
                     const real* basis, const real* slope, const int64_t* order,
                     const int64_t* pointers, const real* grad_features, const real* grad_slopes,
                     real* const* grad_weights, real* const* grad_biases, int threads) {
    const Network net(layers, activated, sizes, gain, weights, biases, true);
    const int64_t in = sizes[0], out = sizes[layers], width = net.width(layers - 1);
    int64_t total = 0;
    const bool biased = biases != nullptr;  // one more row per layer
    for (int64_t k = 0; k < layers; ++k) total += (sizes[k] + biased) * net.width(k);
    const int64_t tiles = (num + TILE - 1) / TILE, chunk = (tiles + CHUNKS - 1) / CHUNKS;
    static thread_local std::vector<real> buffer;
    real* const partial = memory(buffer, CHUNKS * total);
#pragma omp parallel num_threads(threads)
    {
        Tile tile(net, grad_slopes != nullptr, true);
#pragma omp for schedule(static, 1)
        for (int c = 0; c < CHUNKS; ++c) {
            std::vector<real*> gradients;
            real* next = partial + c * total;
            std::fill(next, next + total, (real)0);
            for (int64_t k = 0; k < layers; next += (sizes[k] + biased) * net.width(k), ++k)
                gradients.push_back(next);
            const int64_t end = std::min(num, (c + 1) * chunk * TILE);
            for (int64_t start = c * chunk * TILE; start < end; start += TILE) {
                const int64_t n = std::min<int64_t>(TILE, end - start);
                tile.forward(n, basis + start * in, slope + start * in, activated);
                std::fill(tile.upper, tile.upper + 2 * n * width, (real)0);
                for (int64_t i = 0; i < n; ++i) {
                    for (int64_t e = pointers[start + i]; e < pointers[start + i + 1]; ++e)
                        if (grad_features)
                            add_row(tile.upper + i * width, grad_features + order[e] * out, out);
                    if (grad_slopes)
                        add_row(tile.upper + (n + i) * width, grad_slopes + (start + i) * out, out);
                }
                tile.backward(n, basis + start * in, slope + start * in, gradients.data());
            }
        }
    }
    const real* next = partial;
    for (int64_t k = 0; k < layers; ++k) {
        for (int64_t i = 0; i < sizes[k] + biased; ++i, next += net.width(k)) {
            const real scale = i < sizes[k] ? 1 / std::sqrt((double)sizes[k]) : 1;
            real* row = i < sizes[k] ? grad_weights[k] + i * sizes[k + 1] : grad_biases[k];
            for (int64_t j = 0; j < sizes[k + 1]; ++j) {
                real sum = 0;
                for (int c = 0; c < CHUNKS; ++c) sum += next[c * total + j];
                row[j] = scale * sum;
            }
        }
    }
}

// grad[e] = <grad_features[e], slopes[p]> for every edge e of the distinct length p.
EXPORT void length_gradient(int64_t num, int64_t columns, const int64_t* order,
                            const int64_t* pointers, const real* grad_features, const real* slopes,
                            real* grad, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < num; ++p)
        for (int64_t e = pointers[p]; e < pointers[p + 1]; ++e) {
            const real *a = grad_features + order[e] * columns, *b = slopes + p * columns;
            vec sums = {};
            int64_t j = 0;
            for (; j + LANES <= columns; j += LANES) sums += load(a + j) * load(b + j);
            real sum = sum_lanes(sums);
            for (; j < columns; ++j) sum += a[j] * b[j];
            grad[order[e]] = sum;
        }
}

// Gradients of sum_e v[e] grad[e] in the two factors.
EXPORT void length_gradient_backward(int64_t num, int64_t columns, const int64_t* order,
                                     const int64_t* pointers, const real* v,
                                     const real* grad_features, const real* slopes,
                                     real* to_features, real* to_slopes, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < num; ++p) {
        const real* b = slopes + p * columns;
        real* sum = to_slopes + p * columns;
        for (int64_t j = 0; j < columns; ++j) sum[j] = 0;
        for (int64_t e = pointers[p]; e < pointers[p + 1]; ++e) {
            const real* a = grad_features + order[e] * columns;
            real* to = to_features + order[e] * columns;
            const real factor = v[order[e]];
            int64_t j = 0;
            for (; j + LANES <= columns; j += LANES) {
                store(to + j, factor * load(b + j));
                store(sum + j, load(sum + j) + factor * load(a + j));
            }
            for (; j < columns; ++j) {
                to[j] = factor * b[j];
                sum[j] += factor * a[j];
            }
        }
    }
}
"""


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    headers = "#include <algorithm>\n#include <cmath>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    return headers + cpp.prelude(dtype) + export + MATRIX_PRODUCT + exponential(dtype) + _BODY
