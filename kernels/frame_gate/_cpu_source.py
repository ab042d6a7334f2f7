"""C++ source of the radial factors and gates, for any sizes; one pass over the edges each.

With s = sigmoid(q) of a gate q, a = s f, and sums over the orders of a degree and channel,

    z = h a                            g_h = g a,   g_q = (sum g h) s' f,   g_f = sum (g h) s
    second, with b = v_q s' f + v_f s:
        to_g = v a + b h               to_h = b g
        to_q = (sum v g) s' f + (sum g h) (v_q s'' f + v_f s')
        to_f = (sum v g) s + (sum g h) v_q s'

and the same with silu in place of s for the scalars, which are activated and not gated.
"""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.exponential import exponential

__all__ = ["source"]

_BODY = """
typedef const real* const* Orders;
typedef real* const* Results;

struct Sizes {
    int64_t lmax, m_max, channels;
    int64_t width(int64_t m) const { return (lmax + 1 - m) * channels; }
    int64_t gates() const { return lmax * channels; }
    int64_t radial() const {
        int64_t sum = 0;
        for (int64_t m = 0; m <= m_max; ++m) sum += width(m);
        return sum;
    }
    int64_t dim() const { return 2 * radial() - width(0); }
};

// Calls f(j, n, whole) for registers of n lanes from column j on.
template <class F> static inline void sweep(int64_t columns, F&& f) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) f(j, LANES, std::true_type{});
    if (j < columns) f(j, (int)(columns - j), std::false_type{});
}
template <class W> static inline vec in(const real* p, int n, W) { return get<W::value>(p, n); }
template <class W> static inline void out(real* p, vec v, int n, W) { put<W::value>(p, v, n); }

// Column of edge e in the tensor of order m, where its degree l starts.
static inline int64_t at(const Sizes& s, int64_t e, int64_t m, int sign, int64_t l) {
    return (m ? (2 * e + sign) * s.width(m) : e * (s.width(0))) + (l - m) * s.channels;
}
// The same where the order 0 ends with the gates.
static inline int64_t gated_at(const Sizes& s, int64_t e, int64_t m, int sign, int64_t l) {
    return at(s, e, m, sign, l) + (m ? 0 : e * s.gates());
}

struct Sigmoid {
    vec value, first, second;
    explicit Sigmoid(vec x) {
        value = (real)1 / ((real)1 + exponential(-x));
        first = value * ((real)1 - value);
        second = first * ((real)1 - value - value);
    }
};
struct Silu {
    vec value, first, second;
    explicit Silu(vec x) {
        const Sigmoid s(x);
        value = x * s.value;
        first = s.value + x * s.first;
        second = (real)2 * s.first + x * s.second;
    }
};

EXPORT void scale(int64_t edges, int64_t lmax, int64_t m_max, int64_t channels, const real* y,
                  const real* radial, Results z, int threads) {
    const Sizes s{lmax, m_max, channels};
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < edges; ++e) {
        const real *from = y + e * s.dim(), *factor = radial + e * s.radial();
        for (int64_t m = 0; m <= m_max; factor += s.width(m), ++m)
            for (int sign = 0; sign < (m ? 2 : 1); ++sign, from += s.width(m)) {
                real* to = z[m] + at(s, e, m, sign, m);
                sweep(s.width(m), [&](int64_t j, int n, auto w) {
                    out(to + j, in(from + j, n, w) * in(factor + j, n, w), n, w);
                });
            }
    }
}

EXPORT void scale_gradient(int64_t edges, int64_t lmax, int64_t m_max, int64_t channels,
                           const real* y, const real* radial, Orders g, real* to_y,
                           real* to_radial, int threads) {
    const Sizes s{lmax, m_max, channels};
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < edges; ++e) {
        const int64_t row = e * s.dim(), first = e * s.radial();
        for (int64_t m = 0, i = row, k = first; m <= m_max; ++m) {
            const int64_t width = s.width(m);
            const real* upper = g[m] + at(s, e, m, 0, m);
            sweep(width, [&](int64_t j, int n, auto w) {
                const vec r = in(radial + k + j, n, w), a = in(upper + j, n, w);
                out(to_y + i + j, a * r, n, w);
                vec sum = a * in(y + i + j, n, w);
                if (m) {
                    const vec b = in(upper + width + j, n, w);
                    out(to_y + i + width + j, b * r, n, w);
                    sum += b * in(y + i + width + j, n, w);
                }
                out(to_radial + k + j, sum, n, w);
            });
            i += m ? 2 * width : width;
            k += width;
        }
    }
}

EXPORT void scale_second(int64_t edges, int64_t lmax, int64_t m_max, int64_t channels,
                         const real* y, const real* radial, Orders g, const real* v_y,
                         const real* v_radial, real* to_y, real* to_radial, Results to_g,
                         int threads) {
    const Sizes s{lmax, m_max, channels};
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < edges; ++e) {
        const int64_t row = e * s.dim(), first = e * s.radial();
        for (int64_t m = 0, i = row, k = first; m <= m_max; ++m) {
            const int64_t width = s.width(m), place = at(s, e, m, 0, m);
            sweep(width, [&](int64_t j, int n, auto w) {
                const vec r = in(radial + k + j, n, w), v = in(v_radial + k + j, n, w);
                vec sum = {};
                for (int sign = 0; sign < (m ? 2 : 1); ++sign) {
                    const int64_t c = i + sign * width + j, d = place + sign * width + j;
                    const vec upper = in(g[m] + d, n, w), turned = in(v_y + c, n, w);
                    out(to_g[m] + d, turned * r + v * in(y + c, n, w), n, w);
                    out(to_y + c, v * upper, n, w);
                    sum += turned * upper;
                }
                out(to_radial + k + j, sum, n, w);
            });
            i += m ? 2 * width : width;
            k += width;
        }
    }
}

EXPORT void gate(int64_t edges, int64_t lmax, int64_t m_max, int64_t channels, Orders h,
                 const real* factor, Results z, int threads) {
    const Sizes s{lmax, m_max, channels};
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < edges; ++e) {
        const real f = factor[e];
        const int64_t first = gated_at(s, e, 0, 0, 0);
        const real* gates = h[0] + first + s.width(0) - channels;  // that of degree l at l channels
        sweep(channels, [&](int64_t j, int n, auto w) {
            const vec value = Silu(in(h[0] + first + j, n, w)).value;
            out(z[0] + at(s, e, 0, 0, 0) + j, value * f, n, w);
        });
        for (int64_t l = 1; l <= lmax; ++l)
            sweep(channels, [&](int64_t j, int n, auto w) {
                const vec a = Sigmoid(in(gates + l * channels + j, n, w)).value * f;
                for (int64_t m = 0; m <= m_max && m <= l; ++m)
                    for (int sign = 0; sign < (m ? 2 : 1); ++sign)
                        out(z[m] + at(s, e, m, sign, l) + j,
                            a * in(h[m] + gated_at(s, e, m, sign, l) + j, n, w), n, w);
            });
    }
}

EXPORT void gate_gradient(int64_t edges, int64_t lmax, int64_t m_max, int64_t channels, Orders h,
                          const real* factor, Orders g, Results to_h, real* to_factor,
                          int threads) {
    const Sizes s{lmax, m_max, channels};
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < edges; ++e) {
        const real f = factor[e];
        const int64_t first = gated_at(s, e, 0, 0, 0), gates = first + s.width(0) - channels;
        vec total = {};
        sweep(channels, [&](int64_t j, int n, auto w) {
            const Silu silu(in(h[0] + first + j, n, w));
            const vec upper = in(g[0] + at(s, e, 0, 0, 0) + j, n, w);
            out(to_h[0] + first + j, upper * silu.first * f, n, w);
            total += upper * silu.value;
        });
        for (int64_t l = 1; l <= lmax; ++l)
            sweep(channels, [&](int64_t j, int n, auto w) {
                const Sigmoid sigmoid(in(h[0] + gates + l * channels + j, n, w));
                const vec a = sigmoid.value * f;
                vec sum = {};
                for (int64_t m = 0; m <= m_max && m <= l; ++m)
                    for (int sign = 0; sign < (m ? 2 : 1); ++sign) {
                        const int64_t c = gated_at(s, e, m, sign, l) + j;
                        const vec upper = in(g[m] + at(s, e, m, sign, l) + j, n, w);
                        sum += upper * in(h[m] + c, n, w);
                        out(to_h[m] + c, upper * a, n, w);
                    }
                out(to_h[0] + gates + l * channels + j, sum * sigmoid.first * f, n, w);
                total += sum * sigmoid.value;
            });
        to_factor[e] = sum_lanes(total);
    }
}

EXPORT void gate_second(int64_t edges, int64_t lmax, int64_t m_max, int64_t channels, Orders h,
                        const real* factor, Orders g, Orders v_h, const real* v_factor,
                        Results to_h, real* to_factor, Results to_g, int threads) {
    const Sizes s{lmax, m_max, channels};
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < edges; ++e) {
        const real f = factor[e], v_f = v_factor[e];
        const int64_t first = gated_at(s, e, 0, 0, 0), gates = first + s.width(0) - channels;
        vec total = {};
        sweep(channels, [&](int64_t j, int n, auto w) {
            const int64_t c = first + j, d = at(s, e, 0, 0, 0) + j;
            const Silu silu(in(h[0] + c, n, w));
            const vec upper = in(g[0] + d, n, w), v = in(v_h[0] + c, n, w);
            out(to_g[0] + d, v * silu.first * f + v_f * silu.value, n, w);
            out(to_h[0] + c, upper * (v * silu.second * f + v_f * silu.first), n, w);
            total += upper * v * silu.first;
        });
        for (int64_t l = 1; l <= lmax; ++l)
            sweep(channels, [&](int64_t j, int n, auto w) {
                const int64_t place = gates + l * channels + j;
                const Sigmoid sigmoid(in(h[0] + place, n, w));
                const vec v_q = in(v_h[0] + place, n, w);
                const vec a = sigmoid.value * f, b = v_q * sigmoid.first * f + v_f * sigmoid.value;
                vec turned = {}, sum = {};
                for (int64_t m = 0; m <= m_max && m <= l; ++m)
                    for (int sign = 0; sign < (m ? 2 : 1); ++sign) {
                        const int64_t c = gated_at(s, e, m, sign, l) + j;
                        const int64_t d = at(s, e, m, sign, l) + j;
                        const vec x = in(h[m] + c, n, w), v = in(v_h[m] + c, n, w);
                        const vec upper = in(g[m] + d, n, w);
                        out(to_g[m] + d, v * a + b * x, n, w);
                        out(to_h[m] + c, b * upper, n, w);
                        turned += v * upper;
                        sum += upper * x;
                    }
                out(to_h[0] + place,
                    turned * sigmoid.first * f +
                        sum * (v_q * sigmoid.second * f + v_f * sigmoid.first),
                    n, w);
                total += turned * sigmoid.value + sum * v_q * sigmoid.first;
            });
        to_factor[e] = sum_lanes(total);
    }
}
"""


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    head = f"#include <type_traits>\n{cpp.prelude(dtype)}#define EXPORT {cpp.EXPORT}\n"
    return head + exponential(dtype) + _BODY
