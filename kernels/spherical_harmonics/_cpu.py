"""The harmonics in C++: neighbouring vectors as lanes, the recursion term by term.

The gradient and the derivative along a direction need the harmonics alone (see
`eqtp.so3.solid_harmonics`), which each kernel computes anew: values are never stored.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache

import torch
from torch import Tensor

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.compiler import load_library
from eqtp.so3.solid_harmonics import Normalization, pole_value, recursion_step

__all__ = ["directional", "forward", "gradient"]

_BODY = """
// Y[high] += factor Y[low] v[axis]; its derivative in v has the further factor `degree`.
struct Term { int64_t low, axis, high; double factor, degree; };

struct Harmonics {
    int64_t columns;
    const Term *begin, *end;
    real constant;
    bool normalize;
    vec unit[3], inverse;  // v / |v| and 1 / |v|, both 0 where |v|^2 underflows
    std::vector<vec> values;

    Harmonics(int64_t columns, const Term* terms, int64_t num_terms, double constant, int normalize)
        : columns(columns), begin(terms), end(terms + num_terms), constant(constant),
          normalize(normalize), values(columns) {}

    void compute(const real* rows, int lanes) {
        vec squared = {};
        for (int a = 0; a < 3; ++a) {
            unit[a] = column(rows + a, 3, lanes);
            squared += unit[a] * unit[a];
        }
        if (normalize) {
            for (int lane = 0; lane < LANES; ++lane)
                inverse[lane] = squared[lane] < std::numeric_limits<real>::min()
                                    ? 0 : 1 / std::sqrt(squared[lane]);
            for (int a = 0; a < 3; ++a) unit[a] *= inverse;
        }
        std::fill(values.begin(), values.end(), vec{});
        values[0] += constant;
        for (const Term* t = begin; t < end; ++t)
            values[t->high] += (real)t->factor * (values[t->low] * unit[t->axis]);
    }

    // The derivative of v / |v| along `d`, which is its own transpose.
    void project(vec* d) const {
        if (!normalize) return;
        const vec along = unit[0] * d[0] + unit[1] * d[1] + unit[2] * d[2];
        for (int a = 0; a < 3; ++a) d[a] = inverse * (d[a] - unit[a] * along);
    }

    static vec column(const real* from, int64_t stride, int lanes) {
        vec value = {};
        for (int lane = 0; lane < lanes; ++lane) value[lane] = from[lane * stride];
        return value;
    }
    static void scatter(real* to, int64_t stride, int lanes, vec value) {
        for (int lane = 0; lane < lanes; ++lane) to[lane * stride] = value[lane];
    }
};

template <class Body> static void tiles(int64_t num, Harmonics harmonics, int threads, Body body) {
#pragma omp parallel for num_threads(threads) firstprivate(harmonics)
    for (int64_t start = 0; start < num; start += LANES)
        body(harmonics, start, (int)std::min<int64_t>(LANES, num - start));
}

EXPORT void forward(int64_t num, int64_t columns, const Term* terms, int64_t num_terms,
                    double constant, int normalize, const real* vectors, real* values,
                    int threads) {
    tiles(num, {columns, terms, num_terms, constant, normalize}, threads,
          [=](Harmonics& harmonics, int64_t start, int lanes) {
              harmonics.compute(vectors + 3 * start, lanes);
              for (int64_t m = 0; m < columns; ++m)
                  Harmonics::scatter(values + start * columns + m, columns, lanes,
                                     harmonics.values[m]);
          });
}

EXPORT void gradient(int64_t num, int64_t columns, const Term* terms, int64_t num_terms,
                     double constant, int normalize, const real* vectors, const real* g,
                     real* grad, int threads) {
    tiles(num, {columns, terms, num_terms, constant, normalize}, threads,
          [=](Harmonics& harmonics, int64_t start, int lanes) {
              harmonics.compute(vectors + 3 * start, lanes);
              std::vector<vec> given(columns);
              for (int64_t m = 1; m < columns; ++m)
                  given[m] = Harmonics::column(g + start * columns + m, columns, lanes);
              vec sum[3] = {};
              for (const Term* t = harmonics.begin; t < harmonics.end; ++t)
                  sum[t->axis] += (real)(t->degree * t->factor) *
                                  (harmonics.values[t->low] * given[t->high]);
              harmonics.project(sum);
              for (int a = 0; a < 3; ++a)
                  Harmonics::scatter(grad + 3 * start + a, 3, lanes, sum[a]);
          });
}

