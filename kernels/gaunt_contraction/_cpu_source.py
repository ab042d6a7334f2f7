"""C++ of the many-body Gaunt product; `_cpu` says what it computes. One source per problem."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen import cpp, polynomial_cpp
from eqtp.kernels.gaunt_contraction._cpu_transforms import print_transforms
from eqtp.kernels.gaunt_contraction._orbits import grid_orbits
from eqtp.kernels.gaunt_contraction.config import CPU_CHUNK_NODES, CPU_TILE_NODES
from eqtp.kernels.gaunt_contraction.reference import block_of_component, harmonic_of_component

__all__ = ["source"]


def source(problem: GauntContractionProblem, dtype: torch.dtype) -> str:
    """The whole file."""
    stages = problem.iterated and problem.correlation > 2
    bases = _Bases(problem, stages)
    orbits = grid_orbits(problem.grid_degree, max(max(degrees) for degrees in bases.degrees))
    tables = [
        f"struct Polynomials {{ static constexpr int num_weights = {problem.num_weights}; }};",
        print_transforms(bases.degrees, orbits),
        _constants(problem, bases),
    ]
    return polynomial_cpp.source(
        dtype,
        tile_nodes=CPU_TILE_NODES,
        chunk_nodes=CPU_CHUNK_NODES,
        tables="\n".join(tables),
        work=_COMMON + (_PRODUCTS + _staged(problem, bases) if stages else _FLAT),
        run=_RUN,
    )


class _Bases:
    """The lists of degrees that are transformed, and their names.

    Attributes:
        degrees: Distinct lists; number i is `Basis{i}`.
        factor: Name of the basis of f.
        out: Name of the basis of what P_L picks for the result.
        stages: Names of the bases of B_1 ... B_correlation.
    """

    def __init__(self, problem: GauntContractionProblem, stages: bool) -> None:
        self.degrees: list[tuple[int, ...]] = []
        self.factor = self._name(sorted(set(problem.degrees_in)))
        self.out = self._name(sorted(set(problem.degrees_out)))
        self.stages = [self.factor]
        for power in range(2, problem.correlation + 1) if stages else ():
            is_last = power == problem.correlation
            limits = range(problem.limit(power) + 1)
            self.stages.append(self.out if is_last else self._name(limits))

    def _name(self, degrees: Sequence[int]) -> str:
        key = tuple(degrees)
        if key not in self.degrees:
            self.degrees.append(key)
        return f"Basis{self.degrees.index(key)}"

    def harmonics(self, name: str) -> list[int]:
        """The harmonics of a basis."""
        return harmonic_of_component(self.degrees[int(name.removeprefix("Basis"))])


def _constants(problem: GauntContractionProblem, bases: _Bases) -> str:
    factor, out = bases.harmonics(bases.factor), bases.harmonics(bases.out)
    places_in = [factor.index(h) for h in harmonic_of_component(problem.degrees_in)]
    places_out = [out.index(h) for h in harmonic_of_component(problem.degrees_out)]
    norm = [number for row in problem.norm for number in row]
    lines = [
        f"typedef {bases.factor} Factor;",
        f"typedef {bases.out} Out;",
        f"constexpr int DIM_IN = {problem.dim_in}, DIM_OUT = {problem.dim_out};",
        f"constexpr int POWERS = {problem.correlation};",
        f"constexpr int POWER_WEIGHTS = {problem.power_weights(0).start};",
        _table("int", "BLOCK_IN", block_of_component(problem.degrees_in)),
        _table("int", "PLACE_IN", places_in),
        _table("int", "BLOCK_OUT", block_of_component(problem.degrees_out)),
        _table("int", "PLACE_OUT", places_out),
        _table("real", "SCALE", [1.0] * problem.power_weights(0).start + norm),
    ]
    for power, name in enumerate(bases.stages, start=1):
        places = {h: place for place, h in enumerate(bases.harmonics(name))}
        lines.append(_table("int", f"OUT_IN_{power}", [places.get(h, -1) for h in out]))
    return "\n".join(lines) + "\n"


def _table(kind: str, name: str, numbers: Sequence[float]) -> str:
    return f"static constexpr {kind} {name}[] = {{{', '.join(map(repr, numbers))}}};"


_COMMON = """
// The derivative along h of a product, or the product, summed over the nodes of a tile.
template <int PARTS> INLINE vec inner(const Number<PARTS>& a, const Number<PARTS>& b) {
    const Number<PARTS> product = a * b;
    vec sum = {};
    EACH_NODE sum += product.at[PARTS - 1][n];
    return sum;
}
template <int PARTS> INLINE Number<1> last(const Number<PARTS>& a) {
    Number<1> result;
    EACH_NODE result.at[0][n] = a.at[PARTS - 1][n];
    return result;
}
// Numbers without derivative are constants.
INLINE Number<1> product(const Number<1>& a, const Number<1>& b) { return a * b; }
INLINE Number<2> product(const Number<2>& a, const Number<2>& b) { return a * b; }
INLINE Number<2> product(const Number<1>& a, const Number<2>& b) { return scaled(a, b); }
template <int PARTS> INLINE void add_constant(Number<PARTS>& sum, vec c, const Number<1>& a) {
    EACH_NODE sum.at[0][n] += c * a.at[0][n];
}

