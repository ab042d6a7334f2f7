"""C++ source of the general product: one source for every problem, tables as arguments.

The lanes of a register are rows (edges): a tile of as many rows as a register has lanes is
transposed on its way in and out, so multiplicities may be anything, both layouts are read as they
are, and every constant, channel and weight is a step of a plain loop. For each path and tile:

    M[v][i, k]  = sum_j C[i, j, k] b[v, j]      b: the operand with fewer channels
    Z[q][k]     = sum_i M[v][i, k] a[u, i]      q counts the pairs (u, v) that the mode joins
    out[w, k]  += sum_q Z[q][k] weight[q, w]    mixing modes: uvw, uuw, u<vw
    out[w(q), k] += Z[q][k] weight[q]           the others

and the same lines backwards. Weights per row pass through the cache in panels, once for all that
is computed from them. Only matrix elements (i, k) that are not zero are stored and used.

Threads take chunks of rows. Sums at receivers and senders and the gradients of shared weights are
made in chunks, too, as in the channelwise family: no atomics, no dependence on the threads.
"""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.matrix_product import MATRIX_PRODUCT
from eqtp.kernels.tensor_product._cpu_pairs import MAKE_PAIRS, PULL_BACK
from eqtp.kernels.tensor_product._cpu_registers import REGISTERS

__all__ = ["source"]

