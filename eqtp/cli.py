"""The command `eqtp`: parses the name of a command and hands over to its module."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import eqtp

# Command -> (module with `add_arguments` and `run`, one line of help). A module is imported when
# its command is chosen: `eqtp --help` needs none of them.
COMMANDS = {
    "train": ("eqtp.models.training.train", "train a potential from a config or preset"),
    "evaluate": ("eqtp.models.training.evaluate", "errors of a model on labelled frames"),
    "md": ("eqtp.models.md", "molecular dynamics with a model"),
    "sample": ("eqtp.models.training.sample", "make labelled frames of a molecule with GFN2-xTB"),
    "accelerate": (
        "eqtp.models.acceleration.command",
        "what eqtp.accelerate gains for a mace-torch model",
    ),
    "bench": ("eqtp.benchmarks.__main__", "products, models and rivals, timed and checked"),
}

# What wrong input raises: shown as one line. Anything else is a defect and keeps its traceback.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotImplementedError,
    ImportError,
    FloatingPointError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status, 2 for wrong input.

    Args:
        argv: Arguments without the program's name; None: those of the process.

    Example:
        >>> main(["train", "no-such-preset"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    chosen, rest = parser.parse_args(arguments[:1]), arguments[1:]
    if chosen.command is None:
        parser.print_help()
        return 2
    traceback = "--traceback" in rest  # for every command, also those that hand their line on
    rest = [argument for argument in rest if argument != "--traceback"]
    try:
        module = importlib.import_module(COMMANDS[chosen.command][0])
        command_parser = argparse.ArgumentParser(prog=f"eqtp {chosen.command}")
        module.add_arguments(command_parser)
        command_parser.add_argument(
            "--traceback", action="store_true", help="show where an error was raised"
        )
        return int(module.run(_parse(command_parser, rest)))
    except USER_ERRORS as error:
        if traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Options may stand anywhere, unless the command hands the rest of the line on as it is."""
    if any(action.nargs == argparse.REMAINDER for action in parser._actions):
        return parser.parse_args(arguments)
    return parser.parse_intermixed_args(arguments)


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="eqtp",
        description="Equivariant tensor products and the potentials built on them.",
        epilog=f"commands:\n{lines}\n\neqtp COMMAND --help shows the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"eqtp {eqtp.__version__}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
