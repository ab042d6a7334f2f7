"""Microbenchmarks and training benchmarks; imported as `eqtp.benchmarks`."""

if __name__ != "eqtp.benchmarks":
    raise ImportError("import this package as eqtp.benchmarks")
