"""C++ of the symmetric contraction; `_cpu` says what it computes. One source per dtype."""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.symmetric_contraction.config import CPU_CHUNK_NODES, CPU_TILE_NODES

__all__ = ["source"]


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    constants = f"constexpr int NODES = {CPU_TILE_NODES}, CHUNK = {CPU_CHUNK_NODES};"
    return "\n".join([cpp.prelude(dtype), constants, _NUMBERS, _ARGUMENTS, _KERNEL, _RUN])


_NUMBERS = """
#include <algorithm>
#include <memory>
#include <vector>

// A quantity at the nodes of a tile for the channels of a vector. With two parts it is a dual
// number, value and derivative along the direction h, and so is whatever is computed from it.
template <int PARTS> struct Number { vec at[PARTS][NODES]; };

#define EACH_NODE _Pragma("GCC unroll 16") for (int n = 0; n < NODES; ++n)
#define EACH_PART _Pragma("GCC unroll 2") for (int part = 0; part < PARTS; ++part)

template <int PARTS>
static inline Number<PARTS> operator*(const Number<PARTS>& a, const Number<PARTS>& b) {
    Number<PARTS> result;
    EACH_NODE result.at[0][n] = a.at[0][n] * b.at[0][n];
    if constexpr (PARTS == 2)
        EACH_NODE result.at[1][n] = a.at[0][n] * b.at[1][n] + a.at[1][n] * b.at[0][n];
    return result;
}
template <int PARTS>
static inline Number<PARTS> scaled(const Number<1>& a, const Number<PARTS>& b) {
    Number<PARTS> result;
    EACH_PART EACH_NODE result.at[part][n] = a.at[0][n] * b.at[part][n];
    return result;
}
template <int PARTS>
static inline void operator+=(Number<PARTS>& sum, const Number<PARTS>& a) {
    EACH_PART EACH_NODE sum.at[part][n] += a.at[part][n];
}
template <int PARTS> static inline void clear(Number<PARTS>* numbers, int count) {
    std::fill(numbers, numbers + count, Number<PARTS>{});
}
"""

_ARGUMENTS = """
struct Row { int32_t out, left, begin, end; };  // entries begin ... end

struct Polynomials {
    int32_t dim_in, dim_out, num_paths, num_factors, num_rows, num_entries;
    const int32_t (*products)[2];  // of factors dim_in + 1 ...
    const Row* rows;
    const int32_t* right;      // of every entry
    const int32_t* couplings;  // first of every entry, and the end
    const int32_t* path;       // of every coupling
    const real* coefficient;   // of every coupling
};

struct Arguments {
    int64_t num_nodes, num_elements, channels, threads;
    const int64_t* element;                        // of every node
    const real *x, *weight, *grad, *h;             // h is read by the dual kernel only
    real *out, *grad_x, *grad_weight;              // null where not wanted
};

// Neighbours in the order of elements, all of one element.
struct Chunk { int64_t element; int first, count; };

// The nodes sorted by element, and their chunks: a matter of the nodes, not of the threads.
struct Chunks {
    std::vector<int> node, first_of_element;
    std::vector<Chunk> chunks;

    explicit Chunks(const Arguments& a) : node(a.num_nodes), first_of_element(a.num_elements + 1) {
        std::vector<int> end(a.num_elements + 1);
        for (int64_t n = 0; n < a.num_nodes; ++n) ++end[a.element[n] + 1];
        for (int64_t e = 0; e < a.num_elements; ++e) {
            const int first = end[e], last = end[e + 1] += first;
            first_of_element[e] = chunks.size();
            for (int i = first; i < last; i += CHUNK)
                chunks.push_back({e, i, std::min(CHUNK, last - i)});
        }
        first_of_element[a.num_elements] = chunks.size();
        for (int64_t n = 0; n < a.num_nodes; ++n) node[end[a.element[n]]++] = n;
    }
};
"""

_KERNEL = """
// Work on one chunk and one vector of channels, in memory that the thread keeps.
template <int PARTS> struct Work {
    typedef Number<PARTS> Value;
    const Polynomials& p;
    const Arguments& a;
    int64_t channel;
    int lanes;
    Value *factors, *bars, *out;    // bars: derivatives of sum(grad * P) in the factors
    Number<1>* grad;
    vec *couplings, *bar_couplings;

    Work(const Polynomials& p, const Arguments& a) : p(p), a(a) {
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
    void contract_weights(int64_t element) {
        const real* const weight = a.weight + element * p.num_paths * a.channels + channel;
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
        for (int k = 0; k < p.num_paths; ++k) write(share + k * a.channels + channel, vec{});
        for (int e = 0; e < p.num_entries; ++e)
            for (int i = p.couplings[e]; i < p.couplings[e + 1]; ++i) {
                real* const at = share + p.path[i] * a.channels + channel;
                write(at, read(at) + p.coefficient[i] * bar_couplings[e]);
            }
    }
    vec read(const real* at) const { return lanes == LANES ? load(at) : load(at, lanes); }
    void write(real* at, vec value) const {
        lanes == LANES ? store(at, value) : store(at, value, lanes);
    }
    // Rows [num_nodes, dim, channels]; nodes beyond count are zero.
    template <int P>
    void read_rows(Number<P>* to, int part, const real* from, int dim, const int* node, int count) {
        for (int n = 0; n < NODES; ++n)
            for (int i = 0; i < dim; ++i)
                to[i].at[part][n] = n < count
                    ? read(from + ((int64_t)node[n] * dim + i) * a.channels + channel) : vec{};
    }
    void write_rows(real* to, const Value* from, int dim, const int* node, int count) const {
        for (int n = 0; n < count; ++n)
            for (int i = 0; i < dim; ++i)
                write(to + ((int64_t)node[n] * dim + i) * a.channels + channel,
                      from[i].at[PARTS - 1][n]);
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
    """
template <int PARTS> static void run(const Polynomials& p, const Arguments& a) {
    const Chunks sorted(a);
    const int64_t vectors = (a.channels + LANES - 1) / LANES;
    const int64_t num_chunks = sorted.chunks.size(), numel = p.num_paths * a.channels;
    std::unique_ptr<real[]> shares(a.grad_weight ? new real[num_chunks * numel] : nullptr);
#pragma omp parallel num_threads(a.threads)
    {
        Work<PARTS> work(p, a);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < num_chunks * vectors; ++item) {
            const Chunk& chunk = sorted.chunks[item / vectors];
            work.channel = item % vectors * LANES;
            work.lanes = std::min<int64_t>(LANES, a.channels - work.channel);
            work.contract_weights(chunk.element);
            for (int i = 0; i < chunk.count; i += NODES)
                work.tile(&sorted.node[chunk.first + i], std::min(NODES, chunk.count - i));
            if (a.grad_weight) work.share_of_weights(&shares[item / vectors * numel]);
        }
        if (a.grad_weight) {
#pragma omp for
            for (int64_t element = 0; element < a.num_elements; ++element) {
                real* const total = a.grad_weight + element * numel;
                std::fill(total, total + numel, (real)0);
                for (int c = sorted.first_of_element[element];
                     c < sorted.first_of_element[element + 1]; ++c)
                    for (int64_t i = 0; i < numel; ++i) total[i] += shares[c * numel + i];
            }
        }
    }
}
"""
    + cpp.EXPORT
    + """ void run(const Polynomials* p, const Arguments* a) {
    a->h ? run<2>(*p, *a) : run<1>(*p, *a);
}
"""
)
