"""C++ source of the products on the sphere: one library for every choice of degrees.

A register holds neighbouring channels (or rows). For a tile of one register every operand is
transformed to the grid (`_cpu_transforms`), the values are multiplied and the products transformed
back, all in the first cache; what the products are is read from a table, so that value, gradients
and second gradients share the code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.gaunt_grid._cpu_transforms import print_transforms
from eqtp.kernels.gaunt_grid._symmetry import choose_grid
from eqtp.kernels.gaunt_grid._transforms import fields_of
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["source"]


def source(problem: SphereProductProblem, dtype: torch.dtype) -> str:
    """The whole file."""
    slots = choose_grid(problem)
    sizes = (
        f"constexpr int64_t POINTS = {slots[0].num_points};\n"
        f"constexpr int64_t FIELDS[3] = {{{', '.join(map(str, fields_of(problem.odd)))}}};\n"
        f"constexpr int64_t DIMS[3] = {{{', '.join(map(str, problem.dims))}}};\n"
        f"constexpr int64_t LARGEST = {max(problem.dims)};\n"
        f"constexpr int64_t BLOCKS[3] = {{{', '.join(str(len(d)) for d in problem.degrees)}}};\n"
        f"constexpr int64_t BLOCK[3][LARGEST] = {{{', '.join(map(_blocks, problem.degrees))}}};\n"
        f"constexpr int64_t VALUES = {max(fields_of(problem.odd))} * POINTS * LANES;\n"
    )
    headers = "#include <algorithm>\n#include <vector>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    return headers + cpp.prelude(dtype) + export + sizes + print_transforms(slots) + _DRIVER


def _blocks(degrees: Sequence[int]) -> str:
    """Number of the degree of every part."""
    numbers = [str(i) for i, degree in enumerate(degrees) for _ in range(2 * degree + 1)]
    return f"{{{', '.join(numbers)}}}"


_DRIVER = """
struct Factor { const real *data, *weight; int64_t slot, shared; };  // weight may be null
struct Sum { int64_t slot; };
struct Product { int64_t sum, field, a, field_a, b, field_b, begins; double sign; };
struct Output { real* data; const real* companion; int64_t sum, shared, is_weight, begins; };
struct Call {
    const Factor* factors; int64_t num_factors;
    const Sum* sums; int64_t num_sums;
    const Product* products; int64_t num_products;
    const Output* outputs; int64_t num_outputs;
    int64_t rows, width, single, threads;  // single: the slot of one channel, or -1
};

// Memory of a thread that lasts from call to call.
static inline real* memory(std::vector<real>& buffer, int64_t size) {
    if ((int64_t)buffer.size() < size + LANES) buffer.resize(size + LANES);
    return (real*)(((uintptr_t)buffer.data() + WIDTH - 1) / WIDTH * WIDTH);
}

struct Workspace {
    real *values, *sums, *across, *parts, *more;

    explicit Workspace(const Call& call) {
        static thread_local std::vector<real> buffer;
        const int64_t size = (call.num_factors + 2 * call.num_sums) * VALUES;
        values = memory(buffer, size + 2 * LARGEST * LANES);
        sums = values + call.num_factors * VALUES;
        across = sums + call.num_sums * VALUES;
        parts = across + call.num_sums * VALUES;
        more = parts + LARGEST * LANES;
    }
};

// What the lanes of a register are: a row and a channel each.
struct Tile {
    int64_t width, row[LANES], channel[LANES];
    int n;
    bool contiguous;  // neighbouring channels of one row

