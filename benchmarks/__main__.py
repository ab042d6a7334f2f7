"""`eqtp bench [NAME]` and `python -m eqtp.benchmarks [NAME]`: lists or runs the benchmarks."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

BENCHMARKS = {
    "channelwise": "the convolution of MACE and NequIP beside e3nn, error beside time",
    "radial_fusion": "the radial network's last layer inside the convolution: time and memory",
    "path_gate": "a MACE whose paths were gated to a share: flops and time of product and step",
    "training_step": "a MACE training step and evaluation beside mace-torch",
    "accelerate": "a mace-torch model before and after eqtp.accelerate",
    "tensornet": "a TensorNet training step and evaluation beside plain torch and torchmd-net",
    "model_training": "eqtp's models trained on 3BPA for the same CPU time or number of steps",
    "mace_training": "one hour of 3BPA training beside mace-torch, one core each",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's name and its own options, which the benchmark parses."""
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="without it: list them")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the benchmark's own options")


def run(args: argparse.Namespace) -> int:
    """Lists the benchmarks, or runs the chosen one with its options."""
    if args.name is None:
        print("\n".join(f"{name:16}{what}" for name, what in BENCHMARKS.items()))
        return 0
    module = importlib.import_module(f"eqtp.benchmarks.{args.name}")
    status: int = module.main(args.options)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks`."""
    parser = argparse.ArgumentParser(prog="eqtp bench", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
