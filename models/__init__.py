"""Interatomic potentials built on the public tensor products; imported as `eqtp.models`."""

if __name__ != "eqtp.models":
    raise ImportError("import this package as eqtp.models")