_TYPES_AND_TILES = """\
enum Slot { X1, X2, WEIGHT, OUT };

struct Path {
    int64_t a_is_x2;
    int64_t a, a_u, b, b_v, num_b;       // first column, step between channels, channels
    int64_t first, columns, out_k, out_w;  // block of the result, steps of component and channel
    int64_t weight, width, mixing, weighted, num_pairs;
    int64_t dim_a, dim_b, dim_k, num_elements;
    const int32_t *start, *count;        // the channels of a that each channel of b meets
    const int32_t *pair, *channel;       // number q of each pair so met; channel w(q)
    const int32_t *k_start, *element_a, *element_k;          // elements (i, k) of M by k
    const int32_t *i_start, *i_element, *i_column;           // by i
    const int32_t *term_start, *term_b; const real* term_c;  // constants of each element
    const int32_t *j_start, *j_element, *j_column; const real* j_c;  // the same by j
};
struct Operand { const real* data; int64_t slot; };
struct Result { real *data, *carry; int64_t slot; };  // carry: rows of chunks, see `_cpu.py`
struct Pair { int64_t x1, x2, grad_x1, grad_x2; };    // numbers of operands and results, or -1
struct Group {  // S(x1, x2, weight, out) summed over pairs (x1, x2)
    int64_t weight, out, grad_weight, grad_out, weighted, begin, end;
};
struct Call {
    const Path* paths; int64_t num_paths;
    const Group* groups; int64_t num_groups;
    const Pair* pairs;
    const Operand* operands; int64_t num_operands;
    const Result* results; int64_t num_results;
    const int64_t *receiver, *sender, *edge;   // of each row, sorted by receiver
    const int64_t *row, *rows, *pointers;      // sums at senders, see SenderSums
    int64_t dims[4];
    int64_t num_rows, chunk_rows, num_senders, graph, shared, threads;
};

constexpr int64_t PANEL = 256;  // weights per row that are in the cache at a time: 16 KiB

constexpr int64_t FEW = 4;      // pairs that are not worth turning for a product of matrices

// Hands out parts of one piece of memory; counts only, while there is none.
struct Arena {
    vec* base;
    int64_t used = 0;
    vec* take(int64_t size) {
        used += size;
        return base ? base + used - size : nullptr;
    }
};

static inline void clear(vec* x, int64_t size) {
    for (int64_t i = 0; i < size; ++i) x[i] = vec{};
}

class Worker {
    const Call& call;
    std::vector<vec*> operand, result, pairs, gradient;  // tiles; per group Z and its gradient
    vec *elements, *element_gradients;                   // M and its gradient
    vec *turned_pairs, *turned_out;                      // Z and out by row, for shared weights
    int64_t chunk, begin, first;                         // first row of the chunk, of the tile
    int size;                                            // rows of the tile
    const int64_t* index[4];                             // rows of each slot

public:
    explicit Worker(const Call& call)
        : call(call), operand(call.num_operands), result(call.num_results),
          pairs(call.num_groups), gradient(call.num_groups),
          index{call.sender, call.edge, call.edge, call.receiver} {}

    void lay_out(Arena& arena) {
        int64_t columns = 0, panel = 0, most_pairs = 0, most_elements = 0, most_dim = 0;
        for (int64_t i = 0; i < call.num_paths; ++i) {
            const Path& p = call.paths[i];
            columns = std::max(columns, p.columns);
            panel = std::max(panel, std::max(PANEL, p.width));
            most_pairs = std::max(most_pairs, p.num_pairs * p.dim_k);
            most_dim = std::max(most_dim, p.dim_k);
            most_elements = std::max(most_elements, p.num_elements);
        }
        const int64_t sizes[4] = {call.dims[X1], call.dims[X2], call.shared ? 0 : panel, columns};
        for (int64_t i = 0; i < call.num_operands; ++i)
            operand[i] = arena.take(sizes[call.operands[i].slot]);
        for (int64_t i = 0; i < call.num_results; ++i)
            result[i] = arena.take(sizes[call.results[i].slot]);
        for (int64_t g = 0; g < call.num_groups; ++g) {
            pairs[g] = arena.take(most_pairs);
            gradient[g] = arena.take(most_pairs);
        }
        turned_pairs = arena.take(call.shared ? most_pairs + most_dim * LANES : 0);
        turned_out = arena.take(call.shared ? columns : 0);
        elements = arena.take(most_elements);
        element_gradients = arena.take(most_elements);
    }

    void run_chunk(int64_t number) {
        chunk = number;
        begin = chunk * call.chunk_rows;
        const int64_t end = std::min(call.num_rows, begin + call.chunk_rows);
        for (first = begin; first < end; first += LANES) {
            size = (int)std::min<int64_t>(LANES, end - first);
            run_tile();
        }
    }

private:
    template <class F> void operands_of(int64_t slot, F f) {
        for (int64_t i = 0; i < call.num_operands; ++i)
            if (call.operands[i].slot == slot) f(i);
    }
    template <class F> void results_of(int64_t slot, F f) {
        for (int64_t i = 0; i < call.num_results; ++i)
            if (call.results[i].slot == slot) f(i);
    }

    void run_tile() {
        for (const int64_t slot : {X1, X2}) {
            const int64_t dim = call.dims[slot];
            operands_of(slot, [&](int64_t i) { read(i, 0, dim, operand[i]); });
            results_of(slot, [&](int64_t i) { clear(result[i], dim); });
        }
        for (int64_t i = 0; i < call.num_paths;) {
            const Path& head = call.paths[i];
            operands_of(OUT, [&](int64_t o) { read(o, head.first, head.columns, operand[o]); });
            results_of(OUT, [&](int64_t r) { clear(result[r], head.columns); });
            for (; i < call.num_paths && call.paths[i].first == head.first; ++i)
                run_path(call.paths[i]);
            results_of(OUT, [&](int64_t r) { write(r, head.first, head.columns, result[r]); });
        }
        for (const int64_t slot : {X1, X2})
            results_of(slot, [&](int64_t r) { write(r, 0, call.dims[slot], result[r]); });
    }

    // Columns of the tile's rows, as registers over rows; absent rows are zero.
    void read(int64_t number, int64_t column, int64_t count, vec* to) {
        const Operand& from = call.operands[number];
        const real* row[LANES];
        for (int e = 0; e < size; ++e)
            row[e] = from.data + index[from.slot][first + e] * call.dims[from.slot] + column;
        if (size == LANES && count >= LANES) {
            for (int64_t next = 0; next < count; next += LANES) {
                const int64_t c = std::min(next, count - LANES);
                vec t[LANES];
#pragma GCC unroll 16
                for (int e = 0; e < LANES; ++e) t[e] = load(row[e] + c);
                transpose<LANES / 2>(t);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) to[c + i] = t[i];
            }
            return;
        }
        clear(to, count);
        for (int64_t c = 0; c < count; ++c)
            for (int e = 0; e < size; ++e) to[c][e] = row[e][c];
    }

    // The same columns back to memory: set, or added where rows share nodes.
    void write(int64_t number, int64_t column, int64_t count, const vec* from) {
        const Result& to = call.results[number];
        const int64_t dim = call.dims[to.slot];
        const bool adds = call.graph && (to.slot == X1 || to.slot == OUT);
        for (int64_t next = 0; next < count; next += LANES) {
            const int64_t c = adds ? next : std::max<int64_t>(0, std::min(next, count - LANES));
            const int n = (int)std::min<int64_t>(LANES, count - c);
            vec t[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) t[i] = i < n ? from[c + i] : vec{};
            transpose<LANES / 2>(t);
            for (int e = 0; e < size; ++e) {
                real* at = (real*)nullptr;
                vec value = t[e];
                if (!adds) {
                    at = to.data + index[to.slot][first + e] * dim;
                } else if (to.slot == X1) {
                    at = to.carry + call.row[first + e] * dim;
                } else {
                    const int64_t node = call.receiver[first + e];
                    for (; e + 1 < size && call.receiver[first + e + 1] == node; ++e)
                        value += t[e + 1];
                    at = node == carried() ? to.carry + chunk * dim : to.data + node * dim;
                }
                at += column + c;
                if (n == LANES)
                    store(at, adds ? load(at) + value : value);
                else
                    store(at, adds ? load(at, n) + value : value, n);
            }
        }
    }

    // The receiver whose rows began in an earlier chunk.
    int64_t carried() const {
        const bool inside = begin > 0 && call.receiver[begin] == call.receiver[begin - 1];
        return inside ? call.receiver[begin] : -1;
    }

    bool active(const Path& p, const Group& g) const { return p.weighted || !g.weighted; }
    bool needs_pairs(const Path& p, const Group& g) const {
        return g.grad_out >= 0 || (g.grad_weight >= 0 && p.weighted);
    }
    bool needs_gradient(const Group& g) const {
        for (int64_t t = g.begin; t < g.end; ++t)
            if (call.pairs[t].grad_x1 >= 0 || call.pairs[t].grad_x2 >= 0) return true;
        return false;
    }

    void run_path(const Path& p) {
        for (int64_t g = 0; g < call.num_groups; ++g)
            if (active(p, call.groups[g]) && needs_pairs(p, call.groups[g])) make_pairs(p, g);
        const int64_t step = call.shared ? p.num_pairs : std::max<int64_t>(1, PANEL / p.width);
        for (int64_t q = 0; q < p.num_pairs; q += step)
            run_panel(p, q, std::min(p.num_pairs - q, step));
        for (int64_t g = 0; g < call.num_groups; ++g)
            if (active(p, call.groups[g]) && needs_gradient(call.groups[g])) pull_back(p, g);
    }

"""