    int64_t start(int lane, int64_t length, bool shared) const {
        return (shared ? 0 : row[lane]) * length * width + channel[lane];
    }
    // Columns of a row-major [rows or 1, length, width] to registers, and back.
    void gather(const real* from, int64_t length, bool shared, real* to) const {
        if (contiguous) {
            from += start(0, length, shared);
            for (int64_t k = 0; k < length; ++k)
                store(to + k * LANES,
                      n == LANES ? load(from + k * width) : load(from + k * width, n));
            return;
        }
        std::fill(to, to + length * LANES, 0);
        for (int lane = 0; lane < n; ++lane) {
            const real* p = from + start(lane, length, shared);
            for (int64_t k = 0; k < length; ++k) to[k * LANES + lane] = p[k * width];
        }
    }
    void put(real* to, int64_t length, int64_t k, vec value, bool add) const {
        if (contiguous) {
            real* p = to + start(0, length, false) + k * width;
            if (n == LANES) {
                store(p, add ? load(p) + value : value);
            } else {
                store(p, add ? load(p, n) + value : value, n);
            }
            return;
        }
        for (int lane = 0; lane < n; ++lane) {
            real& p = to[start(lane, length, false) + k * width];
            p = add ? p + value[lane] : value[lane];
        }
    }
};

static void transform(const Factor& factor, const Tile& tile, const Workspace& space,
                      real* values) {
    const int64_t dim = DIMS[factor.slot];
    if (!factor.weight && tile.contiguous && tile.n == LANES) {
        synthesize(factor.slot, factor.data + tile.start(0, dim, false), tile.width, values);
        return;
    }
    tile.gather(factor.data, dim, false, space.parts);
    if (factor.weight) {
        tile.gather(factor.weight, BLOCKS[factor.slot], factor.shared, space.more);
        for (int64_t k = 0; k < dim; ++k)
            store(space.parts + k * LANES, load(space.parts + k * LANES) *
                                               load(space.more + BLOCK[factor.slot][k] * LANES));
    }
    synthesize(factor.slot, space.parts, LANES, values);
}

static void finish(const Call& call, int64_t sum, const Tile& tile, const Workspace& space,
                   const real* values) {
    const int64_t slot = call.sums[sum].slot, dim = DIMS[slot];
    analyze(slot, space.parts, LANES, values);
    for (int64_t i = 0; i < call.num_outputs; ++i) {
        const Output& output = call.outputs[i];
        if (output.sum != sum) continue;
        const bool add = !output.begins;
        if (output.is_weight) {
            tile.gather(output.companion, dim, false, space.more);
            for (int64_t k = 0; k < dim;) {
                const int64_t block = BLOCK[slot][k];
                vec total = {};
                for (; k < dim && BLOCK[slot][k] == block; ++k)
                    total += load(space.parts + k * LANES) * load(space.more + k * LANES);
                tile.put(output.data, BLOCKS[slot], block, total, add);
            }
        } else {
            if (output.companion)
                tile.gather(output.companion, BLOCKS[slot], output.shared, space.more);
            for (int64_t k = 0; k < dim; ++k) {
                vec value = load(space.parts + k * LANES);
                if (output.companion) value *= load(space.more + BLOCK[slot][k] * LANES);
                tile.put(output.data, dim, k, value, add);
            }
        }
    }
}

static inline vec splat(real value) { return value - vec{}; }

// One factor of a product: a register of values, or one value for all channels of a row.
template <bool SINGLE> static inline vec value_of(const real* v, int64_t p, int64_t row) {
    return SINGLE ? splat(v[p * LANES + row]) : load(v + p * LANES);
}

template <bool A, bool B>
static inline void add_product(real sign, const real* __restrict a, const real* __restrict b,
                               real* __restrict sum, int64_t row, bool begins) {
    if (begins)
        for (int64_t p = 0; p < POINTS; ++p)
            store(sum + p * LANES, sign * value_of<A>(a, p, row) * value_of<B>(b, p, row));
    else
        for (int64_t p = 0; p < POINTS; ++p)
            store(sum + p * LANES, load(sum + p * LANES) +
                                       sign * value_of<A>(a, p, row) * value_of<B>(b, p, row));
}

