"""`python -m opd_verl.data COMMAND ...`: data files for on-policy distillation, in verl's parquet format.

python -m opd_verl.data convert gsm8k --split train --out data/gsm8k.parquet
python -m opd_verl.data COMMAND --help          # each command with a complete example
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from opd_verl.config.errors import ConfigError
from opd_verl.data import contexts, convert, dedup, rollouts, sft, subsets, template
from opd_verl.sampling.child import ChildError


class Command(Protocol):
    """A module that is a command. Its docstring is its help text; the first line is shown in the list of commands."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's arguments."""
        ...

    def run(self, options: argparse.Namespace) -> object:
        """Runs the command. Raises ConfigError if the user can mend the input."""
        ...


COMMANDS: dict[str, Command] = {
    "convert": convert,
    "dedup": dedup,
    "rollouts": rollouts,
    "subsets": subsets,
    "template": template,
    "contexts": contexts,
    "sft": sft,
}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands; `options.run` then holds the function of the chosen command."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m opd_verl.data", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = command.__doc__ or ""
        chosen = commands.add_parser(name, help=text.split("\n")[0], description=text, formatter_class=form)
        command.add_arguments(chosen)
        chosen.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 1 if the command refused its input."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except (ConfigError, ChildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