// What both forms need: weights of the element, and the maps between rows and functions.
template <int PARTS> struct Terms : Rows {
    typedef Number<PARTS> Value;
    static constexpr int WEIGHTS = Polynomials::num_weights;
    vec weights[WEIGHTS], bar_weights[WEIGHTS];  // w as w n, and their derivatives

    explicit Terms(const Arguments& a) : Rows{a} {}

    void begin(int64_t element) {
        const real* const weight = a.weight + element * WEIGHTS * a.channels + channel;
        for (int i = 0; i < WEIGHTS; ++i) {
            weights[i] = SCALE[i] * read(weight + i * a.channels);
            bar_weights[i] = vec{};
        }
    }
    void share_of_weights(real* share) const {
        for (int i = 0; i < WEIGHTS; ++i)
            write(share + i * a.channels + channel, SCALE[i] * bar_weights[i]);
    }
    static int power_weight(int component, int power) {
        return POWER_WEIGHTS + BLOCK_OUT[component] * POWERS + power - 1;
    }
    // f = sum_b u_b x_b
    void combine(const Value* x, int first, Value* f) const {
#pragma GCC unroll 128
        for (int i = 0; i < DIM_IN; ++i) add(f[PLACE_IN[i]], weights[first + BLOCK_IN[i]], x[i]);
    }
    void combine_reverse(const Value* x, int first, const Value* bar_f, Value* bar_x) {
#pragma GCC unroll 128
        for (int i = 0; i < DIM_IN; ++i) {
            const int u = first + BLOCK_IN[i];
            add(bar_x[i], weights[u], bar_f[PLACE_IN[i]]);
            bar_weights[u] += inner(bar_f[PLACE_IN[i]], x[i]);
        }
    }
    // out_L += w_k n_k P_L(B_k), parts of the result alone
    void add_result(int power, const Number<1>* parts, Number<1>* out) const {
#pragma GCC unroll 128
        for (int i = 0; i < DIM_OUT; ++i)
            add(out[i], weights[power_weight(i, power)], parts[PLACE_OUT[i]]);
    }
    void add_bar_weights(int power, const Number<1>* parts, const Number<1>* grad) {
#pragma GCC unroll 128
        for (int i = 0; i < DIM_OUT; ++i)
            bar_weights[power_weight(i, power)] += inner(grad[i], parts[PLACE_OUT[i]]);
    }
    // Derivatives of sum(grad * out) in P_L(B_k)
    void bar_parts(int power, const Number<1>* grad, Number<1>* bar) const {
#pragma GCC unroll 128
        for (int i = 0; i < DIM_OUT; ++i)
            add(bar[PLACE_OUT[i]], weights[power_weight(i, power)], grad[i]);
    }
    // Between the harmonics of the result and those of B_k
    static void pick(const int* from, const Value* b, Number<1>* parts) {
#pragma GCC unroll 128
        for (int i = 0; i < Out::SIZE; ++i) parts[i] = from[i] < 0 ? Number<1>{} : last(b[from[i]]);
    }
    static void unpick(const int* from, const Number<1>* bar, Value* bar_b) {
#pragma GCC unroll 128
        for (int i = 0; i < Out::SIZE; ++i)
            if (from[i] >= 0) add_constant(bar_b[from[i]], vec{} + 1, bar[i]);
    }
    void read_operands(Value* x, Number<1>* grad, const int* node, int count) {
        read_rows(x, 0, a.x, DIM_IN, node, count);
        if constexpr (PARTS == 2) read_rows(x, 1, a.h, DIM_IN, node, count);
        if (a.grad) read_rows(grad, 0, a.grad, DIM_OUT, node, count);
    }
};
"""

_FLAT = """
template <int PARTS> struct Work : Terms<PARTS> {
    typedef Number<PARTS> Value;
    using Terms<PARTS>::a;

    Work(const Polynomials&, const Arguments& a) : Terms<PARTS>(a) {}

    void tile(const int* node, int count) {
        Value x[DIM_IN], f[Factor::SIZE] = {}, bar_f[Factor::SIZE] = {};
        Number<1> grad[DIM_OUT], parts[POWERS][Out::SIZE] = {}, bars[POWERS][Out::SIZE] = {};
        this->read_operands(x, grad, node, count);
        this->combine(x, 0, f);
        const bool values = a.out || a.grad_weight, gradients = a.grad_x || a.grad_weight;
        if (gradients)
            for (int k = 1; k <= POWERS; ++k) this->bar_parts(k, grad, bars[k - 1]);
        if (values && gradients) on_grid<true, true>(f, bars, parts, bar_f);
        else if (values) on_grid<true, false>(f, bars, parts, bar_f);
        else on_grid<false, true>(f, bars, parts, bar_f);
        this->pick(OUT_IN_1, f, parts[0]);
        this->unpick(OUT_IN_1, bars[0], bar_f);
        if (a.out) {
            Number<1> out[DIM_OUT] = {};
            for (int k = 1; k <= POWERS; ++k) this->add_result(k, parts[k - 1], out);
            this->write_rows(a.out, out, DIM_OUT, node, count);
        }
        if (a.grad_weight)
            for (int k = 1; k <= POWERS; ++k) this->add_bar_weights(k, parts[k - 1], grad);
        if (!gradients) return;
        Value bar_x[DIM_IN] = {};
        this->combine_reverse(x, 0, bar_f, bar_x);
        if (a.grad_x) this->write_rows(a.grad_x, bar_x, DIM_IN, node, count);
    }

    // P_L(f^k) for k >= 2, and the derivatives in f of sum_k bars_k . P(f^k).
    template <bool VALUES, bool GRADIENTS>
    static void on_grid(const Value* f, const Number<1> (*bars)[Out::SIZE],
                        Number<1> (*parts)[Out::SIZE], Value* bar_f) {
        each_kind([&](auto kind) {
            typedef decltype(kind) Kind;
            for (int orbit = 0; orbit < Kind::COUNT; ++orbit) {
                const real* const analysis = Kind::analysis(orbit);
                Value values[Kind::POINTS];
                synthesize(Factor{}, kind, Kind::synthesis(orbit), f, values);
                if constexpr (VALUES) {
                    Value power[Kind::POINTS];
                    Number<1> wanted[Kind::POINTS];
                    std::copy(values, values + Kind::POINTS, power);
#pragma GCC unroll 8
                    for (int k = 1; k < POWERS; ++k) {
#pragma GCC unroll 8
                        for (int p = 0; p < Kind::POINTS; ++p) {
                            power[p] = power[p] * values[p];
                            wanted[p] = last(power[p]);
                        }
                        project(Out{}, kind, analysis, wanted, parts[k]);
                    }
                }
                if constexpr (GRADIENTS && POWERS > 1) {
                    Value bar[Kind::POINTS] = {};  // Horner: sum_k k bar_k f^(k - 1)
                    Number<1> bars_here[Kind::POINTS];
#pragma GCC unroll 8
                    for (int k = POWERS - 1; k >= 1; --k) {
                        synthesize(Out{}, kind, analysis, bars[k], bars_here);
#pragma GCC unroll 8
                        for (int p = 0; p < Kind::POINTS; ++p) {
                            add_constant(bar[p], vec{} + (real)(k + 1), bars_here[p]);
                            bar[p] = bar[p] * values[p];
                        }
                    }
                    project(Factor{}, kind, Kind::synthesis(orbit), bar, bar_f);
                }
            }
        });
    }
};
"""

_PRODUCTS = """
// result += P(left * right)
template <class Left, class Right, class Result, int PARTS>
static void multiply(Left, const Number<PARTS>* left, Right, const Number<PARTS>* right, Result,
                     Number<PARTS>* result) {
    each_kind([&](auto kind) {
        typedef decltype(kind) Kind;
        for (int orbit = 0; orbit < Kind::COUNT; ++orbit) {
            Number<PARTS> first[Kind::POINTS], second[Kind::POINTS];
            synthesize(Left{}, kind, Kind::synthesis(orbit), left, first);
            if ((const void*)left == (const void*)right) {
#pragma GCC unroll 8
                for (int p = 0; p < Kind::POINTS; ++p) first[p] = first[p] * first[p];
            } else {
                synthesize(Right{}, kind, Kind::synthesis(orbit), right, second);
#pragma GCC unroll 8
                for (int p = 0; p < Kind::POINTS; ++p) first[p] = first[p] * second[p];
            }
            project(Result{}, kind, Kind::analysis(orbit), first, result);
        }
    });
}
// Derivatives of bar . P(left * right); where left is right, half of those in it go to bar_left.
template <class Left, class Right, class Result, int PARTS, int BAR>
static void multiply_reverse(Left, const Number<PARTS>* left, Number<PARTS>* bar_left, Right,
                             const Number<PARTS>* right, Number<PARTS>* bar_right, Result,
                             const Number<BAR>* bar) {
    each_kind([&](auto kind) {
        typedef decltype(kind) Kind;
        for (int orbit = 0; orbit < Kind::COUNT; ++orbit) {
            const real* const synthesis = Kind::synthesis(orbit);
            Number<PARTS> values[Kind::POINTS];
            Number<BAR> bars[Kind::POINTS];
            synthesize(Result{}, kind, Kind::analysis(orbit), bar, bars);
            synthesize(Right{}, kind, synthesis, right, values);
#pragma GCC unroll 8
            for (int p = 0; p < Kind::POINTS; ++p) values[p] = product(bars[p], values[p]);
            project(Left{}, kind, synthesis, values, bar_left);
            if (!bar_right) continue;
            synthesize(Left{}, kind, synthesis, left, values);
#pragma GCC unroll 8
            for (int p = 0; p < Kind::POINTS; ++p) values[p] = product(bars[p], values[p]);
            project(Right{}, kind, synthesis, values, bar_right);
        }
    });
}
// to = v_J from_J
template <class B, int PARTS>
INLINE void scale(B, const vec* v, const Number<PARTS>* from, Number<PARTS>* to) {
#pragma GCC unroll 128
    for (int i = 0; i < B::SIZE; ++i) to[i] = times(v[B::DEGREE[i]], from[i]);
}
template <class B, int PARTS>
INLINE void scale_reverse(B, const vec* v, const Number<PARTS>* from, const Number<PARTS>* bar_to,
                          vec* bar_v, Number<PARTS>* bar_from) {
#pragma GCC unroll 128
    for (int i = 0; i < B::SIZE; ++i) {
        add(bar_from[i], v[B::DEGREE[i]], bar_to[i]);
        bar_v[B::DEGREE[i]] += inner(bar_to[i], from[i]);
    }
}
"""


def _staged(problem: GauntContractionProblem, bases: _Bases) -> str:
    """`Work` of the iterated form: its stages one after the other, and back."""
    last = problem.correlation
    name = dict(enumerate(bases.stages, start=1))
    forward = [
        f"Value b2[{name[2]}::SIZE] = {{}};",
        f"multiply(Factor{{}}, f1, Factor{{}}, f1, {name[2]}{{}}, b2);",
    ]
    backward: list[str] = []
    for k in range(3, last + 1):
        u, v = problem.input_weights(k).start, problem.step_weights(k).start
        before = name[k - 1]
        forward += [
            f"Value f{k}[Factor::SIZE] = {{}}, b{k}[{name[k]}::SIZE] = {{}};",
            f"Value scaled{k}[{before}::SIZE];",
            f"this->combine(x, {u}, f{k});",
            f"scale({before}{{}}, this->weights + {v}, b{k - 1}, scaled{k});",
            f"{'if (values) ' if k == last else ''}"
            f"multiply(Factor{{}}, f{k}, {before}{{}}, scaled{k}, {name[k]}{{}}, b{k});",
        ]
    for k in range(last, 2, -1):
        u, v = problem.input_weights(k).start, problem.step_weights(k).start
        before = name[k - 1]
        backward += [
            f"Value bar_f{k}[Factor::SIZE] = {{}}, bar_scaled{k}[{before}::SIZE] = {{}};",
            f"Value bar_b{k - 1}[{before}::SIZE] = {{}};",
            f"multiply_reverse(Factor{{}}, f{k}, bar_f{k}, {before}{{}}, scaled{k}, bar_scaled{k},",
            f"                 {name[k]}{{}}, {f'bars[{k - 1}]' if k == last else f'bar_b{k}'});",
            f"scale_reverse({before}{{}}, this->weights + {v}, b{k - 1}, bar_scaled{k},",
            f"              this->bar_weights + {v}, bar_b{k - 1});",
            f"this->unpick(OUT_IN_{k - 1}, bars[{k - 2}], bar_b{k - 1});",
            f"this->combine_reverse(x, {u}, bar_f{k}, bar_x);",
        ]
    backward += [
        "Value bar_f1[Factor::SIZE] = {};",
        f"multiply_reverse(Factor{{}}, f1, bar_f1, Factor{{}}, f1, (Value*)nullptr, {name[2]}{{}},",
        "                 bar_b2);",
        "for (Value& bar : bar_f1) bar = times((real)2, bar);",
        "this->unpick(OUT_IN_1, bars[0], bar_f1);",
        "this->combine_reverse(x, 0, bar_f1, bar_x);",
    ]
    picked = [f"this->pick(OUT_IN_{k}, {'f' if k == 1 else 'b'}{k}, parts[{k - 1}]);" for k in name]
    indent = "\n        ".join
    return f"""
