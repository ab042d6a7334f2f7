"""C++ of the symmetric contraction; `_cpu` says what it computes. One source per dtype."""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp, polynomial_cpp
from eqtp.kernels.symmetric_contraction.config import CPU_CHUNK_NODES, CPU_TILE_NODES

__all__ = ["source"]


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    return polynomial_cpp.source(
        dtype,
        tile_nodes=CPU_TILE_NODES,
        chunk_nodes=CPU_CHUNK_NODES,
        tables=_TABLES,
        work=_WORK,
        run=_RUN,
    )


_TABLES = """
struct Row { int32_t out, left, begin, end; };  // entries begin ... end

struct Polynomials {
    int32_t dim_in, dim_out, num_weights, num_factors, num_rows, num_entries;
    const int32_t (*products)[2];  // of factors dim_in + 1 ...
    const Row* rows;
    const int32_t* right;      // of every entry
    const int32_t* couplings;  // first of every entry, and the end
    const int32_t* path;       // of every coupling
    const real* coefficient;   // of every coupling
};

"""

_WORK = """
// Work on one chunk and one vector of channels, in memory that the thread keeps.
template <int PARTS> struct Work : Rows {
    typedef Number<PARTS> Value;
    const Polynomials& p;
    Value *factors, *bars, *out;    // bars: derivatives of sum(grad * P) in the factors
    Number<1>* grad;
    vec *couplings, *bar_couplings;

    Work(const Polynomials& p, const Arguments& a) : Rows{a}, p(p) {
        const int entries = (p.num_entries + NODES - 1) / NODES;
        static thread_local std::vector<Number<1>> memory;  // fresh pages cost more than zeros
        memory.resize((2 * p.num_factors + p.dim_out) * PARTS + p.dim_out + 2 * entries);
        Number<1>* next = memory.data();
        auto take = [&](int count) { next += count; return next - count; };
        factors = (Value*)take(p.num_factors * PARTS);
        bars = (Value*)take(p.num_factors * PARTS);
        out = (Value*)take(p.dim_out * PARTS);
        grad = take(p.dim_out);
        couplings = (vec*)take(entries);
        bar_couplings = (vec*)take(entries);
    }

    // c_entry = sum_k coefficient_k weight_k
    void begin(int64_t element) {
        const real* const weight = a.weight + element * p.num_weights * a.channels + channel;
        for (int e = 0; e < p.num_entries; ++e) {
            vec sum = {};
            for (int i = p.couplings[e]; i < p.couplings[e + 1]; ++i)
                sum += p.coefficient[i] * read(weight + p.path[i] * a.channels);
            couplings[e] = sum;
        }
        std::fill(bar_couplings, bar_couplings + p.num_entries, vec{});
    }
    // The transpose: the chunk's share of the gradient in the weights.
    void share_of_weights(real* share) const {
        for (int k = 0; k < p.num_weights; ++k) write(share + k * a.channels + channel, vec{});
        for (int e = 0; e < p.num_entries; ++e)
            for (int i = p.couplings[e]; i < p.couplings[e + 1]; ++i) {
                real* const at = share + p.path[i] * a.channels + channel;
                write(at, read(at) + p.coefficient[i] * bar_couplings[e]);
            }
    }
    // sum_e c_e F_e
    Value dot(const Row& row) const {
        Value sum = {};
        for (int e = row.begin; e < row.end; ++e) {
            const Value& factor = factors[p.right[e]];
            EACH_PART EACH_NODE sum.at[part][n] += couplings[e] * factor.at[part][n];
        }
        return sum;
    }
    // bar F_e += c_e d
    void add_to_factors(const Row& row, const Value& d) {
        for (int e = row.begin; e < row.end; ++e) {
            Value& bar = bars[p.right[e]];
            EACH_PART EACH_NODE bar.at[part][n] += couplings[e] * d.at[part][n];
        }
    }
    // bar c_e += d F_e
    void add_to_couplings(const Row& row, const Value& d) {
        for (int e = row.begin; e < row.end; ++e) {
            const Value& factor = factors[p.right[e]];
            vec sum = bar_couplings[e];
            EACH_NODE sum += d.at[0][n] * factor.at[PARTS - 1][n];
            if constexpr (PARTS == 2) EACH_NODE sum += d.at[1][n] * factor.at[0][n];
            bar_couplings[e] = sum;
        }
    }
    void tile(const int* node, int count) {
        const int first_product = p.dim_in + 1;
        EACH_PART EACH_NODE factors[0].at[part][n] = vec{} + (real)(part == 0);
        read_rows(factors + 1, 0, a.x, p.dim_in, node, count);
        if constexpr (PARTS == 2) read_rows(factors + 1, 1, a.h, p.dim_in, node, count);
        for (int f = first_product; f < p.num_factors; ++f) {
            const int32_t* const pair = p.products[f - first_product];
            factors[f] = factors[pair[0]] * factors[pair[1]];
        }
        if (a.grad) read_rows(grad, 0, a.grad, p.dim_out, node, count);
        if (a.out) clear(out, p.dim_out);
        if (a.grad_x) clear(bars, p.num_factors);
        for (const Row* row = p.rows; row != p.rows + p.num_rows; ++row) {
            const Value left = factors[row->left];
            if (a.out || a.grad_x) {
                const Value sum = dot(*row);
                if (a.out) out[row->out] += left * sum;
                if (a.grad_x) bars[row->left] += scaled(grad[row->out], sum);
            }
            if (a.grad_x || a.grad_weight) {
                const Value d = scaled(grad[row->out], left);
                if (a.grad_x) add_to_factors(*row, d);
                if (a.grad_weight) add_to_couplings(*row, d);
            }
        }
        if (a.out) write_rows(a.out, out, p.dim_out, node, count);
        if (!a.grad_x) return;
        for (int f = p.num_factors - 1; f >= first_product; --f) {
            const int32_t* const pair = p.products[f - first_product];
            bars[pair[0]] += bars[f] * factors[pair[1]];
            bars[pair[1]] += bars[f] * factors[pair[0]];
        }
        write_rows(a.grad_x, bars + 1, p.dim_in, node, count);
    }
};
"""

_RUN = (
    cpp.EXPORT
    + """ void run(const Polynomials* p, const Arguments* a) {
    a->h ? run<2>(*p, *a) : run<1>(*p, *a);
}
"""
)
