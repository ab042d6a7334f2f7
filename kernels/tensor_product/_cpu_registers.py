"""C++ on registers whose lanes are rows: transposes, sums over lanes, products of matrices."""

from __future__ import annotations

__all__ = ["REGISTERS"]

REGISTERS = """
// Rows become lanes: element [r][l] and [l][r] change places.
template <int S, size_t... L>
static inline void swap_blocks(vec& a, vec& b, std::index_sequence<L...>) {
    const vec low = __builtin_shufflevector(a, b, (L & S ? L - S + LANES : L)...);
    b = __builtin_shufflevector(a, b, (L & S ? L + LANES : L + S)...);
    a = low;
}
template <int S> static inline void transpose(vec* t) {
    if constexpr (S > 0) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r)
            if (!(r & S)) swap_blocks<S>(t[r], t[r + S], std::make_index_sequence<LANES>());
        transpose<S / 2>(t);
    }
}

// Sums over the lanes of as many registers as there are lanes, one per lane.
template <int S> static inline void halve(vec* t) {
    if constexpr (S > 0) {
#pragma GCC unroll 8
        for (int r = 0; r < S; ++r) {
            swap_blocks<S>(t[r], t[r + S], std::make_index_sequence<LANES>());
            t[r] += t[r + S];
        }
        halve<S / 2>(t);
    }
}

// Calls f with blocks of 8, 4, 2 and 1 of [begin, end).
template <int N, class F> static inline void blocks(int64_t begin, int64_t end, F f) {
    for (; begin + N <= end; begin += N) f(std::integral_constant<int, N>(), begin);
    if constexpr (N > 1) blocks<N / 2>(begin, end, f);
}

// c(i, j) += sum_d a(i, d) b(d, j), all values registers (weights may be numbers).
template <class A, class B, class C>
static inline void product(int64_t m, int64_t n, int64_t depth, A a, B b, C c) {
    blocks<4>(0, m, [&](auto rows, int64_t i0) {
        blocks<4>(0, n, [&](auto columns, int64_t j0) {
            constexpr int M = decltype(rows)::value, N = decltype(columns)::value;
            vec sum[M][N] = {};
            for (int64_t d = 0; d < depth; ++d)
#pragma GCC unroll 4
                for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
                    for (int j = 0; j < N; ++j) sum[i][j] += a(i0 + i, d) * b(d, j0 + j);
#pragma GCC unroll 4
            for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < N; ++j) c(i0 + i, j0 + j) += sum[i][j];
        });
    });
}

"""