EXPORT void directional(int64_t num, int64_t columns, const Term* terms, int64_t num_terms,
                        double constant, int normalize, const real* vectors,
                        const real* directions, real* values, int threads) {
    tiles(num, {columns, terms, num_terms, constant, normalize}, threads,
          [=](Harmonics& harmonics, int64_t start, int lanes) {
              harmonics.compute(vectors + 3 * start, lanes);
              vec along[3];
              for (int a = 0; a < 3; ++a)
                  along[a] = Harmonics::column(directions + 3 * start + a, 3, lanes);
              harmonics.project(along);
              std::vector<vec> sum(columns, vec{});
              for (const Term* t = harmonics.begin; t < harmonics.end; ++t)
                  sum[t->high] += (real)(t->degree * t->factor) *
                                  (harmonics.values[t->low] * along[t->axis]);
              for (int64_t m = 0; m < columns; ++m)
                  Harmonics::scatter(values + start * columns + m, columns, lanes, sum[m]);
          });
}
"""


def forward(lmax: int, vec: Tensor, normalization: Normalization, normalize: bool) -> Tensor:
    """The harmonics of vectors [N, 3] as rows."""
    values = vec.new_empty(vec.shape[0], (lmax + 1) ** 2)
    _run("forward", lmax, normalization, normalize, vec, values)
    return values


def gradient(
    lmax: int, vec: Tensor, g: Tensor, normalization: Normalization, normalize: bool
) -> Tensor:
    """Gradient of sum(g * harmonics) in the vectors."""
    grad = torch.empty_like(vec)
    _run("gradient", lmax, normalization, normalize, vec, g, grad)
    return grad


def directional(
    lmax: int, vec: Tensor, direction: Tensor, normalization: Normalization, normalize: bool
) -> Tensor:
    """Derivative of the harmonics along a direction for each vector."""
    values = vec.new_empty(vec.shape[0], (lmax + 1) ** 2)
    _run("directional", lmax, normalization, normalize, vec, direction, values)
    return values


def _run(
    name: str, lmax: int, normalization: Normalization, normalize: bool, *tensors: Tensor
) -> None:
    terms = _terms(lmax, normalization)
    function = getattr(_library(tensors[0].dtype), name)
    constant = pole_value(0, normalization)
    function(
        tensors[0].shape[0],
        (lmax + 1) ** 2,
        terms,
        len(terms),
        constant,
        normalize,
        *(tensor.data_ptr() for tensor in tensors),
        torch.get_num_threads(),
    )


class _Term(ctypes.Structure):
    _fields_ = (
        ("low", ctypes.c_int64),
        ("axis", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("factor", ctypes.c_double),
        ("degree", ctypes.c_double),
    )


@lru_cache(maxsize=64)
def _terms(lmax: int, normalization: Normalization) -> ctypes.Array[_Term]:
    """The recursion's constants that are not zero, degree after degree."""
    terms = []
    for l in range(1, lmax + 1):
        step = recursion_step(l, normalization)
        for low, axis, high in step.abs().gt(1e-14).nonzero().tolist():
            factor = float(step[low, axis, high])
            terms.append(_Term((l - 1) ** 2 + low, axis, l**2 + high, factor, l))
    return (_Term * len(terms))(*terms)


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    headers = "#include <algorithm>\n#include <cmath>\n#include <limits>\n#include <vector>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    library = load_library(headers + cpp.prelude(dtype) + export + _BODY)
    integer, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    head = [integer, integer, pointer, integer, number, ctypes.c_int]
    for name, tensors in (("forward", 2), ("gradient", 3), ("directional", 3)):
        function = getattr(library, name)
        function.argtypes = [*head, *[pointer] * tensors, ctypes.c_int]
        function.restype = None
    return library
