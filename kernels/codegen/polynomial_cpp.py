"""C++ that the kernels of polynomials of node features share, and how Python calls them.

A kernel works on one chunk of nodes of one element and on one vector of channels at a time; nodes
are sorted by element, lanes are channels. Its source is `source(...)` around a `Polynomials`, which
has the number of weights, and a `Work`:

    Work(const Polynomials&, const Arguments&)    memory that the thread keeps; a `Rows`
    begin(element)                                reads the element's weights
    tile(node, count)                             results of at most NODES nodes
    share_of_weights(share)                       writes the chunk's share of grad_weight

Results are the same for any number of threads: chunks and the order of their sums are fixed.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from eqtp.kernels.codegen import cpp

__all__ = ["Arguments", "source"]


class Arguments(ctypes.Structure):
    """`Arguments` of the C++ source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_nodes", "num_elements", "channels", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in ("element", "x", "weight", "grad", "h", "out", "grad_x", "grad_weight")
        ),
    )

    @classmethod
    def of(cls, element: Tensor, channels: int, **tensors: Tensor | None) -> Arguments:
        """Those of a call: operands x, weight, grad, h, and the results that are wanted."""
        present = {name: t for name, t in tensors.items() if t is not None}
        return cls(
            num_nodes=element.shape[0],
            num_elements=present["weight"].shape[0],
            channels=channels,
            threads=torch.get_num_threads(),
            element=element.data_ptr(),
            **{name: t.data_ptr() for name, t in present.items()},
        )


def source(
    dtype: torch.dtype, *, tile_nodes: int, chunk_nodes: int, tables: str, work: str, run: str
) -> str:
    """The whole file.

    Args:
        dtype: float32 or float64.
        tile_nodes: Nodes that a kernel computes together.
        chunk_nodes: Nodes of a chunk.
        tables: Defines `Polynomials`.
        work: Defines `template <int PARTS> struct Work`.
        run: The exported function; calls `run<1>` or, for derivatives along h, `run<2>`.
    """
    constants = f"constexpr int NODES = {tile_nodes}, CHUNK = {chunk_nodes};"
    return "\n".join([cpp.prelude(dtype), constants, _NUMBERS, _ARGUMENTS, tables, work, _RUN, run])


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

// Access to the rows of tensors for one vector of channels.
struct Rows {
    const Arguments& a;
    int64_t channel = 0;
    int lanes = 0;

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
    // The last part of numbers.
    template <int PARTS>
    void write_rows(real* to, const Number<PARTS>* from, int dim, const int* node,
                    int count) const {
        for (int n = 0; n < count; ++n)
            for (int i = 0; i < dim; ++i)
                write(to + ((int64_t)node[n] * dim + i) * a.channels + channel,
                      from[i].at[PARTS - 1][n]);
    }
};
"""

_RUN = """
template <int PARTS> static void run(const Polynomials& p, const Arguments& a) {
    const Chunks sorted(a);
    const int64_t vectors = (a.channels + LANES - 1) / LANES;
    const int64_t num_chunks = sorted.chunks.size(), numel = p.num_weights * a.channels;
    std::unique_ptr<real[]> shares(a.grad_weight ? new real[num_chunks * numel] : nullptr);
#pragma omp parallel num_threads(a.threads)
    {
        Work<PARTS> work(p, a);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < num_chunks * vectors; ++item) {
            const Chunk& chunk = sorted.chunks[item / vectors];
            work.channel = item % vectors * LANES;
            work.lanes = std::min<int64_t>(LANES, a.channels - work.channel);
            work.begin(chunk.element);
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