_WEIGHTS = """\
    void run_panel(const Path& p, int64_t q, int64_t num_pairs) {
        const int64_t column = p.weight + q * p.width, length = num_pairs * p.width;
        const bool rows = p.weighted && !call.shared;
        if (rows) {
            operands_of(WEIGHT, [&](int64_t o) {
                for (int64_t g = 0; g < call.num_groups; ++g)
                    if (call.groups[g].weight == o &&
                        (call.groups[g].grad_out >= 0 || needs_gradient(call.groups[g])))
                        return read(o, column, length, operand[o]);
            });
            results_of(WEIGHT, [&](int64_t r) { clear(result[r], length); });
        }
        for (int64_t number = 0; number < call.num_groups; ++number) {
            const Group& g = call.groups[number];
            if (!active(p, g)) continue;
            vec* const dw = rows && g.grad_weight >= 0 ? result[g.grad_weight] : nullptr;
            if (!p.weighted) {
                weigh(p, number, q, num_pairs, [](int64_t) { return (real)1; }, dw);
            } else if (call.shared) {
                const real* const w = call.operands[g.weight].data + column;
                weigh(p, number, q, num_pairs, [=](int64_t i) { return w[i]; }, dw);
                if (g.grad_weight >= 0) {
                    real* const sums = call.results[g.grad_weight].data;
                    sum_weights(p, number, sums + chunk * call.dims[WEIGHT] + column);
                }
            } else {
                const vec* const w = operand[g.weight];
                weigh(p, number, q, num_pairs, [=](int64_t i) { return w[i]; }, dw);
            }
        }
        if (rows) results_of(WEIGHT, [&](int64_t r) { write(r, column, length, result[r]); });
    }

    // Pairs and weights to the result, and back.
    template <class W>
    void weigh(const Path& p, int64_t number, int64_t q, int64_t num_pairs, W w, vec* dw) {
        const Group& g = call.groups[number];
        const int64_t dim = p.dim_k, width = p.width, out_k = p.out_k, out_w = p.out_w;
        const vec* const z = pairs[number] + q * dim;
        const vec* const out = g.out >= 0 ? operand[g.out] : nullptr;
        vec* const dz = needs_gradient(g) ? gradient[number] + q * dim : nullptr;
        vec* const sum = g.grad_out >= 0 ? result[g.grad_out] : nullptr;
        if (dz) clear(dz, num_pairs * dim);
        if (p.mixing) {
            const auto pair = [=](int64_t k, int64_t q) { return z[q * dim + k]; };
            const auto turned = [=](int64_t q, int64_t k) { return z[q * dim + k]; };
            const auto weight = [=](int64_t q, int64_t i) { return w(q * width + i); };
            const auto given = [=](int64_t i, int64_t k) { return out[k * out_k + i * out_w]; };
            const auto same = [=](int64_t k, int64_t i) { return out[k * out_k + i * out_w]; };
            if (sum)
                product(dim, width, num_pairs, pair, weight, [=](int64_t k, int64_t i) -> vec& {
                    return sum[k * out_k + i * out_w];
                });
            if (dz)
                product(num_pairs, dim, width, weight, given,
                        [=](int64_t q, int64_t k) -> vec& { return dz[q * dim + k]; });
            if (dw)
                product(num_pairs, width, dim, turned, same,
                        [=](int64_t q, int64_t i) -> vec& { return dw[q * width + i]; });
            return;
        }
        for (int64_t i = 0; i < num_pairs; ++i) {
            const int64_t column = p.channel[q + i] * out_w;
            const auto weight = w(i);
            vec gradient = {};
            for (int64_t k = 0; k < dim; ++k) {
                const int64_t at = column + k * out_k;
                if (sum) sum[at] += z[i * dim + k] * weight;
                if (dz) dz[i * dim + k] = out[at] * weight;
                if (dw) gradient += z[i * dim + k] * out[at];
            }
            if (dw) dw[i] += gradient;
        }
    }

    // The gradients of shared weights, summed over the tile: whole registers of columns w as a
    // product of matrices with rows and components as its depth, the others one by one.
    void sum_weights(const Path& p, int64_t number, real* sums) {
        const vec* const z = pairs[number];
        const vec* const out = operand[call.groups[number].out];
        const int64_t whole = p.num_pairs < FEW ? 0 : p.width / LANES * LANES;
        if (whole > 0) {
            const int64_t stride = (p.num_pairs + LANES - 1) / LANES * LANES;
            turn(z, p.num_pairs, p.dim_k, 1, p.dim_k, turned_pairs);
            turn(out, whole, p.out_w, p.out_k, p.dim_k, turned_out);
            const real *const left = (real*)turned_pairs, *const right = (real*)turned_out;
            product(
                p.num_pairs, whole, p.dim_k * LANES,
                [=](int64_t q, int64_t d) { return left[d * stride + q]; },
                [=](int64_t d) { return right + d * whole; },
                [=](int64_t q) { return sums + q * p.width; }, true);
        }
        if (whole == p.width) return;
        int64_t q = 0, i = whole;
        while (q < p.num_pairs) {
            vec t[LANES] = {};
            real* to[LANES];
            int n = 0;
            for (; n < LANES && q < p.num_pairs; ++n) {
                const vec* const given = out + (p.mixing ? i : p.channel[q]) * p.out_w;
                for (int64_t k = 0; k < p.dim_k; ++k)
                    t[n] += z[q * p.dim_k + k] * given[k * p.out_k];
                to[n] = sums + q * p.width + i;
                if (++i == p.width) i = whole, ++q;
            }
            halve<LANES / 2>(t);
            for (int lane = 0; lane < n; ++lane) *to[lane] += t[0][lane];
        }
    }

    // Registers over rows, `count` for each component, as rows of numbers by component and row.
    static void turn(const vec* from, int64_t count, int64_t step, int64_t step_k, int64_t dim_k,
                     vec* to) {
        for (int64_t k = 0; k < dim_k; ++k)
            for (int64_t c = 0; c < count; c += LANES) {
                vec t[LANES];
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i)
                    t[i] = c + i < count ? from[(c + i) * step + k * step_k] : vec{};
                transpose<LANES / 2>(t);
                const int64_t stride = (count + LANES - 1) / LANES;
#pragma GCC unroll 16
                for (int e = 0; e < LANES; ++e) to[(k * LANES + e) * stride + c / LANES] = t[e];
            }
    }

"""