static void multiply(const Call& call, const Workspace& space, int64_t row, bool begins) {
    for (int64_t j = 0; j < call.num_products; ++j) {
        const Product& product = call.products[j];
        const bool single_sum = call.sums[product.sum].slot == call.single;
        const real* a = space.values + product.a * VALUES + product.field_a * POINTS * LANES;
        const real* b = space.values + product.b * VALUES + product.field_b * POINTS * LANES;
        real* sum = space.sums + product.sum * VALUES + product.field * POINTS * LANES;
        const bool starts = product.begins && (begins || !single_sum);
        if (call.factors[product.a].slot == call.single)
            add_product<true, false>(product.sign, a, b, sum, row, starts);
        else if (call.factors[product.b].slot == call.single)
            add_product<false, true>(product.sign, a, b, sum, row, starts);
        else
            add_product<false, false>(product.sign, a, b, sum, row, starts);
    }
}

// Rows and channels are columns, LANES of them from `first` on.
static void columns(const Call& call, const Workspace& space, int64_t first) {
    Tile tile;
    tile.width = call.width;
    tile.n = (int)std::min<int64_t>(LANES, call.rows * call.width - first);
    tile.contiguous = first % call.width + tile.n <= call.width;
    for (int lane = 0; lane < tile.n; ++lane) {
        tile.row[lane] = (first + lane) / call.width;
        tile.channel[lane] = (first + lane) % call.width;
    }
    for (int64_t i = 0; i < call.num_factors; ++i)
        transform(call.factors[i], tile, space, space.values + i * VALUES);
    multiply(call, space, 0, true);
    for (int64_t i = 0; i < call.num_sums; ++i)
        finish(call, i, tile, space, space.sums + i * VALUES);
}

// LANES rows: what has one channel has rows as lanes, the rest channels.
static void rows(const Call& call, const Workspace& space, int64_t first) {
    Tile across;
    across.width = 1;
    across.n = (int)std::min<int64_t>(LANES, call.rows - first);
    across.contiguous = false;
    for (int lane = 0; lane < across.n; ++lane) {
        across.row[lane] = first + lane;
        across.channel[lane] = 0;
    }
    for (int64_t i = 0; i < call.num_factors; ++i)
        if (call.factors[i].slot == call.single)
            transform(call.factors[i], across, space, space.values + i * VALUES);
    for (int64_t row = 0; row < across.n; ++row) {
        for (int64_t c = 0; c < call.width; c += LANES) {
            Tile tile;
            tile.width = call.width;
            tile.n = (int)std::min<int64_t>(LANES, call.width - c);
            tile.contiguous = true;
            tile.row[0] = first + row;
            tile.channel[0] = c;
            for (int64_t i = 0; i < call.num_factors; ++i)
                if (call.factors[i].slot != call.single)
                    transform(call.factors[i], tile, space, space.values + i * VALUES);
            multiply(call, space, row, c == 0);
            for (int64_t i = 0; i < call.num_sums; ++i)
                if (call.sums[i].slot != call.single)
                    finish(call, i, tile, space, space.sums + i * VALUES);
        }
        for (int64_t i = 0; i < call.num_sums; ++i) {
            if (call.sums[i].slot != call.single) continue;
            for (int64_t p = 0; p < FIELDS[call.single] * POINTS; ++p)
                space.across[i * VALUES + p * LANES + row] =
                    sum_lanes(load(space.sums + i * VALUES + p * LANES));
        }
    }
    for (int64_t i = 0; i < call.num_sums; ++i)
        if (call.sums[i].slot == call.single)
            finish(call, i, across, space, space.across + i * VALUES);
}

EXPORT void evaluate(const Call* given) {
    const Call call = *given;
    const int64_t size = call.single < 0 ? call.rows * call.width : call.rows;
    const int64_t tiles = (size + LANES - 1) / LANES;
    const int threads = (int)std::min<int64_t>(call.threads, std::max<int64_t>(tiles / 4, 1));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const Workspace space(call);
        call.single < 0 ? columns(call, space, tile * LANES) : rows(call, space, tile * LANES);
    }
}
"""
