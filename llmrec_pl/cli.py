"""The command line: Lightning's subcommands and a table of plain commands.

Plain commands are imported when they are called, so that their help does not wait for torch;
LightningCLI lives in ``training``.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from llmrec_pl.errors import LLMRecError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "demo": "the main job from end to end, on ML-100K",
    "prepare": "make a canonical data set folder from raw files",
    "describe": "summarise a data set: sizes, sparsity, degree plots",
    "features": "make feature matrices from item text or images",
    "augmentation": "convert or show an exported augmentation",
    "recommend": "show recommendations with titles for single users",
    "compare": "test whether models differ, user by user, on kept metrics",
    "tune": "search for hyper-parameters on the validation split",
    "sweep": "train many models with many seeds, and make one table of them",
}
TRAINER_COMMANDS = {
    "fit": "train a model and validate it",
    "validate": "rank all items for the users of the validation split",
    "test": "open the sealed test split once",
    "predict": "write top-K lists and candidate pools for every user",
}
_USAGE = "usage: python -m llmrec_pl COMMAND [options]\n"


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; errors that a user can mend end with one message and status 1."""
    # Waiting OpenMP threads spin by default: on a shared machine a step of LLMRec took fifty
    # times the CPU time. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = sys.argv[1:] if args is None else list(args)
    if not arguments or arguments[0] in ("-h", "--help"):
        try:
            print(_help(), flush=True)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        if arguments[0] in COMMANDS:
            run_plain(arguments[0], arguments[1:])
        elif arguments[0] in TRAINER_COMMANDS:
            from llmrec_pl.training import run

            run(arguments)
        elif arguments[0] == "--version":
            from llmrec_pl import __version__

            print(__version__)
        else:
            sys.stderr.write(f"{_USAGE}unknown command {arguments[0]!r}; see --help.\n")
            sys.exit(2)
    except LLMRecError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"error: {error}; check the path, its permissions and the free space.\n")
        sys.exit(1)
    except (ValueError, TypeError) as error:
        # jsonargparse wraps what a constructor raised in its own words.
        cause = _user_error(error)
        if cause is None:
            raise
        sys.stderr.write(f"error: {cause}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped.\n")
        sys.exit(130)


def _user_error(error: BaseException) -> LLMRecError | None:
    """Find the error with a remedy among the causes of another."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, LLMRecError):
        seen = seen.__cause__ or seen.__context__
    return seen


def run_plain(name: str, arguments: list[str]) -> None:
    """Run one plain command; its module is imported only now.

    Args:
        name: a key of `COMMANDS`.
        arguments: what stands after the name on the command line.
    """
    module = import_module(f"llmrec_pl.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m llmrec_pl {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    module.run(_parse(parser, arguments))


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse; what stands after ``--`` goes unparsed to a command with a default for `more`."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    if parser.get_default("more") is None:
        return parser.parse_args(arguments)
    parsed = parser.parse_args(arguments[:cut])
    parsed.more = arguments[cut + 1 :]
    return parsed


def _help() -> str:
    lines = [_USAGE, "LLMRec and its baselines, from raw data to an honest all-ranking table.\n"]
    for heading, table in (("data and use", COMMANDS), ("training", TRAINER_COMMANDS)):
        lines.append(f"{heading}:")
        lines += [f"  {name:<14}{text}" for name, text in table.items()]
        lines.append("")
    lines.append("Each command has its own --help. A first run:")
    lines.append("  python -m llmrec_pl prepare ml-100k")
    lines.append("  python -m llmrec_pl features data/ml-100k --text title,year,genres")
    lines.append("  python -m llmrec_pl fit --config configs/ml-100k.yaml")
    return "\n".join(lines)