_RUN = """\
};

EXPORT void run(const Call* given) {
    const Call call = *given;
    const int64_t chunks = (call.num_rows + call.chunk_rows - 1) / call.chunk_rows;
#pragma omp parallel num_threads(call.threads)
    {
        static thread_local std::vector<real> buffer;
        Worker worker(call);
        Arena arena{nullptr};
        worker.lay_out(arena);
        const int64_t numel = (arena.used + 1) * LANES;
        if ((int64_t)buffer.size() < numel) buffer.resize(numel);
        arena = Arena{(vec*)(((uintptr_t)buffer.data() + WIDTH - 1) / WIDTH * WIDTH)};
        worker.lay_out(arena);
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) worker.run_chunk(chunk);
        for (int64_t r = 0; r < call.num_results; ++r) {
            if (!call.graph || call.results[r].slot != X1) continue;
            const int64_t dim = call.dims[X1];
#pragma omp for schedule(static)
            for (int64_t node = 0; node < call.num_senders; ++node) {
                real* const row = call.results[r].data + node * dim;
                for (int64_t i = 0; i < dim; ++i) row[i] = 0;
                for (int64_t k = call.pointers[node]; k < call.pointers[node + 1]; ++k)
                    for (int64_t i = 0; i < dim; ++i)
                        row[i] += call.results[r].carry[call.rows[k] * dim + i];
            }
        }
    }
    for (int64_t r = 0; r < call.num_results; ++r) {
        if (!call.graph || call.results[r].slot != OUT) continue;
        const int64_t dim = call.dims[OUT];
        for (int64_t chunk = 1; chunk < chunks; ++chunk) {
            const int64_t begin = chunk * call.chunk_rows, node = call.receiver[begin];
            if (node != call.receiver[begin - 1]) continue;
            for (int64_t i = 0; i < dim; ++i)
                call.results[r].data[node * dim + i] += call.results[r].carry[chunk * dim + i];
        }
    }
}
"""


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    headers = "#include <algorithm>\n#include <utility>\n#include <vector>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    worker = _TYPES_AND_TILES + MAKE_PAIRS + _WEIGHTS + PULL_BACK
    return headers + cpp.prelude(dtype) + export + MATRIX_PRODUCT + REGISTERS + worker + _RUN