template <int PARTS> struct Work : Terms<PARTS> {{
    typedef Number<PARTS> Value;
    using Terms<PARTS>::a;

    Work(const Polynomials&, const Arguments& a) : Terms<PARTS>(a) {{}}

    void tile(const int* node, int count) {{
        Value x[DIM_IN], f1[Factor::SIZE] = {{}};
        Number<1> grad[DIM_OUT], parts[POWERS][Out::SIZE], bars[POWERS][Out::SIZE] = {{}};
        const bool values = a.out || a.grad_weight;
        this->read_operands(x, grad, node, count);
        this->combine(x, 0, f1);
        {indent(forward)}
        if (values) {{
            {indent(picked)}
        }}
        if (a.out) {{
            Number<1> out[DIM_OUT] = {{}};
            for (int k = 1; k <= POWERS; ++k) this->add_result(k, parts[k - 1], out);
            this->write_rows(a.out, out, DIM_OUT, node, count);
        }}
        if (a.grad_weight)
            for (int k = 1; k <= POWERS; ++k) this->add_bar_weights(k, parts[k - 1], grad);
        if (!a.grad_x && !a.grad_weight) return;
        for (int k = 1; k <= POWERS; ++k) this->bar_parts(k, grad, bars[k - 1]);
        Value bar_x[DIM_IN] = {{}};
        {indent(backward)}
        if (a.grad_x) this->write_rows(a.grad_x, bar_x, DIM_IN, node, count);
    }}
}};
"""


_RUN = (
    cpp.EXPORT
    + """ void run(const Arguments* a) {
    a->h ? run<2>(Polynomials{}, *a) : run<1>(Polynomials{}, *a);
}
"""
)
