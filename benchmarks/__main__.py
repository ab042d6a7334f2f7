"""`eqtp bench [NAME]` and `python -m eqtp.benchmarks [NAME]`: lists or runs the benchmarks.

eqtp bench products --quick          one family, a few small cases
eqtp bench --quick                   all families, minutes
eqtp bench all                       all families, more than an hour
eqtp bench compare A.json B.json     what became slower from one run to another
eqtp bench findings SUITE.json       the statements of "The Price of Freedom", measured
eqtp bench pictures SUITE.json       the README's pictures
eqtp bench --advise "mace 128x0e+128x1o"
eqtp bench training_step --help      the special benchmarks have options of their own
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence

from eqtp.benchmarks.harness import advise, compare, findings, pictures
from eqtp.benchmarks.harness.run import FAMILIES, run_families
from eqtp.benchmarks.harness.run import add_arguments as add_family_arguments

SPECIAL = {
    "gaunt_contraction": "the product of MACE: Clebsch-Gordan beside Gaunt products",
    "first_call": "the first call of a product: compiling its kernels, or the cache",
    "radial_fusion": "the radial network's last layer inside the convolution: time and memory",
    "gaunt_product": "Gaunt products beside the published algorithms and CG, by degree",
    "path_gate": "a MACE whose paths were gated to a share: flops and time of product and step",
    "so2_convolution": "SO(2) convolutions beside CG and a plain eSCN: time, memory over lmax",
    "training_step": "a MACE training step and evaluation beside mace-torch",
    "accelerate": "a mace-torch model before and after eqtp.accelerate",
    "tensornet": "a TensorNet training step and evaluation beside plain torch and torchmd-net",
    "model_training": "eqtp's models trained on 3BPA for the same CPU time or number of steps",
    "mace_training": "one hour of 3BPA training beside mace-torch, one core each",
}
"""Benchmarks with a bar and options of their own."""

COMMANDS = {
    "all": "every family",
    "compare": "two runs: what became slower, with its uncertainty",
    "findings": "a run of `products`: the statements of The Price of Freedom, measured",
    "pictures": "a run of all families: the README's pictures, SVG files beside the record",
}
Analysis = tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
ANALYSES: dict[str, Analysis] = {
    "compare": (compare.add_arguments, compare.run),
    "findings": (findings.add_arguments, findings.run),
    "pictures": (pictures.add_arguments, pictures.run),
}
"""Commands that read the files of runs: their options, and what runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One line of words, which `run` hands on: a name or nothing, then the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _overview()
    add_family_arguments(parser)
    parser.add_argument("--advise", nargs=argparse.REMAINDER, metavar="MODEL", help=advise.HELP)
    names = {**FAMILIES, **SPECIAL, **COMMANDS}
    parser.add_argument("name", nargs="?", choices=names, help="without it: list them")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the benchmark's own options")


def _overview() -> str:
    lines = []
    for title, group in (("families", FAMILIES), ("special", SPECIAL), ("other", COMMANDS)):
        lines += [f"{title}:", *(f"  {name:24}{what}" for name, what in group.items())]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Lists the benchmarks, or runs the chosen one with its options."""
    if args.advise is not None:
        return advise.main(args.advise)
    if args.name is None and args.quick:
        return run_families(list(FAMILIES), args)
    if args.name is None:
        print(f"{_overview()}\n\neqtp bench NAME --help: its options; --quick: all in minutes")
        return 0
    if args.name in SPECIAL:
        module = importlib.import_module(f"eqtp.benchmarks.{args.name}")
        status: int = module.main(args.options)
        return status
    parser = argparse.ArgumentParser(prog=f"eqtp bench {args.name}")
    if args.name in ANALYSES:
        add_options, analyse = ANALYSES[args.name]
        add_options(parser)
        return analyse(parser.parse_args(args.options))
    add_family_arguments(parser)
    families = list(FAMILIES) if args.name == "all" else [args.name]
    return run_families(families, parser.parse_args(args.options, args))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks`."""
    parser = argparse.ArgumentParser(prog="eqtp bench", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
