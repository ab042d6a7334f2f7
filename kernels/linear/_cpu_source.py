"""C++ source of the linear maps, for any blocks; one library per dtype.

A path is six numbers: columns where its block starts in x and in the result, start of its weights,
channels in, channels out, components; and a factor. Nodes are sorted by element inside (no sort
where there is one element), so each path and element is a matrix product per component, over rows
that are read and written where they are. Threads share out rows, or rows of the weights' gradient:
no sum depends on their number.
"""

from __future__ import annotations

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.matrix_product import MATRIX_PRODUCT

__all__ = ["source"]

_BODY = """
struct Path { int64_t in, out, weight, mul_in, mul_out, dim; double scale; };

constexpr int64_t ROWS = 32;         // rows per task
constexpr int64_t DEPTH = 256;       // nodes per pass over a gradient of weights
constexpr double SHARE = 2e5;        // multiplications that are worth a further thread

static int worth(int threads, const Path* paths, int64_t num_paths, int64_t nodes) {
    double work = 0;
    for (int64_t p = 0; p < num_paths; ++p)
        work += (double)nodes * paths[p].mul_in * paths[p].mul_out * paths[p].dim;
    return (int)std::min<double>(threads, 1 + work / SHARE);
}

// Nodes by element: order[start[z] .. start[z + 1]).
struct Groups {
    std::vector<int64_t> order, start;

    Groups(int64_t nodes, const int64_t* element, int64_t elements)
        : order(nodes), start(elements + 1) {
        if (element)
            for (int64_t n = 0; n < nodes; ++n) ++start[element[n] + 1];
        else
            start[1] = nodes;
        for (int64_t z = 0; z < elements; ++z) start[z + 1] += start[z];
        std::vector<int64_t> next(start);
        for (int64_t n = 0; n < nodes; ++n) order[next[element ? element[n] : 0]++] = n;
    }
};

// `to` of a row of channels "b" (+)= scale * (`from` of a row, channels "a") W, W as [b, a] if
// transposed: out of x, or the gradient of x of that of out.
template <bool TRANSPOSED>
static void apply(const Path* paths, int64_t num_paths, int64_t nodes, const int64_t* element,
                  int64_t elements, const real* x, int64_t ldx, const real* weight, real* y,
                  int64_t ldy, int threads) {
    const Groups groups(nodes, element, elements);
    static thread_local std::vector<real> buffer;
    int64_t total = 0;
    for (int64_t p = 0; p < num_paths; ++p) total += paths[p].mul_in * paths[p].mul_out * elements;
    real* const packed = memory(buffer, total);
    real* next = packed;
    for (int64_t p = 0; p < num_paths; ++p) {
        const Path path = paths[p];
        const int64_t row = elements * path.mul_out;
        for (int64_t z = 0; z < elements; ++z, next += path.mul_in * path.mul_out) {
            if (groups.start[z] == groups.start[z + 1]) continue;
            const real* w = weight + path.weight + z * path.mul_out;
            const real scale = path.scale;
            if (!TRANSPOSED) {
                for (int64_t u = 0; u < path.mul_in; ++u)
                    for (int64_t v = 0; v < path.mul_out; ++v)
                        next[u * path.mul_out + v] = scale * w[u * row + v];
                continue;
            }
            for (int64_t from = 0; from < path.mul_in; from += LANES)  // rows of one cache line
                for (int64_t v = 0; v < path.mul_out; ++v)
                    for (int64_t u = from; u < std::min(from + LANES, path.mul_in); ++u)
                        next[v * path.mul_in + u] = scale * w[u * row + v];
        }
    }
    std::vector<int64_t> tasks;  // element and first row
    for (int64_t z = 0; z < elements; ++z)
        for (int64_t from = groups.start[z]; from < groups.start[z + 1]; from += ROWS)
            tasks.insert(tasks.end(), {z, from});
#pragma omp parallel for num_threads(worth(threads, paths, num_paths, nodes)) schedule(dynamic)
    for (int64_t task = 0; task < (int64_t)tasks.size() / 2; ++task) {
        const int64_t z = tasks[2 * task], from = tasks[2 * task + 1];
        const int64_t m = std::min(ROWS, groups.start[z + 1] - from);
        const int64_t* order = groups.order.data() + from;
        for (int64_t i = 0; i < m; ++i) std::memset(y + order[i] * ldy, 0, ldy * sizeof(real));
        const real* w = packed;
        for (int64_t p = 0; p < num_paths; ++p) {
            const Path path = paths[p];
            const int64_t depth = TRANSPOSED ? path.mul_out : path.mul_in;
            const int64_t n = TRANSPOSED ? path.mul_in : path.mul_out;
            const real* matrix = w + z * depth * n;
            for (int64_t c = 0; c < path.dim; ++c) {
                const real* a = x + (TRANSPOSED ? path.out : path.in) + c * depth;
                real* to = y + (TRANSPOSED ? path.in : path.out) + c * n;
                product(
                    m, n, depth, [=](int64_t i, int64_t k) { return a[order[i] * ldx + k]; },
                    [=](int64_t k) { return matrix + k * n; },
                    [=](int64_t i) { return to + order[i] * ldy; }, true);
            }
            w += elements * depth * n;
        }
    }
}

EXPORT void forward(const Path* paths, int64_t num_paths, int64_t nodes, const int64_t* element,
                    int64_t elements, const real* x, int64_t ldx, const real* weight, real* y,
                    int64_t ldy, int threads) {
    apply<false>(paths, num_paths, nodes, element, elements, x, ldx, weight, y, ldy, threads);
}

EXPORT void gradient(const Path* paths, int64_t num_paths, int64_t nodes, const int64_t* element,
                     int64_t elements, const real* g, int64_t ldg, const real* weight, real* grad,
                     int64_t ldx, int threads) {
    apply<true>(paths, num_paths, nodes, element, elements, g, ldg, weight, grad, ldx, threads);
}

EXPORT void weight_gradient(const Path* paths, int64_t num_paths, int64_t nodes,
                            const int64_t* element, int64_t elements, const real* x, int64_t ldx,
                            const real* g, int64_t ldg, real* grad, int threads) {
    const Groups groups(nodes, element, elements);
    std::vector<int64_t> tasks;  // path, element, first row of the matrix
    for (int64_t p = 0; p < num_paths; ++p)
        for (int64_t z = 0; z < elements; ++z)
            for (int64_t from = 0; from < paths[p].mul_in; from += ROWS)
                tasks.insert(tasks.end(), {p, z, from});
#pragma omp parallel for num_threads(worth(threads, paths, num_paths, nodes)) schedule(dynamic)
    for (int64_t task = 0; task < (int64_t)tasks.size() / 3; ++task) {
        const Path path = paths[tasks[3 * task]];
        const int64_t z = tasks[3 * task + 1], from = tasks[3 * task + 2];
        const int64_t m = std::min(ROWS, path.mul_in - from), row = elements * path.mul_out;
        real* to = grad + path.weight + from * row + z * path.mul_out;
        for (int64_t i = 0; i < m; ++i) std::memset(to + i * row, 0, path.mul_out * sizeof(real));
        for (int64_t first = groups.start[z]; first < groups.start[z + 1]; first += DEPTH) {
            const int64_t depth = std::min(DEPTH, groups.start[z + 1] - first);
            const int64_t* order = groups.order.data() + first;
            for (int64_t c = 0; c < path.dim; ++c) {
                const real* a = x + path.in + c * path.mul_in + from;
                const real* b = g + path.out + c * path.mul_out;
                product(
                    m, path.mul_out, depth,
                    [=](int64_t i, int64_t k) { return a[order[k] * ldx + i]; },
                    [=](int64_t k) { return b + order[k] * ldg; },
                    [=](int64_t i) { return to + i * row; }, true);
            }
        }
        for (int64_t i = 0; i < m; ++i)
            for (int64_t v = 0; v < path.mul_out; ++v) to[i * row + v] *= (real)path.scale;
    }
}
"""


def source(dtype: torch.dtype) -> str:
    """The whole file."""
    headers = "#include <algorithm>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    return headers + cpp.prelude(dtype) + export + MATRIX_PRODUCT + _BODY
