"""C++ source of the equivariant norm, for any sizes; one pass over the rows each.

With C the subtraction of the scalars' mean, s the components' shares in the mean square, sums over
a row, and t the scalars before the activation a (the identity without one, and for degrees > 0):

    w = C x,   r = (sum s w^2 + eps)^(-1/2),   u = r w,   t = gain u + bias,   out = a(t)
    k = gain a'(t) g,        gradient = C r (k - s u (sum k u)),     to gain a'(t) g u, to bias a' g
    second, for the gradient's own upper gradient v, with p = C v, P = sum p s u, K = sum k u:
        b = r (p - P u)                                  derivative in k
        to_g = gain a' b
        z = gain a'' g b                                 derivative in t
        to bias: z,   to gain: a' g b + z u
        q = gain z - r (K s p + P k)                     derivative in u
        to_x = C (r (q - s u (sum q u)) - r s u (r sum p k - r P K))
"""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.exponential import exponential

__all__ = ["CHUNKS", "source"]

CHUNKS = 16
"""Partial sums of the weights' gradients, whatever the threads: the same result for any number."""

_BODY = """
template <class F> static inline void sweep(int64_t columns, F&& f) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) f(j, LANES, std::true_type{});
    if (j < columns) f(j, (int)(columns - j), std::false_type{});
}
template <class W> static inline vec in(const real* p, int n, W) { return get<W::value>(p, n); }
template <class W> static inline void out(real* p, vec v, int n, W) { put<W::value>(p, v, n); }

struct Norm {
    int64_t rows, lmax, channels;
    double eps;
    int active;
    const real *gain, *bias;

    int64_t row() const { return (lmax + 1) * (lmax + 1) * channels; }
    real share(int64_t l) const { return 1.0 / ((lmax + 1) * (2 * l + 1) * channels); }
    int64_t weights() const { return (lmax + 2) * channels; }  // gains, then biases

    // Calls f(i, k, j, n, whole): column i of a row, column k of the gains, for degree l.
    template <class F> void degree(int64_t l, F&& f) const {
        for (int64_t m = 0; m < 2 * l + 1; ++m)
            sweep(channels, [&](int64_t j, int n, auto w) {
                f((l * l + m) * channels + j, l * channels + j, n, w);
            });
    }
    template <class F> void all(F&& f) const {
        for (int64_t l = 0; l <= lmax; ++l)
            degree(l, [&](int64_t i, int64_t k, int n, auto w) { f(l, i, k, n, w); });
    }
    // The mean of the scalars, and the factor of a row that makes it normal.
    real mean(const real* x) const {
        vec sum = {};
        sweep(channels, [&](int64_t j, int n, auto w) { sum += in(x + j, n, w); });
        return sum_lanes(sum) / channels;
    }
    void center(real* x) const {
        const real middle = mean(x);
        for (int64_t j = 0; j < channels; ++j) x[j] -= middle;
    }
    // u = r w, written; returns r.
    real normalize(const real* x, real* u) const {
        const real middle = mean(x);
        real total = 0;
        for (int64_t l = 0; l <= lmax; ++l) {
            vec sum = {};
            degree(l, [&](int64_t i, int64_t, int n, auto w) {
                vec value = in(x + i, n, w);
                if (l == 0) value = decltype(w)::value ? value - middle : cut(value - middle, n);
                out(u + i, value, n, w);
                sum += value * value;
            });
            total += share(l) * sum_lanes(sum);
        }
        const real r = 1 / std::sqrt((double)total + eps);
        sweep(row(), [&](int64_t i, int n, auto w) { out(u + i, r * in(u + i, n, w), n, w); });
        return r;
    }
    static vec cut(vec value, int n) {
        for (int lane = n; lane < LANES; ++lane) value[lane] = 0;
        return value;
    }
};

// SiLU and its derivatives, or those of the identity.
struct Activation {
    vec value, first, second;
    Activation(vec t, bool active) : value(t), first(vec{} + (real)1), second(vec{}) {
        if (!active) return;
        const vec s = (real)1 / ((real)1 + exponential(-t)), slope = s * ((real)1 - s);
        value = t * s;
        first = s + t * slope;
        second = slope * ((real)2 + t * ((real)1 - s - s));
    }
};

EXPORT void forward(int64_t rows, int64_t lmax, int64_t channels, double eps, int active,
                    const real* x, const real* gain, const real* bias, real* to, int threads) {
    const Norm norm{rows, lmax, channels, eps, active, gain, bias};
    const int64_t row = norm.row();
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < rows; ++e) {
        real* u = to + e * row;
        norm.normalize(x + e * row, u);
        norm.all([&](int64_t l, int64_t i, int64_t k, int n, auto w) {
            vec t = in(gain + k, n, w) * in(u + i, n, w);
            if (l == 0) t = Activation(t + in(bias + k, n, w), active).value;
            out(u + i, t, n, w);
        });
    }
}

// k = gain a'(t) g of one column; slope = a'(t), curve = a''(t).
#define UPPER                                                                                   \\
    const vec factor = in(gain + k, n, w), unit = in(u + i, n, w);                              \\
    const Activation a(l ? vec{} : factor * unit + in(bias + k, n, w), active && l == 0);       \\
    const vec upper = in(g + i, n, w), inner = factor * a.first * upper;

EXPORT void gradient(int64_t rows, int64_t lmax, int64_t channels, double eps, int active,
                     const real* x, const real* gain, const real* bias, const real* grad,
                     real* to_x, int threads) {
    const Norm norm{rows, lmax, channels, eps, active, gain, bias};
    const int64_t row = norm.row();
#pragma omp parallel num_threads(threads)
    {
        std::vector<real> buffer(row);
        real* u = buffer.data();
#pragma omp for
        for (int64_t e = 0; e < rows; ++e) {
            const real* g = grad + e * row;
            real* to = to_x + e * row;
            const real r = norm.normalize(x + e * row, u);
            vec sums = {};
            norm.all([&](int64_t l, int64_t i, int64_t k, int n, auto w) {
                UPPER
                out(to + i, inner, n, w);
                sums += inner * unit;
            });
            const real K = sum_lanes(sums);
            norm.all([&](int64_t l, int64_t i, int64_t, int n, auto w) {
                out(to + i, r * (in(to + i, n, w) - norm.share(l) * K * in(u + i, n, w)), n, w);
            });
            norm.center(to);
        }
    }
}

// The rows of a chunk, and its own sums.
#define IN_CHUNKS                                                                               \\
    const int64_t chunk = (rows + CHUNKS - 1) / CHUNKS;                                         \\
    _Pragma("omp parallel for schedule(static, 1) num_threads(threads)")                        \\
    for (int c = 0; c < CHUNKS; ++c) {                                                          \\
        std::vector<real> buffer(2 * row);                                                      \\
        real *u = buffer.data(), *p = u + row;                                                  \\
        real *to_gain = partial + c * norm.weights(), *to_bias = to_gain + (lmax + 1) * channels; \\
        const int64_t end = std::min(rows, (c + 1) * chunk);                                    \\
        for (int64_t e = c * chunk; e < end; ++e)

EXPORT void weight_gradient(int64_t rows, int64_t lmax, int64_t channels, double eps, int active,
                            const real* x, const real* gain, const real* bias, const real* grad,
                            real* partial, int threads) {
    const Norm norm{rows, lmax, channels, eps, active, gain, bias};
    const int64_t row = norm.row();
    IN_CHUNKS {
        (void)p;
        const real* g = grad + e * row;
        norm.normalize(x + e * row, u);
        norm.all([&](int64_t l, int64_t i, int64_t k, int n, auto w) {
            UPPER
            (void)inner;
            const vec z = a.first * upper;
            out(to_gain + k, in(to_gain + k, n, w) + z * unit, n, w);
            if (l == 0) out(to_bias + k, in(to_bias + k, n, w) + z, n, w);
        });
    }
    }
}

EXPORT void second(int64_t rows, int64_t lmax, int64_t channels, double eps, int active,
                   const real* x, const real* gain, const real* bias, const real* grad,
                   const real* turned, real* to_x, real* to_grad, real* partial, int threads) {
    const Norm norm{rows, lmax, channels, eps, active, gain, bias};
    const int64_t row = norm.row();
    IN_CHUNKS {
        const real *g = grad + e * row, *v = turned + e * row;
        real *to = to_x + e * row, *to_g = to_grad + e * row;
        const real r = norm.normalize(x + e * row, u);
        std::memcpy(p, v, row * sizeof(real));
        norm.center(p);
        vec Ps = {}, Ks = {}, Is = {};
        norm.all([&](int64_t l, int64_t i, int64_t k, int n, auto w) {
            UPPER
            const vec free = in(p + i, n, w);
            Ps += norm.share(l) * free * unit;
            Ks += inner * unit;
            Is += free * inner;
        });
        const real P = sum_lanes(Ps), K = sum_lanes(Ks), I = sum_lanes(Is);
        vec Qs = {};
        norm.all([&](int64_t l, int64_t i, int64_t k, int n, auto w) {
            UPPER
            const vec free = in(p + i, n, w), b = r * (free - P * unit);
            const vec z = factor * a.second * upper * b;
            out(to_g + i, factor * a.first * b, n, w);
            out(to_gain + k, in(to_gain + k, n, w) + a.first * upper * b + z * unit, n, w);
            if (l == 0) out(to_bias + k, in(to_bias + k, n, w) + z, n, w);
            const vec q = factor * z - r * (K * norm.share(l) * free + P * inner);
            out(to + i, q, n, w);
            Qs += q * unit;
        });
        const real Q = sum_lanes(Qs);
        norm.all([&](int64_t l, int64_t i, int64_t, int n, auto w) {
            const vec unit = in(u + i, n, w);
            const real along = norm.share(l) * (Q + r * (I - P * K));
            out(to + i, r * (in(to + i, n, w) - along * unit), n, w);
        });
        norm.center(to);
    }
    }
}
"""


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    headers = "#include <algorithm>\n#include <cmath>\n#include <type_traits>\n#include <vector>\n"
    head = f"{cpp.prelude(dtype)}#define EXPORT {cpp.EXPORT}\nconstexpr int CHUNKS = {CHUNKS};\n"
    return headers + head + exponential(dtype) + _BODY
