"""C++ between the operands x1, x2 of a path and their pairs Z: members of `Worker`.

    M[v][i, k]  = sum_j C[i, j, k] b[v, j]      couple
    Z[q][k]     = sum_i M[v][i, k] a[u, i]      make_pairs

and the same lines backwards, from the gradient of Z to those of a and b.
"""

from __future__ import annotations

__all__ = ["MAKE_PAIRS", "PULL_BACK"]

MAKE_PAIRS = """\
    // Z, summed over the group's pairs of operands.
    void make_pairs(const Path& p, int64_t g) {
        vec* const z = pairs[g];
        clear(z, p.num_pairs * p.dim_k);
        for (int64_t t = call.groups[g].begin; t < call.groups[g].end; ++t) {
            const Pair& with = call.pairs[t];
            const vec* const a = operand[p.a_is_x2 ? with.x2 : with.x1] + p.a;
            const vec* const b = operand[p.a_is_x2 ? with.x1 : with.x2] + p.b;
            const int32_t* pair = p.pair;
            for (int64_t v = 0; v < p.num_b; ++v) {
                couple(p, b + v * p.b_v);
                blocks<8>(0, p.count[v], [&](auto block, int64_t u) {
                    constexpr int N = decltype(block)::value;
                    const vec* from = a + (p.start[v] + u) * p.a_u;
                    vec* to[N];
                    for (int s = 0; s < N; ++s) to[s] = z + pair[u + s] * p.dim_k;
                    for (int64_t k = 0; k < p.dim_k; ++k) {
                        vec sum[N] = {};
                        for (int32_t e = p.k_start[k]; e < p.k_start[k + 1]; ++e) {
                            const vec m = elements[e];
#pragma GCC unroll 8
                            for (int s = 0; s < N; ++s)
                                sum[s] += m * from[p.element_a[e] + s * p.a_u];
                        }
#pragma GCC unroll 8
                        for (int s = 0; s < N; ++s) to[s][k] += sum[s];
                    }
                });
                pair += p.count[v];
            }
        }
    }

    void couple(const Path& p, const vec* b) {
        for (int64_t e = 0; e < p.num_elements; ++e) {
            vec sum = {};
            for (int32_t t = p.term_start[e]; t < p.term_start[e + 1]; ++t)
                sum += p.term_c[t] * b[p.term_b[t]];
            elements[e] = sum;
        }
    }

"""

PULL_BACK = """\
    // Gradients in x1 and x2 from that of Z.
    void pull_back(const Path& p, int64_t g) {
        const vec* const dz = gradient[g];
        for (int64_t t = call.groups[g].begin; t < call.groups[g].end; ++t) {
            const Pair& with = call.pairs[t];
            const int64_t grad_a = p.a_is_x2 ? with.grad_x2 : with.grad_x1;
            const int64_t grad_b = p.a_is_x2 ? with.grad_x1 : with.grad_x2;
            const vec* const a = operand[p.a_is_x2 ? with.x2 : with.x1] + p.a;
            const vec* const b = operand[p.a_is_x2 ? with.x1 : with.x2] + p.b;
            vec* const da = grad_a >= 0 ? result[grad_a] + p.a : nullptr;
            vec* const db = grad_b >= 0 ? result[grad_b] + p.b : nullptr;
            const int32_t* pair = p.pair;
            for (int64_t v = 0; v < p.num_b; ++v) {
                if (da) couple(p, b + v * p.b_v);
                if (db) clear(element_gradients, p.num_elements);
                blocks<8>(0, p.count[v], [&](auto block, int64_t u) {
                    constexpr int N = decltype(block)::value;
                    const vec* from[N];
                    for (int s = 0; s < N; ++s) from[s] = dz + pair[u + s] * p.dim_k;
                    const int64_t at = (p.start[v] + u) * p.a_u;
                    if (da) pull_back_a<N>(p, from, da + at);
                    if (db) pull_back_elements<N>(p, from, a + at);
                });
                if (db) uncouple(p, db + v * p.b_v);
                pair += p.count[v];
            }
        }
    }

    template <int N> void pull_back_a(const Path& p, const vec* const* from, vec* da) {
        for (int64_t i = 0; i < p.dim_a; ++i) {
            vec sum[N] = {};
            for (int32_t t = p.i_start[i]; t < p.i_start[i + 1]; ++t) {
                const vec m = elements[p.i_element[t]];
                const int64_t k = p.element_k[p.i_element[t]];
#pragma GCC unroll 8
                for (int s = 0; s < N; ++s) sum[s] += m * from[s][k];
            }
#pragma GCC unroll 8
            for (int s = 0; s < N; ++s) da[p.i_column[i] + s * p.a_u] += sum[s];
        }
    }

    template <int N> void pull_back_elements(const Path& p, const vec* const* from, const vec* a) {
        for (int64_t e = 0; e < p.num_elements; ++e) {
            vec sum = {};
            const vec* const row = a + p.element_a[e];
#pragma GCC unroll 8
            for (int s = 0; s < N; ++s) sum += row[s * p.a_u] * from[s][p.element_k[e]];
            element_gradients[e] += sum;
        }
    }

    void uncouple(const Path& p, vec* db) {
        for (int64_t j = 0; j < p.dim_b; ++j) {
            vec sum = {};
            for (int32_t t = p.j_start[j]; t < p.j_start[j + 1]; ++t)
                sum += p.j_c[t] * element_gradients[p.j_element[t]];
            db[p.j_column[j]] += sum;
        }
    }
"""
